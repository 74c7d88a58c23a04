//! How each type of the contract crosses the boundary: its C form, and the way there and back.

// UNSAFETY: this is where foreign pointers become references.
#![allow(unsafe_code)]

use crate::{
    contract::*,
    lend::{self, Lent, LentHost, LentMmu},
    proxy::{HostProxy, MmuProxy},
    raw::{slice, slice_mut, text},
    table::*,
};
use std::{ffi::c_void, marker::PhantomData};
use vmtape_arch::{
    access::{Access, Answer, Verdict},
    cpuid::CpuidEntry,
    exception::Exception,
    exit::{Exit, Resume, ResumeKind},
    level::Place,
    note::{Note, NoteKind, RawNote},
    sensitive::Sensitive,
    state::MsrEntry,
    vcpu::VcpuState,
};

/// A structure or number that is the same on both sides.
pub trait Plain: Copy {}

/// An argument. The caller holds it, and passes the wire's form of what it holds; the callee raises that, and lends it on.
pub trait Argument: Sized {
    type Wire: Copy;
    type Held;
    type Raised;

    fn hold(self) -> Self::Held;
    fn wire(held: &mut Self::Held) -> Self::Wire;

    /// After the call: goes on with a panic that came back through foreign frames.
    fn release(_held: &mut Self::Held) {}

    /// Says on the host's log why the call failed, where the host is an argument.
    fn report(_held: &mut Self::Held, _reason: &str) {}

    /// # Safety
    /// `wire` came with a call that has not returned, as its side of the contract describes it.
    unsafe fn raise(wire: Self::Wire) -> Self::Raised;

    /// # Safety
    /// As for `raise`; what is lent ends before `raised` does, and is lent once.
    unsafe fn lend(raised: *mut Self::Raised) -> Self;
}

/// A result. The caller keeps a slot that the callee fills in through an out-parameter.
pub trait Returned: Sized {
    type Out: Copy;
    type Slot;

    fn slot() -> Self::Slot;
    fn out(slot: &mut Self::Slot) -> Self::Out;

    /// What the caller gets; a status other than STATUS_OK leaves the slot without meaning.
    fn finish(status: Status, slot: Self::Slot) -> Self;

    /// # Safety
    /// `out` is the out-parameter of a call that has not returned.
    unsafe fn put(self, out: Self::Out) -> Status;
}

/// Numbers, and structures as small, that cross by value.
macro_rules! numbers {
    ($($type:ty),* $(,)?) => {$(
        impl Plain for $type {}

        impl Argument for $type {
            type Wire = Self;
            type Held = Self;
            type Raised = Self;

            fn hold(self) -> Self {
                self
            }
            fn wire(held: &mut Self) -> Self {
                *held
            }
            unsafe fn raise(wire: Self) -> Self {
                wire
            }
            unsafe fn lend(raised: *mut Self) -> Self {
                // SAFETY: the caller vouches for it.
                unsafe { *raised }
            }
        }
    )*};
}

numbers!(u8, u32, u64, FlushScope, NoteKind, Place, Query);

/// Results that cross as they are, each with the answer of a side that failed.
macro_rules! results {
    ($($type:ty => $failed:expr),* $(,)?) => {$(
        impl Returned for $type {
            type Out = *mut Self;
            type Slot = Self;

            fn slot() -> Self {
                Self::default()
            }
            fn out(slot: &mut Self) -> *mut Self {
                slot
            }
            fn finish(status: Status, slot: Self) -> Self {
                if status == STATUS_OK { slot } else { $failed }
            }
            unsafe fn put(self, out: *mut Self) -> Status {
                // SAFETY: the caller vouches for it.
                unsafe { *out = self };
                STATUS_OK
            }
        }
    )*};
}

results! {
    u32 => 0,
    u64 => 0,
    i64 => 0,
    // A broken backend exits, so that the run ends at `handle_exit`.
    Answer => Answer { verdict: Verdict::EXIT, ..Default::default() },
    Verdict => Verdict::EXIT,
    Resume => Resume::new(ResumeKind::BACKEND_FAILED),
    Emulated => Emulated::default(),
}

macro_rules! structures {
    ($($type:ty),* $(,)?) => {$(impl Plain for $type {})*};
}

