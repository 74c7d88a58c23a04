//! How each type of the contract crosses between processes.

// UNSAFETY: what was received is lent for a call whose lifetimes no declaration names.
#![allow(unsafe_code)]

use super::{
    calls::{RemoteHost, RemoteMmu},
    link::Link,
    message::{Reader, Torn, Writer},
};
use crate::{
    contract::*,
    plugin::{Description, TableRow, VmConfig},
    sizes::Plain,
};
use std::rc::Rc;
use vmtape_arch::{
    access::{Answer, Verdict},
    cpuid::CpuidEntry,
    exception::Exception,
    exit::Resume,
    level::Place,
    note::{Note, NoteKind, RawNote},
    state::StateKind,
};

/// Who serves the calls that come while one waits for its answer.
pub enum Services<'a> {
    Nobody,
    Host(&'a mut dyn Host),
    Mmu(&'a mut dyn EmulatorMmu),
}

/// An argument. The caller sends it and keeps what may be written or called back; the callee lends what came.
pub trait Sent: Sized {
    type Kept;
    type Came;
    /// The caller waits for it, whatever the call answers.
    const IS_LENT: bool = false;

    fn send(self, to: &mut Writer) -> Self::Kept;

    fn services(_kept: &mut Self::Kept) -> Option<Services<'_>> {
        None
    }

    /// What the callee wrote.
    fn take_back(_kept: &mut Self::Kept, _from: &mut Reader) -> Result<(), Torn> {
        Ok(())
    }

    fn come(from: &mut Reader, link: &Rc<Link>) -> Result<Self::Came, Torn>;

    /// # Safety
    /// `came` outlives what is lent, and is lent once.
    unsafe fn lend(came: *mut Self::Came) -> Self;

    fn give_back(_came: &Self::Came, _to: &mut Writer) {}
}

/// A result.
pub trait Answered: Sized {
    /// There is none.
    const IS_NOTHING: bool = false;

    fn answer(&self, to: &mut Writer);
    fn read(from: &mut Reader) -> Result<Self, Torn>;
}

/// Numbers, by value.
macro_rules! numbers {
    ($($type:ty),* $(,)?) => {$(
        impl Sent for $type {
            type Kept = ();
            type Came = Self;

            fn send(self, to: &mut Writer) {
                to.plain(&self);
            }
            fn come(from: &mut Reader, _: &Rc<Link>) -> Result<Self, Torn> {
                from.plain()
            }
            unsafe fn lend(came: *mut Self) -> Self {
                // SAFETY: the caller vouches for it.
                unsafe { *came }
            }
        }
    )*};
}

numbers!(u8, u32, u64, FlushScope, NoteKind, Place, Query, StateKind);

impl<'a, T: Plain> Sent for &'a T {
    type Kept = ();
    type Came = T;

    fn send(self, to: &mut Writer) {
        to.plain(self);
    }
    fn come(from: &mut Reader, _: &Rc<Link>) -> Result<T, Torn> {
        from.plain()
    }
    unsafe fn lend(came: *mut T) -> &'a T {
        // SAFETY: the caller vouches for it.
        unsafe { &*came }
    }
}

impl<'a, T: Plain> Sent for &'a mut T {
    type Kept = Self;
    type Came = T;
    const IS_LENT: bool = true;

    fn send(self, to: &mut Writer) -> Self {
        to.plain(self);
        self
    }
    fn take_back(kept: &mut Self, from: &mut Reader) -> Result<(), Torn> {
        **kept = from.plain()?;
        Ok(())
    }
    fn come(from: &mut Reader, _: &Rc<Link>) -> Result<T, Torn> {
        from.plain()
    }
    unsafe fn lend(came: *mut T) -> &'a mut T {
        // SAFETY: the caller vouches for it.
        unsafe { &mut *came }
    }
    fn give_back(came: &T, to: &mut Writer) {
        to.plain(came);
    }
}

impl<'a, T: Plain> Sent for &'a [T] {
    type Kept = ();
    type Came = Vec<T>;

    fn send(self, to: &mut Writer) {
        to.list(self);
    }
    fn come(from: &mut Reader, _: &Rc<Link>) -> Result<Vec<T>, Torn> {
        from.list()
    }
    unsafe fn lend(came: *mut Vec<T>) -> &'a [T] {
        // SAFETY: the caller vouches for it.
        unsafe { &*came }
    }
}

