//! The backend's side of the C form: turns a [`Plugin`] into a [`BackendTable`].

// UNSAFETY: the functions in the table receive raw pointers from the host.
#![allow(unsafe_code)]

use crate::{
    contract::{Backend, Errno, MemoryRegion, Query},
    plugin::{Plugin, TableRow, VmConfig},
    proxy::{HostProxy, take_panic},
    raw::{bytes, put_bytes, slice, text},
    table::*,
};
use std::{
    cell::RefCell,
    marker::PhantomData,
    panic::{AssertUnwindSafe, catch_unwind},
};
use vmtape_arch::{
    access::{Access, Answer, Verdict},
    cpuid::CpuidEntry,
    exception::Exception,
    exit::{Exit, Resume},
    sensitive::Sensitive,
    vcpu::VcpuState,
};

/// Writes the exported entry of a backend library: `export_backend!(MyPlugin);`
#[macro_export]
macro_rules! export_backend {
    ($plugin:ty) => {
        // UNSAFETY: an unmangled symbol; its name is this ABI's own.
        #[allow(unsafe_code)]
        const _: () = {
            static TABLE: $crate::table::BackendTable = $crate::export::table::<$plugin>(concat!(
                env!("CARGO_PKG_NAME"),
                " ",
                env!("CARGO_PKG_VERSION")
            ));

            #[unsafe(no_mangle)]
            extern "C" fn vmtape_backend_v1() -> *const $crate::table::BackendTable {
                $crate::export::quiet_panics();
                &TABLE
            }
        };
    };
}

/// Keeps panic messages for [`BackendTable::last_error`] instead of printing them. For a library of its own only: the
/// panic hook belongs to the copy of the standard library that is linked into it.
pub fn quiet_panics() {
    std::panic::set_hook(Box::new(crate::proxy::remember_panic));
}

/// What the host's `*mut Vm` points to.
struct Exported<B> {
    backend: B,
    /// The message of the panic that made the VM unusable.
    broken: RefCell<Option<String>>,
}

/// The table of a plugin.
pub const fn table<P: Plugin>(build: &'static str) -> BackendTable {
    use Exports as E;
    BackendTable {
        abi_version: ABI_VERSION,
        table_size: size_of::<BackendTable>() as u32,
        build: Text::new(build),
        describe: E::<P>::describe,
        create: E::<P>::create,
        destroy: E::<P>::destroy,
        last_error: E::<P>::last_error,
        resolved: E::<P>::resolved,
        check_extension: E::<P>::check_extension,
        supported_cpuid: E::<P>::supported_cpuid,
        set_memory_region: E::<P>::set_memory_region,
        create_vcpu: E::<P>::create_vcpu,
        set_cpuid: E::<P>::set_cpuid,
        get_cpuid: E::<P>::get_cpuid,
        get_msr: E::<P>::get_msr,
        set_msr: E::<P>::set_msr,
        state_changed: E::<P>::state_changed,
        save: E::<P>::save,
        restore: E::<P>::restore,
        access: E::<P>::access,
        sensitive: E::<P>::sensitive,
        exception: E::<P>::exception,
        enter: E::<P>::enter,
        handle_exit: E::<P>::handle_exit,
        query: E::<P>::query,
    }
}

/// Runs a call on a VM, catching panics: a VM that panicked once answers every later call with STATUS_POISONED.
///
/// # Safety
/// `vm` came from `create` of the same plugin and was not destroyed.
unsafe fn guarded<B>(vm: *const Vm, call: impl FnOnce(&mut B) -> Result<(), Errno>) -> Status {
    let exported = vm.cast_mut().cast::<Exported<B>>();
    // SAFETY: the host passes what `create` gave it. The cell is reached through a shared reference that ends here.
    if unsafe { (*exported).broken.borrow().is_some() } {
        return STATUS_POISONED;
    }
    // SAFETY: as above; calls never overlap, so this is the only reference to the backend.
    let backend = unsafe { &mut (*exported).backend };
    match catch_unwind(AssertUnwindSafe(|| call(backend))) {
        Ok(Ok(())) => STATUS_OK,
        Ok(Err(errno)) => errno.0,
        Err(panic) => {
            // SAFETY: as above; the reference to the backend is gone.
            unsafe { *(*exported).broken.borrow_mut() = Some(take_panic(&*panic)) };
            STATUS_PANICKED
        }
    }
}

/// Hands CPUID entries to a sink.
///
/// # Safety
/// The sink's context is alive.
unsafe fn put_cpuid(sink: CpuidSink, entries: &[CpuidEntry]) {
    // SAFETY: the sink copies what it wants before it returns.
    unsafe { (sink.put)(sink.ctx, entries.as_ptr(), entries.len()) }
}

