//! What stands before the ring buffers: formats, tasks, options, and where each CPU's data are.

use super::{Error, Formats, Layout, MAGIC};
use crate::import::binary::Format;
use std::{collections::BTreeMap, fs::File, os::unix::fs::FileExt};

/// No part of a header is larger.
const LARGEST: u64 = 256 << 20;
/// No machine has more CPUs, no file more buffers and no header more parts.
const MOST: u32 = 1 << 16;

/// A CPU's data of one buffer.
#[derive(Clone, Copy, Debug)]
pub struct Data {
    pub cpu: u32,
    pub offset: u64,
    /// In the file, unless they are compressed.
    pub size: u64,
    pub page_size: u32,
    /// In chunks of zstd.
    pub compressed: bool,
    /// The buffer's clock counts in a unit of its own.
    pub counts: bool,
}

/// `TSC2NSEC`: what a clock of ticks is in nanoseconds.
#[derive(Clone, Copy, Debug)]
pub struct Scale {
    mult: u32,
    shift: u32,
    offset: u64,
}

impl Scale {
    pub fn nanoseconds(self, ticks: u64) -> u64 {
        let product = u128::from(ticks) * u128::from(self.mult);
        (product.checked_shr(self.shift).unwrap_or(0) as u64).wrapping_add(self.offset)
    }
}

#[derive(Debug)]
pub struct Header {
    pub layout: Layout,
    pub formats: Formats,
    pub comms: BTreeMap<u32, String>,
    pub streams: Vec<Data>,
    /// Nanoseconds that are added to every time.
    pub offset: i64,
    pub tsc2nsec: Option<Scale>,
}

impl std::fmt::Debug for Format {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.name)
    }
}

/// Numbers of options and, from version 7 on, of sections.
mod option {
    pub const DONE: u16 = 0;
    pub const DATE: u16 = 1;
    pub const BUFFER: u16 = 3;
    pub const TRACECLOCK: u16 = 4;
    pub const OFFSET: u16 = 7;
    pub const CPUCOUNT: u16 = 8;
    pub const TSC2NSEC: u16 = 14;
    pub const EVENT_FORMATS: u16 = 18;
    pub const FTRACE_EVENTS: u16 = 17;
    pub const CMDLINES: u16 = 21;
}

/// Reads on from a place in the file.
struct Cursor<'a> {
    file: &'a File,
    at: u64,
    layout: Layout,
}

impl Cursor<'_> {
    fn bytes(&mut self, len: u64, of: &'static str) -> Result<Vec<u8>, Error> {
        let left = self.file.metadata()?.len().saturating_sub(self.at);
        if len > left {
            return Err(Error::Cut(of));
        }
        if len > LARGEST {
            return Err(Error::Bent(format!("{of} has {len} bytes")));
        }
        let mut bytes = vec![0; len as usize];
        self.file.read_exact_at(&mut bytes, self.at)?;
        self.at += len;
        Ok(bytes)
    }

    fn number(&mut self, size: u64, of: &'static str) -> Result<u64, Error> {
        let bytes = self.bytes(size, of)?;
        Ok(self.layout.number(&bytes))
    }

    /// Text up to a zero.
    fn text(&mut self, of: &'static str) -> Result<String, Error> {
        let mut text = Vec::new();
        loop {
            match self.bytes(1, of)?[0] {
                0 => return Ok(String::from_utf8_lossy(&text).into_owned()),
                byte if text.len() < 256 => text.push(byte),
                _ => return Err(Error::Bent(format!("{of} does not end"))),
            }
        }
    }

    fn expect(&mut self, word: &[u8], of: &'static str) -> Result<(), Error> {
        let found = self.bytes(word.len() as u64, of)?;
        if found == word { Ok(()) } else { Err(Error::Bent(format!("{of} is missing at {:#x}", self.at))) }
    }
}

/// Reads a part that is in memory.
struct Part<'a> {
    bytes: &'a [u8],
    layout: Layout,
    of: &'static str,
}

impl<'a> Part<'a> {
    fn take(&mut self, len: u64) -> Result<&'a [u8], Error> {
        let len =
            usize::try_from(len).ok().filter(|len| *len <= self.bytes.len()).ok_or(Error::Cut(self.of))?;
        let (taken, rest) = self.bytes.split_at(len);
        self.bytes = rest;
        Ok(taken)
    }

    fn number(&mut self, size: u64) -> Result<u64, Error> {
        Ok(self.layout.number(self.take(size)?))
    }

    fn text(&mut self) -> Result<String, Error> {
        let end = self.bytes.iter().position(|byte| *byte == 0).ok_or(Error::Cut(self.of))?;
        let text = String::from_utf8_lossy(self.take(end as u64)?).into_owned();
        self.take(1)?;
        Ok(text)
    }
}

