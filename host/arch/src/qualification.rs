//! Exit qualifications of VMX, but for EPT's, which stands with the exits.
//!
//! See: SDM vol. 3C 28.2.1 Basic VM-Exit Information

use bitfield_struct::bitfield;

/// Exit qualification of a control-register access. See: SDM vol. 3C Table 28-3
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct CrQualification {
    #[bits(4)]
    pub number: u8,
    /// 0 MOV to CR, 1 MOV from CR, 2 CLTS, 3 LMSW.
    #[bits(2)]
    pub kind: u8,
    pub lmsw_memory: bool,
    __: bool,
    #[bits(4)]
    pub gpr: u8,
    #[bits(4)]
    __: u8,
    pub lmsw_source: u16,
    __: u32,
}

/// Exit qualification of MOV DR. See: SDM vol. 3C Table 28-4
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct DrQualification {
    #[bits(3)]
    pub number: u8,
    __: bool,
    /// MOV from DR.
    pub read: bool,
    #[bits(3)]
    __: u8,
    #[bits(4)]
    pub gpr: u8,
    #[bits(52)]
    __: u64,
}

/// Exit qualification of an I/O instruction. See: SDM vol. 3C Table 28-5
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct IoQualification {
    #[bits(3)]
    pub size_minus_one: u8,
    pub input: bool,
    pub string: bool,
    pub rep: bool,
    pub immediate: bool,
    #[bits(9)]
    __: u16,
    pub port: u16,
    __: u32,
}

/// Exit qualification of an APIC access. See: SDM vol. 3C Table 28-6
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct ApicQualification {
    #[bits(12)]
    pub offset: u16,
    /// 0 linear read, 1 linear write, 2 fetch, 3 during event delivery.
    #[bits(4)]
    pub kind: u8,
    #[bits(48)]
    __: u64,
}
