//! The guest's CPUID: KVM_SET_CPUID2, the bits that follow the vCPU's state, and the CPUID instruction.
//!
//! See: KVM arch/x86/kvm/cpuid.c

use crate::vcpu::Vcpu;
use serde::{Deserialize, Serialize};
use vmtape_abi::{Errno, Host};
use vmtape_arch::{
    cpuid::{self, CPUID_FLAG_SIGNIFICANT_INDEX, CpuidEntry},
    note::Note,
    paging::bits,
    vcpu::{VcpuState, gpr},
};

const ENABLE: u64 = 1 << 11;

/// A register of a leaf.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reg {
    Eax,
    Ebx,
    Ecx,
    Edx,
}

/// A CPUID bit: leaf, subleaf, register, bit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Feature(pub u32, pub u32, pub Reg, pub u32);

impl Feature {
    /// Whether a table has the bit.
    pub fn is_in(self, entries: &[CpuidEntry]) -> bool {
        let Self(function, index, reg, bit) = self;
        cpuid::find(entries, function, index).is_some_and(|e| register(e, reg) >> bit & 1 != 0)
    }
}

/// Features that KVM's handlers ask for. See: SDM vol. 2A CPUID; APM vol. 3 appendix E
pub mod feature {
    use super::{Feature, Reg::*};
    pub const PSE: Feature = Feature(1, 0, Edx, 3);
    pub const TSC: Feature = Feature(1, 0, Edx, 4);
    pub const MCE: Feature = Feature(1, 0, Edx, 7);
    pub const APIC: Feature = Feature(1, 0, Edx, 9);
    pub const MTRR: Feature = Feature(1, 0, Edx, 12);
    pub const MCA: Feature = Feature(1, 0, Edx, 14);
    pub const PAT: Feature = Feature(1, 0, Edx, 16);
    pub const VME: Feature = Feature(1, 0, Edx, 1);
    pub const DE: Feature = Feature(1, 0, Edx, 2);
    pub const PGE: Feature = Feature(1, 0, Edx, 13);
    pub const FXSR: Feature = Feature(1, 0, Edx, 24);
    pub const XMM: Feature = Feature(1, 0, Edx, 25);
    pub const MONITOR: Feature = Feature(1, 0, Ecx, 3);
    pub const VMX: Feature = Feature(1, 0, Ecx, 5);
    pub const PDCM: Feature = Feature(1, 0, Ecx, 15);
    pub const PCID: Feature = Feature(1, 0, Ecx, 17);
    pub const X2APIC: Feature = Feature(1, 0, Ecx, 21);
    pub const TSC_DEADLINE: Feature = Feature(1, 0, Ecx, 24);
    pub const XSAVE: Feature = Feature(1, 0, Ecx, 26);
    pub const OSXSAVE: Feature = Feature(1, 0, Ecx, 27);
    pub const ARAT: Feature = Feature(6, 0, Eax, 2);
    pub const FSGSBASE: Feature = Feature(7, 0, Ebx, 0);
    pub const TSC_ADJUST: Feature = Feature(7, 0, Ebx, 1);
    pub const SMEP: Feature = Feature(7, 0, Ebx, 7);
    pub const INVPCID: Feature = Feature(7, 0, Ebx, 10);
    pub const RTM: Feature = Feature(7, 0, Ebx, 11);
    pub const SMAP: Feature = Feature(7, 0, Ebx, 20);
    pub const UMIP: Feature = Feature(7, 0, Ecx, 2);
    pub const PKU: Feature = Feature(7, 0, Ecx, 3);
    pub const OSPKE: Feature = Feature(7, 0, Ecx, 4);
    pub const WAITPKG: Feature = Feature(7, 0, Ecx, 5);
    pub const SHSTK: Feature = Feature(7, 0, Ecx, 7);
    pub const LA57: Feature = Feature(7, 0, Ecx, 16);
    pub const RDPID: Feature = Feature(7, 0, Ecx, 22);
    pub const BUS_LOCK_DETECT: Feature = Feature(7, 0, Ecx, 24);
    pub const PKS: Feature = Feature(7, 0, Ecx, 31);
    pub const IBT: Feature = Feature(7, 0, Edx, 20);
    pub const SPEC_CTRL: Feature = Feature(7, 0, Edx, 26);
    pub const STIBP: Feature = Feature(7, 0, Edx, 27);
    pub const FLUSH_L1D: Feature = Feature(7, 0, Edx, 28);
    pub const ARCH_CAPABILITIES: Feature = Feature(7, 0, Edx, 29);
    pub const SPEC_CTRL_SSBD: Feature = Feature(7, 0, Edx, 31);
    pub const XSAVES: Feature = Feature(0xd, 1, Eax, 3);
    pub const XSAVEC: Feature = Feature(0xd, 1, Eax, 1);
    pub const XFD: Feature = Feature(0xd, 1, Eax, 4);
    pub const SVM: Feature = Feature(0x8000_0001, 0, Ecx, 2);
    pub const OSVW: Feature = Feature(0x8000_0001, 0, Ecx, 9);
    pub const SYSCALL: Feature = Feature(0x8000_0001, 0, Edx, 11);
    pub const NX: Feature = Feature(0x8000_0001, 0, Edx, 20);
    pub const FXSR_OPT: Feature = Feature(0x8000_0001, 0, Edx, 25);
    pub const GBPAGES: Feature = Feature(0x8000_0001, 0, Edx, 26);
    pub const RDTSCP: Feature = Feature(0x8000_0001, 0, Edx, 27);
    pub const LM: Feature = Feature(0x8000_0001, 0, Edx, 29);
    pub const NPT: Feature = Feature(0x8000_000a, 0, Edx, 0);
    pub const LBRV: Feature = Feature(0x8000_000a, 0, Edx, 1);
    pub const NRIPS: Feature = Feature(0x8000_000a, 0, Edx, 3);
    pub const TSCRATEMSR: Feature = Feature(0x8000_000a, 0, Edx, 4);
    pub const VMCBCLEAN: Feature = Feature(0x8000_000a, 0, Edx, 5);
    pub const FLUSHBYASID: Feature = Feature(0x8000_000a, 0, Edx, 6);
    pub const PAUSEFILTER: Feature = Feature(0x8000_000a, 0, Edx, 10);
    pub const PFTHRESHOLD: Feature = Feature(0x8000_000a, 0, Edx, 12);
    pub const V_VMSAVE_VMLOAD: Feature = Feature(0x8000_000a, 0, Edx, 15);
    pub const VGIF: Feature = Feature(0x8000_000a, 0, Edx, 16);
    pub const VNMI: Feature = Feature(0x8000_000a, 0, Edx, 25);
    pub const SVME_ADDR_CHK: Feature = Feature(0x8000_000a, 0, Edx, 28);
    pub const AMD_IBPB: Feature = Feature(0x8000_0008, 0, Ebx, 12);
    pub const AMD_IBRS: Feature = Feature(0x8000_0008, 0, Ebx, 14);
    pub const AMD_STIBP: Feature = Feature(0x8000_0008, 0, Ebx, 15);
    pub const AMD_SSBD: Feature = Feature(0x8000_0008, 0, Ebx, 24);
    pub const VIRT_SSBD: Feature = Feature(0x8000_0008, 0, Ebx, 25);
    pub const AUTOIBRS: Feature = Feature(0x8000_0021, 0, Eax, 8);
    pub const SBPB: Feature = Feature(0x8000_0021, 0, Eax, 27);
}

