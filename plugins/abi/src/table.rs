//! The contract in C words: what actually crosses the shared-library boundary.
//!
//! A backend exports one symbol, [`ENTRY_SYMBOL`], which returns a [`BackendTable`]. The host passes a [`HostRef`] to
//! every call that may need its services; the reference is valid until that call returns. Text and byte strings are
//! pointer and length, results of unknown size go through a sink, and every function returns a [`Status`].
//!
//! Append-only: fields are added at the end of a table and its `table_size` grows; nothing is moved or removed while
//! [`ABI_VERSION`] stays the same.

use crate::contract::{BusOp, EmulateRequest, Emulated, FlushScope, MemoryRegion, Query, Translation};
use std::ffi::c_void;
use vmtape_arch::{
    access::{Access, Answer, Verdict},
    cpuid::CpuidEntry,
    exception::Exception,
    exit::{Exit, Isa, Resume},
    host::{Silicon, Vendor},
    note::{NoteKind, RawNote},
    open_enum,
    sensitive::Sensitive,
    vcpu::VcpuState,
};

/// The version that this crate speaks. It changes only when a table cannot be extended at its end.
pub const ABI_VERSION: u32 = 1;

/// The symbol of [`EntryFn`]. Its name ends in the ABI version.
pub const ENTRY_SYMBOL: &str = "vmtape_backend_v1";

/// The one function that a backend library exports. The table must stay valid for ever: libraries are not unloaded.
pub type EntryFn = unsafe extern "C" fn() -> *const BackendTable;

/// How a call ended: [`STATUS_OK`], a negative errno (-1 to -4095), or one of the values below.
pub type Status = i32;

/// The call did what it should, and its out-parameters are filled in.
pub const STATUS_OK: Status = 0;
/// The backend panicked (or found itself broken) in this call. `last_error` says how; the VM is unusable from now on.
pub const STATUS_PANICKED: Status = -0x1_0001;
/// An earlier call panicked; this one did nothing.
pub const STATUS_POISONED: Status = -0x1_0002;
/// `translate` only: the guest takes the exception in `fault`.
pub const STATUS_GUEST_FAULT: Status = 1;
/// `create` only: the configuration does not fit; the sink has the reason.
pub const STATUS_REFUSED: Status = 2;

/// UTF-8 text, not terminated.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Text {
    pub ptr: *const u8,
    pub len: usize,
}

// UNSAFETY: a table with texts in it is a constant of a library, and constants must be `Sync`.
// SAFETY: a `Text` is two words; whoever reads through it states why the memory is there.
#[allow(unsafe_code)]
unsafe impl Sync for Text {}

impl Text {
    /// Borrows text; the caller keeps it alive for as long as the other side may read it.
    pub const fn new(text: &str) -> Self {
        Self { ptr: text.as_ptr(), len: text.len() }
    }
}

/// Receives bytes, in any number of pieces.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct ByteSink {
    pub ctx: *mut c_void,
    pub put: unsafe extern "C" fn(ctx: *mut c_void, ptr: *const u8, len: usize),
}

/// Receives CPUID entries, in any number of pieces.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct CpuidSink {
    pub ctx: *mut c_void,
    pub put: unsafe extern "C" fn(ctx: *mut c_void, entries: *const CpuidEntry, count: usize),
}

/// Receives options, one per call.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct OptionSink {
    pub ctx: *mut c_void,
    pub put: unsafe extern "C" fn(ctx: *mut c_void, key: Text, value: Text),
}

open_enum! {
    /// The tables of `contract::Description`.
    pub struct TableId(u32) {
        RULES = 0 => "rules",
        PATCHES = 1 => "patches",
        PARAMETERS = 2 => "parameters",
        FAULT_POINTS = 3 => "fault points",
        PROFILES = 4 => "profiles",
        CAPABILITIES = 5 => "capabilities",
    }
}

/// One row of a table; see `contract::TableRow`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct RawRow {
    pub id: u32,
    /// `sizeof` this structure. Zero, which older headers ask for: the row ends with `value`.
    pub size: u32,
    pub name: Text,
    pub text: Text,
    pub source: Text,
    pub value: Text,
    pub commit: Text,
    pub subject: Text,
    pub since: Text,
    pub until: Text,
    pub undone_by: Text,
}

/// Receives a backend's description: `head` once, then `row` for every row of every table.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct DescriptionSink {
    pub ctx: *mut c_void,
    pub head: unsafe extern "C" fn(ctx: *mut c_void, name: Text, summary: Text, isa: Isa, vendor: Vendor),
    pub row: unsafe extern "C" fn(ctx: *mut c_void, table: TableId, row: *const RawRow),
}

/// A key and its value.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct RawOption {
    pub key: Text,
    pub value: Text,
}

/// What a VM is created with; see `contract::VmConfig`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct RawConfig {
    pub silicon: Silicon,
    pub options: *const RawOption,
    pub options_len: usize,
}

/// A VM, owned by the backend. The host only passes it back.
pub struct Vm {
    _opaque: (),
}

