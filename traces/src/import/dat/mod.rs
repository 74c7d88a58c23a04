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
use std::{cmp::Reverse, collections::BinaryHeap, fs::File};
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

/// What is known of tracepoints, by their numbers.
#[derive(Debug, Default)]
pub struct Formats(Vec<Option<Box<Format>>>);

impl Formats {
    fn insert(&mut self, id: u16, format: Format) {
        let place = usize::from(id);
        if place >= self.0.len() {
            self.0.resize_with(place + 1, || None);
        }
        self.0[place] = Some(format.into());
    }

    fn get(&self, id: u16) -> Option<&Format> {
        self.0.get(usize::from(id))?.as_deref()
    }
}

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
    pub fn records<E: From<Error>>(&self, each: &mut dyn FnMut(&Line<'_>) -> Result<(), E>) -> Result<(), E> {
        let mut streams = Vec::new();
        let mut waiting = BinaryHeap::new();
        for (place, data) in self.header.streams.iter().enumerate() {
            let mut stream = Stream::open(self.file, *data, self.header.layout)?;
            stream.advance()?;
            // Of events at the same time the lowest CPU's comes first, as tracefs has it.
            waiting.extend(stream.time().map(|time| Reverse((time, data.cpu, place))));
            streams.push((data, stream));
        }
        let mut task = self.task(0);
        while let Some(Reverse((_, cpu, place))) = waiting.pop() {
            let (data, stream) = &mut streams[place];
            while let Some(time) = stream.time() {
                let this = Reverse((time, cpu, place));
                if waiting.peek().is_some_and(|earlier| *earlier > this) {
                    waiting.push(this);
                    break;
                }
                if let Some(events) = stream.take_gap() {
                    each(&lost(cpu, events))?;
                }
                each(&self.line(cpu, self.time(time, data.counts), stream.record(), &mut task))?;
                stream.advance()?;
            }
        }
        for (data, stream) in &mut streams {
            if let Some(events) = stream.take_gap() {
                each(&lost(data.cpu, events))?;
            }
        }
        Ok(())
    }

    /// A thread and its name.
    fn task(&self, pid: u32) -> (u32, &str) {
        (pid, self.header.comms.get(&pid).map_or("<...>", String::as_str))
    }

    /// `task`: that of the event before.
    fn line<'r, 's: 'r>(
        &'s self,
        cpu: u32,
        time: Time,
        data: &'r [u8],
        task: &mut (u32, &'s str),
    ) -> Line<'r> {
        let layout = self.header.layout;
        let Some(id) = data.get(..2).map(|id| layout.u16(id)) else { return Line::Unreadable };
        let Some(format) = self.header.formats.get(id) else { return Line::Unreadable };
        // `common_pid`: at 4 in every event of every kernel that KVM's tracepoints are read of.
        let Some(pid) = data.get(4..8).map(|pid| layout.u32(pid)) else { return Line::Unreadable };
        if pid != task.0 {
            *task = self.task(pid);
        }
        Line::Event(Record {
            comm: task.1,
            pid,
            tgid: None,
            cpu: Some(cpu),
            time,
            event: &format.name,
            body: Body::Raw(Raw { format, data, big_endian: layout.big_endian }),
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
        let mut word = [0; 8];
        let len = bytes.len().min(word.len());
        match self.big_endian {
            true => {
                word[8 - len..].copy_from_slice(&bytes[..len]);
                u64::from_be_bytes(word)
            }
            false => {
                word[..len].copy_from_slice(&bytes[..len]);
                u64::from_le_bytes(word)
            }
        }
    }

    pub fn long(self) -> usize {
        if self.long_is_64_bits { 8 } else { 4 }
    }
}
