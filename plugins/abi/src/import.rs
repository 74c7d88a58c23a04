//! The host's side of the C form: wraps a [`BackendTable`] as a `Box<dyn Backend>`.

// UNSAFETY: calls through a table that a foreign library supplied.
#![allow(unsafe_code)]

use crate::{
    contract::*,
    lend::with_host,
    plugin::{Description, VmConfig},
    raw::text,
    sinks::{byte_sink, cpuid_sink, description_sink, option_sink},
    table::*,
};
use std::cell::Cell;
use thiserror::Error;
use vmtape_arch::{
    access::{Access, Answer, Verdict},
    cpuid::CpuidEntry,
    exception::Exception,
    exit::{Exit, Resume, ResumeKind},
    sensitive::Sensitive,
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
        "its table has {found} bytes, this program needs {OLDEST_TABLE} (ABI version {ABI_VERSION}): it was built from an \
         older header"
    )]
    TableTooSmall { found: u32 },
    #[error("function {index} of its table is null")]
    NullFunction { index: usize },
    #[error("it failed while describing itself (status {status})")]
    DescribeFailed { status: Status },
    #[error("it describes itself without a name")]
    NoName,
}

/// Bytes of the first table that was released: everything from `query` on came later.
const OLDEST_TABLE: usize = std::mem::offset_of!(BackendTable, query);

/// A table that passed the handshake; what an older library lacks is answered on this side.
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
        if size < OLDEST_TABLE {
            return Err(HandshakeError::TableTooSmall { found: size as u32 });
        }
        // From `describe` on the table is function pointers only; they are looked at as words before Rust sees them.
        let known = size.min(size_of::<BackendTable>());
        let first = std::mem::offset_of!(BackendTable, describe);
        let count = (known - first) / size_of::<usize>();
        // SAFETY: the table has at least this size.
        let words = unsafe { std::slice::from_raw_parts(table.byte_add(first).cast::<usize>(), count) };
        if let Some(index) = words.iter().position(|word| *word == 0) {
            return Err(HandshakeError::NullFunction { index });
        }
        // SAFETY: version, size and pointers are as this crate's structure asks; the library is never unloaded.
        Ok(Self(unsafe { completed(table, known) }))
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
        let raw =
            RawConfig { silicon: config.silicon, options: options.as_ptr(), options_len: options.len() };
        let mut vm = std::ptr::null_mut();
        let mut reason = Vec::new();
        // SAFETY: everything passed lives until the call returns.
        let status = unsafe { (self.0.create)(&raw, &mut vm, byte_sink(&mut reason)) };
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

/// The table, with the functions that it is too small for answering -ENOTTY.
///
/// # Safety
/// `table` has `known` bytes, which stay as they are; they start with what [`OLDEST_TABLE`] has.
unsafe fn completed(table: *const BackendTable, known: usize) -> &'static BackendTable {
    if known == size_of::<BackendTable>() {
        // SAFETY: the caller vouches for it.
        return unsafe { &*table };
    }
    let mut whole = Box::<BackendTable>::new_uninit();
    // SAFETY: both sides have the bytes; the library's end where the function below begins.
    unsafe {
        std::ptr::copy_nonoverlapping(table.cast::<u8>(), whole.as_mut_ptr().cast(), OLDEST_TABLE);
        (&raw mut (*whole.as_mut_ptr()).query).write(no_query);
        // One table per library that is loaded, for as long as the library is.
        Box::leak(whole.assume_init())
    }
}

