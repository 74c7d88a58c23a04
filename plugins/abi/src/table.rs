//! The contract in C words: what actually crosses the shared-library boundary.
//!
//! A backend exports one symbol, [`ENTRY_SYMBOL`], which returns a [`BackendTable`]. The host passes a [`HostRef`] to
//! every call that may need its services; the reference is valid until that call returns. Text and byte strings are
//! pointer and length, results of unknown size go through a sink, and every function returns a [`Status`].
//!
//! Append-only: fields are added at the end of a table and its `table_size` grows; nothing is moved or removed while
//! [`ABI_VERSION`] stays the same.

#[doc(hidden)]
pub use crate::sizes::in_c as sizes_in_c;
pub use crate::sizes::{Mismatch, Sizes};
use crate::{
    contract::*,
    cross::{Argument, Returned, Spelled},
    handshake::Call,
};
use std::{ffi::c_void, mem::offset_of};
use vmtape_arch::{
    access::{Access, Answer, Verdict},
    cpuid::CpuidEntry,
    exception::Exception,
    exit::{Exit, Isa, Resume},
    host::{Silicon, Vendor},
    layout,
    level::Place,
    note::{Note, NoteKind},
    open_enum,
    sensitive::Sensitive,
    state::{MsrEntry, StateKind},
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
/// A service of the host that is busy with an earlier call: the outer `HostRef` within `translate` and `wrote`.
pub const STATUS_BUSY: Status = -0x1_0003;
/// The table that came with the call cannot be used: another version, or without a function that has no default.
pub const STATUS_NO_TABLE: Status = -0x1_0004;
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

layout!(Text: 16, len: 8);

// UNSAFETY: a table with texts in it is a constant of a library, and constants must be `Sync`.
// SAFETY: a `Text` is two words; whoever reads through it states why the memory is there.
#[allow(unsafe_code)]
unsafe impl Sync for Text {}

/// Tables are constants too.
macro_rules! constant_tables {
    ($($table:ty),*) => {$(
        // UNSAFETY: as for `Text`.
        // SAFETY: nothing in a table is ever written.
        #[allow(unsafe_code)]
        unsafe impl Sync for $table {}
    )*};
}

constant_tables!(BackendTable, HostTable);

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

layout!(Maybe: 16, there: 8);

/// What `translate` finds: `translation` with STATUS_OK, `fault` with STATUS_GUEST_FAULT.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Translated {
    pub translation: Translation,
    pub fault: Exception,
}

layout!(Translated: 40, fault: 24);

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
    /// "series". FAULT_POINTS: what the two words are and what an answer means. Otherwise empty.
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
    /// PATCHES and PARAMETERS: the commit that took it out there. FAULT_POINTS: options of a VM, NAME=VALUE as it resolves them and
    /// separated by spaces, with any of which the model does not come to the point.
    pub undone_by: Text,
    /// PARAMETERS: `nested-paging` for the one that says whether silicon walks the guest's own tables. Otherwise empty.
    pub role: Text,
}

layout!(RawRow: 168, size: 4, name: 8, commit: 72, undone_by: 136, role: 152);

/// Receives a backend's description: `head` once, then `row` for every row of every table.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct DescriptionSink {
    pub ctx: *mut c_void,
    pub head: unsafe extern "C" fn(ctx: *mut c_void, name: Text, summary: Text, isa: Isa, vendor: Vendor),
    pub row: unsafe extern "C" fn(ctx: *mut c_void, table: TableId, row: *const RawRow),
}

layout!(DescriptionSink: 24, head: 8, row: 16);

/// A key and its value.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct RawOption {
    pub key: Text,
    pub value: Text,
}

layout!(RawOption: 32, value: 16);

/// What a VM is created with.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct RawConfig {
    /// The table that every `HostRef` of this VM will carry: a backend refuses a host without a function that it needs.
    pub host: *const HostTable,
    pub silicon: *const Silicon,
    /// Profile, patches and module parameters: ("kvm", "v6.12"), ("+NAME", ""), ("-NAME", ""), ("ept", "on"), ...
    pub options: *const RawOption,
    pub options_len: usize,
}

layout!(RawConfig: 32, silicon: 8, options: 16, options_len: 24);

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

layout!(HostRef: 16, table: 8);

/// The backend's side of one emulation, lent to the host for the length of the `emulate` call.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct MmuRef {
    pub ctx: *mut c_void,
    pub table: *const MmuTable,
}

layout!(MmuRef: 16, table: 8);

/// Makes the table of a list of calls: `head` fields, then a function for each.
macro_rules! table_of {
    (
        ($(#[$meta:meta])* $name:ident, $doc_of:ident, $context:ident: $context_type:ty,
         { $($(#[$head_meta:meta])* $head:ident: $head_type:ty,)* })
        $({ [$($doc:literal)*] $call:ident $me:ident $accessor:ident $receiver:tt ($($arg:ident: $type:ty,)*)
            [$($result:tt)*] [$($out:ty)?] [$($default:tt)?] })*
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
            /// The functions that follow from declarations, in the table's order.
            pub const CALLS: &'static [Call] = &[$(Call {
                name: stringify!($call),
                at: offset_of!($name, $call),
                needed: <[&str]>::is_empty(&[$(stringify!($default))?]),
            }),*];
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
    MmuTable, mmu_fields, ctx: *mut c_void, {
        /// The backend's ABI_VERSION.
        abi_version: u32,
        /// `sizeof` this structure in the backend's header.
        table_size: u32,
    }
) [] }

host_calls! { each_call! table_of (
    /// Services of the host.
    HostTable, host_fields, ctx: *mut c_void, {
        /// The host's ABI_VERSION.
        abi_version: u32,
        /// `sizeof` this structure in the host's header: a function beyond does not exist.
        table_size: u32,
        /// Bytes of `sizes`.
        sizes_bytes: u32,
        pad: u32,
        /// The host's structures. It takes and gives all of them in the backend's sizes; what the host does not have is zero.
        sizes: *const Sizes,
    }
) [] }

backend_calls! { each_call! table_of (
    /// A backend: how it describes itself, and a VM under it.
    ///
    /// A function that has a default may be null, or stand beyond `table_size`; the others may not. `vm` is what `create` gave.
    /// Calls never overlap.
    BackendTable, backend_fields, vm: *mut Vm, {
        /// ABI_VERSION of the header that the backend was built with.
        abi_version: u32,
        /// `sizeof` this structure in that header.
        table_size: u32,
        /// Bytes of `sizes`: `sizeof` the structure.
        sizes_bytes: u32,
        pad: u32,
        /// The backend's structures: vt_SIZES.
        sizes: *const Sizes,
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
