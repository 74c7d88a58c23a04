//! The backend's side of the C form: turns a [`Plugin`] into a [`BackendTable`].

// UNSAFETY: the functions in the table receive raw pointers from the host.
#![allow(unsafe_code)]

use crate::{
    contract::*,
    cross::{Argument, Returned},
    handshake,
    plugin::{Plugin, TableRow, VmConfig},
    proxy::{backend_runs, on_side, remember_panic, take_panic},
    raw::{put_bytes, slice, text},
    table::*,
};
use std::{
    cell::RefCell,
    marker::PhantomData,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Once,
};
use vmtape_arch::{
    access::{Access, Answer, Verdict},
    cpuid::CpuidEntry,
    exception::Exception,
    exit::{Exit, Resume},
    sensitive::Sensitive,
    state::{MsrEntry, StateKind},
    vcpu::VcpuState,
};

/// Writes the exported entry of a backend library: `export_backend!(MyPlugin);`
#[macro_export]
macro_rules! export_backend {
    ($plugin:ty) => {
        // UNSAFETY: an unmangled symbol; its name is this ABI's own.
        #[allow(unsafe_code)]
        const _: () = {
            // A build script may say which commit it is.
            const BUILD: &str = match option_env!("VMTAPE_BUILD") {
                Some(build) => build,
                None => concat!(env!("CARGO_PKG_NAME"), " ", env!("CARGO_PKG_VERSION")),
            };
            static TABLE: $crate::table::BackendTable = $crate::export::table::<$plugin>(BUILD);

            #[unsafe(no_mangle)]
            extern "C" fn vmtape_backend_v2() -> *const $crate::table::BackendTable {
                $crate::export::quiet_panics();
                &TABLE
            }
        };
    };
}

/// Keeps panic messages for [`BackendTable::last_error`] instead of printing them. For a library of its own only: the
/// panic hook belongs to the copy of the standard library that is linked into it.
pub fn quiet_panics() {
    std::panic::set_hook(Box::new(remember_panic));
}

/// The same for backends that are linked into a program: only their own panics are kept.
pub(crate) fn quiet_backend_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let programs = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| match backend_runs() {
            true => remember_panic(info),
            false => programs(info),
        }));
    });
}

/// What the host's `*mut Vm` points to.
struct Exported<B> {
    backend: B,
    /// The message of the panic that made the VM unusable.
    broken: RefCell<Option<String>>,
}

/// Runs a call on a VM, catching panics: a VM that panicked once answers every later call with STATUS_POISONED.
///
/// # Safety
/// `vm` came from `create` of the same plugin and was not destroyed.
unsafe fn guarded<B>(vm: *const Vm, call: impl FnOnce(&mut B) -> Status) -> Status {
    let exported = vm.cast_mut().cast::<Exported<B>>();
    // SAFETY: the host passes what `create` gave it. The cell is reached through a shared reference that ends here.
    if unsafe { (*exported).broken.borrow().is_some() } {
        return STATUS_POISONED;
    }
    // SAFETY: as above; calls never overlap, so this is the only reference to the backend.
    let backend = unsafe { &mut (*exported).backend };
    match on_side(true, || catch_unwind(AssertUnwindSafe(|| call(backend)))) {
        Ok(status) => status,
        Err(panic) => {
            // SAFETY: as above; the reference to the backend is gone.
            unsafe { *(*exported).broken.borrow_mut() = Some(take_panic(&*panic)) };
            STATUS_PANICKED
        }
    }
}

/// Whether the host has what this side needs.
///
/// # Safety
/// `host` is null or a host's table, of as many bytes as it says.
unsafe fn fits(host: *const HostTable) -> Result<(), String> {
    // SAFETY: the caller vouches for the table.
    unsafe {
        handshake::check(host, HostTable::CALLS.iter().copied())
            .and_then(|()| handshake::sizes(host))
            .map_err(|error| format!("the host does not fit this backend: {error}"))?;
    }
    Ok(())
}

/// The functions of the table, one instance per plugin.
///
/// All share one contract. SAFETY, for every function below: the host passes pointers as `table.rs` and the header
/// describe them, valid until the call returns, and `vm` as `create` gave it.
struct Exports<P>(PhantomData<P>);

