//! Which instruction-set extensions exist.

use vmtape_arch::cpuid::{CpuidEntry, find};

/// Extensions whose absence a guest can notice by #UD or by another decoding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Features {
    pub bmi1: bool,
    pub bmi2: bool,
    pub adx: bool,
    pub lzcnt: bool,
    pub movbe: bool,
    pub rdtscp: bool,
    pub rdpid: bool,
    pub invpcid: bool,
    pub rdrand: bool,
    pub rdseed: bool,
    pub smap: bool,
    pub xsave: bool,
    pub pku: bool,
    pub clflushopt: bool,
    pub clwb: bool,
    pub monitor: bool,
}

impl Default for Features {
    fn default() -> Self {
        Self {
            bmi1: true,
            bmi2: true,
            adx: true,
            lzcnt: true,
            movbe: true,
            rdtscp: true,
            rdpid: true,
            invpcid: true,
            rdrand: true,
            rdseed: true,
            smap: true,
            xsave: true,
            pku: true,
            clflushopt: true,
            clwb: true,
            monitor: true,
        }
    }
}

impl Features {
    /// What a guest's CPUID says. See: SDM vol. 2A CPUID, APM vol. 3 appendix E
    pub fn from_cpuid(entries: &[CpuidEntry]) -> Self {
        let leaf = |function| find(entries, function, 0).copied().unwrap_or_default();
        let (basic, structured, extended) = (leaf(1), leaf(7), leaf(0x8000_0001));
        let bit = |register: u32, bit: u32| register >> bit & 1 != 0;
        Self {
            bmi1: bit(structured.ebx, 3),
            bmi2: bit(structured.ebx, 8),
            adx: bit(structured.ebx, 19),
            lzcnt: bit(extended.ecx, 5),
            movbe: bit(basic.ecx, 22),
            rdtscp: bit(extended.edx, 27),
            rdpid: bit(structured.ecx, 22),
            invpcid: bit(structured.ebx, 10),
            rdrand: bit(basic.ecx, 30),
            rdseed: bit(structured.ebx, 18),
            smap: bit(structured.ebx, 20),
            xsave: bit(basic.ecx, 26),
            pku: bit(structured.ecx, 3),
            clflushopt: bit(structured.ebx, 23),
            clwb: bit(structured.ebx, 24),
            monitor: bit(basic.ecx, 3),
        }
    }
}