structures!(
    Access,
    BusOp,
    CpuidEntry,
    DirtyGfn,
    EmulateRequest,
    Exception,
    Exit,
    MemoryRegion,
    MsrEntry,
    Sensitive,
    VcpuState
);

impl<T: Plain> Argument for &T {
    type Wire = *const T;
    type Held = Self;
    type Raised = *const T;

    fn hold(self) -> Self {
        self
    }
    fn wire(held: &mut Self) -> *const T {
        *held
    }
    unsafe fn raise(wire: *const T) -> *const T {
        wire
    }
    unsafe fn lend(raised: *mut *const T) -> Self {
        // SAFETY: the caller vouches for both.
        unsafe { &**raised }
    }
}

impl<T: Plain> Argument for &mut T {
    type Wire = *mut T;
    type Held = Self;
    type Raised = *mut T;

    fn hold(self) -> Self {
        self
    }
    fn wire(held: &mut Self) -> *mut T {
        *held
    }
    unsafe fn raise(wire: *mut T) -> *mut T {
        wire
    }
    unsafe fn lend(raised: *mut *mut T) -> Self {
        // SAFETY: the caller vouches for both.
        unsafe { &mut **raised }
    }
}

impl<T: Plain> Argument for &[T] {
    type Wire = Slice<T>;
    type Held = Self;
    type Raised = Slice<T>;

    fn hold(self) -> Self {
        self
    }
    fn wire(held: &mut Self) -> Slice<T> {
        Slice { ptr: held.as_ptr(), len: held.len() }
    }
    unsafe fn raise(wire: Slice<T>) -> Slice<T> {
        wire
    }
    unsafe fn lend(raised: *mut Slice<T>) -> Self {
        // SAFETY: the caller vouches for both.
        unsafe { slice((*raised).ptr, (*raised).len) }
    }
}

impl<T: Plain> Argument for &mut [T] {
    type Wire = SliceMut<T>;
    type Held = Self;
    type Raised = SliceMut<T>;

    fn hold(self) -> Self {
        self
    }
    fn wire(held: &mut Self) -> SliceMut<T> {
        SliceMut { ptr: held.as_mut_ptr(), len: held.len() }
    }
    unsafe fn raise(wire: SliceMut<T>) -> SliceMut<T> {
        wire
    }
    unsafe fn lend(raised: *mut SliceMut<T>) -> Self {
        // SAFETY: the caller vouches for both.
        unsafe { slice_mut((*raised).ptr, (*raised).len) }
    }
}

impl Argument for &str {
    type Wire = Text;
    type Held = Self;
    type Raised = String;

    fn hold(self) -> Self {
        self
    }
    fn wire(held: &mut Self) -> Text {
        Text::new(held)
    }
    unsafe fn raise(wire: Text) -> String {
        // SAFETY: the caller vouches for it.
        unsafe { text(wire) }
    }
    unsafe fn lend(raised: *mut String) -> Self {
        // SAFETY: the caller vouches for it.
        unsafe { &*raised }
    }
}

impl Argument for bool {
    type Wire = u8;
    type Held = u8;
    type Raised = bool;

    fn hold(self) -> u8 {
        self.into()
    }
    fn wire(held: &mut u8) -> u8 {
        *held
    }
    unsafe fn raise(wire: u8) -> bool {
        wire != 0
    }
    unsafe fn lend(raised: *mut bool) -> bool {
        // SAFETY: the caller vouches for it.
        unsafe { *raised }
    }
}

impl Argument for Note {
    type Wire = *const RawNote;
    type Held = RawNote;
    type Raised = Note;

    fn hold(self) -> RawNote {
        self.to_raw()
    }
    fn wire(held: &mut RawNote) -> *const RawNote {
        held
    }
    unsafe fn raise(wire: *const RawNote) -> Note {
        // SAFETY: the caller vouches for it.
        Note::from_raw(unsafe { *wire })
    }
    unsafe fn lend(raised: *mut Note) -> Note {
        // SAFETY: the caller vouches for it.
        unsafe { *raised }
    }
}