unsafe extern "C" fn no_query(_: *const Vm, _: u32, _: Query, _: *mut u64) -> Status {
    Errno::ENOTTY.0
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

/// The answer of a VM that is broken.
const FAILED: Resume = Resume::new(ResumeKind::BACKEND_FAILED);

impl Imported {
    /// Sorts a status: an errno is the caller's to see, a panic is reported once.
    fn check(&self, status: Status, host: Option<&mut dyn Host>) -> Result<(), Errno> {
        match status {
            STATUS_OK => Ok(()),
            -4095..=-1 => Err(Errno(status)),
            _ => {
                if !self.broken.replace(true)
                    && let Some(host) = host
                {
                    let reason = self.last_error(status);
                    host.log(1, &format!("the backend failed: {reason}"));
                }
                Err(Errno::EIO)
            }
        }
    }

    fn last_error(&self, status: Status) -> String {
        let mut reason = Vec::new();
        // SAFETY: the VM is alive and the sink outlives the call.
        unsafe { (self.table.last_error)(self.vm, byte_sink(&mut reason)) };
        match (status, String::from_utf8_lossy(&reason)) {
            (STATUS_PANICKED | STATUS_POISONED, reason) => format!("it panicked: {reason}"),
            (other, reason) => format!("unknown status {other} {reason}"),
        }
    }

    /// A call without the host.
    fn plain(&self, call: impl FnOnce() -> Status) -> Result<(), Errno> {
        if self.broken.get() { Err(Errno::EIO) } else { self.check(call(), None) }
    }

    /// A call that may use the host. A broken VM is not called again, whatever it would say.
    fn call(&self, host: &mut dyn Host, call: impl FnOnce(HostRef) -> Status) -> Result<(), Errno> {
        if self.broken.get() {
            return Err(Errno::EIO);
        }
        let status = with_host(host, call);
        self.check(status, Some(host))
    }
}

// SAFETY, for every block below: `vm` came from `create` of the same table and lives until drop; every other pointer is
// to a value on this side that outlives the call.
#[allow(clippy::undocumented_unsafe_blocks)]
impl Backend for Imported {
    fn resolved(&self) -> Vec<(String, String)> {
        let mut options = Vec::new();
        let sink = option_sink(&mut options);
        let _ = self.plain(|| unsafe { (self.table.resolved)(self.vm, sink) });
        options
    }

    fn check_extension(&self, cap: u32) -> i64 {
        let mut value = 0;
        let called = self.plain(|| unsafe { (self.table.check_extension)(self.vm, cap, &mut value) });
        called.map_or(0, |()| value)
    }

    fn query(&self, vcpu: u32, what: Query) -> Result<u64, Errno> {
        let mut value = 0;
        self.plain(|| unsafe { (self.table.query)(self.vm, vcpu, what, &mut value) })?;
        Ok(value)
    }

    fn supported_cpuid(&self, silicon: &[CpuidEntry]) -> Vec<CpuidEntry> {
        let mut entries = Vec::new();
        let sink = cpuid_sink(&mut entries);
        let _ = self.plain(|| unsafe {
            (self.table.supported_cpuid)(self.vm, silicon.as_ptr(), silicon.len(), sink)
        });
        entries
    }

    fn set_memory_region(&mut self, region: &MemoryRegion, host: &mut dyn Host) -> Result<(), Errno> {
        self.call(host, |host| unsafe { (self.table.set_memory_region)(self.vm, region, host) })
    }

    fn create_vcpu(&mut self, vcpu: u32) -> Result<(), Errno> {
        self.plain(|| unsafe { (self.table.create_vcpu)(self.vm, vcpu) })
    }

    fn set_cpuid(
        &mut self,
        vcpu: u32,
        state: &mut VcpuState,
        entries: &[CpuidEntry],
        host: &mut dyn Host,
    ) -> Result<(), Errno> {
        self.call(host, |host| unsafe {
            (self.table.set_cpuid)(self.vm, vcpu, state, entries.as_ptr(), entries.len(), host)
        })
    }

    fn get_cpuid(&self, vcpu: u32) -> Vec<CpuidEntry> {
        let mut entries = Vec::new();
        let sink = cpuid_sink(&mut entries);
        let _ = self.plain(|| unsafe { (self.table.get_cpuid)(self.vm, vcpu, sink) });
        entries
    }

    fn get_msr(
        &mut self,
        vcpu: u32,
        state: &mut VcpuState,
        index: u32,
        host: &mut dyn Host,
    ) -> Result<u64, Errno> {
        let mut data = 0;
        self.call(host, |host| unsafe {
            (self.table.get_msr)(self.vm, vcpu, state, index, host, &mut data)
        })?;
        Ok(data)
    }

    fn set_msr(
        &mut self,
        vcpu: u32,
        state: &mut VcpuState,
        index: u32,
        data: u64,
        host: &mut dyn Host,
    ) -> Result<(), Errno> {
        self.call(host, |host| unsafe { (self.table.set_msr)(self.vm, vcpu, state, index, data, host) })
    }

    fn state_changed(&mut self, vcpu: u32, state: &mut VcpuState, host: &mut dyn Host) {
        let _ = self.call(host, |host| unsafe { (self.table.state_changed)(self.vm, vcpu, state, host) });
    }

    fn save(&self) -> Vec<u8> {
        let mut saved = Vec::new();
        let sink = byte_sink(&mut saved);
        let _ = self.plain(|| unsafe { (self.table.save)(self.vm, sink) });
        saved
    }

    fn restore(&mut self, saved: &[u8]) -> Result<(), Errno> {
        self.plain(|| unsafe { (self.table.restore)(self.vm, saved.as_ptr(), saved.len()) })
    }

    fn access(
        &mut self,
        vcpu: u32,
        state: &mut VcpuState,
        access: &Access,
        host: &mut dyn Host,
        exit: &mut Exit,
    ) -> Answer {
        let mut answer = Answer::default();
        let called = self.call(host, |host| unsafe {
            (self.table.access)(self.vm, vcpu, state, access, host, exit, &mut answer)
        });
        // A broken backend exits, so that the run ends at `handle_exit`.
        called.map_or(Answer { verdict: Verdict::EXIT, ..Default::default() }, |()| answer)
    }

    fn sensitive(
        &mut self,
        vcpu: u32,
        state: &mut VcpuState,
        insn: &Sensitive,
        host: &mut dyn Host,
        exit: &mut Exit,
        fault: &mut Exception,
    ) -> Verdict {
        let mut verdict = Verdict::NATIVE;
        let called = self.call(host, |host| unsafe {
            (self.table.sensitive)(self.vm, vcpu, state, insn, host, exit, fault, &mut verdict)
        });
        called.map_or(Verdict::EXIT, |()| verdict)
    }

    fn exception(
        &mut self,
        vcpu: u32,
        state: &mut VcpuState,
        exception: &Exception,
        host: &mut dyn Host,
        exit: &mut Exit,
    ) -> Verdict {
        let mut verdict = Verdict::NATIVE;
        let called = self.call(host, |host| unsafe {
            (self.table.exception)(self.vm, vcpu, state, exception, host, exit, &mut verdict)
        });
        called.map_or(Verdict::EXIT, |()| verdict)
    }

    fn enter(&mut self, vcpu: u32, state: &mut VcpuState, host: &mut dyn Host) -> Resume {
        let mut resume = Resume::default();
        let called =
            self.call(host, |host| unsafe { (self.table.enter)(self.vm, vcpu, state, host, &mut resume) });
        called.map_or(FAILED, |()| resume)
    }

    fn handle_exit(&mut self, vcpu: u32, state: &mut VcpuState, exit: &Exit, host: &mut dyn Host) -> Resume {
        let mut resume = Resume::default();
        let called = self.call(host, |host| unsafe {
            (self.table.handle_exit)(self.vm, vcpu, state, exit, host, &mut resume)
        });
        called.map_or(FAILED, |()| resume)
    }
}