#[allow(clippy::missing_safety_doc, clippy::undocumented_unsafe_blocks, clippy::too_many_arguments)]
impl<P: Plugin> Exports<P> {
    unsafe extern "C" fn describe(sink: DescriptionSink) -> Status {
        let Ok(description) = catch_unwind(P::describe) else { return STATUS_PANICKED };
        let d = &description;
        unsafe { (sink.head)(sink.ctx, Text::new(&d.name), Text::new(&d.summary), d.isa, d.vendor) };
        let tables: [(TableId, &[TableRow]); 6] = [
            (TableId::RULES, &d.rules),
            (TableId::PATCHES, &d.patches),
            (TableId::PARAMETERS, &d.parameters),
            (TableId::FAULT_POINTS, &d.fault_points),
            (TableId::PROFILES, &d.profiles),
            (TableId::CAPABILITIES, &d.capabilities),
        ];
        for (id, rows) in tables {
            for row in rows {
                let raw = RawRow {
                    id: row.id,
                    size: size_of::<RawRow>() as u32,
                    name: Text::new(&row.name),
                    text: Text::new(&row.text),
                    source: Text::new(&row.source),
                    value: Text::new(&row.value),
                    commit: Text::new(&row.commit),
                    subject: Text::new(&row.subject),
                    since: Text::new(&row.since),
                    until: Text::new(&row.until),
                    undone_by: Text::new(&row.undone_by),
                    role: Text::new(&row.role),
                };
                unsafe { (sink.row)(sink.ctx, id, &raw) };
            }
        }
        STATUS_OK
    }

    unsafe extern "C" fn create(config: *const RawConfig, vm: *mut *mut Vm, error: Sink<u8>) -> Status {
        let raw = unsafe { &*config };
        if let Err(reason) = unsafe { fits(raw.host) } {
            unsafe { put_bytes(error, reason.as_bytes()) };
            return STATUS_REFUSED;
        }
        let options = unsafe { slice(raw.options, raw.options_len) };
        let options = options.iter().map(|o| unsafe { (text(o.key), text(o.value)) }).collect();
        let config = VmConfig { silicon: unsafe { *raw.silicon }, options };
        match on_side(true, || catch_unwind(AssertUnwindSafe(|| P::create(&config)))) {
            Ok(Ok(backend)) => {
                let exported = Box::new(Exported { backend, broken: RefCell::new(None) });
                unsafe { *vm = Box::into_raw(exported).cast() };
                STATUS_OK
            }
            Ok(Err(reason)) => {
                unsafe { put_bytes(error, reason.as_bytes()) };
                STATUS_REFUSED
            }
            Err(panic) => {
                unsafe { put_bytes(error, take_panic(&*panic).as_bytes()) };
                STATUS_PANICKED
            }
        }
    }

    unsafe extern "C" fn destroy(vm: *mut Vm) {
        let exported = unsafe { Box::from_raw(vm.cast::<Exported<P::Vm>>()) };
        // A panic while dropping has nobody left to hear of it.
        let _ = catch_unwind(AssertUnwindSafe(|| drop(exported)));
    }

    unsafe extern "C" fn last_error(vm: *const Vm, sink: Sink<u8>) {
        let exported = unsafe { &*vm.cast::<Exported<P::Vm>>() };
        if let Some(message) = &*exported.broken.borrow() {
            unsafe { put_bytes(sink, message.as_bytes()) };
        }
    }
}

/// Makes the functions of the table that follow from declarations.
macro_rules! export_calls {
    (
        ()
        $({ [$($doc:literal)*] $call:ident $me:ident $accessor:ident $receiver:tt ($($arg:ident: $type:ty,)*)
            [$($result:tt)*] [$($out:ty)?] [$($default:tt)?] })*
    ) => {
        #[allow(clippy::missing_safety_doc, clippy::undocumented_unsafe_blocks, clippy::too_many_arguments)]
        impl<P: Plugin> Exports<P> {
            $(unsafe extern "C" fn $call(
                vm: *mut Vm,
                $($arg: <$type as Argument>::Wire,)*
                $(out: <$out as Returned>::Out,)?
            ) -> Status {
                let peer = Sizes::OWN;
                unsafe {
                    guarded::<P::Vm>(vm, |backend| {
                        served!(backend.$call($($arg: $type),*) -> [$($result)*] [$($out)?], out, peer)
                    })
                }
            })*
        }
    };
}

backend_calls! { each_call! export_calls () [] }

/// Makes the table of a plugin.
macro_rules! export_table {
    (
        ()
        $({ $docs:tt $call:ident $me:ident $accessor:ident $receiver:tt $args:tt $result:tt $out:tt $default:tt })*
    ) => {
        /// The table of a plugin.
        pub const fn table<P: Plugin>(build: &'static str) -> BackendTable {
            BackendTable {
                abi_version: ABI_VERSION,
                table_size: size_of::<BackendTable>() as u32,
                sizes_bytes: size_of::<Sizes>() as u32,
                pad: 0,
                sizes: Sizes::OWN,
                build: Text::new(build),
                describe: Exports::<P>::describe,
                create: Exports::<P>::create,
                destroy: Exports::<P>::destroy,
                last_error: Exports::<P>::last_error,
                $($call: Exports::<P>::$call,)*
            }
        }
    };
}

backend_calls! { each_call! export_table () [] }