pub fn read(file: &File) -> Result<Header, Error> {
    let layout = Layout { big_endian: false, long_is_64_bits: true };
    let mut c = Cursor { file, at: 0, layout };
    c.expect(MAGIC, "the magic number")?;
    let version = c.text("the version")?;
    let [endian, long] = *c.bytes(2, "the header")? else { return Err(Error::Cut("the header")) };
    c.layout = match (endian, long) {
        (0 | 1, 4 | 8) => Layout { big_endian: endian == 1, long_is_64_bits: long == 8 },
        _ => return Err(Error::Bent(format!("byte order {endian}, long integers of {long} bytes"))),
    };
    let page_size = page_size(c.number(4, "the header")?)?;
    let mut header = Header {
        layout: c.layout,
        formats: Formats::default(),
        comms: BTreeMap::new(),
        streams: Vec::new(),
        offset: 0,
        tsc2nsec: None,
    };
    match version.as_str() {
        "6" => header.version_6(&mut c, page_size)?,
        "7" => header.version_7(&mut c)?,
        other => return Err(Error::Unsupported(format!("version {other} of trace.dat"))),
    }
    Ok(header)
}

fn page_size(size: u64) -> Result<u32, Error> {
    match size {
        0x100..=0x100_0000 => Ok(size as u32),
        _ => Err(Error::Bent(format!("pages of {size} bytes"))),
    }
}

impl Header {
    /// One part after the other, then a table of where the CPUs' data are.
    fn version_6(&mut self, c: &mut Cursor<'_>, page_size: u32) -> Result<(), Error> {
        for (word, of) in [(&b"header_page\0"[..], "header_page"), (b"header_event\0", "header_event")] {
            c.expect(word, of)?;
            let size = c.number(8, of)?;
            c.bytes(size, of)?;
        }
        for _ in 0..c.number(4, "ftrace's events")? {
            let size = c.number(8, "ftrace's events")?;
            let text = c.bytes(size, "ftrace's events")?;
            self.format("ftrace", &text);
        }
        for _ in 0..c.number(4, "the formats")? {
            let system = c.text("the formats")?;
            for _ in 0..c.number(4, "the formats")? {
                let size = c.number(8, "the formats")?;
                let text = c.bytes(size, "the formats")?;
                self.format(&system, &text);
            }
        }
        for of in ["the symbols", "printk's formats"] {
            let size = c.number(4, of)?;
            c.bytes(size, of)?;
        }
        let size = c.number(8, "the tasks")?;
        let tasks = c.bytes(size, "the tasks")?;
        self.tasks(&tasks);
        let mut buffer = Buffer { cpus: cpus(c.number(4, "the CPUs")?)?, page_size, counts: false };
        let mut word = c.bytes(10, "the options")?;
        let mut instances = Vec::new();
        if word == b"options  \0" {
            self.options_6(c, &mut buffer, &mut instances)?;
            word = c.bytes(10, "the CPUs' data")?;
        }
        match word.as_slice() {
            b"flyrecord\0" => self.table_6(c, &buffer)?,
            b"latency  \0" => return Err(Error::Unsupported("a latency trace, which is text".to_owned())),
            _ => return Err(Error::Bent("it names no kind of data".to_owned())),
        }
        for (offset, cpus) in instances {
            c.at = offset;
            c.expect(b"flyrecord\0", "an instance's data")?;
            self.table_6(c, &Buffer { cpus: cpus.unwrap_or(buffer.cpus), ..buffer })?;
        }
        Ok(())
    }

    fn options_6(
        &mut self,
        c: &mut Cursor<'_>,
        buffer: &mut Buffer,
        instances: &mut Vec<(u64, Option<u32>)>,
    ) -> Result<(), Error> {
        for _ in 0..MOST {
            let id = c.number(2, "the options")? as u16;
            if id == option::DONE {
                return Ok(());
            }
            let size = c.number(4, "the options")?;
            let data = c.bytes(size, "an option")?;
            let mut part = Part { bytes: &data, layout: c.layout, of: "an option" };
            match id {
                option::BUFFER => instances.push((part.number(8)?, None)),
                option::CPUCOUNT => {
                    let count = cpus(part.number(4)?)?;
                    match instances.last_mut() {
                        Some((_, cpus)) => *cpus = Some(count),
                        None => buffer.cpus = count,
                    }
                }
                option::TRACECLOCK => buffer.counts = counts(&chosen_clock(&data)),
                _ => self.common_option(id, &data)?,
            }
        }
        Err(Error::Bent("its options do not end".to_owned()))
    }

