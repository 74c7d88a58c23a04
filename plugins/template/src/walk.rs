//! The guest's own page walk: four levels, present, writable, user and no-execute bits.

use crate::slots::Slots;
use vmtape_abi::Host;
use vmtape_arch::{
    access::{Access, AccessKind},
    exception::{Exception, PageFaultError, Vector},
    vcpu::VcpuState,
};

const PRESENT: u64 = 1 << 0;
const WRITABLE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
const LARGE: u64 = 1 << 7;
const NO_EXECUTE: u64 = 1 << 63;
const FRAME: u64 = 0x000f_ffff_ffff_f000;
const CR0_WP: u64 = 1 << 16;
const CR0_PG: u64 = 1 << 31;
const EFER_NXE: u64 = 1 << 11;

/// Where an access leads, and what else may go there by the same translation.
#[derive(Clone, Copy, Debug)]
pub struct Found {
    pub gpa: u64,
    pub writable: bool,
    pub executable: bool,
    pub page_shift: u8,
}

/// Walks for one access. Accessed and dirty bits are set as silicon sets them: before the access.
pub fn walk(
    slots: &Slots,
    state: &VcpuState,
    access: &Access,
    host: &mut dyn Host,
) -> Result<Found, Exception> {
    if state.cr0 & CR0_PG == 0 {
        return Ok(Found { gpa: access.gva, writable: true, executable: true, page_shift: 12 });
    }
    let write = access.kind == AccessKind::WRITE;
    let user = access.user.is_set();
    let (mut table, mut allowed, mut no_execute) = (state.cr3 & FRAME, WRITABLE | USER, false);
    for level in (1..=4_u8).rev() {
        let shift = 12 + 9 * (level - 1);
        let index = access.gva >> shift & 511;
        let place = slots.find(table + 8 * index);
        let Some((hpa, entry)) = place.and_then(|hpa| Some((hpa, host.read_u64(hpa)?))) else {
            return Err(page_fault(access, state, false));
        };
        if entry & PRESENT == 0 {
            return Err(page_fault(access, state, false));
        }
        allowed &= entry;
        no_execute |= entry & NO_EXECUTE != 0 && state.efer & EFER_NXE != 0;
        let is_leaf = level == 1 || level < 4 && entry & LARGE != 0;
        let protects = user || state.cr0 & CR0_WP != 0;
        let denied = user && allowed & USER == 0
            || write && allowed & WRITABLE == 0 && protects
            || access.kind == AccessKind::FETCH && no_execute;
        if is_leaf && denied {
            return Err(page_fault(access, state, true));
        }
        let touched = entry | ACCESSED | if is_leaf && write { DIRTY } else { 0 };
        if touched != entry {
            host.cmpxchg(hpa, entry, touched, 8);
        }
        if is_leaf {
            let offset = (1 << shift) - 1;
            return Ok(Found {
                gpa: entry & FRAME & !offset | access.gva & offset,
                // Only once every dirty bit that a write would set is set: until then a write comes back here.
                writable: touched & DIRTY != 0 && (allowed & WRITABLE != 0 || !protects),
                executable: !no_execute,
                page_shift: shift,
            });
        }
        table = entry & FRAME;
    }
    unreachable!("the lowest level is a leaf")
}

fn page_fault(access: &Access, state: &VcpuState, present: bool) -> Exception {
    let code = PageFaultError::new()
        .with_p(present)
        .with_w(access.kind == AccessKind::WRITE)
        .with_u(access.user.is_set())
        .with_i(access.kind == AccessKind::FETCH && state.efer & EFER_NXE != 0);
    Exception {
        vector: Vector::PF,
        has_error_code: true.into(),
        error_code: code.into_bits(),
        payload: access.gva,
        ..Exception::default()
    }
}