impl<'a, T: Plain> Sent for &'a mut [T] {
    type Kept = Self;
    type Came = Vec<T>;
    const IS_LENT: bool = true;

    fn send(self, to: &mut Writer) -> Self {
        to.list(self);
        self
    }
    fn take_back(kept: &mut Self, from: &mut Reader) -> Result<(), Torn> {
        from.list_into(kept)
    }
    fn come(from: &mut Reader, _: &Rc<Link>) -> Result<Vec<T>, Torn> {
        from.list()
    }
    unsafe fn lend(came: *mut Vec<T>) -> &'a mut [T] {
        // SAFETY: the caller vouches for it.
        unsafe { &mut *came }
    }
    fn give_back(came: &Vec<T>, to: &mut Writer) {
        to.list(came);
    }
}

impl<'a> Sent for &'a str {
    type Kept = ();
    type Came = String;

    fn send(self, to: &mut Writer) {
        to.text(self);
    }
    fn come(from: &mut Reader, _: &Rc<Link>) -> Result<String, Torn> {
        from.text()
    }
    unsafe fn lend(came: *mut String) -> &'a str {
        // SAFETY: the caller vouches for it.
        unsafe { &*came }
    }
}

impl Sent for bool {
    type Kept = ();
    type Came = bool;

    fn send(self, to: &mut Writer) {
        to.plain(&u8::from(self));
    }
    fn come(from: &mut Reader, _: &Rc<Link>) -> Result<bool, Torn> {
        Ok(from.plain::<u8>()? != 0)
    }
    unsafe fn lend(came: *mut bool) -> bool {
        // SAFETY: the caller vouches for it.
        unsafe { *came }
    }
}

impl Sent for Note {
    type Kept = ();
    type Came = Note;

    fn send(self, to: &mut Writer) {
        to.plain(&self.to_raw());
    }
    fn come(from: &mut Reader, _: &Rc<Link>) -> Result<Note, Torn> {
        Ok(Note::from_raw(from.plain::<RawNote>()?))
    }
    unsafe fn lend(came: *mut Note) -> Note {
        // SAFETY: the caller vouches for it.
        unsafe { *came }
    }
}

impl<'a> Sent for &'a mut (dyn Host + 'a) {
    type Kept = Self;
    type Came = RemoteHost;
    const IS_LENT: bool = true;

    fn send(self, to: &mut Writer) -> Self {
        RemoteHost::tell(self, to);
        self
    }
    fn services(kept: &mut Self) -> Option<Services<'_>> {
        Some(Services::Host(*kept))
    }
    fn come(from: &mut Reader, link: &Rc<Link>) -> Result<RemoteHost, Torn> {
        RemoteHost::come(from, link)
    }
    unsafe fn lend(came: *mut RemoteHost) -> Self {
        // SAFETY: the caller vouches for it.
        unsafe { &mut *came }
    }
}

impl<'a> Sent for &'a mut (dyn EmulatorMmu + 'a) {
    type Kept = Self;
    type Came = RemoteMmu;
    const IS_LENT: bool = true;

    fn send(self, _: &mut Writer) -> Self {
        self
    }
    fn services(kept: &mut Self) -> Option<Services<'_>> {
        Some(Services::Mmu(*kept))
    }
    fn come(_: &mut Reader, link: &Rc<Link>) -> Result<RemoteMmu, Torn> {
        Ok(RemoteMmu::new(link))
    }
    unsafe fn lend(came: *mut RemoteMmu) -> Self {
        // SAFETY: the caller vouches for it.
        unsafe { &mut *came }
    }
}

impl Answered for () {
    const IS_NOTHING: bool = true;

    fn answer(&self, _: &mut Writer) {}
    fn read(_: &mut Reader) -> Result<(), Torn> {
        Ok(())
    }
}

/// Results that are plain.
macro_rules! plain {
    ($($type:ty),* $(,)?) => {$(
        impl Answered for $type {
            fn answer(&self, to: &mut Writer) {
                to.plain(self);
            }
            fn read(from: &mut Reader) -> Result<Self, Torn> {
                from.plain()
            }
        }
    )*};
}

plain!(
    u8,
    u32,
    u64,
    i64,
    Answer,
    Verdict,
    MemoryStatus,
    Resume,
    Emulated,
    Translation,
    Exception,
    CpuidEntry,
    DirtyGfn
);