/// What CPUID answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    pub regs: [u32; 4],
    pub found: bool,
    pub used_max_basic: bool,
}

/// A vCPU's CPUID table.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestCpuid {
    entries: Vec<CpuidEntry>,
    // What KVM derives once, when a table is taken.
    maxphyaddr: u8,
    amd_compatible: bool,
}

impl GuestCpuid {
    /// Checks a table as `kvm_check_cpuid` does.
    pub fn new(entries: &[CpuidEntry]) -> Result<Self, Errno> {
        let virt = cpuid::find(entries, 0x8000_0008, 0).map_or(0, |e| e.eax >> 8 & 0xff);
        if ![0, 48, 57].contains(&virt) {
            return Err(Errno::EINVAL);
        }
        Ok(Self::build(entries.to_vec()))
    }

    /// A table that is only compared.
    pub fn unchecked(entries: &[CpuidEntry]) -> Self {
        Self::build(entries.to_vec())
    }

    /// Puts other entries in place and derives nothing from them, as a failing ioctl of old did.
    pub fn overwrite(&mut self, entries: &[CpuidEntry]) {
        self.entries = entries.to_vec();
    }

    fn build(entries: Vec<CpuidEntry>) -> Self {
        let maxphyaddr = cpuid::maxphyaddr(&entries);
        let amd_compatible = cpuid::find(&entries, 0, 0).is_some_and(is_amd_or_hygon);
        Self { entries, maxphyaddr, amd_compatible }
    }

