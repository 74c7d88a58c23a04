//! Where everything is while compiled code runs: guest registers in host registers, and the rest in a frame that RBP points
//! into.
//!
//! RAX, R14 and R15 are scratch, R13 counts the budget down. RCX and RDX are their own homes, so that shifts by CL and
//! products need no moves. XMM registers stay where the guest has them.

use crate::interface::{Miss, TlbEntry, Use};
use crate::links::{Slot, Target};
use std::mem::offset_of;

/// Host registers by their encoding number.
pub(crate) mod host {
    pub(crate) const RAX: u8 = 0;
    /// Host addresses and linear ones.
    pub(crate) const ADDRESS: u8 = 14;
    pub(crate) const SCRATCH: u8 = 15;
}

/// What RBP points 128 bytes into.
#[repr(C)]
pub(crate) struct Frame {
    pub(crate) gpr: [u64; 16],
    /// Status flags as LAHF and SETO give them: OF in bit 0, the others from bit 8. As wide as they are stored, so that who reads
    /// them need not wait for the store.
    pub(crate) flags: u16,
    /// OF of a shift to the right, kept from before it.
    pub(crate) overflow: u64,
    pub(crate) budget: i64,
    pub(crate) tlb: *const TlbEntry,
    pub(crate) read_epoch: u64,
    pub(crate) write_epoch: u64,
    pub(crate) ram: *mut u8,
    /// The last host physical address that [`crate::interface::WIDEST`] bytes fit behind.
    pub(crate) ram_last: u64,
    pub(crate) slots: *const Slot,
    pub(crate) targets: *const Target,
    pub(crate) tag: u64,
    pub(crate) fs_base: u64,
    pub(crate) gs_base: u64,
    pub(crate) rip: u64,
    /// The routine that leaves compiled code.
    pub(crate) exit: u64,
    /// Where a call goes on, kept while it pushes.
    pub(crate) next: u64,
    // From here on displacements do not fit a byte.
    pub(crate) xmm: *mut [u64; 2],
    pub(crate) mxcsr: u32,
    /// What the host has it back from.
    pub(crate) host_mxcsr: u32,
    /// The host's MXCSR is the guest's.
    pub(crate) floats: u32,
    /// The guest may execute SSE.
    pub(crate) sse: u32,
    /// The linear address of an access that has missed, and what is [`packed`] of it.
    pub(crate) missed: u64,
    pub(crate) miss: u32,
    /// Where changes of memory are counted: their sum, the instruction count at which the budget is used up, where memory begins.
    pub(crate) changes: [u64; 2],
    pub(crate) until: u64,
    pub(crate) ram_start: u64,
    /// During a store: the quadword's host physical address, what was there, and a register.
    pub(crate) place: u64,
    pub(crate) before: [u64; 2],
    pub(crate) spill: u64,
}

/// Bytes from the frame's beginning to where RBP points, so that displacements fit a byte.
pub(crate) const BIAS: usize = 128;

const fn displacement(offset: usize) -> i8 {
    assert!(offset < 2 * BIAS);
    (offset as isize - BIAS as isize) as i8
}

const fn far(offset: usize) -> i32 {
    offset as i32 - BIAS as i32
}

pub(crate) const FLAGS: i8 = displacement(offset_of!(Frame, flags));
pub(crate) const OVERFLOW: i8 = displacement(offset_of!(Frame, overflow));
pub(crate) const BUDGET: i8 = displacement(offset_of!(Frame, budget));
pub(crate) const TLB: i8 = displacement(offset_of!(Frame, tlb));
pub(crate) const READ_EPOCH: i8 = displacement(offset_of!(Frame, read_epoch));
pub(crate) const WRITE_EPOCH: i8 = displacement(offset_of!(Frame, write_epoch));
pub(crate) const RAM: i8 = displacement(offset_of!(Frame, ram));
pub(crate) const RAM_LAST: i8 = displacement(offset_of!(Frame, ram_last));
pub(crate) const SLOTS: i8 = displacement(offset_of!(Frame, slots));
pub(crate) const TARGETS: i8 = displacement(offset_of!(Frame, targets));
pub(crate) const TAG: i8 = displacement(offset_of!(Frame, tag));
pub(crate) const FS_BASE: i8 = displacement(offset_of!(Frame, fs_base));
pub(crate) const GS_BASE: i8 = displacement(offset_of!(Frame, gs_base));
pub(crate) const RIP: i8 = displacement(offset_of!(Frame, rip));
pub(crate) const EXIT: i8 = displacement(offset_of!(Frame, exit));
pub(crate) const NEXT: i8 = displacement(offset_of!(Frame, next));