    fn table_6(&mut self, c: &mut Cursor<'_>, buffer: &Buffer) -> Result<(), Error> {
        for cpu in 0..buffer.cpus {
            let (offset, size) = (c.number(8, "the CPUs' table")?, c.number(8, "the CPUs' table")?);
            self.stream(
                c,
                Data {
                    cpu,
                    offset,
                    size,
                    page_size: buffer.page_size,
                    compressed: false,
                    counts: buffer.counts,
                },
            )?;
        }
        Ok(())
    }

    /// Options tell where everything is.
    fn version_7(&mut self, c: &mut Cursor<'_>) -> Result<(), Error> {
        let codec = c.text("the compression")?;
        c.text("the compression's version")?;
        if !["zstd", "none", ""].contains(&codec.as_str()) {
            return Err(Error::Unsupported(format!("compression with {codec}")));
        }
        let mut next = c.number(8, "the options")?;
        let mut sections = 0;
        while next != 0 {
            sections += 1;
            if sections > MOST {
                return Err(Error::Bent("its options do not end".to_owned()));
            }
            c.at = next;
            let (id, data) = section(c, &codec, "the options")?;
            if id != option::DONE {
                return Err(Error::Bent(format!("no options at {next:#x}")));
            }
            next = self.options_7(c, &codec, &data)?;
        }
        Ok(())
    }

    /// Returns where the next options are.
    fn options_7(&mut self, c: &mut Cursor<'_>, codec: &str, data: &[u8]) -> Result<u64, Error> {
        let mut part = Part { bytes: data, layout: c.layout, of: "the options" };
        while !part.bytes.is_empty() {
            let (id, size) = (part.number(2)? as u16, part.number(4)?);
            let data = part.take(size)?;
            let mut option = Part { bytes: data, layout: c.layout, of: "an option" };
            match id {
                option::DONE => return option.number(8),
                option::BUFFER => self.buffer_7(c, &mut option)?,
                option::EVENT_FORMATS | option::FTRACE_EVENTS | option::CMDLINES => {
                    c.at = option.number(8)?;
                    let (_, data) = section(c, codec, "a section")?;
                    self.section_7(id, Part { bytes: &data, layout: c.layout, of: "a section" })?;
                }
                _ => self.common_option(id, data)?,
            }
        }
        Ok(0)
    }

    fn section_7(&mut self, id: u16, mut part: Part<'_>) -> Result<(), Error> {
        match id {
            option::CMDLINES => {
                let size = part.number(8)?;
                self.tasks(part.take(size)?);
            }
            option::FTRACE_EVENTS => {
                for _ in 0..part.number(4)? {
                    let size = part.number(8)?;
                    self.format("ftrace", part.take(size)?);
                }
            }
            _ => {
                for _ in 0..part.number(4)? {
                    let system = part.text()?;
                    for _ in 0..part.number(4)? {
                        let size = part.number(8)?;
                        self.format(&system, part.take(size)?);
                    }
                }
            }
        }
        Ok(())
    }

    fn buffer_7(&mut self, c: &mut Cursor<'_>, option: &mut Part<'_>) -> Result<(), Error> {
        let at = option.number(8)?;
        option.text()?;
        let counts = counts(&option.text()?);
        let page_size = page_size(option.number(4)?)?;
        c.at = at;
        let flags = section_head(c, "a buffer")?.1;
        for _ in 0..cpus(option.number(4)?)? {
            let cpu = option.number(4)? as u32;
            let (offset, size) = (option.number(8)?, option.number(8)?);
            let compressed = flags & COMPRESSED != 0;
            self.stream(c, Data { cpu, offset, size, page_size, compressed, counts })?;
        }
        Ok(())
    }

    fn stream(&mut self, c: &Cursor<'_>, data: Data) -> Result<(), Error> {
        if data.size == 0 {
            return Ok(());
        }
        // Of compressed data it is the size before.
        let least = if data.compressed { 4 } else { data.size };
        let length = c.file.metadata()?.len();
        if data.offset.checked_add(least).is_none_or(|end| end > length) {
            return Err(Error::Cut("the data of a CPU"));
        }
        self.streams.push(data);
        Ok(())
    }