    /// The table.
    pub fn entries(&self) -> &[CpuidEntry] {
        &self.entries
    }

    /// The guest's MAXPHYADDR.
    pub fn maxphyaddr(&self) -> u8 {
        self.maxphyaddr
    }

    /// Bits that no guest physical address may have (`vcpu->arch.reserved_gpa_bits`).
    pub fn reserved_gpa_bits(&self) -> u64 {
        bits(self.maxphyaddr.into(), 63)
    }

    /// Whether the guest is told that it runs on AMD or Hygon (`guest_cpuid_is_amd_compatible`).
    pub fn amd_compatible(&self) -> bool {
        self.amd_compatible
    }

    /// Whether the guest is told that it runs on Intel or a CPU with Intel's rules.
    pub fn intel_compatible(&self) -> bool {
        !self.amd_compatible
    }

    /// `guest_cpuid_has`.
    pub fn has(&self, feature: Feature) -> bool {
        feature.is_in(&self.entries)
    }

    /// Bits of virtual addresses that a guest in this mode may use.
    pub fn virt_addr_bits(&self, la57: bool) -> u32 {
        if la57 { 57 } else { 48 }
    }

    /// `cpuid_entry2_find`.
    pub fn find(&self, function: u32, index: u32) -> Option<&CpuidEntry> {
        cpuid::find(&self.entries, function, index)
    }

    /// `kvm_find_cpuid_entry`: the first entry of a function, whatever its index.
    fn find_any(&self, function: u32) -> Option<&CpuidEntry> {
        self.entries.iter().find(|e| e.function == function)
    }

    /// `get_out_of_range_cpuid_entry`: Intel CPUs answer a leaf out of range with the highest basic one.
    fn out_of_range(&self, function: &mut u32, index: u32) -> Option<&CpuidEntry> {
        let basic = self.find_any(0)?;
        if self.amd_compatible {
            return None;
        }
        let class = match *function {
            0x4000_0000..=0x4fff_ffff => *function & 0xffff_ff00,
            0xc000_0000.. => 0xc000_0000,
            other => other & 0x8000_0000,
        };
        if self.find_any(class).is_some_and(|class| *function <= class.eax) {
            return None;
        }
        *function = basic.eax;
        self.find(basic.eax, index)
    }

    /// `kvm_cpuid`.
    pub fn lookup(&self, function: u32, index: u32) -> Answer {
        let mut leaf = function;
        let exact = self.find(function, index);
        let entry = exact.or_else(|| self.out_of_range(&mut leaf, index));
        let mut answer = Answer { found: exact.is_some(), ..Default::default() };
        if let Some(e) = entry {
            answer.used_max_basic = exact.is_none();
            answer.regs = [e.eax, e.ebx, e.ecx, e.edx];
        } else if let (0xb | 0x1f, Some(first)) = (leaf, self.find(leaf, 1)) {
            // CL is passed through and EDX is always the x2APIC id, even for undefined subleaves.
            answer.regs = [0, 0, index & 0xff, first.edx];
        }
        answer
    }

