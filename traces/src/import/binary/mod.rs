//! Records of tracepoints in binary, as the kernel's `format` files describe them.

mod eval;
mod parse;

use super::{
    fields::{self, Fields, Roles},
    name::Name,
};
use parse::Print;
use std::cell::OnceCell;
use tracepoint_decode::{PerfEventFormat, PerfFieldArray};
use vmtape_arch::{
    exit::Exit,
    note::{Note, NoteKind},
};

/// A tracepoint: its name, its fields, and how it prints.
pub struct Format {
    pub name: String,
    fields: Vec<Field>,
    /// Which of the fields has each of the names.
    named: [Option<u8>; Name::ALL.len()],
    /// Events of this name are notes.
    noted: bool,
    print_fmt: String,
    /// `None` inside: this print format is not understood.
    print: OnceCell<Option<Print>>,
    roles: Roles,
}

struct Field {
    name: String,
    offset: usize,
    size: usize,
    signed: bool,
    array: PerfFieldArray,
}

/// Beyond this a `format` file is none.
const LONGEST_FORMAT: usize = 1 << 20;

impl Format {
    /// Reads a `format` file: the number of the event and what is known of it.
    pub fn parse(system: &str, text: &str, long_is_64_bits: bool) -> Option<(u16, Self)> {
        // The parser cuts text at bytes.
        if text.len() > LONGEST_FORMAT || !text.is_ascii() {
            return None;
        }
        let parsed = PerfEventFormat::parse(long_is_64_bits, system, text)?;
        Some((u16::try_from(parsed.id()).ok()?, Self::new(&parsed)))
    }

    pub fn new(parsed: &PerfEventFormat) -> Self {
        let fields = parsed.fields().iter().map(|field| Field {
            name: field.name().to_owned(),
            offset: field.offset().into(),
            size: field.size().into(),
            signed: field.signed().unwrap_or(false),
            array: field.array(),
        });
        let fields: Vec<_> = fields.collect();
        let mut named = [None; Name::ALL.len()];
        for name in Name::ALL {
            let place = fields.iter().position(|field| field.name == name.text());
            named[*name as usize] = place.and_then(|place| u8::try_from(place).ok());
        }
        let print_fmt = parsed.print_fmt().to_owned();
        let roles =
            if print_fmt.contains("gpte_is_8_bytes") { Roles::GpteIs8Bytes } else { Roles::Has4ByteGpte };
        Self {
            noted: NoteKind::from_name(parsed.name()).is_some(),
            name: parsed.name().to_owned(),
            fields,
            named,
            print_fmt,
            print: OnceCell::new(),
            roles,
        }
    }

    fn field(&self, place: usize) -> Option<&Field> {
        self.fields.get(place)
    }

    fn named(&self, name: Name) -> Option<&Field> {
        self.fields.get(usize::from(self.named[name as usize]?))
    }

    /// The fields that are the event's own.
    fn own_fields(&self) -> impl Iterator<Item = &Field> {
        self.fields.iter().filter(|field| !field.name.starts_with("common_"))
    }
}

/// A record of a tracepoint.
#[derive(Clone, Copy)]
pub struct Raw<'a> {
    pub format: &'a Format,
    pub data: &'a [u8],
    pub big_endian: bool,
}

impl<'a> Raw<'a> {
    pub fn exit(&self) -> Option<(u64, Exit)> {
        fields::exit(self)
    }

    /// Whether the record may be a note at all.
    pub fn is_noted(&self) -> bool {
        self.format.noted
    }

    /// The note that the record's fields are. Of an event whose fields alone do not tell, there is none.
    pub fn note(&self) -> Option<Note> {
        fields::note(&self.format.name, self)
    }

    /// The text that the kernel prints; where its format is not understood, the fields and their values.
    pub fn text(&self) -> String {
        let format = self.format;
        let place = |name: &str| format.fields.iter().position(|field| field.name == name);
        let print = format.print.get_or_init(|| Print::parse(&format.print_fmt, &place));
        let printed = print.as_ref().and_then(|print| eval::text(print, self));
        printed.unwrap_or_else(|| self.values())
    }

    fn values(&self) -> String {
        let words = self.format.own_fields().map(|field| match self.value_of(field) {
            Some(value) => format!("{}={value:#x}", field.name),
            None => format!("{}=?", field.name),
        });
        words.collect::<Vec<_>>().join(" ")
    }

    /// A number of a field of up to eight bytes.
    fn value_of(&self, field: &Field) -> Option<u64> {
        let bytes = self.data.get(field.offset..)?.get(..field.size)?;
        let value = match *bytes {
            [a] => a.into(),
            [a, b] => u16::from_le_bytes([a, b]).into(),
            [a, b, c, d] => u32::from_le_bytes([a, b, c, d]).into(),
            [a, b, c, d, e, f, g, h] => u64::from_le_bytes([a, b, c, d, e, f, g, h]),
            [] | [_, _, _, _, _, _, _, _, _, ..] => return None,
            _ => bytes.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte)),
        };
        let unused = 64 - 8 * bytes.len() as u32;
        let value = if self.big_endian { value.swap_bytes() >> unused } else { value };
        Some(if field.signed { ((value << unused).cast_signed() >> unused).cast_unsigned() } else { value })
    }

    /// The bytes of an array, wherever they are.
    fn array_of(&self, field: &Field) -> Option<&'a [u8]> {
        let located = |relative: bool| {
            let word = self.value_of(field)? as u32;
            let (offset, len) = ((word & 0xffff) as usize, (word >> 16) as usize);
            let base = if relative { field.offset + field.size } else { 0 };
            self.data.get(base + offset..)?.get(..len)
        };
        match field.array {
            PerfFieldArray::DataLoc4 => located(false),
            PerfFieldArray::RelLoc4 => located(true),
            PerfFieldArray::RestOfEvent => self.data.get(field.offset..),
            _ => self.data.get(field.offset..)?.get(..field.size),
        }
    }
}

impl Fields for Raw<'_> {
    fn number(&self, name: Name) -> Option<u64> {
        self.value_of(self.format.named(name)?)
    }

    fn bytes(&self, name: Name) -> Option<u128> {
        let mut array = [0; 16];
        for (place, byte) in array.iter_mut().zip(self.array_of(self.format.named(name)?)?) {
            *place = *byte;
        }
        Some(u128::from_le_bytes(array))
    }

    fn roles(&self) -> Roles {
        self.format.roles
    }
}
