//! Records of tracepoints in binary, as the kernel's `format` files describe them.

mod eval;
mod parse;

use super::fields::{self, Fields, Roles};
use parse::Print;
use std::cell::OnceCell;
use tracepoint_decode::{PerfEventFormat, PerfFieldArray};
use vmtape_arch::{exit::Exit, note::Note};

/// A tracepoint: its name, its fields, and how it prints.
pub struct Format {
    pub name: String,
    fields: Vec<Field>,
    print_fmt: String,
    /// `None` inside: this print format is not understood.
    print: OnceCell<Option<Print>>,
    roles: Roles,
}

pub(super) struct Field {
    pub name: String,
    pub offset: usize,
    pub size: usize,
    pub signed: bool,
    pub array: PerfFieldArray,
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
        let print_fmt = parsed.print_fmt().to_owned();
        let roles =
            if print_fmt.contains("gpte_is_8_bytes") { Roles::GpteIs8Bytes } else { Roles::Has4ByteGpte };
        Self {
            name: parsed.name().to_owned(),
            fields: fields.collect(),
            print_fmt,
            print: OnceCell::new(),
            roles,
        }
    }

    pub(super) fn field(&self, name: &str) -> Option<&Field> {
        self.fields.iter().find(|field| field.name == name)
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

    /// The note that the record's fields are. Of an event whose fields alone do not tell, there is none.
    pub fn note(&self) -> Option<Note> {
        fields::note(&self.format.name, self)
    }

    /// The text that the kernel prints; where its format is not understood, the fields and their values.
    pub fn text(&self) -> String {
        let print = self.format.print.get_or_init(|| Print::parse(&self.format.print_fmt));
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
    pub(super) fn value_of(&self, field: &Field) -> Option<u64> {
        let bytes = self.data.get(field.offset..)?.get(..field.size)?;
        let mut value = 0u64;
        if bytes.len() > 8 || bytes.is_empty() {
            return None;
        }
        for (i, byte) in bytes.iter().enumerate() {
            let place = if self.big_endian { bytes.len() - 1 - i } else { i };
            value |= u64::from(*byte) << (8 * place);
        }
        let unused = 64 - 8 * bytes.len() as u32;
        Some(if field.signed { ((value << unused).cast_signed() >> unused).cast_unsigned() } else { value })
    }

    /// The bytes of an array, wherever they are.
    pub(super) fn array_of(&self, field: &Field) -> Option<&'a [u8]> {
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
    fn number(&self, name: &str) -> Option<u64> {
        self.value_of(self.format.field(name)?)
    }

    fn bytes(&self, name: &str) -> Option<u128> {
        let mut array = [0; 16];
        for (place, byte) in array.iter_mut().zip(self.array_of(self.format.field(name)?)?) {
            *place = *byte;
        }
        Some(u128::from_le_bytes(array))
    }

    fn roles(&self) -> Roles {
        self.format.roles
    }
}