impl<'a> Argument for &'a mut (dyn Host + 'a) {
    type Wire = HostRef;
    type Held = LentHost<'a>;
    type Raised = HostProxy;

    fn hold(self) -> LentHost<'a> {
        Lent::new(self)
    }
    fn wire(held: &mut LentHost<'a>) -> HostRef {
        HostRef { ctx: (held as *mut LentHost<'a>).cast::<c_void>(), table: &lend::HOST_TABLE }
    }
    fn release(held: &mut LentHost<'a>) {
        held.go_on_panicking();
    }
    fn report(held: &mut LentHost<'a>, reason: &str) {
        held.target().log(1, &format!("the backend failed: {reason}"));
    }
    unsafe fn raise(wire: HostRef) -> HostProxy {
        // SAFETY: the caller vouches for it.
        unsafe { HostProxy::new(wire) }
    }
    unsafe fn lend(raised: *mut HostProxy) -> Self {
        // SAFETY: the caller vouches for it.
        unsafe { &mut *raised }
    }
}

impl<'a> Argument for &'a mut (dyn EmulatorMmu + 'a) {
    type Wire = MmuRef;
    type Held = LentMmu<'a>;
    type Raised = MmuProxy;

    fn hold(self) -> LentMmu<'a> {
        Lent::new(self)
    }
    fn wire(held: &mut LentMmu<'a>) -> MmuRef {
        MmuRef { ctx: (held as *mut LentMmu<'a>).cast::<c_void>(), table: &lend::MMU_TABLE }
    }
    fn release(held: &mut LentMmu<'a>) {
        held.go_on_panicking();
    }
    unsafe fn raise(wire: MmuRef) -> MmuProxy {
        // SAFETY: the caller vouches for it.
        unsafe { MmuProxy::new(wire) }
    }
    unsafe fn lend(raised: *mut MmuProxy) -> Self {
        // SAFETY: the caller vouches for it.
        unsafe { &mut *raised }
    }
}

/// Nothing: such a call has no out-parameter.
impl Returned for () {
    type Out = ();
    type Slot = ();

    fn slot() {}
    fn out(_: &mut ()) {}
    fn finish(_: Status, _: ()) {}
    unsafe fn put(self, _: ()) -> Status {
        STATUS_OK
    }
}

impl<T: Returned> Returned for Result<T, Errno> {
    type Out = T::Out;
    type Slot = T::Slot;

    fn slot() -> T::Slot {
        T::slot()
    }
    fn out(slot: &mut T::Slot) -> T::Out {
        T::out(slot)
    }
    fn finish(status: Status, slot: T::Slot) -> Self {
        match status {
            STATUS_OK => Ok(T::finish(status, slot)),
            -4095..=-1 => Err(Errno(status)),
            _ => Err(Errno::EIO),
        }
    }
    unsafe fn put(self, out: T::Out) -> Status {
        match self {
            // SAFETY: the caller vouches for it.
            Ok(value) => unsafe { value.put(out) },
            Err(errno) => errno.0,
        }
    }
}

impl Returned for Result<Translation, Exception> {
    type Out = *mut Translated;
    type Slot = Translated;

    fn slot() -> Translated {
        Translated::default()
    }
    fn out(slot: &mut Translated) -> *mut Translated {
        slot
    }
    fn finish(status: Status, slot: Translated) -> Self {
        // After a panic the backend reports it itself once `emulate` returns, so any fault will do to end this.
        if status == STATUS_OK { Ok(slot.translation) } else { Err(slot.fault) }
    }
    unsafe fn put(self, out: *mut Translated) -> Status {
        // SAFETY: the caller vouches for it.
        unsafe {
            match self {
                Ok(found) => {
                    (*out).translation = found;
                    STATUS_OK
                }
                Err(fault) => {
                    (*out).fault = fault;
                    STATUS_GUEST_FAULT
                }
            }
        }
    }
}

impl Returned for bool {
    type Out = *mut u8;
    type Slot = u8;

    fn slot() -> u8 {
        0
    }
    fn out(slot: &mut u8) -> *mut u8 {
        slot
    }
    fn finish(status: Status, slot: u8) -> bool {
        status == STATUS_OK && slot != 0
    }
    unsafe fn put(self, out: *mut u8) -> Status {
        // SAFETY: the caller vouches for it.
        unsafe { *out = self.into() };
        STATUS_OK
    }
}

/// What may be absent.
macro_rules! options {
    ($($type:ty),*) => {$(
        impl Returned for Option<$type> {
            type Out = *mut Maybe;
            type Slot = Maybe;

            fn slot() -> Maybe {
                Maybe::default()
            }
            fn out(slot: &mut Maybe) -> *mut Maybe {
                slot
            }
            fn finish(status: Status, slot: Maybe) -> Self {
                (status == STATUS_OK && slot.there != 0).then_some(slot.value as $type)
            }
            unsafe fn put(self, out: *mut Maybe) -> Status {
                let value = self.map_or(0, u64::from);
                // SAFETY: the caller vouches for it.
                unsafe { *out = Maybe { value, there: self.is_some().into(), pad: [0; 7] } };
                STATUS_OK
            }
        }
    )*};
}

options!(u8, u64);

impl Returned for Option<bool> {
    type Out = *mut Maybe;
    type Slot = Maybe;

    fn slot() -> Maybe {
        Maybe::default()
    }
    fn out(slot: &mut Maybe) -> *mut Maybe {
        slot
    }
    fn finish(status: Status, slot: Maybe) -> Self {
        Option::<u64>::finish(status, slot).map(|value| value != 0)
    }
    unsafe fn put(self, out: *mut Maybe) -> Status {
        // SAFETY: the caller vouches for it.
        unsafe { self.map(u64::from).put(out) }
    }
}

/// What crosses as the elements of a list.
pub trait Element: Sized {
    type Wire: Copy;

    /// The wire's form, good while `self` is.
    fn wire(&self) -> Self::Wire;

    /// # Safety
    /// `wire` came with a call that has not returned.
    unsafe fn raise(wire: Self::Wire) -> Self;
}

/// Elements that cross as they are.
macro_rules! elements {
    ($($type:ty),*) => {$(
        impl Element for $type {
            type Wire = Self;

            fn wire(&self) -> Self {
                *self
            }
            unsafe fn raise(wire: Self) -> Self {
                wire
            }
        }
    )*};
}

elements!(u8, u32, u64, CpuidEntry, DirtyGfn);

impl Element for (String, String) {
    type Wire = RawOption;

    fn wire(&self) -> RawOption {
        RawOption { key: Text::new(&self.0), value: Text::new(&self.1) }
    }
    unsafe fn raise(wire: RawOption) -> Self {
        // SAFETY: the caller vouches for it.
        unsafe { (text(wire.key), text(wire.value)) }
    }
}

unsafe extern "C" fn collect<T: Element>(ctx: *mut c_void, items: *const T::Wire, count: usize) {
    // SAFETY: the context is the slot of `Returned::out`; the items live for this call.
    unsafe {
        let to = &mut *ctx.cast::<Vec<T>>();
        to.extend(slice(items, count).iter().map(|item| T::raise(*item)));
    }
}

/// A sink that appends to `to`, which must outlive it.
pub fn sink<T: Element>(to: &mut Vec<T>) -> Sink<T::Wire> {
    Sink { ctx: (to as *mut Vec<T>).cast(), put: collect::<T> }
}

impl<T: Element> Returned for Vec<T> {
    type Out = Sink<T::Wire>;
    type Slot = Vec<T>;

    fn slot() -> Vec<T> {
        Vec::new()
    }
    fn out(slot: &mut Vec<T>) -> Sink<T::Wire> {
        sink(slot)
    }
    fn finish(status: Status, slot: Vec<T>) -> Self {
        if status == STATUS_OK { slot } else { Vec::new() }
    }
    unsafe fn put(self, out: Sink<T::Wire>) -> Status {
        let items: Vec<_> = self.iter().map(T::wire).collect();
        // SAFETY: the sink copies what it wants before it returns.
        unsafe { (out.put)(out.ctx, items.as_ptr(), items.len()) };
        STATUS_OK
    }
}

/// The C declaration of an argument or an out-parameter, for the header.
pub struct Spelled<T>(PhantomData<T>);

impl<T> Spelled<T> {
    /// The type in Rust words, without paths.
    pub fn text() -> String {
        let full = std::any::type_name::<T>();
        let mut out = String::new();
        let mut word = String::new();
        for c in full.chars() {
            match c {
                ':' => word.clear(),
                c if c.is_alphanumeric() || c == '_' => word.push(c),
                c => {
                    out += &std::mem::take(&mut word);
                    out.push(c);
                }
            }
        }
        out + &word
    }
}
