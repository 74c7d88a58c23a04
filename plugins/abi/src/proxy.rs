//! The host as a backend in Rust sees it: [`Host`] over a [`HostRef`], and [`EmulatorMmu`] handed the other way.

// UNSAFETY: calls through the host's table.
#![allow(unsafe_code)]

use crate::{contract::*, raw::bytes, table::*};
use std::{
    any::Any,
    cell::RefCell,
    ffi::c_void,
    panic::{AssertUnwindSafe, PanicHookInfo, catch_unwind, resume_unwind},
};
use vmtape_arch::{
    access::Access,
    exception::Exception,
    level::Place,
    note::{Note, NoteKind, RawNote},
    vcpu::VcpuState,
};

thread_local! {
    /// The message and place of the last panic, kept by [`remember_panic`].
    static LAST_PANIC: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// A panic hook that keeps the message for [`take_panic`].
pub fn remember_panic(info: &PanicHookInfo) {
    let place = info.location().map(|l| format!(" at {}:{}", l.file(), l.line())).unwrap_or_default();
    let message = format!("{}{place}", payload_text(info.payload()));
    LAST_PANIC.with(|last| *last.borrow_mut() = Some(message));
}

/// What a caught panic said.
pub fn take_panic(payload: &(dyn Any + Send)) -> String {
    LAST_PANIC.with(|last| last.borrow_mut().take()).unwrap_or_else(|| payload_text(payload).to_owned())
}

fn payload_text(payload: &(dyn Any + Send)) -> &str {
    match (payload.downcast_ref::<&str>(), payload.downcast_ref::<String>()) {
        (Some(text), _) => text,
        (_, Some(text)) => text,
        _ => "a panic without a message",
    }
}

/// The host during one call.
pub struct HostProxy(HostRef);

impl HostProxy {
    /// Wraps the reference that came with a call.
    ///
    /// # Safety
    /// The proxy does not outlive the call.
    pub unsafe fn new(host: HostRef) -> Self {
        Self(host)
    }

    fn table(&self) -> &HostTable {
        // SAFETY: the host's table is static, and version 1 of it has every function that this crate knows.
        unsafe { &*self.0.table }
    }
}

// SAFETY, for every block below: the context is the one that came with the table, and the call that lent it has not
// returned (see `HostProxy::new`); buffers are live for the length of the call.
#[allow(clippy::undocumented_unsafe_blocks)]
impl Host for HostProxy {
    fn read(&mut self, hpa: u64, buf: &mut [u8]) -> bool {
        unsafe { (self.table().read)(self.0.ctx, hpa, buf.as_mut_ptr(), buf.len()) }
    }

    fn write(&mut self, hpa: u64, data: &[u8]) -> bool {
        unsafe { (self.table().write)(self.0.ctx, hpa, data.as_ptr(), data.len()) }
    }

    fn cmpxchg(&mut self, hpa: u64, old: u64, new: u64, size: u8) -> Option<bool> {
        match unsafe { (self.table().cmpxchg)(self.0.ctx, hpa, old, new, size) } {
            0 => Some(false),
            1 => Some(true),
            _ => None,
        }
    }

    fn flush_tlb(&mut self, vcpu: u32, scope: FlushScope, address: u64) {
        unsafe { (self.table().flush_tlb)(self.0.ctx, vcpu, scope, address) }
    }

    fn emulate(
        &mut self,
        vcpu: u32,
        state: &mut VcpuState,
        request: &EmulateRequest,
        mmu: &mut dyn EmulatorMmu,
    ) -> Emulated {
        let mut lent = LentMmu { mmu, panic: RefCell::new(None) };
        let mut out = Emulated::default();
        let mmu = MmuRef {
            ctx: (&raw mut lent).cast(),
            translate: mmu_translate,
            wrote: mmu_wrote,
            knows: mmu_knows,
        };
        unsafe { (self.table().emulate)(self.0.ctx, vcpu, state, request, mmu, &mut out) };
        if let Some(panic) = lent.panic.take() {
            resume_unwind(panic);
        }
        out
    }

    fn bus(&mut self, vcpu: u32, op: &mut BusOp) -> bool {
        unsafe { (self.table().bus)(self.0.ctx, vcpu, op) }
    }

    fn interrupt(&mut self, vcpu: u32, ack: bool) -> Option<u8> {
        u8::try_from(unsafe { (self.table().interrupt)(self.0.ctx, vcpu, ack) }).ok()
    }

    fn nmi(&mut self, vcpu: u32, ack: bool) -> bool {
        unsafe { (self.table().nmi)(self.0.ctx, vcpu, ack) }
    }

    fn note_at(&mut self, vcpu: u32, place: Place, note: Note) {
        let raw = RawNote { place, ..note.to_raw() };
        unsafe { (self.table().note)(self.0.ctx, vcpu, &raw) }
    }

    fn wants(&self, kind: NoteKind) -> bool {
        unsafe { (self.table().wants)(self.0.ctx, kind) }
    }

    fn log(&mut self, level: u32, text: &str) {
        unsafe { (self.table().log)(self.0.ctx, level, Text::new(text)) }
    }

    fn fault_point(&mut self, vcpu: u32, id: u32) -> Option<u64> {
        let mut value = 0;
        unsafe { (self.table().fault_point)(self.0.ctx, vcpu, id, &mut value) }.then_some(value)
    }
}

/// An [`EmulatorMmu`] on loan to the host. A panic in it is kept and goes on once the host has returned.
struct LentMmu<'a> {
    mmu: &'a mut dyn EmulatorMmu,
    panic: RefCell<Option<Box<dyn Any + Send>>>,
}