/// A function of the table that asks a VM: its arguments as `table.rs` has them, and what to do with the backend.
macro_rules! call {
    ($name:ident($vm:ident: $pointer:ty $(, $arg:ident: $type:ty)* $(,)?), |$backend:ident| $act:expr) => {
        unsafe extern "C" fn $name($vm: $pointer $(, $arg: $type)*) -> Status {
            unsafe {
                guarded::<P::Vm>($vm, |$backend| {
                    $act;
                    Ok(())
                })
            }
        }
    };
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
                };
                unsafe { (sink.row)(sink.ctx, id, &raw) };
            }
        }
        STATUS_OK
    }

    unsafe extern "C" fn create(config: *const RawConfig, vm: *mut *mut Vm, error: ByteSink) -> Status {
        let raw = unsafe { &*config };
        let options = unsafe { slice(raw.options, raw.options_len) };
        let options = options.iter().map(|o| unsafe { (text(o.key), text(o.value)) }).collect();
        let config = VmConfig { silicon: raw.silicon, options };
        match catch_unwind(AssertUnwindSafe(|| P::create(&config))) {
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

    unsafe extern "C" fn last_error(vm: *const Vm, sink: ByteSink) {
        let exported = unsafe { &*vm.cast::<Exported<P::Vm>>() };
        if let Some(message) = &*exported.broken.borrow() {
            unsafe { put_bytes(sink, message.as_bytes()) };
        }
    }

    call!(resolved(vm: *const Vm, sink: OptionSink), |backend| {
        for (key, value) in backend.resolved() {
            (sink.put)(sink.ctx, Text::new(&key), Text::new(&value));
        }
    });

    call!(check_extension(vm: *const Vm, cap: u32, value: *mut i64), |backend| {
        *value = backend.check_extension(cap);
    });

    call!(query(vm: *const Vm, vcpu: u32, what: Query, value: *mut u64), |backend| {
        *value = backend.query(vcpu, what)?;
    });

    call!(
        supported_cpuid(vm: *const Vm, silicon: *const CpuidEntry, count: usize, sink: CpuidSink),
        |backend| put_cpuid(sink, &backend.supported_cpuid(slice(silicon, count)))
    );

    call!(set_memory_region(vm: *mut Vm, region: *const MemoryRegion, host: HostRef), |backend| {
        backend.set_memory_region(&*region, &mut HostProxy::new(host))?;
    });

    call!(create_vcpu(vm: *mut Vm, vcpu: u32), |backend| backend.create_vcpu(vcpu)?);

    call!(
        set_cpuid(
            vm: *mut Vm,
            vcpu: u32,
            state: *mut VcpuState,
            entries: *const CpuidEntry,
            count: usize,
            host: HostRef,
        ),
        |backend| backend.set_cpuid(vcpu, &mut *state, slice(entries, count), &mut HostProxy::new(host))?
    );

    call!(get_cpuid(vm: *const Vm, vcpu: u32, sink: CpuidSink), |backend| {
        put_cpuid(sink, &backend.get_cpuid(vcpu));
    });

    call!(
        get_msr(
            vm: *mut Vm,
            vcpu: u32,
            state: *mut VcpuState,
            index: u32,
            host: HostRef,
            data: *mut u64,
        ),
        |backend| *data = backend.get_msr(vcpu, &mut *state, index, &mut HostProxy::new(host))?
    );

    call!(
        set_msr(
            vm: *mut Vm,
            vcpu: u32,
            state: *mut VcpuState,
            index: u32,
            data: u64,
            host: HostRef,
        ),
        |backend| backend.set_msr(vcpu, &mut *state, index, data, &mut HostProxy::new(host))?
    );

    call!(state_changed(vm: *mut Vm, vcpu: u32, state: *mut VcpuState, host: HostRef), |backend| {
        backend.state_changed(vcpu, &mut *state, &mut HostProxy::new(host));
    });

    call!(save(vm: *const Vm, sink: ByteSink), |backend| put_bytes(sink, &backend.save()));

    call!(restore(vm: *mut Vm, saved: *const u8, len: usize), |backend| {
        backend.restore(bytes(saved, len))?;
    });

    call!(
        access(
            vm: *mut Vm,
            vcpu: u32,
            state: *mut VcpuState,
            access: *const Access,
            host: HostRef,
            exit: *mut Exit,
            answer: *mut Answer,
        ),
        |backend| {
            let mut host = HostProxy::new(host);
            *answer = backend.access(vcpu, &mut *state, &*access, &mut host, &mut *exit);
        }
    );

    call!(
        sensitive(
            vm: *mut Vm,
            vcpu: u32,
            state: *mut VcpuState,
            insn: *const Sensitive,
            host: HostRef,
            exit: *mut Exit,
            fault: *mut Exception,
            verdict: *mut Verdict,
        ),
        |backend| {
            let mut host = HostProxy::new(host);
            *verdict = backend.sensitive(vcpu, &mut *state, &*insn, &mut host, &mut *exit, &mut *fault);
        }
    );

    call!(
        exception(
            vm: *mut Vm,
            vcpu: u32,
            state: *mut VcpuState,
            exception: *const Exception,
            host: HostRef,
            exit: *mut Exit,
            verdict: *mut Verdict,
        ),
        |backend| {
            let mut host = HostProxy::new(host);
            *verdict = backend.exception(vcpu, &mut *state, &*exception, &mut host, &mut *exit);
        }
    );

    call!(
        enter(vm: *mut Vm, vcpu: u32, state: *mut VcpuState, host: HostRef, resume: *mut Resume),
        |backend| *resume = backend.enter(vcpu, &mut *state, &mut HostProxy::new(host))
    );

    call!(
        handle_exit(
            vm: *mut Vm,
            vcpu: u32,
            state: *mut VcpuState,
            exit: *const Exit,
            host: HostRef,
            resume: *mut Resume,
        ),
        |backend| *resume = backend.handle_exit(vcpu, &mut *state, &*exit, &mut HostProxy::new(host))
    );
}
