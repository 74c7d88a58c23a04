//! How large each structure is that crosses. The sides may come from headers of different ages: the host passes every
//! structure in the backend's size, so that neither writes past what the other has.

// UNSAFETY: a marker for types that any bytes are a value of, and a look at a foreign table.
#![allow(unsafe_code)]

use crate::{
    contract::*,
    table::{Maybe, RawConfig, RawOption, RawRow, Translated},
};
use std::mem::offset_of;
use vmtape_arch::{
    access::{Access, Answer, Mapping, Verdict},
    cpuid::CpuidEntry,
    event::Event,
    exception::Exception,
    exit::{Exit, Resume},
    host::Silicon,
    level::Place,
    note::{NoteKind, RawNote},
    sensitive::Sensitive,
    state::{MsrEntry, StateKind},
    vcpu::VcpuState,
};

/// What may differ between the sides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Growth {
    /// Nothing: it stands inside other structures.
    Fixed,
    /// It grows at its end, where zero means that a field is not there. So many bytes are always there.
    From(usize),
}

use Growth::{Fixed, From};

/// A structure or number of which any bytes are a value.
///
/// # Safety
/// It is `Copy`, and all zeroes or any other bytes are a value of it.
pub unsafe trait Plain: Copy {
    /// Its bytes on the side with these sizes.
    fn size(sizes: &Sizes) -> usize;
}

macro_rules! numbers {
    ($($type:ty),* $(,)?) => {$(
        // SAFETY: integers, and transparent structures of them.
        unsafe impl Plain for $type {
            fn size(_: &Sizes) -> usize {
                size_of::<Self>()
            }
        }
    )*};
}

numbers!(u8, u32, u64, i64, FlushScope, MemoryStatus, NoteKind, Place, Query, StateKind, Verdict);

/// Makes everything that follows from the list of structures.
macro_rules! structures {
    ($($(#[$meta:meta])* $field:ident: $type:ident, $growth:expr;)*) => {
        /// `sizeof` each structure that crosses, as the header has it that a side was built with (vt_SIZES). Structures that
        /// came after that header stand beyond its end.
        #[repr(C)]
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct Sizes {
            $(pub $field: u32,)*
        }

        impl Sizes {
            /// The sizes of this crate's structures.
            pub const fn here() -> Self {
                Self { $($field: size_of::<$type>() as u32,)* }
            }

            /// Each structure: its name, its place in `Sizes`, how it may grow.
            const ROWS: &'static [(&'static str, usize, Growth)] =
                &[$((stringify!($type), offset_of!(Sizes, $field), $growth)),*];

            fn words(&self) -> impl Iterator<Item = u32> {
                [$(self.$field),*].into_iter()
            }
        }

        $(
            // SAFETY: integers, transparent structures of them, flags, and pointers.
            unsafe impl Plain for $type {
                fn size(sizes: &Sizes) -> usize {
                    match sizes.$field {
                        // The side does not know the structure, and no call of it has one.
                        0 => size_of::<Self>(),
                        size => size as usize,
                    }
                }
            }
        )*

        /// The structure's fields, and the list of sizes in C, for the header.
        #[doc(hidden)]
        pub fn in_c() -> (String, String) {
            let fields = [$(stringify!($field)),*].map(|field| format!("pub {field}: u32,\n"));
            let names = [$(stringify!($type)),*].map(|name| format!("sizeof(vt_{name})"));
            (fields.concat(), names.join(", \\\n    "))
        }
    };
}

structures! {
    access: Access, Fixed;
    answer: Answer, From(offset_of!(Answer, epoch));
    bus_op: BusOp, From(size_of::<BusOp>());
    cpuid_entry: CpuidEntry, From(size_of::<CpuidEntry>());
    dirty_gfn: DirtyGfn, From(size_of::<DirtyGfn>());
    emulate_request: EmulateRequest, From(size_of::<EmulateRequest>());
    emulated: Emulated, From(size_of::<Emulated>());
    event: Event, Fixed;
    exception: Exception, Fixed;
    exit: Exit, From(size_of::<Exit>());
    mapping: Mapping, Fixed;
    maybe: Maybe, From(size_of::<Maybe>());
    memory_region: MemoryRegion, From(size_of::<MemoryRegion>());
    msr_entry: MsrEntry, From(size_of::<MsrEntry>());
    raw_config: RawConfig, From(size_of::<RawConfig>());
    raw_note: RawNote, From(size_of::<RawNote>());
    raw_option: RawOption, Fixed;
    raw_row: RawRow, From(offset_of!(RawRow, commit));
    resume: Resume, From(size_of::<Resume>());
    sensitive: Sensitive, Fixed;
    silicon: Silicon, From(offset_of!(Silicon, encryption_bits));
    translated: Translated, From(size_of::<Translated>());
    translation: Translation, Fixed;
    vcpu_state: VcpuState, From(offset_of!(VcpuState, fpu));
}

/// A structure whose sizes on the two sides do not go together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mismatch {
    pub structure: &'static str,
    pub here: usize,
    pub there: u32,
    /// The least that will do, where sizes may differ.
    pub least: Option<usize>,
}

impl Sizes {
    /// A side of one library with itself.
    pub const OWN: &'static Self = &Self::here();

    /// No structure of this ABI comes near it.
    pub const MOST: usize = 1 << 16;

    /// Bytes of the first header's list.
    const LEAST: usize = offset_of!(Self, vcpu_state) + size_of::<u32>();

    /// The list of the other side. What stands beyond its end is zero.
    ///
    /// # Safety
    /// `list` is null, or a list of so many bytes.
    pub unsafe fn read(list: *const Self, bytes: u32) -> Result<Self, Mismatch> {
        let here = size_of::<Self>();
        let wrong = |there| Mismatch { structure: "list of sizes", here, there, least: Some(Self::LEAST) };
        if list.is_null() {
            return Err(wrong(0));
        }
        if !(Self::LEAST..=Self::MOST).contains(&(bytes as usize)) {
            return Err(wrong(bytes));
        }
        let mut sizes = Self::default();
        // SAFETY: the list has these bytes; all its fields are words of which any bytes are a value.
        unsafe {
            std::ptr::copy_nonoverlapping(
                list.cast::<u8>(),
                (&raw mut sizes).cast(),
                here.min(bytes as usize),
            );
        }
        Ok(sizes)
    }

    /// Whether structures of the other side, whose list has so many bytes, can be passed in its sizes.
    pub fn check(&self, bytes: u32) -> Result<(), Mismatch> {
        for ((there, here), (structure, at, growth)) in self.words().zip(Self::here().words()).zip(Self::ROWS)
        {
            let (here, size) = (here as usize, there as usize);
            let fits = match growth {
                _ if size == 0 && *at >= bytes as usize => true,
                Fixed => size == here,
                From(least) => (*least..=Self::MOST).contains(&size),
            };
            if !fits {
                let least = match growth {
                    Fixed => None,
                    From(least) => Some(*least),
                };
                return Err(Mismatch { structure, here, there, least });
            }
        }
        Ok(())
    }
}
