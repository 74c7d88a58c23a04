//! The contract in C words: what actually crosses the shared-library boundary.
//!
//! A backend exports one symbol, [`ENTRY_SYMBOL`], which returns a [`BackendTable`]. The host passes a [`HostRef`] to
//! every call that may need its services; the reference is valid until that call returns. Text and byte strings are
//! pointer and length, results of unknown size go through a sink, and every function returns a [`Status`].
//!
//! Append-only: fields are added at the end of a table and its `table_size` grows; nothing is moved or removed while
//! [`ABI_VERSION`] stays the same.

use crate::{
    contract::*,
    cross::{Argument, Returned, Spelled},
};
use std::ffi::c_void;
use vmtape_arch::{
    access::{Access, Answer, Verdict},
    cpuid::CpuidEntry,
    exception::Exception,
    exit::{Exit, Isa, Resume},
    host::{Silicon, Vendor},
    level::Place,
    note::{Note, NoteKind, RawNote},
    open_enum,
    sensitive::Sensitive,
    state::MsrEntry,
    vcpu::VcpuState,
};

/// The version that this crate speaks. It changes only when a table cannot be extended at its end.
pub const ABI_VERSION: u32 = 2;

/// The symbol of [`EntryFn`]. Its name ends in the ABI version.
pub const ENTRY_SYMBOL: &str = "vmtape_backend_v2";

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

/// A list that the callee reads.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Slice<T> {
    pub ptr: *const T,
    pub len: usize,
}

/// A buffer that the callee fills.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct SliceMut<T> {
    pub ptr: *mut T,
    pub len: usize,
}

/// Receives a list, in any number of pieces.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Sink<T> {
    pub ctx: *mut c_void,
    pub put: unsafe extern "C" fn(ctx: *mut c_void, items: *const T, count: usize),
}

/// A value that may be absent; then it is zero.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Maybe {
    pub value: u64,
    /// 1: `value` is there.
    pub there: u8,
    pub pad: [u8; 7],
}

/// What `translate` finds: `translation` with STATUS_OK, `fault` with STATUS_GUEST_FAULT.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Translated {
    pub translation: Translation,
    pub fault: Exception,
}

open_enum! {
    /// The tables with which a plugin describes itself.
    pub struct TableId(u32) {
        RULES = 0 => "rules",
        PATCHES = 1 => "patches",
        PARAMETERS = 2 => "parameters",
        FAULT_POINTS = 3 => "fault points",
        PROFILES = 4 => "profiles",
        CAPABILITIES = 5 => "capabilities",
    }
}

/// One row of a table.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct RawRow {
    /// CAPABILITIES: the KVM_CAP number. Otherwise what notes and fault plans name the row by.
    pub id: u32,
    /// `sizeof` this structure. Zero, which older headers ask for: the row ends with `value`.
    pub size: u32,
    /// Short name, as options and fault plans spell it.
    pub name: Text,
    /// One sentence.
    pub text: Text,
    /// Manual section, or KVM file, function and commit.
    pub source: Text,
    /// PARAMETERS: the default. PATCHES: the first release, "never merged" or "silicon". PROFILES: "release", "alias" or
    /// "series". Otherwise empty.
    pub value: Text,
    /// PATCHES: the commit, or where it was posted.
    pub commit: Text,
    /// PATCHES: the subject line.
    pub subject: Text,
    /// PATCHES and PARAMETERS: the first release that has it. PROFILES: the release that it is, or is built upon. Empty: no
    /// release.
    pub since: Text,
    /// PATCHES and PARAMETERS: the first release that no longer has it. Empty: all later ones have it.
    pub until: Text,
    /// The commit that took it out there.
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

/// What a VM is created with.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct RawConfig {
    /// The table that every `HostRef` of this VM will carry: a backend refuses a host whose sizes differ from its own.
    pub host: *const HostTable,
    pub silicon: Silicon,
    /// Profile, patches and module parameters: ("kvm", "v6.12"), ("+NAME", ""), ("-NAME", ""), ("ept", "on"), ...
    pub options: *const RawOption,
    pub options_len: usize,
}

/// A VM, owned by the backend. The host only passes it back.
#[derive(Debug)]
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
    pub table: *const MmuTable,
}

/// `sizeof` each structure that crosses, as the header has it that a side was built with. Sides whose sizes differ refuse
/// each other before either can write past the other's structures.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    pub access: u32,
    pub answer: u32,
    pub bus_op: u32,
    pub cpuid_entry: u32,
    pub dirty_gfn: u32,
    pub emulate_request: u32,
    pub emulated: u32,
    pub exception: u32,
    pub exit: u32,
    pub maybe: u32,
    pub memory_region: u32,
    pub raw_config: u32,
    pub raw_note: u32,
    pub raw_row: u32,
    pub resume: u32,
    pub sensitive: u32,
    pub silicon: u32,
    pub translated: u32,
    pub vcpu_state: u32,
}