    /// `kvm_update_cpuid_runtime`: OSXSAVE, APIC, OSPKE and the sizes of the XSAVE area follow the vCPU.
    pub fn update_runtime(&mut self, state: &VcpuState, apic_base: u64) {
        let cr4 = state.cr4();
        for e in &mut self.entries {
            match (e.function, e.index) {
                (1, _) => {
                    put(&mut e.ecx, feature::OSXSAVE.3, cr4.osxsave());
                    put(&mut e.edx, feature::APIC.3, apic_base & ENABLE != 0);
                }
                (7, 0) => put(&mut e.ecx, feature::OSPKE.3, cr4.pke()),
                _ => {}
            }
        }
        let size = self.xsave_size(state.xcr0, false);
        let compact = self.has(feature::XSAVES) || self.has(feature::XSAVEC);
        let compacted = self.xsave_size(state.xcr0 | state.xss, true);
        for e in self.entries.iter_mut().filter(|e| e.function == 0xd) {
            match e.index {
                0 => e.ebx = size,
                1 if compact => e.ebx = compacted,
                _ => {}
            }
        }
    }

    /// `xstate_required_size`: bytes of an XSAVE area with these components, from leaf 0xD's sizes and offsets.
    fn xsave_size(&self, components: u64, compacted: bool) -> u32 {
        const LEGACY_AND_HEADER: u32 = 512 + 64;
        let mut size = LEGACY_AND_HEADER;
        for (index, e) in
            (2..63).filter(|i| components >> i & 1 != 0).filter_map(|i| Some((i, self.find(0xd, i)?)))
        {
            debug_assert_eq!(e.index, index);
            let offset = match (compacted, e.ecx & 2 != 0) {
                (true, true) => size.next_multiple_of(64),
                (true, false) => size,
                (false, _) => e.ebx,
            };
            size = size.max(offset + e.eax);
        }
        size
    }

    /// The XCR0 bits that the guest may set (`guest_supported_xcr0`).
    pub fn supported_xcr0(&self) -> u64 {
        self.find(0xd, 0).map_or(0, |e| u64::from(e.eax) | u64::from(e.edx) << 32)
    }
}

fn register(e: &CpuidEntry, reg: Reg) -> u32 {
    match reg {
        Reg::Eax => e.eax,
        Reg::Ebx => e.ebx,
        Reg::Ecx => e.ecx,
        Reg::Edx => e.edx,
    }
}

fn put(word: &mut u32, bit: u32, on: bool) {
    *word = *word & !(1 << bit) | u32::from(on) << bit;
}

fn is_amd_or_hygon(leaf0: &CpuidEntry) -> bool {
    let vendor = [leaf0.ebx, leaf0.edx, leaf0.ecx].map(u32::to_le_bytes).concat();
    vendor == *b"AuthenticAMD" || vendor == *b"HygonGenuine"
}

/// `kvm_emulate_cpuid` without the skip: answers from RAX and RCX into the four registers.
pub fn emulate(vcpu: &Vcpu, state: &mut VcpuState, host: &mut dyn Host) {
    let (function, index) = (state.gpr[gpr::RAX] as u32, state.gpr[gpr::RCX] as u32);
    let answer = vcpu.cpuid.lookup(function, index);
    let [eax, ebx, ecx, edx] = answer.regs;
    for (reg, value) in [(gpr::RAX, eax), (gpr::RBX, ebx), (gpr::RCX, ecx), (gpr::RDX, edx)] {
        state.gpr[reg] = value.into();
    }
    let Answer { found, used_max_basic, .. } = answer;
    vcpu.note(Note::Cpuid { function, index, eax, ebx, ecx, edx, found, used_max_basic }, host);
}

/// Whether two tables are equal as `kvm_cpuid_check_equal` sees it: same entries in the same order, padding aside.
pub fn equal(a: &[CpuidEntry], b: &[CpuidEntry]) -> bool {
    let plain = |e: &CpuidEntry| CpuidEntry { pad: 0, ..*e };
    a.iter().map(plain).eq(b.iter().map(plain))
}