/// The host's services and the context to call them with, lent for the length of one call.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct HostRef {
    pub ctx: *mut c_void,
    pub table: *const HostTable,
}

/// The backend's side of one emulation, lent to the host for the length of the `emulate` call.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct MmuRef {
    pub ctx: *mut c_void,
    /// STATUS_OK with `translation` filled in, or STATUS_GUEST_FAULT with `fault`.
    pub translate: unsafe extern "C" fn(
        ctx: *mut c_void,
        state: *const VcpuState,
        access: *const Access,
        host: HostRef,
        translation: *mut Translation,
        fault: *mut Exception,
    ) -> Status,
    pub wrote: unsafe extern "C" fn(ctx: *mut c_void, gpa: u64, len: u8, host: HostRef) -> Status,
    pub knows: unsafe extern "C" fn(ctx: *mut c_void, insn: *const u8, len: usize) -> bool,
}

/// Services of the host: `contract::Host`, function by function, with the same meaning.
#[repr(C)]
#[derive(Debug)]
pub struct HostTable {
    /// The host's [`ABI_VERSION`].
    pub abi_version: u32,
    /// Bytes in the host's table: a function beyond them does not exist.
    pub table_size: u32,
    /// Reads host physical memory. False: not RAM. Such reads are on the tape, as the stimulus of the exit.
    pub read: unsafe extern "C" fn(ctx: *mut c_void, hpa: u64, buf: *mut u8, len: usize) -> bool,
    /// Writes host physical memory, drops decoded code and marks the page dirty. False: not RAM.
    pub write: unsafe extern "C" fn(ctx: *mut c_void, hpa: u64, data: *const u8, len: usize) -> bool,
    /// Compares and exchanges `size` (4 or 8) bytes. 1: exchanged. 0: memory held something else. -1: not RAM.
    pub cmpxchg: unsafe extern "C" fn(ctx: *mut c_void, hpa: u64, old: u64, new_value: u64, size: u8) -> i32,
    /// Drops translations of one vCPU or of ALL_VCPUS.
    pub flush_tlb: unsafe extern "C" fn(ctx: *mut c_void, vcpu: u32, scope: FlushScope, address: u64),
    /// KVM's instruction emulator, with the interpreter doing the work and `mmu` translating every access.
    pub emulate: unsafe extern "C" fn(
        ctx: *mut c_void,
        vcpu: u32,
        state: *mut VcpuState,
        request: *const EmulateRequest,
        mmu: MmuRef,
        out: *mut Emulated,
    ),
    /// Accesses a device. False: nobody claimed it (an unclaimed userspace read still fills `data` with ones).
    pub bus: unsafe extern "C" fn(ctx: *mut c_void, vcpu: u32, op: *mut BusOp) -> bool,
    /// The highest pending interrupt, which `ack` takes: a vector (without `ack` zero for the PIC, whose vector is
    /// known only once it is taken), or -1.
    pub interrupt: unsafe extern "C" fn(ctx: *mut c_void, vcpu: u32, ack: bool) -> i32,
    /// Whether an NMI is pending; `ack` takes it.
    pub nmi: unsafe extern "C" fn(ctx: *mut c_void, vcpu: u32, ack: bool) -> bool,
    /// Puts a note on the tape.
    pub note: unsafe extern "C" fn(ctx: *mut c_void, vcpu: u32, note: *const RawNote),
    /// Whether notes of this kind are wanted; a backend may skip building those that are not.
    pub wants: unsafe extern "C" fn(ctx: *mut c_void, kind: NoteKind) -> bool,
    /// Logs a line; 1 error ... 5 trace.
    pub log: unsafe extern "C" fn(ctx: *mut c_void, level: u32, text: Text),
    /// True: a fault plan answers with `value`.
    pub fault_point: unsafe extern "C" fn(ctx: *mut c_void, vcpu: u32, id: u32, value: *mut u64) -> bool,
}

/// A backend: `contract::Plugin` and `contract::Backend`, function by function, with the same meaning.
///
/// No function pointer may be null. `vm` is what `create` gave. Calls never overlap.
#[repr(C)]
#[derive(Debug)]
pub struct BackendTable {
    /// [`ABI_VERSION`] of the header that the backend was built with.
    pub abi_version: u32,
    /// `sizeof` this structure in that header.
    pub table_size: u32,
    /// Which build this is: name and version, for people. What `save` gives is for the same build only.
    pub build: Text,

    // --- before a VM exists ---
    /// Name, summary, architecture and vendor through `head`, once; then the rows of its tables.
    pub describe: unsafe extern "C" fn(sink: DescriptionSink) -> Status,
    /// STATUS_OK with `vm` filled in, or STATUS_REFUSED with the reason in `error`.
    pub create: unsafe extern "C" fn(config: *const RawConfig, vm: *mut *mut Vm, error: ByteSink) -> Status,
    /// Frees the VM; no call comes after it.
    pub destroy: unsafe extern "C" fn(vm: *mut Vm),
    /// Why a call answered STATUS_PANICKED.
    pub last_error: unsafe extern "C" fn(vm: *const Vm, sink: ByteSink),