pub(crate) const XMM: i32 = far(offset_of!(Frame, xmm));
pub(crate) const MXCSR: i32 = far(offset_of!(Frame, mxcsr));
pub(crate) const HOST_MXCSR: i32 = far(offset_of!(Frame, host_mxcsr));
pub(crate) const FLOATS: i32 = far(offset_of!(Frame, floats));
pub(crate) const SSE: i32 = far(offset_of!(Frame, sse));
pub(crate) const MISSED: i32 = far(offset_of!(Frame, missed));
pub(crate) const MISS: i32 = far(offset_of!(Frame, miss));
pub(crate) const CHANGES: i32 = far(offset_of!(Frame, changes));
pub(crate) const CHANGES_HIGH: i32 = CHANGES + size_of::<u64>() as i32;
pub(crate) const UNTIL: i32 = far(offset_of!(Frame, until));
pub(crate) const RAM_START: i32 = far(offset_of!(Frame, ram_start));
pub(crate) const PLACE: i32 = far(offset_of!(Frame, place));
pub(crate) const BEFORE: i32 = far(offset_of!(Frame, before));
pub(crate) const SPILL: i32 = far(offset_of!(Frame, spill));

/// Where a guest register is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Home {
    /// A host register.
    Host(u8),
    /// The frame, at this displacement from RBP.
    Frame(i8),
}

pub(crate) const RSP_HOME: u8 = 10;
pub(crate) const RAX_HOME: u8 = 11;
pub(crate) const RBP_HOME: u8 = 12;

/// The home of a general register.
pub(crate) const fn home(register: u8) -> Home {
    match register {
        0 => Home::Host(RAX_HOME),
        4 => Home::Host(RSP_HOME),
        5 => Home::Host(RBP_HOME),
        1..=9 => Home::Host(register),
        _ => Home::Frame(displacement(register as usize * 8)),
    }
}

/// Guest registers that live in host registers: both numbers.
pub(crate) fn in_host() -> impl Iterator<Item = (i8, u8)> {
    (0..16u8).filter_map(|register| match home(register) {
        Home::Host(host) => Some((displacement(usize::from(register) * 8), host)),
        Home::Frame(_) => None,
    })
}

const TO_SHIFT: u32 = 8;
const EXACT_SHIFT: u32 = 16;

/// What is known of an access when it is compiled.
pub(crate) fn packed(size: u8, to: Use, exact: bool) -> u32 {
    u32::from(size) | (to as u32) << TO_SHIFT | u32::from(exact) << EXACT_SHIFT
}

/// An access out of the frame.
pub(crate) fn unpack_miss(gva: u64, packed: u32) -> Miss {
    let to = match (packed >> TO_SHIFT) as u8 {
        0 => Use::Read,
        1 => Use::Write,
        _ => Use::Modify,
    };
    Miss { gva, size: packed as u8, to, exact: packed >> EXACT_SHIFT != 0 }
}

/// Status flags in the frame's form.
pub(crate) fn pack_flags(rflags: u64) -> u16 {
    ((rflags & LOW) << 8 | (rflags >> OF_BIT & 1)) as u16
}

/// RFLAGS with status flags out of the frame.
pub(crate) fn unpack_flags(rflags: u64, packed: u16) -> u64 {
    let packed = u64::from(packed);
    rflags & !(LOW | 1 << OF_BIT) | (packed >> 8 & LOW) | (packed & 1) << OF_BIT
}

/// CF, PF, AF, ZF and SF. See: SDM vol. 1 3.4.3.1 Status Flags
const LOW: u64 = 0xd5;
const OF_BIT: u32 = 11;
