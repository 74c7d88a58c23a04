//! Control, debug and flag registers.

use bitfield_struct::bitfield;
use serde::{Deserialize, Serialize};
use zerocopy::{Immutable, IntoBytes};

/// CR0. See: SDM vol. 3A 2.5 Control Registers
#[bitfield(u64)]
#[derive(PartialEq, Eq, Serialize, Deserialize)]
pub struct Cr0 {
    pub pe: bool,
    pub mp: bool,
    pub em: bool,
    pub ts: bool,
    pub et: bool,
    pub ne: bool,
    #[bits(10)]
    __: u16,
    pub wp: bool,
    __: bool,
    pub am: bool,
    #[bits(10)]
    __: u16,
    pub nw: bool,
    pub cd: bool,
    pub pg: bool,
    __: u32,
}

/// CR4. See: SDM vol. 3A 2.5 Control Registers
#[bitfield(u64)]
#[derive(PartialEq, Eq, Serialize, Deserialize)]
pub struct Cr4 {
    pub vme: bool,
    pub pvi: bool,
    pub tsd: bool,
    pub de: bool,
    pub pse: bool,
    pub pae: bool,
    pub mce: bool,
    pub pge: bool,
    pub pce: bool,
    pub osfxsr: bool,
    pub osxmmexcpt: bool,
    pub umip: bool,
    pub la57: bool,
    pub vmxe: bool,
    pub smxe: bool,
    __: bool,
    pub fsgsbase: bool,
    pub pcide: bool,
    pub osxsave: bool,
    pub kl: bool,
    pub smep: bool,
    pub smap: bool,
    pub pke: bool,
    pub cet: bool,
    pub pks: bool,
    #[bits(39)]
    __: u64,
}

/// IA32_EFER. See: APM vol. 2 3.1.7 Extended Feature Enable Register
#[bitfield(u64)]
#[derive(PartialEq, Eq, Serialize, Deserialize)]
pub struct Efer {
    pub sce: bool,
    #[bits(7)]
    __: u8,
    pub lme: bool,
    __: bool,
    pub lma: bool,
    pub nxe: bool,
    pub svme: bool,
    pub lmsle: bool,
    pub ffxsr: bool,
    pub tce: bool,
    #[bits(48)]
    __: u64,
}

/// RFLAGS. See: SDM vol. 1 3.4.3 EFLAGS Register
#[bitfield(u64)]
#[derive(PartialEq, Eq, Serialize, Deserialize)]
pub struct Rflags {
    pub cf: bool,
    pub always_one: bool,
    pub pf: bool,
    __: bool,
    pub af: bool,
    __: bool,
    pub zf: bool,
    pub sf: bool,
    pub tf: bool,
    pub intr: bool,
    pub df: bool,
    pub of: bool,
    #[bits(2)]
    pub iopl: u8,
    pub nt: bool,
    __: bool,
    pub rf: bool,
    pub vm: bool,
    pub ac: bool,
    pub vif: bool,
    pub vip: bool,
    pub id: bool,
    #[bits(42)]
    __: u64,
}

/// DR6. See: SDM vol. 3B 18.2.3 Debug Status Register
#[bitfield(u64)]
#[derive(PartialEq, Eq, Serialize, Deserialize)]
pub struct Dr6 {
    #[bits(4)]
    pub b: u8,
    #[bits(7)]
    __: u8,
    /// Cleared by a bus-lock #DB; reads as one otherwise.
    pub bld: bool,
    __: bool,
    pub bd: bool,
    pub bs: bool,
    pub bt: bool,
    /// Cleared by a #DB inside a transaction; reads as one otherwise.
    pub rtm: bool,
    #[bits(47)]
    __: u64,
}

/// DR7. See: SDM vol. 3B 18.2.4 Debug Control Register
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct Dr7 {
    /// L0, G0, L1, G1, ...
    pub enable: u8,
    pub le: bool,
    pub ge: bool,
    #[bits(default = true)]
    pub always_one: bool,
    pub rtm: bool,
    __: bool,
    /// General detect: #DB at the next access to a debug register.
    pub gd: bool,
    #[bits(2)]
    __: u8,
    /// R/W0, LEN0, R/W1, LEN1, ...
    pub conditions: u16,
    __: u32,
}

impl Dr7 {
    /// Whether breakpoint 0-3 is enabled, locally or globally.
    pub const fn is_enabled(self, n: u32) -> bool {
        self.enable() >> (2 * n) & 3 != 0
    }

    /// What breakpoint 0-3 watches: 0 instructions, 1 writes, 2 I/O, 3 reads and writes.
    pub const fn rw(self, n: u32) -> u8 {
        (self.conditions() >> (4 * n) & 3) as u8
    }

    /// Bytes that breakpoint 0-3 watches.
    pub const fn len(self, n: u32) -> u64 {
        match self.conditions() >> (4 * n + 2) & 3 {
            0 => 1,
            1 => 2,
            2 => 8,
            _ => 4,
        }
    }
}

/// DR6 after reset: its reserved bits that read as one.
pub const DR6_INIT: u64 = 0xffff_0ff0;
/// DR7 after reset: bit 10 reads as one.
pub const DR7_INIT: u64 = 0x400;

/// Segment attributes in the layout of the VMCS access-rights field, which a `Segment` carries.
/// See: SDM vol. 3C 25.4.1 Guest Register State, Table 25-2
#[bitfield(u16)]
#[derive(PartialEq, Eq, Serialize, Deserialize, IntoBytes, Immutable)]
pub struct SegAttr {
    #[bits(4)]
    pub typ: u8,
    /// 1 for code and data, 0 for system segments.
    pub s: bool,
    #[bits(2)]
    pub dpl: u8,
    pub present: bool,
    #[bits(4)]
    __: u8,
    pub avl: bool,
    /// 64-bit code segment.
    pub l: bool,
    /// Default operation size.
    pub db: bool,
    pub g: bool,
}
