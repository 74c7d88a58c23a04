//! The host's side of the C form: wraps a [`BackendTable`] as a `Box<dyn Backend>`.

// UNSAFETY: calls through a table that a foreign library supplied.
#![allow(unsafe_code)]

pub use crate::handshake::HandshakeError;
use crate::{
    contract::*,
    cross::{Argument, Collected, Returned},
    export,
    handshake::{self, Call},
    lend::HOST_TABLE,
    plugin::{Description, Plugin, VmConfig},
    raw::text,
    sinks::description_sink,
    table::*,
};
use std::{cell::Cell, mem::offset_of};
use vmtape_arch::{
    access::{Access, Answer, Verdict},
    cpuid::CpuidEntry,
    exception::Exception,
    exit::{Exit, Resume},
    host::Silicon,
    sensitive::Sensitive,
    state::{MsrEntry, StateKind},
    vcpu::VcpuState,
};

/// A table that passed the handshake.
#[derive(Clone, Copy, Debug)]
pub struct Backends {
    table: *const BackendTable,
    /// The library's.
    sizes: &'static Sizes,
}

/// The functions of a backend's table that no VM is needed for, or that every one has.
const PLUGIN_CALLS: [Call; 4] = [
    Call { name: "describe", at: offset_of!(BackendTable, describe), needed: true },
    Call { name: "create", at: offset_of!(BackendTable, create), needed: true },
    Call { name: "destroy", at: offset_of!(BackendTable, destroy), needed: true },
    Call { name: "last_error", at: offset_of!(BackendTable, last_error), needed: true },
];

impl Backends {
    /// Calls a library's entry and checks version, sizes and functions before anything else is used.
    ///
    /// # Safety
    /// `entry` is the entry of a library that stays loaded, written to the rules of `plugins/README.md`.
    pub unsafe fn handshake(entry: EntryFn) -> Result<Self, HandshakeError> {
        // SAFETY: the caller vouches for the entry and for what its table says of itself; the library is never unloaded.
        unsafe { Self::of(entry()) }
    }

    /// # Safety
    /// As for `handshake`.
    unsafe fn of(table: *const BackendTable) -> Result<Self, HandshakeError> {
        // SAFETY: the caller vouches for the table.
        unsafe {
            handshake::check(table, [])?;
            let sizes = handshake::sizes(table)?;
            handshake::check(table, PLUGIN_CALLS.into_iter().chain(BackendTable::CALLS.iter().copied()))?;
            Ok(Self { table, sizes: Box::leak(Box::new(sizes)) })
        }
    }

    /// A backend that is linked into the program: it goes through the same table, and the same handshake.
    pub fn linked<P: Plugin>(build: &'static str) -> Self {
        export::quiet_backend_panics();
        let table: &'static BackendTable = Box::leak(Box::new(export::table::<P>(build)));
        // SAFETY: the table is this crate's own and stays.
        unsafe { Self::of(table) }.expect("a table of this crate fits this crate")
    }

    /// Name and version of the build.
    pub fn build(&self) -> String {
        // SAFETY: static text of the library.
        unsafe { text((*self.table).build) }
    }

    /// What the plugin says of itself.
    pub fn describe(&self) -> Result<Description, HandshakeError> {
        let mut description = Description::default();
        let sink = description_sink(&mut description);
        // SAFETY: the sink's context outlives the call.
        match unsafe { ((*self.table).describe)(sink) } {
            STATUS_OK if description.name.is_empty() => Err(HandshakeError::NoName),
            STATUS_OK => Ok(description),
            status => Err(HandshakeError::DescribeFailed { status }),
        }
    }

