//! How each type of the contract crosses the boundary: its C form, and the way there and back.

// UNSAFETY: this is where foreign pointers become references.
#![allow(unsafe_code)]

use crate::{
    contract::*,
    fit::{self, Incoming, Outgoing, Room},
    handshake,
    lend::{self, Lent, LentHost, LentMmu},
    proxy::{HostProxy, MmuProxy},
    raw::text,
    sizes::Plain,
    table::*,
};
use std::{ffi::c_void, marker::PhantomData};
use vmtape_arch::{
    access::{Answer, Verdict},
    cpuid::CpuidEntry,
    exception::Exception,
    exit::{Resume, ResumeKind},
    level::Place,
    note::{Note, NoteKind, RawNote},
    state::StateKind,
};

/// An argument. The caller holds it, and passes the wire's form of what it holds; the callee raises that, and lends it on.
/// Structures cross in the size of the peer, which on the backend's side is its own.
pub trait Argument: Sized {
    type Wire: Copy;
    type Held;
    type Raised;

    fn hold(self, peer: &'static Sizes) -> Self::Held;
    fn wire(held: &mut Self::Held) -> Self::Wire;

    /// After the call: takes back what was lent, and goes on with a panic that came back through foreign frames.
    fn release(_held: &mut Self::Held) {}

    /// Says on the host's log why the call failed, where the host is an argument.
    fn report(_held: &mut Self::Held, _reason: &str) {}

    /// The status is that of a call whose argument cannot be used.
    ///
    /// # Safety
    /// `wire` came with a call that has not returned, as its side of the contract describes it.
    unsafe fn raise(wire: Self::Wire, peer: &'static Sizes) -> Result<Self::Raised, Status>;

    /// # Safety
    /// As for `raise`; what is lent ends before `raised` does, and is lent once.
    unsafe fn lend(raised: *mut Self::Raised) -> Self;

    /// Gives back what the callee wrote.
    ///
    /// # Safety
    /// As for `raise`; what was lent has ended.
    unsafe fn give_back(_raised: &mut Self::Raised) {}
}

/// A result. The caller keeps a slot that the callee fills in through an out-parameter.
pub trait Returned: Sized {
    type Out: Copy;
    type Slot;

    fn slot(peer: &'static Sizes) -> Self::Slot;
    fn out(slot: &mut Self::Slot) -> Self::Out;

    /// What the caller gets; a status other than STATUS_OK leaves the slot without meaning.
    fn finish(status: Status, slot: Self::Slot) -> Self;

    /// # Safety
    /// `out` is the out-parameter of a call that has not returned.
    unsafe fn put(self, out: Self::Out, peer: &'static Sizes) -> Status;
}

/// Numbers, and structures as small, that cross by value.
macro_rules! numbers {
    ($($type:ty),* $(,)?) => {$(
        impl Argument for $type {
            type Wire = Self;
            type Held = Self;
            type Raised = Self;

            fn hold(self, _: &'static Sizes) -> Self {
                self
            }
            fn wire(held: &mut Self) -> Self {
                *held
            }
            unsafe fn raise(wire: Self, _: &'static Sizes) -> Result<Self, Status> {
                Ok(wire)
            }
            unsafe fn lend(raised: *mut Self) -> Self {
                // SAFETY: the caller vouches for it.
                unsafe { *raised }
            }
        }
    )*};
}

numbers!(u8, u32, u64, FlushScope, NoteKind, Place, Query, StateKind);

/// Results that cross as they are, each with the answer of a side that failed.
macro_rules! results {
    ($($type:ty => $failed:expr),* $(,)?) => {$(
        impl Returned for $type {
            type Out = *mut Self;
            type Slot = Room<Self>;

            fn slot(peer: &'static Sizes) -> Room<Self> {
                Room::new(peer)
            }
            fn out(slot: &mut Room<Self>) -> *mut Self {
                slot.ptr()
            }
            fn finish(status: Status, slot: Room<Self>) -> Self {
                if status == STATUS_OK { slot.into_inner() } else { $failed }
            }
            unsafe fn put(self, out: *mut Self, peer: &'static Sizes) -> Status {
                // SAFETY: the caller vouches for it.
                unsafe { fit::put(self, out, peer) };
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
    MemoryStatus => MemoryStatus::REFUSED,
    Resume => Resume::new(ResumeKind::BACKEND_FAILED),
    Emulated => Emulated { status: EmulateStatus::UNHANDLEABLE, ..Default::default() },
}

impl<'a, T: Plain> Argument for &'a T {
    type Wire = *const T;
    type Held = Outgoing<&'a [T]>;
    type Raised = Incoming<T>;

    fn hold(self, peer: &'static Sizes) -> Self::Held {
        Outgoing::shared(std::slice::from_ref(self), peer)
    }
    fn wire(held: &mut Self::Held) -> *const T {
        held.ptr()
    }
    unsafe fn raise(wire: *const T, peer: &'static Sizes) -> Result<Incoming<T>, Status> {
        // SAFETY: the caller vouches for it; a shared list is not written.
        Ok(unsafe { Incoming::new(wire.cast_mut(), 1, peer) })
    }
    unsafe fn lend(raised: *mut Incoming<T>) -> Self {
        // SAFETY: the caller vouches for both.
        unsafe { &(*raised).shared()[0] }
    }
}

impl<'a, T: Plain> Argument for &'a mut T {
    type Wire = *mut T;
    type Held = Outgoing<&'a mut [T]>;
    type Raised = Incoming<T>;

    fn hold(self, peer: &'static Sizes) -> Self::Held {
        Outgoing::exclusive(std::slice::from_mut(self), peer)
    }
    fn wire(held: &mut Self::Held) -> *mut T {
        held.ptr()
    }
    fn release(held: &mut Self::Held) {
        held.take_back();
    }
    unsafe fn raise(wire: *mut T, peer: &'static Sizes) -> Result<Incoming<T>, Status> {
        // SAFETY: the caller vouches for it.
        Ok(unsafe { Incoming::new(wire, 1, peer) })
    }
    unsafe fn lend(raised: *mut Incoming<T>) -> Self {
        // SAFETY: the caller vouches for both.
        unsafe { &mut (*raised).exclusive()[0] }
    }
    unsafe fn give_back(raised: &mut Incoming<T>) {
        // SAFETY: the caller vouches for both.
        unsafe { raised.give_back() };
    }
}

impl<'a, T: Plain> Argument for &'a [T] {
    type Wire = Slice<T>;
    type Held = Outgoing<&'a [T]>;
    type Raised = Incoming<T>;

    fn hold(self, peer: &'static Sizes) -> Self::Held {
        Outgoing::shared(self, peer)
    }
    fn wire(held: &mut Self::Held) -> Slice<T> {
        Slice { ptr: held.ptr(), len: held.len() }
    }
    unsafe fn raise(wire: Slice<T>, peer: &'static Sizes) -> Result<Incoming<T>, Status> {
        // SAFETY: the caller vouches for it; a shared list is not written.
        Ok(unsafe { Incoming::new(wire.ptr.cast_mut(), wire.len, peer) })
    }
    unsafe fn lend(raised: *mut Incoming<T>) -> Self {
        // SAFETY: the caller vouches for both.
        unsafe { (*raised).shared() }
    }
}

impl<'a, T: Plain> Argument for &'a mut [T] {
    type Wire = SliceMut<T>;
    type Held = Outgoing<&'a mut [T]>;
    type Raised = Incoming<T>;

    fn hold(self, peer: &'static Sizes) -> Self::Held {
        Outgoing::exclusive(self, peer)
    }
    fn wire(held: &mut Self::Held) -> SliceMut<T> {
        SliceMut { ptr: held.ptr(), len: held.len() }
    }
    fn release(held: &mut Self::Held) {
        held.take_back();
    }
    unsafe fn raise(wire: SliceMut<T>, peer: &'static Sizes) -> Result<Incoming<T>, Status> {
        // SAFETY: the caller vouches for it.
        Ok(unsafe { Incoming::new(wire.ptr, wire.len, peer) })
    }
    unsafe fn lend(raised: *mut Incoming<T>) -> Self {
        // SAFETY: the caller vouches for both.
        unsafe { (*raised).exclusive() }
    }
    unsafe fn give_back(raised: &mut Incoming<T>) {
        // SAFETY: the caller vouches for both.
        unsafe { raised.give_back() };
    }
}

impl Argument for &str {
    type Wire = Text;
    type Held = Self;
    type Raised = String;

    fn hold(self, _: &'static Sizes) -> Self {
        self
    }
    fn wire(held: &mut Self) -> Text {
        Text::new(held)
    }
    unsafe fn raise(wire: Text, _: &'static Sizes) -> Result<String, Status> {
        // SAFETY: the caller vouches for it.
        Ok(unsafe { text(wire) })
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

    fn hold(self, _: &'static Sizes) -> u8 {
        self.into()
    }
    fn wire(held: &mut u8) -> u8 {
        *held
    }
    unsafe fn raise(wire: u8, _: &'static Sizes) -> Result<bool, Status> {
        Ok(wire != 0)
    }
    unsafe fn lend(raised: *mut bool) -> bool {
        // SAFETY: the caller vouches for it.
        unsafe { *raised }
    }
}

impl Argument for Note {
    type Wire = *const RawNote;
    type Held = Room<RawNote>;
    type Raised = Note;

    fn hold(self, peer: &'static Sizes) -> Room<RawNote> {
        let mut room = Room::new(peer);
        // SAFETY: the room has the peer's size.
        unsafe { fit::put(self.to_raw(), room.ptr(), peer) };
        room
    }
    fn wire(held: &mut Room<RawNote>) -> *const RawNote {
        held.ptr()
    }
    unsafe fn raise(wire: *const RawNote, peer: &'static Sizes) -> Result<Note, Status> {
        // SAFETY: the caller vouches for it.
        let raw = unsafe { <&RawNote>::raise(wire, peer)?.shared()[0] };
        Ok(Note::from_raw(raw))
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

    fn hold(self, peer: &'static Sizes) -> LentHost<'a> {
        Lent::new(self, peer)
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
    unsafe fn raise(wire: HostRef, peer: &'static Sizes) -> Result<HostProxy, Status> {
        // SAFETY: the caller vouches for it. `create` looked at the table.
        Ok(unsafe { HostProxy::new(wire, peer) })
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

    fn hold(self, peer: &'static Sizes) -> LentMmu<'a> {
        Lent::new(self, peer)
    }
    fn wire(held: &mut LentMmu<'a>) -> MmuRef {
        MmuRef { ctx: (held as *mut LentMmu<'a>).cast::<c_void>(), table: &lend::MMU_TABLE }
    }
    fn release(held: &mut LentMmu<'a>) {
        held.go_on_panicking();
    }
    unsafe fn raise(wire: MmuRef, peer: &'static Sizes) -> Result<MmuProxy, Status> {
        // SAFETY: the caller vouches for it.
        unsafe {
            let calls = MmuTable::CALLS.iter().copied();
            handshake::check(wire.table, calls).map_err(|_| STATUS_NO_TABLE)?;
            Ok(MmuProxy::new(wire, peer))
        }
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

    fn slot(_: &'static Sizes) {}
    fn out(_: &mut ()) {}
    fn finish(_: Status, _: ()) {}
    unsafe fn put(self, _: (), _: &'static Sizes) -> Status {
        STATUS_OK
    }
}

impl<T: Returned> Returned for Result<T, Errno> {
    type Out = T::Out;
    type Slot = T::Slot;

    fn slot(peer: &'static Sizes) -> T::Slot {
        T::slot(peer)
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
    unsafe fn put(self, out: T::Out, peer: &'static Sizes) -> Status {
        match self {
            // SAFETY: the caller vouches for it.
            Ok(value) => unsafe { value.put(out, peer) },
            Err(errno) => errno.0,
        }
    }
}

impl Returned for Result<Translation, Exception> {
    type Out = *mut Translated;
    type Slot = Room<Translated>;

    fn slot(peer: &'static Sizes) -> Room<Translated> {
        Room::new(peer)
    }
    fn out(slot: &mut Room<Translated>) -> *mut Translated {
        slot.ptr()
    }
    fn finish(status: Status, slot: Room<Translated>) -> Self {
        let Translated { translation, fault } = slot.into_inner();
        // After a panic the backend reports it itself once `emulate` returns, so any fault will do to end this.
        if status == STATUS_OK { Ok(translation) } else { Err(fault) }
    }
    unsafe fn put(self, out: *mut Translated, peer: &'static Sizes) -> Status {
        let (translated, status) = match self {
            Ok(translation) => (Translated { translation, ..Default::default() }, STATUS_OK),
            Err(fault) => (Translated { fault, ..Default::default() }, STATUS_GUEST_FAULT),
        };
        // SAFETY: the caller vouches for it.
        unsafe { fit::put(translated, out, peer) };
        status
    }
}

impl Returned for bool {
    type Out = *mut u8;
    type Slot = u8;

    fn slot(_: &'static Sizes) -> u8 {
        0
    }
    fn out(slot: &mut u8) -> *mut u8 {
        slot
    }
    fn finish(status: Status, slot: u8) -> bool {
        status == STATUS_OK && slot != 0
    }
    unsafe fn put(self, out: *mut u8, _: &'static Sizes) -> Status {
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
            type Slot = Room<Maybe>;

            fn slot(peer: &'static Sizes) -> Room<Maybe> {
                Room::new(peer)
            }
            fn out(slot: &mut Room<Maybe>) -> *mut Maybe {
                slot.ptr()
            }
            fn finish(status: Status, slot: Room<Maybe>) -> Self {
                let Maybe { value, there, .. } = slot.into_inner();
                (status == STATUS_OK && there != 0).then_some(value as $type)
            }
            unsafe fn put(self, out: *mut Maybe, peer: &'static Sizes) -> Status {
                let value = self.map_or(0, u64::from);
                // SAFETY: the caller vouches for it.
                unsafe { fit::put(Maybe { value, there: self.is_some().into(), pad: [0; 7] }, out, peer) };
                STATUS_OK
            }
        }
    )*};
}

options!(u8, u64);

impl Returned for Option<bool> {
    type Out = *mut Maybe;
    type Slot = Room<Maybe>;

    fn slot(peer: &'static Sizes) -> Room<Maybe> {
        Room::new(peer)
    }
    fn out(slot: &mut Room<Maybe>) -> *mut Maybe {
        slot.ptr()
    }
    fn finish(status: Status, slot: Room<Maybe>) -> Self {
        Option::<u64>::finish(status, slot).map(|value| value != 0)
    }
    unsafe fn put(self, out: *mut Maybe, peer: &'static Sizes) -> Status {
        // SAFETY: the caller vouches for it.
        unsafe { self.map(u64::from).put(out, peer) }
    }
}

/// What crosses as the elements of a list.
pub trait Element: Sized {
    type Wire: Plain;

    /// The wire's form, good while `self` is.
    fn wire(&self) -> Self::Wire;

    /// # Safety
    /// `wire` came with a call that has not returned.
    unsafe fn raise(wire: Self::Wire) -> Self;
}

/// Elements that are their own wire's form.
macro_rules! elements {
    ($($type:ty),* $(,)?) => {$(
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

/// A list that the other side gives in pieces.
pub struct Collected<T> {
    items: Vec<T>,
    peer: &'static Sizes,
}

impl<T: Element> Collected<T> {
    pub fn new(peer: &'static Sizes) -> Self {
        Self { items: Vec::new(), peer }
    }

    /// A sink that appends to this, which must outlive it.
    pub fn sink(&mut self) -> Sink<T::Wire> {
        Sink { ctx: (self as *mut Self).cast(), put: collect::<T> }
    }

    pub fn into_items(self) -> Vec<T> {
        self.items
    }
}

unsafe extern "C" fn collect<T: Element>(ctx: *mut c_void, items: *const T::Wire, count: usize) {
    // SAFETY: the context is the one of `Collected::sink`; the items live for this call.
    unsafe {
        let to = &mut *ctx.cast::<Collected<T>>();
        let items = Incoming::new(items.cast_mut(), count, to.peer);
        to.items.extend(items.shared().iter().map(|item| T::raise(*item)));
    }
}

impl<T: Element> Returned for Vec<T> {
    type Out = Sink<T::Wire>;
    type Slot = Collected<T>;

    fn slot(peer: &'static Sizes) -> Collected<T> {
        Collected::new(peer)
    }
    fn out(slot: &mut Collected<T>) -> Sink<T::Wire> {
        slot.sink()
    }
    fn finish(status: Status, slot: Collected<T>) -> Self {
        if status == STATUS_OK { slot.into_items() } else { Vec::new() }
    }
    unsafe fn put(self, out: Sink<T::Wire>, peer: &'static Sizes) -> Status {
        let items: Vec<_> = self.iter().map(T::wire).collect();
        let items = Outgoing::shared(&items[..], peer);
        // SAFETY: the sink copies what it wants before it returns.
        unsafe { (out.put)(out.ctx, items.ptr(), items.len()) };
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
