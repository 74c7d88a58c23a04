//! Where the host collects what a backend answers in pieces.

// UNSAFETY: callbacks whose contexts are pointers to the collections.
#![allow(unsafe_code)]

use crate::{
    plugin::{Description, TableRow},
    raw::text,
    table::*,
};
use std::ffi::c_void;
use vmtape_arch::{exit::Isa, host::Vendor};

/// Bytes of a row in the first table: everything from `commit` on came later.
const OLDEST_ROW: usize = std::mem::offset_of!(RawRow, commit);

/// Collects what a plugin says of itself.
pub fn description_sink(to: &mut Description) -> DescriptionSink {
    DescriptionSink { ctx: (to as *mut Description).cast(), head: describe_head, row: describe_row }
}

unsafe extern "C" fn describe_head(ctx: *mut c_void, name: Text, summary: Text, isa: Isa, vendor: Vendor) {
    // SAFETY: the context is the description that `Backends::describe` holds; texts live for this call.
    let (description, name, summary) =
        unsafe { (&mut *ctx.cast::<Description>(), text(name), text(summary)) };
    (description.name, description.summary, description.isa, description.vendor) =
        (name, summary, isa, vendor);
}

unsafe extern "C" fn describe_row(ctx: *mut c_void, table: TableId, row: *const RawRow) {
    // SAFETY: as in `describe_head`; the row may be one of an older header.
    let (description, row) = unsafe { (&mut *ctx.cast::<Description>(), whole_row(row)) };
    let rows = match table {
        TableId::RULES => &mut description.rules,
        TableId::PATCHES => &mut description.patches,
        TableId::PARAMETERS => &mut description.parameters,
        TableId::FAULT_POINTS => &mut description.fault_points,
        TableId::PROFILES => &mut description.profiles,
        TableId::CAPABILITIES => &mut description.capabilities,
        // A table that a newer backend has and this program does not know.
        _ => return,
    };
    // SAFETY: the row's texts live for this call.
    let row = unsafe {
        TableRow {
            id: row.id,
            name: text(row.name),
            text: text(row.text),
            source: text(row.source),
            value: text(row.value),
            commit: text(row.commit),
            subject: text(row.subject),
            since: text(row.since),
            until: text(row.until),
            undone_by: text(row.undone_by),
            role: text(row.role),
        }
    };
    rows.push(row);
}

/// A row with the texts that an older header did not have empty.
///
/// # Safety
/// `row` has as many bytes as its size says, or [`OLDEST_ROW`].
unsafe fn whole_row(row: *const RawRow) -> RawRow {
    const NONE: Text = Text::new("");
    // SAFETY: the first two words are in every row.
    let [id, size] = unsafe { *row.cast::<[u32; 2]>() };
    let mut whole = RawRow {
        id,
        size,
        name: NONE,
        text: NONE,
        source: NONE,
        value: NONE,
        commit: NONE,
        subject: NONE,
        since: NONE,
        until: NONE,
        undone_by: NONE,
        role: NONE,
    };
    let known = (size as usize).clamp(OLDEST_ROW, size_of::<RawRow>());
    // SAFETY: the caller vouches for the row's bytes; a text is two plain words, both of them in or both out.
    unsafe { std::ptr::copy_nonoverlapping(row.cast::<u8>(), (&raw mut whole).cast(), known) };
    whole
}
