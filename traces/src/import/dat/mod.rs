//! `trace.dat` files of trace-cmd, versions 6 and 7.
//!
//! See: trace-cmd Documentation/trace-cmd/trace-cmd.dat.v6.5.txt and trace-cmd.dat.v7.5.txt (3.2)

mod header;
mod page;
mod stream;

use super::{
    binary::{Format, Raw},
    line::{Body, Line, Lost, Record, Time},
};
use header::Header;
use std::{collections::BTreeMap, fs::File};
use stream::Stream;

/// The first bytes of such a file.
pub const MAGIC: &[u8] = b"\x17\x08\x44tracing";

/// Why a file cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{0}")]
    Io(#[from] std::io::Error),
    #[error("it ends within {0}")]
    Cut(&'static str),
    #[error("it is bent: {0}")]
    Bent(String),
    #[error("{0}: not supported")]
    Unsupported(String),
}

/// How the numbers of a file are written.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    pub big_endian: bool,
    pub long_is_64_bits: bool,
}

/// A tracepoint's number, and what is known of it.
type Formats = BTreeMap<u16, Format>;

/// An open file.
pub struct Trace<'a> {
    file: &'a File,
    header: Header,
}

impl<'a> Trace<'a> {
    pub fn open(file: &'a File) -> Result<Self, Error> {
        Ok(Self { file, header: header::read(file)? })
    }

    /// Gives every event, in the order of time, and every gap to `each`.
    pub fn records<E: From<Error>>(&self, each: &mut dyn FnMut(Line<'_>) -> Result<(), E>) -> Result<(), E> {
        let mut streams = Vec::new();
        for data in &self.header.streams {
            let mut stream = Stream::open(self.file, *data, self.header.layout)?;
            stream.advance()?;
            streams.push((data, stream));
        }
        loop {
            // Of events at the same time the lowest CPU's comes first, as tracefs has it.
            let next = streams.iter_mut().filter(|(_, stream)| stream.time().is_some());
            let Some((data, stream)) = next.min_by_key(|(data, stream)| (stream.time(), data.cpu)) else {
                break;
            };
            if let Some(events) = stream.take_gap() {
                each(lost(data.cpu, events))?;
            }
            each(self.line(data.cpu, stream.time().unwrap_or(0), data.counts, stream.record()))?;
            stream.advance()?;
        }
        for (data, stream) in &mut streams {
            if let Some(events) = stream.take_gap() {
                each(lost(data.cpu, events))?;
            }
        }
        Ok(())
    }

    fn line<'r>(&'r self, cpu: u32, time: u64, counts: bool, data: &'r [u8]) -> Line<'r> {
        let layout = self.header.layout;
        let Some(id) = data.get(..2).map(|id| layout.u16(id)) else { return Line::Unreadable };
        let Some(format) = self.header.formats.get(&id) else { return Line::Unreadable };
        // `common_pid`: at 4 in every event of every kernel that KVM's tracepoints are read of.
        let Some(pid) = data.get(4..8).map(|pid| layout.u32(pid)) else { return Line::Unreadable };
        let raw = Raw { format, data, big_endian: layout.big_endian };
        Line::Event(Record {
            comm: self.header.comms.get(&pid).map_or("<...>", String::as_str),
            pid,
            tgid: None,
            cpu: Some(cpu),
            time: self.time(time, counts),
            event: &format.name,
            body: Body::Raw(raw),
        })
    }

    /// As `trace-cmd report` shows it: nanoseconds rounded to microseconds.
    fn time(&self, time: u64, counts: bool) -> Time {
        let h = &self.header;
        let (time, counts) = match h.tsc2nsec {
            Some(scale) if counts => (scale.nanoseconds(time), false),
            _ => (time, counts),
        };
        let time = time.wrapping_add_signed(h.offset);
        if counts { Time::Ticks(time) } else { Time::Micros(time.saturating_add(500) / 1000) }
    }
}

fn lost(cpu: u32, events: u64) -> Line<'static> {
    Line::Lost(Lost { cpu: Some(cpu), events })
}

impl Layout {
    pub fn u16(self, bytes: &[u8]) -> u16 {
        self.number(bytes) as u16
    }

    pub fn u32(self, bytes: &[u8]) -> u32 {
        self.number(bytes) as u32
    }

    /// A number of up to eight bytes.
    pub fn number(self, bytes: &[u8]) -> u64 {
        let low_first = |value: u64, byte: &u8| value << 8 | u64::from(*byte);
        match self.big_endian {
            true => bytes.iter().take(8).fold(0, low_first),
            false => bytes.iter().take(8).rev().fold(0, low_first),
        }
    }

    pub fn long(self) -> usize {
        if self.long_is_64_bits { 8 } else { 4 }
    }
}
