//! Lends the host to a backend, and a backend's MMU to the host, for the length of one call.

// UNSAFETY: the functions in the tables receive raw pointers from a foreign library.
#![allow(unsafe_code)]

use crate::{
    contract::*,
    cross::{Argument, Returned},
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
    level::Place,
    note::{Note, NoteKind},
    vcpu::VcpuState,
};

/// What a reference's `ctx` points to. A panic of the lender must not unwind through foreign frames: it is kept here and
/// goes on when the borrower has returned.
pub struct Lent<'a, T: ?Sized> {
    target: &'a mut T,
    panic: Option<Box<dyn Any + Send>>,
}

pub type LentHost<'a> = Lent<'a, dyn Host + 'a>;
pub type LentMmu<'a> = Lent<'a, dyn EmulatorMmu + 'a>;

impl<'a, T: ?Sized> Lent<'a, T> {
    pub fn new(target: &'a mut T) -> Self {
        Self { target, panic: None }
    }

    pub fn target(&mut self) -> &mut T {
        self.target
    }

    pub fn go_on_panicking(&mut self) {
        if let Some(panic) = self.panic.take() {
            resume_unwind(panic);
        }
    }

    /// Runs a service, unless an earlier one of this call panicked.
    fn serve(&mut self, service: impl FnOnce(&mut T) -> Status) -> Status {
        if self.panic.is_some() {
            return STATUS_POISONED;
        }
        catch_unwind(AssertUnwindSafe(|| service(&mut *self.target))).unwrap_or_else(|panic| {
            self.panic = Some(panic);
            STATUS_PANICKED
        })
    }
}

/// Makes the functions of a table, each of which calls the trait's method of its name on what was lent.
macro_rules! serve_calls {
    (
        ($module:ident, $lent:ident)
        $({ [$($doc:literal)*] $call:ident $me:ident $accessor:ident $receiver:tt ($($arg:ident: $type:ty,)*)
            [$($result:tt)*] [$($out:ty)?] })*
    ) => {
        mod $module {
            use super::*;
            $(
                /// # Safety
                /// The borrower passes the context that came with the table and pointers that are good for the length and the
                /// duration of the call, as `plugins/README.md` asks; it makes one call at a time.
                #[allow(unused_parens)]
                pub unsafe extern "C" fn $call(
                    ctx: *mut c_void,
                    $($arg: <$type as Argument>::Wire,)*
                    $(out: <$out as Returned>::Out,)?
                ) -> Status {
                    // SAFETY: see above.
                    unsafe {
                        (*ctx.cast::<$lent<'_>>()).serve(|lent| {
                            $(let mut $arg = <$type as Argument>::raise($arg);)*
                            let _out = ();
                            $(let _out: <$out as Returned>::Out = out;)?
                            let result = lent.$call($(<$type as Argument>::lend(&raw mut $arg)),*);
                            <$($result)* as Returned>::put(result, _out)
                        })
                    }
                }
            )*
        }
    };
}

/// Makes a table of the functions in a module.
macro_rules! static_table {
    (
        ($module:ident, $name:ident: $table:ident { $($head:ident: $value:expr,)* })
        $({ $docs:tt $call:ident $me:ident $accessor:ident $receiver:tt $args:tt $result:tt $out:tt })*
    ) => {
        pub static $name: $table = $table { $($head: $value,)* $($call: $module::$call,)* };
    };
}

host_calls! { each_call! serve_calls (host, LentHost) [] }
host_calls! { each_call! static_table (host, HOST_TABLE: HostTable {
    abi_version: ABI_VERSION,
    table_size: size_of::<HostTable>() as u32,
    sizes: Sizes::here(),
}) [] }

mmu_calls! { each_call! serve_calls (mmu, LentMmu) [] }
mmu_calls! { each_call! static_table (mmu, MMU_TABLE: MmuTable {}) [] }