/// An entry of a function whose subleaves are selected by ECX.
pub fn indexed(function: u32, index: u32, [eax, ebx, ecx, edx]: [u32; 4]) -> CpuidEntry {
    CpuidEntry { function, index, flags: CPUID_FLAG_SIGNIFICANT_INDEX, eax, ebx, ecx, edx, pad: 0 }
}

/// An entry of a function without subleaves.
pub fn plain(function: u32, [eax, ebx, ecx, edx]: [u32; 4]) -> CpuidEntry {
    CpuidEntry { function, eax, ebx, ecx, edx, ..Default::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTEL: [u32; 3] = [0x756e_6547, 0x6c65_746e, 0x4965_6e69];

    fn table(vendor: [u32; 3]) -> GuestCpuid {
        GuestCpuid::new(&[
            plain(0, [0xd, vendor[0], vendor[1], vendor[2]]),
            plain(1, [0x706e5, 0x10800, 1 << 26, 0]),
            indexed(7, 0, [0; 4]),
            indexed(0xb, 1, [4, 8, 0x201, 77]),
            indexed(0xd, 0, [7, 0, 0, 0]),
            indexed(0xd, 2, [256, 576, 0, 0]),
            plain(0x8000_0000, [0x8000_0008, 0, 0, 0]),
            plain(0x8000_0008, [0x3028, 0, 0, 0]),
        ])
        .unwrap()
    }

    #[test]
    fn out_of_range_leaves_follow_the_vendor() {
        let intel = table(INTEL);
        let beyond = intel.lookup(0x20, 0);
        assert_eq!(beyond, Answer { regs: [7, 0, 0, 0], found: false, used_max_basic: true });
        let amd = table([0x6874_7541, 0x444d_4163, 0x6974_6e65]);
        assert!(amd.amd_compatible());
        assert_eq!(amd.lookup(0x20, 0), Answer::default());
        // In range but absent: zeros on both, except for the topology leaves.
        assert_eq!(intel.lookup(5, 0), Answer::default());
        assert_eq!(intel.lookup(0xb, 9).regs, [0, 0, 9, 77]);
    }

    #[test]
    fn runtime_bits() {
        let mut cpuid = table(INTEL);
        let mut state = VcpuState::reset();
        state.cr4 = vmtape_arch::regs::Cr4::new().with_osxsave(true).with_pke(true).into_bits();
        state.xcr0 = 7;
        cpuid.update_runtime(&state, ENABLE);
        assert!(cpuid.has(feature::OSXSAVE) && cpuid.has(feature::OSPKE) && cpuid.has(feature::APIC));
        assert_eq!(cpuid.find(0xd, 0).unwrap().ebx, 576 + 256);
    }

    /// See: KVM cpuid.c kvm_cpuid_check_equal()
    #[test]
    fn tables_are_compared_entry_by_entry_without_padding() {
        let one = [plain(1, [1, 2, 3, 4]), indexed(7, 0, [5, 6, 7, 8])];
        assert!(equal(&one, &one.map(|e| CpuidEntry { pad: 9, ..e })));
        assert!(!equal(&one, &[one[1], one[0]]) && !equal(&one, &one[..1]));
        let [first, second] = one;
        for other in [
            CpuidEntry { function: 8, ..second },
            CpuidEntry { index: 1, ..second },
            CpuidEntry { flags: 0, ..second },
            CpuidEntry { eax: 0, ..second },
            CpuidEntry { ebx: 0, ..second },
            CpuidEntry { ecx: 0, ..second },
            CpuidEntry { edx: 0, ..second },
        ] {
            assert!(!equal(&one, &[first, other]), "{other:?}");
        }
    }

    #[test]
    fn errors_of_the_ioctl() {
        assert_eq!(GuestCpuid::new(&[plain(0x8000_0008, [0x3428, 0, 0, 0])]), Err(Errno::EINVAL));
        assert_eq!(table(INTEL).maxphyaddr(), 40);
        assert_eq!(GuestCpuid::new(&[]).unwrap().maxphyaddr(), 36);
    }
}