impl Answered for bool {
    fn answer(&self, to: &mut Writer) {
        to.plain(&u8::from(*self));
    }
    fn read(from: &mut Reader) -> Result<bool, Torn> {
        Ok(from.plain::<u8>()? != 0)
    }
}

impl Answered for String {
    fn answer(&self, to: &mut Writer) {
        to.text(self);
    }
    fn read(from: &mut Reader) -> Result<String, Torn> {
        from.text()
    }
}

impl Answered for Errno {
    fn answer(&self, to: &mut Writer) {
        to.plain(&(self.0 as u32));
    }
    fn read(from: &mut Reader) -> Result<Errno, Torn> {
        Ok(Errno(from.plain::<u32>()? as i32))
    }
}

impl<T: Answered> Answered for Option<T> {
    fn answer(&self, to: &mut Writer) {
        self.is_some().answer(to);
        self.iter().for_each(|value| value.answer(to));
    }
    fn read(from: &mut Reader) -> Result<Self, Torn> {
        bool::read(from)?.then(|| T::read(from)).transpose()
    }
}

impl<T: Answered, E: Answered> Answered for Result<T, E> {
    fn answer(&self, to: &mut Writer) {
        self.is_ok().answer(to);
        match self {
            Ok(value) => value.answer(to),
            Err(error) => error.answer(to),
        }
    }
    fn read(from: &mut Reader) -> Result<Self, Torn> {
        Ok(if bool::read(from)? { Ok(T::read(from)?) } else { Err(E::read(from)?) })
    }
}

impl<A: Answered, B: Answered> Answered for (A, B) {
    fn answer(&self, to: &mut Writer) {
        self.0.answer(to);
        self.1.answer(to);
    }
    fn read(from: &mut Reader) -> Result<Self, Torn> {
        Ok((A::read(from)?, B::read(from)?))
    }
}

impl<T: Answered> Answered for Vec<T> {
    fn answer(&self, to: &mut Writer) {
        to.plain(&(self.len() as u64));
        self.iter().for_each(|item| item.answer(to));
    }
    fn read(from: &mut Reader) -> Result<Self, Torn> {
        let count = from.plain::<u64>()?;
        // A wrong length ends with the message, not with the memory.
        (0..count).map(|_| T::read(from)).collect()
    }
}

impl Answered for TableRow {
    fn answer(&self, to: &mut Writer) {
        self.id.answer(to);
        let Self { id: _, name, text, source, value, commit, subject, since, until, undone_by, role } = self;
        for text in [name, text, source, value, commit, subject, since, until, undone_by, role] {
            text.answer(to);
        }
    }
    fn read(from: &mut Reader) -> Result<Self, Torn> {
        Ok(Self {
            id: from.plain()?,
            name: from.text()?,
            text: from.text()?,
            source: from.text()?,
            value: from.text()?,
            commit: from.text()?,
            subject: from.text()?,
            since: from.text()?,
            until: from.text()?,
            undone_by: from.text()?,
            role: from.text()?,
        })
    }
}

impl Answered for Description {
    fn answer(&self, to: &mut Writer) {
        self.name.answer(to);
        self.summary.answer(to);
        to.plain(&self.isa.0);
        to.plain(&self.vendor.0);
        let Self { rules, patches, parameters, fault_points, profiles, capabilities, .. } = self;
        for rows in [rules, patches, parameters, fault_points, profiles, capabilities] {
            rows.answer(to);
        }
    }
    fn read(from: &mut Reader) -> Result<Self, Torn> {
        use vmtape_arch::{exit::Isa, host::Vendor};
        Ok(Self {
            name: from.text()?,
            summary: from.text()?,
            isa: Isa(from.plain()?),
            vendor: Vendor(from.plain()?),
            rules: Answered::read(from)?,
            patches: Answered::read(from)?,
            parameters: Answered::read(from)?,
            fault_points: Answered::read(from)?,
            profiles: Answered::read(from)?,
            capabilities: Answered::read(from)?,
        })
    }
}

impl Answered for VmConfig {
    fn answer(&self, to: &mut Writer) {
        to.plain(&self.silicon);
        self.options.answer(to);
    }
    fn read(from: &mut Reader) -> Result<Self, Torn> {
        Ok(Self { silicon: from.plain()?, options: Answered::read(from)? })
    }
}
