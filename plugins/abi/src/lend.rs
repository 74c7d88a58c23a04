//! Lends the host to a backend, and a backend's MMU to the host, for the length of one call.

// UNSAFETY: the functions in the tables receive raw pointers from a foreign library.
#![allow(unsafe_code)]

use crate::{
    contract::*,
    cross::{Argument, Returned},
    proxy::on_side,
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
    sensitive::Sensitive,
    vcpu::VcpuState,
};

/// What a reference's `ctx` points to. A panic of the lender must not unwind through foreign frames: it is kept here and
/// goes on when the borrower has returned.
pub struct Lent<'a, T: ?Sized> {
    target: &'a mut T,
    /// The borrower's sizes.
    peer: &'static Sizes,
    /// A service is going on.
    busy: bool,
    panic: Option<Box<dyn Any + Send>>,
}

pub type LentHost<'a> = Lent<'a, dyn Host + 'a>;
pub type LentMmu<'a> = Lent<'a, dyn EmulatorMmu + 'a>;

/// Whose code a service is.
pub trait Service {
    const IS_BACKEND: bool;
}

impl Service for dyn Host + '_ {
    const IS_BACKEND: bool = false;
}

impl Service for dyn EmulatorMmu + '_ {
    const IS_BACKEND: bool = true;
}

impl<'a, T: Service + ?Sized> Lent<'a, T> {
    pub fn new(target: &'a mut T, peer: &'static Sizes) -> Self {
        Self { target, peer, busy: false, panic: None }
    }

    pub fn target(&mut self) -> &mut T {
        self.target
    }

    pub fn go_on_panicking(&mut self) {
        if let Some(panic) = self.panic.take() {
            resume_unwind(panic);
        }
    }

    /// Runs a service, unless an earlier one of this call panicked or still goes on.
    ///
    /// # Safety
    /// `lent` was lent for a call that has not returned.
    unsafe fn serve(lent: *mut Self, service: impl FnOnce(&mut T, &'static Sizes) -> Status) -> Status {
        // SAFETY: the caller vouches for it. While a service goes on, nobody else reaches the target or these fields.
        unsafe {
            if (*lent).busy {
                return STATUS_BUSY;
            }
            if (*lent).panic.is_some() {
                return STATUS_POISONED;
            }
            (*lent).busy = true;
            let (target, peer) = (&raw mut *(*lent).target, (*lent).peer);
            let served =
                on_side(T::IS_BACKEND, || catch_unwind(AssertUnwindSafe(|| service(&mut *target, peer))));
            (*lent).busy = false;
            served.unwrap_or_else(|panic| {
                (*lent).panic = Some(panic);
                STATUS_PANICKED
            })
        }
    }
}

/// Makes the functions of a table, each of which calls the trait's method of its name on what was lent.
macro_rules! serve_calls {
    (
        ($module:ident, $lent:ident)
        $({ [$($doc:literal)*] $call:ident $me:ident $accessor:ident $receiver:tt ($($arg:ident: $type:ty,)*)
            [$($result:tt)*] [$($out:ty)?] [$($default:tt)?] })*
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
                        Lent::serve(ctx.cast::<$lent<'_>>(), |lent, peer| {
                            served!(lent.$call($($arg: $type),*) -> [$($result)*] [$($out)?], out, peer)
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
        $({ $docs:tt $call:ident $me:ident $accessor:ident $receiver:tt $args:tt $result:tt $out:tt $default:tt })*
    ) => {
        pub static $name: $table = $table { $($head: $value,)* $($call: $module::$call,)* };
    };
}

host_calls! { each_call! serve_calls (host, LentHost) [] }
host_calls! { each_call! static_table (host, HOST_TABLE: HostTable {
    abi_version: ABI_VERSION,
    table_size: size_of::<HostTable>() as u32,
    sizes_bytes: size_of::<Sizes>() as u32,
    pad: 0,
    sizes: Sizes::OWN,
}) [] }

mmu_calls! { each_call! serve_calls (mmu, LentMmu) [] }
mmu_calls! { each_call! static_table (mmu, MMU_TABLE: MmuTable {
    abi_version: ABI_VERSION,
    table_size: size_of::<MmuTable>() as u32,
}) [] }