impl LentMmu<'_> {
    /// Runs `call`, or gives `broken` if it or an earlier call panicked.
    fn guard<T>(&mut self, broken: T, call: impl FnOnce(&mut dyn EmulatorMmu) -> T) -> T {
        if self.panic.borrow().is_some() {
            return broken;
        }
        catch_unwind(AssertUnwindSafe(|| call(&mut *self.mmu))).unwrap_or_else(|panic| {
            *self.panic.borrow_mut() = Some(panic);
            broken
        })
    }
}

unsafe extern "C" fn mmu_translate(
    ctx: *mut c_void,
    state: *const VcpuState,
    access: *const Access,
    host: HostRef,
    translation: *mut Translation,
    fault: *mut Exception,
) -> Status {
    // SAFETY: the host gives back the context of `emulate`, which is waiting, and pointers for this call.
    let (lent, state, access, translation, fault) =
        unsafe { (&mut *ctx.cast::<LentMmu>(), &*state, &*access, &mut *translation, &mut *fault) };
    lent.guard(STATUS_PANICKED, |mmu| {
        // SAFETY: used in this call only.
        match mmu.translate(state, access, &mut unsafe { HostProxy::new(host) }) {
            Ok(found) => {
                *translation = found;
                STATUS_OK
            }
            Err(exception) => {
                *fault = exception;
                STATUS_GUEST_FAULT
            }
        }
    })
}

unsafe extern "C" fn mmu_wrote(ctx: *mut c_void, gpa: u64, len: u8, host: HostRef) -> Status {
    // SAFETY: as in `mmu_translate`.
    let lent = unsafe { &mut *ctx.cast::<LentMmu>() };
    lent.guard(STATUS_PANICKED, |mmu| {
        // SAFETY: used in this call only.
        mmu.wrote(gpa, len, &mut unsafe { HostProxy::new(host) });
        STATUS_OK
    })
}

unsafe extern "C" fn mmu_knows(ctx: *mut c_void, insn: *const u8, len: usize) -> bool {
    // SAFETY: as in `mmu_translate`; the instruction's bytes are the host's.
    let (lent, insn) = unsafe { (&mut *ctx.cast::<LentMmu>(), bytes(insn, len)) };
    lent.guard(false, |mmu| mmu.knows(insn))
}
