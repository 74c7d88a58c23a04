//! A page of the kernel's ring buffer.
//!
//! See: kernel/trace/ring_buffer.c, include/linux/ring_buffer.h enum ring_buffer_type (6.12)

use super::{Error, Layout};

/// What a page begins with.
#[derive(Clone, Copy, Debug, Default)]
pub struct Head {
    pub time: u64,
    /// Where the events end.
    pub end: usize,
    /// Where they begin.
    pub start: usize,
    /// Events are missing before this page: how many, 0 if it does not say.
    pub missed: Option<u64>,
}

/// Bits of the word that says how far a page is filled.
const MISSED_EVENTS: u64 = 1 << 31;
const MISSED_STORED: u64 = 1 << 30;

/// Types of an event: below 29 the length in words.
const PADDING: u32 = 29;
const TIME_EXTEND: u32 = 30;
const TIME_STAMP: u32 = 31;

/// Bits of a time in the head of an event.
const DELTA_BITS: u32 = 27;
/// A time stamp has 59 bits; the page's time has the rest.
const STAMP_BITS: u32 = 59;

pub fn head(page: &[u8], layout: Layout) -> Result<Head, Error> {
    let long = layout.long();
    let (time, rest) = page.split_at_checked(8).ok_or(Error::Cut("a page"))?;
    let commit = layout.number(rest.get(..long).ok_or(Error::Cut("a page"))?);
    let start = 8 + long;
    // Bits 20 to 29 are of no length; a page may have 4 to 64 KiB and more.
    let filled = (commit & (MISSED_STORED - 1)) as usize;
    let end = start.checked_add(filled).filter(|end| *end <= page.len());
    let end =
        end.ok_or_else(|| Error::Bent(format!("a page of {} bytes is filled with {filled}", page.len())))?;
    let missed = (commit & MISSED_EVENTS != 0).then(|| {
        let stored = page.get(end..end + long).filter(|_| commit & MISSED_STORED != 0);
        stored.map_or(0, |count| layout.number(count))
    });
    Ok(Head { time: layout.number(time), end, start, missed })
}

/// The next event of a page.
pub struct Next {
    /// Where the one after it begins.
    pub after: usize,
    /// Where its data are; nothing for one that only tells the time.
    pub data: Option<(usize, usize)>,
}

/// Reads the event at a place, and moves the time on.
pub fn next(
    page: &[u8],
    at: usize,
    end: usize,
    time: &mut u64,
    layout: Layout,
) -> Result<Option<Next>, Error> {
    let word = |at: usize| page.get(at..at + 4).filter(|_| at + 4 <= end).map(|bytes| layout.u32(bytes));
    let Some(head) = word(at) else { return Ok(None) };
    let (kind, delta) = match layout.big_endian {
        true => (head >> DELTA_BITS, head & ((1 << DELTA_BITS) - 1)),
        false => (head & 31, head >> 5),
    };
    let array = || word(at + 4).ok_or(Error::Cut("an event"));
    let bounded = |length: usize| {
        let after = at.checked_add(length).filter(|after| *after <= end);
        after.ok_or_else(|| Error::Bent(format!("an event of {length} bytes does not fit its page")))
    };
    let next = match kind {
        // The rest of the page is empty.
        PADDING if delta == 0 => return Ok(None),
        PADDING => {
            *time = time.wrapping_add(delta.into());
            Next { after: bounded(4 + array()? as usize)?, data: None }
        }
        TIME_EXTEND => {
            *time = time.wrapping_add(u64::from(delta) + (u64::from(array()?) << DELTA_BITS));
            Next { after: bounded(8)?, data: None }
        }
        TIME_STAMP => {
            let stamp = u64::from(delta) + (u64::from(array()?) << DELTA_BITS);
            *time = stamp | (*time >> STAMP_BITS << STAMP_BITS);
            Next { after: bounded(8)?, data: None }
        }
        0 => {
            let length = array()? as usize;
            *time = time.wrapping_add(delta.into());
            let after = bounded(4 + length.next_multiple_of(4).max(4))?;
            Next { after, data: Some((at + 8, (at + 4).saturating_add(length).clamp(at + 8, after))) }
        }
        words => {
            *time = time.wrapping_add(delta.into());
            let after = bounded(4 + 4 * words as usize)?;
            Next { after, data: Some((at + 4, after)) }
        }
    };
    Ok(Some(next))
}
