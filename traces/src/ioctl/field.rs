//! What an ioctl's fields are: how a tape keeps each, and how it reads.
//!
//! A control's words are its number, the first two 32-bit fields, the result, then every other field in order; tables are
//! the event's bytes.

use crate::flat::{cpuid_bytes, cpuid_entry, high, join, low};
use std::fmt;
use vmtape_arch::{
    cpuid::{CpuidEntry, maxphyaddr},
    memory::Supply,
    query::Query,
};

/// A field in words.
pub trait Shown {
    type Text<'a>
    where
        Self: 'a;

    fn shown(&self) -> Self::Text<'_>;

    /// The field as a number, such as a vCPU's.
    fn number(&self) -> Option<u32> {
        None
    }
}

/// A field that a tape keeps.
pub trait Field: Sized {
    fn pack(&self, to: &mut Packed<'_>);
    fn unpack(from: &mut Unpacked<'_>) -> Result<Self, &'static str>;
}

/// A control that is being written.
pub struct Packed<'a> {
    heads: Vec<u32>,
    result: u32,
    tail: Vec<u64>,
    words: &'a mut Vec<u64>,
    blob: &'a mut Vec<u8>,
}

/// A control that is being read.
pub struct Unpacked<'a> {
    pub number: u64,
    heads: [u32; 2],
    taken: usize,
    result: u32,
    tail: &'a [u64],
    blob: &'a [u8],
}

/// Where the first 32-bit fields are.
const HEADS: usize = 2;

impl<'a> Packed<'a> {
    pub fn new(words: &'a mut Vec<u64>, blob: &'a mut Vec<u8>) -> Self {
        Self { heads: Vec::new(), result: 0, tail: Vec::new(), words, blob }
    }

    /// The control's table, of which it has one at most.
    pub fn bytes(&mut self, bytes: impl Iterator<Item = u8>) {
        self.blob.extend(bytes);
    }

    pub fn finish(&mut self, number: u64) {
        let head = |at: usize| self.heads.get(at).copied().unwrap_or(0);
        self.words.extend_from_slice(&[number, join(head(0), head(1)), self.result.into()]);
        self.words.append(&mut self.tail);
    }
}

impl<'a> Unpacked<'a> {
    /// Words and bytes of a control.
    pub fn new(words: &'a [u64], blob: &'a [u8]) -> Result<Self, &'static str> {
        let [number, head, result, tail @ ..] = words else { return Err("fewer words than a control has") };
        let result = u32::try_from(*result).map_err(|_| "a result beyond 32 bits")?;
        Ok(Self { number: *number, heads: [low(*head), high(*head)], taken: 0, result, tail, blob })
    }

    /// The control's table.
    pub fn bytes(&self) -> &'a [u8] {
        self.blob
    }

    fn next(&mut self) -> Result<u64, &'static str> {
        let (first, rest) = self.tail.split_first().ok_or("fewer words than the control has")?;
        self.tail = rest;
        Ok(*first)
    }

    /// Whether every word had its use.
    pub fn end(&self) -> Result<(), &'static str> {
        if self.tail.is_empty() { Ok(()) } else { Err("more words than the control has") }
    }
}

impl Field for u32 {
    fn pack(&self, to: &mut Packed<'_>) {
        if to.heads.len() < HEADS { to.heads.push(*self) } else { to.tail.push((*self).into()) }
    }

    fn unpack(from: &mut Unpacked<'_>) -> Result<Self, &'static str> {
        from.taken += 1;
        match from.heads.get(from.taken - 1) {
            Some(head) => Ok(*head),
            None => from.next()?.try_into().map_err(|_| "a word beyond 32 bits"),
        }
    }
}

impl Field for u64 {
    fn pack(&self, to: &mut Packed<'_>) {
        to.tail.push(*self);
    }

