//! Standing in front of a backend or a host: every call passes through unchanged, but for those that the observer implements
//! itself.

use crate::contract::*;
use vmtape_arch::{
    access::{Access, Answer, Verdict},
    cpuid::CpuidEntry,
    exception::Exception,
    exit::{Exit, Resume},
    level::Place,
    note::{Note, NoteKind},
    sensitive::Sensitive,
    state::{MsrEntry, StateKind},
    vcpu::VcpuState,
};

/// Makes a trait whose calls go on to what is observed, and implements the contract's trait for whoever has it.
macro_rules! observer_trait {
    (
        ($(#[$meta:meta])* $observer:ident: $trait:ident)
        $({ [$($doc:literal)*] $call:ident $me:ident $accessor:ident [$($receiver:tt)*] ($($arg:ident: $type:ty,)*)
            [$($result:tt)*] $out:tt $default:tt })*
    ) => {
        $(#[$meta])*
        #[allow(clippy::unused_unit)]
        pub trait $observer {
            /// What is observed.
            fn inner(&self) -> &dyn $trait;

            /// What is observed.
            fn inner_mut(&mut self) -> &mut dyn $trait;

            $(
                $(#[doc = $doc])*
                fn $call($($receiver)*, $($arg: $type),*) -> $($result)* {
                    $me.$accessor().$call($($arg),*)
                }
            )*
        }

        #[allow(clippy::unused_unit)]
        impl<O: $observer> $trait for O {
            $(fn $call($($receiver)*, $($arg: $type),*) -> $($result)* {
                $observer::$call($me, $($arg),*)
            })*
        }
    };
}

backend_calls! { each_call! observer_trait (
    /// A [`Backend`] in front of another one.
    BackendObserver: Backend
) [] }

host_calls! { each_call! observer_trait (
    /// A [`Host`] in front of another one.
    HostObserver: Host
) [] }
