//! The host's side of the C form: wraps a [`BackendTable`] as a `Box<dyn Backend>`.

// UNSAFETY: calls through a table that a foreign library supplied.
#![allow(unsafe_code)]

use crate::{
    contract::*,
    cross::{Argument, Returned, sink},
    lend::HOST_TABLE,
    plugin::{Description, VmConfig},
    raw::text,
    sinks::description_sink,
    table::*,
};
use std::cell::Cell;
use thiserror::Error;
use vmtape_arch::{
    access::{Access, Answer, Verdict},
    cpuid::CpuidEntry,
    exception::Exception,
    exit::{Exit, Resume},
    sensitive::Sensitive,
    state::MsrEntry,
    vcpu::VcpuState,
};

/// Why a table cannot be used.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum HandshakeError {
    #[error("{ENTRY_SYMBOL}() returned a null pointer instead of a table")]
    NoTable,
    #[error("it speaks version {found} of the backend ABI, this program speaks version {ABI_VERSION}")]
    OtherVersion { found: u32 },
    #[error(
        "its table has {found} bytes, this program needs {} (ABI version {ABI_VERSION}): it was built from an older header",
        size_of::<BackendTable>()
    )]
    TableTooSmall { found: u32 },
    #[error(
        "its {structure} has {found} bytes, this program's {expected} (ABI version {ABI_VERSION}): both must be built from \
         one header"
    )]
    OtherSize { structure: &'static str, found: u32, expected: u32 },
    #[error("`{function}` of its table is null")]
    NullFunction { function: &'static str },
    #[error("it failed while describing itself (status {status})")]
    DescribeFailed { status: Status },
    #[error("it describes itself without a name")]
    NoName,
}

/// A table that passed the handshake.
#[derive(Clone, Copy, Debug)]
pub struct Backends(&'static BackendTable);

impl Backends {
    /// Calls a library's entry and checks version, size and function pointers before anything else is used.
    ///
    /// # Safety
    /// `entry` is the entry of a library that stays loaded, written to the rules of `plugins/README.md`.
    pub unsafe fn handshake(entry: EntryFn) -> Result<Self, HandshakeError> {
        // SAFETY: the caller vouches for the entry.
        let table = unsafe { entry() };
        if table.is_null() {
            return Err(HandshakeError::NoTable);
        }
        // SAFETY: every version of the table starts with these two words.
        let [version, size] = unsafe { *table.cast::<[u32; 2]>() };
        if version != ABI_VERSION {
            return Err(HandshakeError::OtherVersion { found: version });
        }
        let size = size as usize;
        if size < size_of::<BackendTable>() {
            return Err(HandshakeError::TableTooSmall { found: size as u32 });
        }
        // SAFETY: the table has at least the bytes of ours; the sizes are plain words.
        let sizes = unsafe { &raw const (*table).sizes };
        // SAFETY: as above.
        if let Some((structure, expected, found)) = Sizes::here().difference(unsafe { &*sizes }) {
            return Err(HandshakeError::OtherSize { structure, found, expected });
        }
        // From `describe` on the table is function pointers only; they are looked at as words before Rust sees them.
        let first = std::mem::offset_of!(BackendTable, describe);
        let names = ["describe", "create", "destroy", "last_error"].into_iter();
        let names = names.chain(BackendTable::CALLS.iter().copied());
        for (index, function) in names.enumerate() {
            // SAFETY: the table has at least the bytes of ours.
            if unsafe { *table.byte_add(first).cast::<usize>().add(index) } == 0 {
                return Err(HandshakeError::NullFunction { function });
            }
        }
        // SAFETY: version, sizes and pointers are as this crate's structure asks; the library is never unloaded.
        Ok(Self(unsafe { &*table }))
    }

    /// Name and version of the build.
    pub fn build(&self) -> String {
        // SAFETY: static text of the library.
        unsafe { text(self.0.build) }
    }

    /// What the plugin says of itself.
    pub fn describe(&self) -> Result<Description, HandshakeError> {
        let mut description = Description::default();
        let sink = description_sink(&mut description);
        // SAFETY: the sink's context outlives the call.
        match unsafe { (self.0.describe)(sink) } {
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
        let raw = RawConfig {
            host: &HOST_TABLE,
            silicon: config.silicon,
            options: options.as_ptr(),
            options_len: options.len(),
        };
        let mut vm = std::ptr::null_mut();
        let mut reason = Vec::new();
        // SAFETY: everything passed lives until the call returns.
        let status = unsafe { (self.0.create)(&raw, &mut vm, sink(&mut reason)) };
        let reason = String::from_utf8_lossy(&reason).into_owned();
        match status {
            STATUS_OK if !vm.is_null() => {
                Ok(Box::new(Imported { table: self.0, vm, broken: Cell::new(false) }))
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
    table: &'static BackendTable,
    vm: *mut Vm,
    broken: Cell<bool>,
}

impl Drop for Imported {
    fn drop(&mut self) {
        // SAFETY: `create` gave the VM, and nobody uses it from here on.
        unsafe { (self.table.destroy)(self.vm) }
    }
}

impl Imported {
    fn last_error(&self, status: Status) -> String {
        let mut reason = Vec::new();
        // SAFETY: the VM is alive and the sink outlives the call.
        unsafe { (self.table.last_error)(self.vm, sink(&mut reason)) };
        match (status, String::from_utf8_lossy(&reason)) {
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
            [$($result:tt)*] [$($out:ty)?] })*
    ) => {
        #[allow(unused_mut, clippy::let_unit_value, clippy::unused_unit)]
        impl Backend for Imported {
            $(fn $call($($receiver)*, $($arg: $type),*) -> $($result)* {
                let mut slot = ();
                let _ = slot;
                $(let mut slot = <$out as Returned>::slot();)?
                // A broken VM is not called again, whatever it would say.
                if $me.broken.get() {
                    return <$($result)* as Returned>::finish(STATUS_POISONED, slot);
                }
                $(let mut $arg = <$type as Argument>::hold($arg);)*
                // SAFETY: `vm` came from `create` of the same table and lives until drop; what the arguments point to is on
                // this side and outlives the call.
                let status = unsafe {
                    ($me.table.$call)(
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