    fn unpack(from: &mut Unpacked<'_>) -> Result<Self, &'static str> {
        from.next()
    }
}

impl Field for i64 {
    fn pack(&self, to: &mut Packed<'_>) {
        to.tail.push(*self as u64);
    }

    fn unpack(from: &mut Unpacked<'_>) -> Result<Self, &'static str> {
        Ok(from.next()? as i64)
    }
}

/// Zero or a negative errno.
impl Field for i32 {
    fn pack(&self, to: &mut Packed<'_>) {
        to.result = *self as u32;
    }

    fn unpack(from: &mut Unpacked<'_>) -> Result<Self, &'static str> {
        Ok(from.result as i32)
    }
}

impl Field for Query {
    fn pack(&self, to: &mut Packed<'_>) {
        self.0.pack(to);
    }

    fn unpack(from: &mut Unpacked<'_>) -> Result<Self, &'static str> {
        u32::unpack(from).map(Self)
    }
}

impl Field for Supply {
    fn pack(&self, to: &mut Packed<'_>) {
        self.0.pack(to);
    }

    fn unpack(from: &mut Unpacked<'_>) -> Result<Self, &'static str> {
        u32::unpack(from).map(Self)
    }
}

impl Field for Vec<CpuidEntry> {
    fn pack(&self, to: &mut Packed<'_>) {
        to.bytes(self.iter().flat_map(cpuid_bytes));
    }

    fn unpack(from: &mut Unpacked<'_>) -> Result<Self, &'static str> {
        let (entries, rest) = from.bytes().as_chunks::<32>();
        if !rest.is_empty() {
            return Err("a CPUID table that ends within an entry");
        }
        Ok(entries.iter().map(cpuid_entry).collect())
    }
}

/// What reads as it is.
macro_rules! plain {
    ($($type:ty: |$value:ident| $number:expr),* $(,)?) => {$(
        impl Shown for $type {
            type Text<'a> = $type;

            fn shown(&self) -> $type {
                self.clone()
            }
            fn number(&self) -> Option<u32> {
                let $value = self;
                $number
            }
        }
    )*};
}

plain! {
    u32: |value| Some(*value),
    u64: |value| (*value).try_into().ok(),
    i64: |value| (*value).try_into().ok(),
    Query: |value| Some(value.0),
    Supply: |value| Some(value.0),
    String: |_value| None,
}

impl Shown for i32 {
    type Text<'a> = Errno;

    fn shown(&self) -> Errno {
        Errno((*self).into())
    }
}

impl Shown for Vec<CpuidEntry> {
    type Text<'a> = Table<'a>;

    fn shown(&self) -> Table<'_> {
        Table(self)
    }
}

/// What one looks at first in a table: how long it is, and its widths.
pub struct Table<'a>(&'a [CpuidEntry]);

impl fmt::Display for Table<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let widths = self.0.iter().find(|entry| entry.function == 0x8000_0008).map_or(0, |entry| entry.eax);
        let (host, guest) = (maxphyaddr(self.0), widths >> 16 & 0xff);
        write!(f, "{} entries, phys-bits {host}, guest-phys-bits {guest}", self.0.len())
    }
}

/// Zero, or a negative errno by its name.
pub struct Errno(pub i64);

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        /// See: Linux include/uapi/asm-generic/errno-base.h
        const NAMES: [(i64, &str); 11] = [
            (-2, "ENOENT"),
            (-4, "EINTR"),
            (-5, "EIO"),
            (-6, "ENXIO"),
            (-7, "E2BIG"),
            (-12, "ENOMEM"),
            (-14, "EFAULT"),
            (-16, "EBUSY"),
            (-17, "EEXIST"),
            (-22, "EINVAL"),
            (-25, "ENOTTY"),
        ];
        match NAMES.iter().find(|(errno, _)| *errno == self.0) {
            Some((_, name)) => write!(f, "-{name}"),
            None => write!(f, "{}", self.0),
        }
    }
}