    /// Options that both versions write alike.
    fn common_option(&mut self, id: u16, data: &[u8]) -> Result<(), Error> {
        let text = || String::from_utf8_lossy(data).trim_matches(['\0', ' ', '\n']).to_owned();
        match id {
            option::DATE => {
                let micros = i64::from_str_radix(text().trim_start_matches("0x"), 16).unwrap_or(0);
                self.offset = self.offset.wrapping_add(micros.wrapping_mul(1000));
            }
            option::OFFSET => self.offset = self.offset.wrapping_add(text().parse().unwrap_or(0)),
            option::TSC2NSEC => {
                let mut part = Part { bytes: data, layout: self.layout, of: "TSC2NSEC" };
                let (mult, shift) = (part.number(4)? as u32, part.number(4)? as u32);
                self.tsc2nsec = Some(Scale { mult, shift, offset: part.number(8)? });
            }
            _ => {}
        }
        Ok(())
    }

    fn format(&mut self, system: &str, text: &[u8]) {
        let text = String::from_utf8_lossy(text);
        // One that is not understood leaves its events unreadable, which are counted.
        if let Some((id, format)) = Format::parse(system, &text, self.layout.long_is_64_bits) {
            self.formats.insert(id, format);
        }
    }

    /// `186 CPU 0/KVM` a line.
    fn tasks(&mut self, text: &[u8]) {
        for line in String::from_utf8_lossy(text).lines() {
            if let Some((pid, comm)) = line.trim_matches('\0').split_once(' ')
                && let Ok(pid) = pid.parse()
            {
                self.comms.insert(pid, comm.to_owned());
            }
        }
    }
}

#[derive(Clone, Copy)]
struct Buffer {
    cpus: u32,
    page_size: u32,
    counts: bool,
}

fn cpus(count: u64) -> Result<u32, Error> {
    u32::try_from(count)
        .ok()
        .filter(|count| *count <= MOST)
        .ok_or_else(|| Error::Bent(format!("{count} CPUs")))
}

/// Clocks that do not count nanoseconds. See: kernel/trace/trace.c trace_clocks (6.12)
fn counts(clock: &str) -> bool {
    ["x86-tsc", "counter", "ppc-tb"].contains(&clock)
}

/// `local global [mono]`: the one in brackets.
fn chosen_clock(data: &[u8]) -> String {
    let text = String::from_utf8_lossy(data).into_owned();
    let chosen = text.split_once('[').and_then(|(_, rest)| rest.split_once(']'));
    chosen.map_or_else(|| text.trim_matches(['\0', ' ', '\n']).to_owned(), |(clock, _)| clock.to_owned())
}

/// The flag of a section whose data are compressed.
const COMPRESSED: u64 = 1;

/// A section's number, flags and size.
fn section_head(c: &mut Cursor<'_>, of: &'static str) -> Result<(u16, u64, u64), Error> {
    let (id, flags) = (c.number(2, of)? as u16, c.number(2, of)?);
    c.number(4, of)?;
    Ok((id, flags, c.number(8, of)?))
}

fn section(c: &mut Cursor<'_>, codec: &str, of: &'static str) -> Result<(u16, Vec<u8>), Error> {
    let (id, flags, size) = section_head(c, of)?;
    if flags & COMPRESSED == 0 {
        return Ok((id, c.bytes(size, of)?));
    }
    if codec != "zstd" {
        return Err(Error::Bent(format!("{of} is compressed, with nothing")));
    }
    let (packed, unpacked) = (c.number(4, of)?, c.number(4, of)?);
    let bytes = c.bytes(packed, of)?;
    Ok((id, unpack(&bytes, unpacked, of)?))
}

/// Decompresses one piece to the size that it names.
pub fn unpack(bytes: &[u8], size: u64, of: &'static str) -> Result<Vec<u8>, Error> {
    if size > LARGEST {
        return Err(Error::Bent(format!("{of} has {size} bytes unpacked")));
    }
    let unpacked =
        zstd::bulk::decompress(bytes, size as usize).map_err(|e| Error::Bent(format!("{of}: {e}")))?;
    if unpacked.len() as u64 == size { Ok(unpacked) } else { Err(Error::Cut(of)) }
}
