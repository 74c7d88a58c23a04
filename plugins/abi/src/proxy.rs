//! What was lent, as the borrower in Rust sees it: [`Host`] over a [`HostRef`], [`EmulatorMmu`] over an [`MmuRef`].

// UNSAFETY: calls through the lender's table.
#![allow(unsafe_code)]

use crate::{
    contract::*,
    cross::{Argument, Returned},
    handshake,
    table::*,
};
use std::{
    any::Any,
    cell::{Cell, RefCell},
    mem::offset_of,
    panic::PanicHookInfo,
};
use vmtape_arch::{
    access::Access,
    exception::Exception,
    level::Place,
    note::{Note, NoteKind},
    sensitive::Sensitive,
    vcpu::VcpuState,
};

thread_local! {
    /// The message and place of the last panic, kept by [`remember_panic`].
    static LAST_PANIC: RefCell<Option<String>> = const { RefCell::new(None) };
    static BACKEND_RUNS: Cell<bool> = const { Cell::new(false) };
}

/// Runs one side's code, a backend's or (called back by it) the host's, within the other's. It must not unwind.
pub fn on_side<R>(is_backend: bool, code: impl FnOnce() -> R) -> R {
    let before = BACKEND_RUNS.replace(is_backend);
    let result = code();
    BACKEND_RUNS.set(before);
    result
}

/// Whether a backend's code runs on this thread: one that is linked in shares the panic hook with the host.
pub fn backend_runs() -> bool {
    BACKEND_RUNS.get()
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
pub struct HostProxy {
    host: HostRef,
    /// The lender's sizes.
    peer: &'static Sizes,
}

impl HostProxy {
    /// Wraps the reference that came with a call.
    ///
    /// # Safety
    /// The proxy does not outlive the call, and the table has every function that it must have.
    pub unsafe fn new(host: HostRef, peer: &'static Sizes) -> Self {
        Self { host, peer }
    }
}

/// A backend's MMU during one emulation.
pub struct MmuProxy {
    mmu: MmuRef,
    /// The lender's sizes.
    peer: &'static Sizes,
}

impl MmuProxy {
    /// Wraps the reference that came with a call.
    ///
    /// # Safety
    /// The proxy does not outlive the call, and the table has every function that it must have.
    pub unsafe fn new(mmu: MmuRef, peer: &'static Sizes) -> Self {
        Self { mmu, peer }
    }
}

/// Implements a trait of the contract over a reference, call by call.
macro_rules! proxy_calls {
    (
        ($trait:ident for $proxy:ident, $lent:ident: $table:ident)
        $({ [$($doc:literal)*] $call:ident $me:ident $accessor:ident [$($receiver:tt)*] ($($arg:ident: $type:ty,)*)
            [$($result:tt)*] [$($out:ty)?] [$($default:tt)?] })*
    ) => {
        #[allow(unused_mut, clippy::let_unit_value, clippy::unused_unit)]
        impl $trait for $proxy {
            $(fn $call($($receiver)*, $($arg: $type),*) -> $($result)* {
                let table = $me.$lent.table;
                // SAFETY: whoever made the proxy looked at the table.
                $(if !unsafe { handshake::has(table, offset_of!($table, $call)) } {
                    return $default;
                })?
                let mut slot = ();
                let _ = slot;
                $(let mut slot = <$out as Returned>::slot($me.peer);)?
                $(let mut $arg = <$type as Argument>::hold($arg, $me.peer);)*
                // SAFETY: the context is the one that came with the table, and the call that lent it has not returned (see
                // `new`); the table has the function; what the arguments point to outlives the call.
                let status = unsafe {
                    ((*table).$call)(
                        $me.$lent.ctx,
                        $(<$type as Argument>::wire(&mut $arg),)*
                        $(<$out as Returned>::out(&mut slot),)?
                    )
                };
                $(<$type as Argument>::release(&mut $arg);)*
                <$($result)* as Returned>::finish(status, slot)
            })*
        }
    };
}

host_calls! { each_call! proxy_calls (Host for HostProxy, host: HostTable) [] }
mmu_calls! { each_call! proxy_calls (EmulatorMmu for MmuProxy, mmu: MmuTable) [] }