    // --- control, in the words of the KVM ioctls ---
    /// Every option with the value that it has in this VM, so that a tape never depends on a default.
    pub resolved: unsafe extern "C" fn(vm: *const Vm, sink: OptionSink) -> Status,
    /// KVM_CHECK_EXTENSION.
    pub check_extension: unsafe extern "C" fn(vm: *const Vm, cap: u32, value: *mut i64) -> Status,
    /// KVM_GET_SUPPORTED_CPUID, given what the silicon's own CPUID says.
    pub supported_cpuid: unsafe extern "C" fn(
        vm: *const Vm,
        silicon: *const CpuidEntry,
        count: usize,
        sink: CpuidSink,
    ) -> Status,
    /// KVM_SET_USER_MEMORY_REGION.
    pub set_memory_region:
        unsafe extern "C" fn(vm: *mut Vm, region: *const MemoryRegion, host: HostRef) -> Status,
    /// KVM_CREATE_VCPU.
    pub create_vcpu: unsafe extern "C" fn(vm: *mut Vm, vcpu: u32) -> Status,
    /// KVM_SET_CPUID2.
    pub set_cpuid: unsafe extern "C" fn(
        vm: *mut Vm,
        vcpu: u32,
        state: *mut VcpuState,
        entries: *const CpuidEntry,
        count: usize,
        host: HostRef,
    ) -> Status,
    /// KVM_GET_CPUID2.
    pub get_cpuid: unsafe extern "C" fn(vm: *const Vm, vcpu: u32, sink: CpuidSink) -> Status,
    /// KVM_GET_MSRS, one register.
    pub get_msr: unsafe extern "C" fn(
        vm: *mut Vm,
        vcpu: u32,
        state: *mut VcpuState,
        index: u32,
        host: HostRef,
        data: *mut u64,
    ) -> Status,
    /// KVM_SET_MSRS, one register.
    pub set_msr: unsafe extern "C" fn(
        vm: *mut Vm,
        vcpu: u32,
        state: *mut VcpuState,
        index: u32,
        data: u64,
        host: HostRef,
    ) -> Status,
    /// The host changed the state from outside (reset, INIT, SIPI, restored registers).
    pub state_changed:
        unsafe extern "C" fn(vm: *mut Vm, vcpu: u32, state: *mut VcpuState, host: HostRef) -> Status,
    /// Everything the backend keeps, so that a run goes on from here byte for byte; for the same build only.
    pub save: unsafe extern "C" fn(vm: *const Vm, sink: ByteSink) -> Status,
    /// The inverse of `save`, on a VM created with the same configuration, slots and vCPUs.
    pub restore: unsafe extern "C" fn(vm: *mut Vm, saved: *const u8, len: usize) -> Status,

    // --- silicon ---
    /// Translates an access that missed the host's TLB: a mapping, a fault, or EXIT, which fills in `exit`.
    pub access: unsafe extern "C" fn(
        vm: *mut Vm,
        vcpu: u32,
        state: *mut VcpuState,
        access: *const Access,
        host: HostRef,
        exit: *mut Exit,
        answer: *mut Answer,
    ) -> Status,
    /// A sensitive instruction or condition whose bit in `state.intercepts` is set. FAULT: `fault` is filled in.
    /// EXIT: `exit` is.
    pub sensitive: unsafe extern "C" fn(
        vm: *mut Vm,
        vcpu: u32,
        state: *mut VcpuState,
        insn: *const Sensitive,
        host: HostRef,
        exit: *mut Exit,
        fault: *mut Exception,
        verdict: *mut Verdict,
    ) -> Status,
    /// The guest is about to take an exception whose bit in `state.intercepts` is set: NATIVE or EXIT.
    pub exception: unsafe extern "C" fn(
        vm: *mut Vm,
        vcpu: u32,
        state: *mut VcpuState,
        exception: *const Exception,
        host: HostRef,
        exit: *mut Exit,
        verdict: *mut Verdict,
    ) -> Status,

    // --- KVM ---
    /// Before the guest runs: at the first entry, after each exit, and when the host has an interrupt to deliver.
    /// Sets `state.inject` and asks for windows. Anything but RESUME keeps the vCPU out.
    pub enter: unsafe extern "C" fn(
        vm: *mut Vm,
        vcpu: u32,
        state: *mut VcpuState,
        host: HostRef,
        resume: *mut Resume,
    ) -> Status,
    /// Handles an exit: RESUME, or what keeps the vCPU out.
    pub handle_exit: unsafe extern "C" fn(
        vm: *mut Vm,
        vcpu: u32,
        state: *mut VcpuState,
        exit: *const Exit,
        host: HostRef,
        resume: *mut Resume,
    ) -> Status,

    // --- appended: a library from an older header ends above, and answers -ENOTTY ---
    /// A value that no ioctl shows. -ENOTTY: this backend does not have it.
    pub query: unsafe extern "C" fn(vm: *const Vm, vcpu: u32, what: Query, value: *mut u64) -> Status,
}