    /// Creates a VM; the error is the backend's own sentence.
    pub fn create(&self, config: &VmConfig) -> Result<Box<dyn Backend>, String> {
        let options: Vec<RawOption> = config
            .options
            .iter()
            .map(|(key, value)| RawOption { key: Text::new(key), value: Text::new(value) })
            .collect();
        let mut silicon = <&Silicon>::hold(&config.silicon, self.sizes);
        let raw = RawConfig {
            host: &HOST_TABLE,
            silicon: <&Silicon>::wire(&mut silicon),
            options: options.as_ptr(),
            options_len: options.len(),
        };
        let mut raw = <&RawConfig>::hold(&raw, self.sizes);
        let mut vm = std::ptr::null_mut();
        let mut reason = Collected::new(self.sizes);
        // SAFETY: everything passed lives until the call returns.
        let status = unsafe { ((*self.table).create)(<&RawConfig>::wire(&mut raw), &mut vm, reason.sink()) };
        let reason = String::from_utf8_lossy(&reason.into_items()).into_owned();
        match status {
            STATUS_OK if !vm.is_null() => {
                Ok(Box::new(Imported { table: self.table, sizes: self.sizes, vm, broken: Cell::new(false) }))
            }
            STATUS_OK => Err("the backend created no VM and gave no reason".into()),
            STATUS_REFUSED => Err(reason),
            STATUS_PANICKED => Err(format!("the backend panicked while creating a VM: {reason}")),
            other if reason.is_empty() => Err(format!("the backend could not create a VM: status {other}")),
            other => Err(format!("the backend could not create a VM: status {other}: {reason}")),
        }
    }
}

/// A VM behind a table. Once a call has panicked, all calls answer that the backend failed.
struct Imported {
    /// It passed the handshake: it has what it must have, and stays.
    table: *const BackendTable,
    sizes: &'static Sizes,
    vm: *mut Vm,
    broken: Cell<bool>,
}

impl Drop for Imported {
    fn drop(&mut self) {
        // SAFETY: `create` gave the VM, and nobody uses it from here on.
        unsafe { ((*self.table).destroy)(self.vm) }
    }
}

impl Imported {
    fn last_error(&self, status: Status) -> String {
        let mut reason = Collected::new(self.sizes);
        // SAFETY: the VM is alive and the sink outlives the call.
        unsafe { ((*self.table).last_error)(self.vm, reason.sink()) };
        match (status, String::from_utf8_lossy(&reason.into_items())) {
            (STATUS_PANICKED | STATUS_POISONED, reason) => format!("it panicked: {reason}"),
            (other, reason) => format!("unknown status {other} {reason}"),
        }
    }

    /// What the caller sees of a status, and why the call failed if it is to be told.
    fn outcome(&self, status: Status) -> (Status, Option<String>) {
        match status {
            STATUS_OK | -4095..=-1 => (status, None),
            _ => (STATUS_POISONED, (!self.broken.replace(true)).then(|| self.last_error(status))),
        }
    }
}

/// Implements the contract over a table, call by call.
macro_rules! import_calls {
    (
        ()
        $({ [$($doc:literal)*] $call:ident $me:ident $accessor:ident [$($receiver:tt)*] ($($arg:ident: $type:ty,)*)
            [$($result:tt)*] [$($out:ty)?] [$($default:tt)?] })*
    ) => {
        #[allow(unused_mut, clippy::let_unit_value, clippy::unused_unit)]
        impl Backend for Imported {
            $(fn $call($($receiver)*, $($arg: $type),*) -> $($result)* {
                // SAFETY: the table passed the handshake.
                $(if !unsafe { handshake::has($me.table, offset_of!(BackendTable, $call)) } {
                    return $default;
                })?
                let mut slot = ();
                let _ = slot;
                $(let mut slot = <$out as Returned>::slot($me.sizes);)?
                // A broken VM is not called again, whatever it would say.
                if $me.broken.get() {
                    return <$($result)* as Returned>::finish(STATUS_POISONED, slot);
                }
                $(let mut $arg = <$type as Argument>::hold($arg, $me.sizes);)*
                // SAFETY: `vm` came from `create` of the same table and lives until drop; what the arguments point to is on
                // this side and outlives the call.
                let status = unsafe {
                    ((*$me.table).$call)(
                        $me.vm,
                        $(<$type as Argument>::wire(&mut $arg),)*
                        $(<$out as Returned>::out(&mut slot),)?
                    )
                };
                $(<$type as Argument>::release(&mut $arg);)*
                let (status, _failure) = $me.outcome(status);
                $(if let Some(reason) = &_failure {
                    <$type as Argument>::report(&mut $arg, reason);
                })*
                <$($result)* as Returned>::finish(status, slot)
            })*
        }
    };
}

backend_calls! { each_call! import_calls () [] }