impl Sizes {
    /// The sizes of this crate's structures.
    pub const fn here() -> Self {
        Self {
            access: size_of::<Access>() as u32,
            answer: size_of::<Answer>() as u32,
            bus_op: size_of::<BusOp>() as u32,
            cpuid_entry: size_of::<CpuidEntry>() as u32,
            dirty_gfn: size_of::<DirtyGfn>() as u32,
            emulate_request: size_of::<EmulateRequest>() as u32,
            emulated: size_of::<Emulated>() as u32,
            exception: size_of::<Exception>() as u32,
            exit: size_of::<Exit>() as u32,
            maybe: size_of::<Maybe>() as u32,
            memory_region: size_of::<MemoryRegion>() as u32,
            raw_config: size_of::<RawConfig>() as u32,
            raw_note: size_of::<RawNote>() as u32,
            raw_row: size_of::<RawRow>() as u32,
            resume: size_of::<Resume>() as u32,
            sensitive: size_of::<Sensitive>() as u32,
            silicon: size_of::<Silicon>() as u32,
            translated: size_of::<Translated>() as u32,
            vcpu_state: size_of::<VcpuState>() as u32,
        }
    }

    /// The first structure whose size differs, with the two sizes.
    pub fn difference(&self, other: &Self) -> Option<(&'static str, u32, u32)> {
        let pairs = [
            ("Access", self.access, other.access),
            ("Answer", self.answer, other.answer),
            ("BusOp", self.bus_op, other.bus_op),
            ("CpuidEntry", self.cpuid_entry, other.cpuid_entry),
            ("DirtyGfn", self.dirty_gfn, other.dirty_gfn),
            ("EmulateRequest", self.emulate_request, other.emulate_request),
            ("Emulated", self.emulated, other.emulated),
            ("Exception", self.exception, other.exception),
            ("Exit", self.exit, other.exit),
            ("Maybe", self.maybe, other.maybe),
            ("MemoryRegion", self.memory_region, other.memory_region),
            ("RawConfig", self.raw_config, other.raw_config),
            ("RawNote", self.raw_note, other.raw_note),
            ("RawRow", self.raw_row, other.raw_row),
            ("Resume", self.resume, other.resume),
            ("Sensitive", self.sensitive, other.sensitive),
            ("Silicon", self.silicon, other.silicon),
            ("Translated", self.translated, other.translated),
            ("VcpuState", self.vcpu_state, other.vcpu_state),
        ];
        pairs.into_iter().find(|(_, here, there)| here != there)
    }
}

/// Makes the table of a list of calls: `head` fields, then a function for each.
macro_rules! table_of {
    (
        ($(#[$meta:meta])* $name:ident, $doc_of:ident, $context:ident: $context_type:ty,
         { $($(#[$head_meta:meta])* $head:ident: $head_type:ty,)* })
        $({ [$($doc:literal)*] $call:ident $me:ident $accessor:ident $receiver:tt ($($arg:ident: $type:ty,)*)
            [$($result:tt)*] [$($out:ty)?] })*
    ) => {
        $(#[$meta])*
        #[repr(C)]
        #[derive(Debug)]
        pub struct $name {
            $($(#[$head_meta])* pub $head: $head_type,)*
            $(
                $(#[doc = $doc])*
                pub $call: unsafe extern "C" fn(
                    $context: $context_type,
                    $($arg: <$type as Argument>::Wire,)*
                    $(out: <$out as Returned>::Out,)?
                ) -> Status,
            )*
        }

        impl $name {
            /// The names of the functions that follow from declarations, in the table's order.
            pub const CALLS: &'static [&'static str] = &[$(stringify!($call)),*];
        }

        /// The table's functions as fields in C types, for the header.
        #[doc(hidden)]
        pub fn $doc_of() -> String {
            let mut fields = String::new();
            $(
                $(fields += &format!("///{}\n", $doc);)*
                fields += concat!("pub ", stringify!($call), ": unsafe extern \"C\" fn(");
                fields += &format!("{}: {}", stringify!($context), Spelled::<$context_type>::text());
                $(fields += &format!(", {}: {}", stringify!($arg), Spelled::<<$type as Argument>::Wire>::text());)*
                $(fields += &format!(", out: {}", Spelled::<<$out as Returned>::Out>::text());)?
                fields += ") -> Status,\n";
            )*
            fields
        }
    };
}

mmu_calls! { each_call! table_of (
    /// The backend's side of an emulation.
    MmuTable, mmu_fields, ctx: *mut c_void, {}
) [] }

host_calls! { each_call! table_of (
    /// Services of the host.
    HostTable, host_fields, ctx: *mut c_void, {
        /// The host's ABI_VERSION.
        abi_version: u32,
        /// Bytes in the host's table: a function beyond them does not exist.
        table_size: u32,
        /// The host's structures.
        sizes: Sizes,
    }
) [] }

backend_calls! { each_call! table_of (
    /// A backend: how it describes itself, and a VM under it.
    ///
    /// No function pointer may be null. `vm` is what `create` gave. Calls never overlap.
    BackendTable, backend_fields, vm: *mut Vm, {
        /// ABI_VERSION of the header that the backend was built with.
        abi_version: u32,
        /// `sizeof` this structure in that header.
        table_size: u32,
        /// The backend's structures.
        sizes: Sizes,
        /// Which build this is: name and version, for people. What `save` gives is for the same build only.
        build: Text,
        /// Name, summary, architecture and vendor through `head`, once; then the rows of its tables.
        describe: unsafe extern "C" fn(sink: DescriptionSink) -> Status,
        /// STATUS_OK with `vm` filled in, or STATUS_REFUSED with the reason in `error`.
        create: unsafe extern "C" fn(config: *const RawConfig, vm: *mut *mut Vm, error: Sink<u8>) -> Status,
        /// Frees the VM; no call comes after it.
        destroy: unsafe extern "C" fn(vm: *mut Vm),
        /// Why a call answered STATUS_PANICKED.
        last_error: unsafe extern "C" fn(vm: *const Vm, sink: Sink<u8>),
    }
) [] }
