//! Lends a [`Host`] to a backend library for the length of one call.

// UNSAFETY: the callbacks receive raw pointers from a foreign library.
#![allow(unsafe_code)]

use crate::{
    contract::*,
    raw::{bytes, text},
    table::*,
};
use std::{
    any::Any,
    ffi::c_void,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
};
use vmtape_arch::{
    access::Access,
    exception::Exception,
    note::{Note, NoteKind, RawNote},
    vcpu::VcpuState,
};

/// What `HostRef::ctx` points to. A panic of the host must not unwind through foreign frames: it is kept here and goes
/// on when the library has returned.
struct Lent<'a> {
    host: &'a mut dyn Host,
    panic: Option<Box<dyn Any + Send>>,
}

/// Calls a library with the host on loan.
pub(crate) fn with_host<R>(host: &mut dyn Host, call: impl FnOnce(HostRef) -> R) -> R {
    let mut lent = Lent { host, panic: None };
    let result = call(HostRef { ctx: (&raw mut lent).cast(), table: &HOST_TABLE });
    if let Some(panic) = lent.panic {
        resume_unwind(panic);
    }
    result
}

static HOST_TABLE: HostTable = HostTable {
    abi_version: ABI_VERSION,
    table_size: size_of::<HostTable>() as u32,
    read,
    write,
    cmpxchg,
    flush_tlb,
    emulate,
    bus,
    interrupt,
    nmi,
    note,
    wants,
    log,
    fault_point,
};

/// Runs a service, or gives `failed` if it or an earlier one of this call panicked.
///
/// # Safety
/// `ctx` came with a `HostRef` whose call has not returned.
unsafe fn serve<T>(ctx: *mut c_void, failed: T, service: impl FnOnce(&mut dyn Host) -> T) -> T {
    // SAFETY: the caller vouches for the context; a library makes one call at a time.
    let lent = unsafe { &mut *ctx.cast::<Lent>() };
    if lent.panic.is_some() {
        return failed;
    }
    catch_unwind(AssertUnwindSafe(|| service(&mut *lent.host))).unwrap_or_else(|panic| {
        lent.panic = Some(panic);
        failed
    })
}

// SAFETY, for every block below: the library passes the context that came with the table and pointers that are good for
// the length and for the duration of the call, as `plugins/README.md` asks.

unsafe extern "C" fn read(ctx: *mut c_void, hpa: u64, buf: *mut u8, len: usize) -> bool {
    if len == 0 {
        return true;
    }
    // SAFETY: see above.
    unsafe { serve(ctx, false, |host| host.read(hpa, std::slice::from_raw_parts_mut(buf, len))) }
}

unsafe extern "C" fn write(ctx: *mut c_void, hpa: u64, data: *const u8, len: usize) -> bool {
    // SAFETY: see above.
    unsafe { serve(ctx, false, |host| host.write(hpa, bytes(data, len))) }
}

unsafe extern "C" fn cmpxchg(ctx: *mut c_void, hpa: u64, old: u64, new: u64, size: u8) -> i32 {
    // SAFETY: see above.
    unsafe { serve(ctx, -1, |host| host.cmpxchg(hpa, old, new, size).map_or(-1, i32::from)) }
}

unsafe extern "C" fn flush_tlb(ctx: *mut c_void, vcpu: u32, scope: FlushScope, address: u64) {
    // SAFETY: see above.
    unsafe { serve(ctx, (), |host| host.flush_tlb(vcpu, scope, address)) }
}

unsafe extern "C" fn emulate(
    ctx: *mut c_void,
    vcpu: u32,
    state: *mut VcpuState,
    request: *const EmulateRequest,
    mmu: MmuRef,
    out: *mut Emulated,
) {
    // SAFETY: see above.
    unsafe {
        *out = serve(ctx, Emulated::default(), |host| {
            host.emulate(vcpu, &mut *state, &*request, &mut BorrowedMmu(mmu))
        });
    }
}

unsafe extern "C" fn bus(ctx: *mut c_void, vcpu: u32, op: *mut BusOp) -> bool {
    // SAFETY: see above.
    unsafe { serve(ctx, false, |host| host.bus(vcpu, &mut *op)) }
}

unsafe extern "C" fn interrupt(ctx: *mut c_void, vcpu: u32, ack: bool) -> i32 {
    // SAFETY: see above.
    unsafe { serve(ctx, -1, |host| host.interrupt(vcpu, ack).map_or(-1, i32::from)) }
}

unsafe extern "C" fn nmi(ctx: *mut c_void, vcpu: u32, ack: bool) -> bool {
    // SAFETY: see above.
    unsafe { serve(ctx, false, |host| host.nmi(vcpu, ack)) }
}

unsafe extern "C" fn note(ctx: *mut c_void, vcpu: u32, note: *const RawNote) {
    // SAFETY: see above.
    unsafe { serve(ctx, (), |host| host.note_at(vcpu, (*note).place, Note::from_raw(*note))) }
}

unsafe extern "C" fn wants(ctx: *mut c_void, kind: NoteKind) -> bool {
    // SAFETY: see above.
    unsafe { serve(ctx, false, |host| host.wants(kind)) }
}

unsafe extern "C" fn log(ctx: *mut c_void, level: u32, line: Text) {
    // SAFETY: see above.
    unsafe { serve(ctx, (), |host| host.log(level, &text(line))) }
}

unsafe extern "C" fn fault_point(ctx: *mut c_void, vcpu: u32, id: u32, value: *mut u64) -> bool {
    // SAFETY: see above.
    unsafe {
        match serve(ctx, None, |host| host.fault_point(vcpu, id)) {
            Some(answer) => {
                *value = answer;
                true
            }
            None => false,
        }
    }
}

/// The library's half of an emulation, as the host's interpreter sees it.
struct BorrowedMmu(MmuRef);

impl EmulatorMmu for BorrowedMmu {
    fn translate(
        &mut self,
        state: &VcpuState,
        access: &Access,
        host: &mut dyn Host,
    ) -> Result<Translation, Exception> {
        let (mut translation, mut fault) = (Translation::default(), Exception::default());
        // SAFETY: the library waits in its `emulate` call, so its context is alive; the rest is on this stack.
        let status = with_host(host, |host| unsafe {
            (self.0.translate)(self.0.ctx, state, access, host, &mut translation, &mut fault)
        });
        // After a panic the library reports it itself once `emulate` returns, so any fault will do to end this.
        if status == STATUS_OK { Ok(translation) } else { Err(fault) }
    }

    fn wrote(&mut self, gpa: u64, len: u8, host: &mut dyn Host) {
        // SAFETY: as in `translate`.
        with_host(host, |host| unsafe { (self.0.wrote)(self.0.ctx, gpa, len, host) });
    }

    fn knows(&self, insn: &[u8]) -> bool {
        // SAFETY: as in `translate`.
        unsafe { (self.0.knows)(self.0.ctx, insn.as_ptr(), insn.len()) }
    }
}
