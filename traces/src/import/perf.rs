//! `perf.data` files with samples of tracepoints, by way of the crate `tracepoint_perf`.

use super::{
    binary::{Format, Raw},
    line::{Body, Line, Lost, Record, Time},
};
use std::{collections::BTreeMap, fs::File, io, os::fd::AsRawFd};
use tracepoint_decode::{PerfEventBytes, PerfEventHeaderType, PerfSampleEventInfo};
use tracepoint_perf::{PerfDataFileEventOrder, PerfDataFileReader};

/// The first bytes of such a file, by the byte order of the machine that wrote it.
pub const MAGIC: [&[u8]; 2] = [b"PERFILE2", b"2ELIFREP"];

/// Why a file cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("its records are compressed (`perf record -z`): give the text that `perf script` makes of it")]
    Compressed,
    #[error("none of its samples is of a tracepoint that it describes")]
    NoTracepoints,
}

/// Gives every sample of a tracepoint, in the order of time, and every gap to `each`.
pub fn records<E: From<Error>>(
    file: &File,
    each: &mut dyn FnMut(&Line<'_>) -> Result<(), E>,
) -> Result<(), E> {
    let mut reader = PerfDataFileReader::new();
    // The crate opens files by their path, and this one may have none.
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    reader.open_file(&path, PerfDataFileEventOrder::Time).map_err(Error::Io)?;
    let mut trace = Trace::default();
    let (mut samples, mut read) = (0, 0u64);
    while reader.move_next_event().map_err(Error::Io)? {
        let event = reader.current_event();
        let content = event.data.get(8..).unwrap_or_default();
        let number = |at: usize| content.get(at..at + 8).map(|bytes| reader.byte_reader().read_u64(bytes));
        match event.header.ty {
            PerfEventHeaderType::Sample => {
                samples += 1;
                read += u64::from(trace.sample(&reader, &event, each)?);
            }
            PerfEventHeaderType::Comm => trace.comm(&reader, content),
            PerfEventHeaderType::Lost => {
                let cpu = reader.get_non_sample_event_info(&event).ok().map(|info| info.cpu);
                each(&Line::Lost(Lost { cpu, events: number(8).unwrap_or(0) }))?;
            }
            PerfEventHeaderType::Compressed => return Err(Error::Compressed.into()),
            _ => {}
        }
    }
    match (samples, read) {
        (1.., 0) => Err(Error::NoTracepoints.into()),
        _ => Ok(()),
    }
}

#[derive(Default)]
struct Trace {
    formats: BTreeMap<u32, Format>,
    comms: BTreeMap<u32, String>,
}

impl Trace {
    /// A thread's name: pid, tid, name.
    fn comm(&mut self, reader: &PerfDataFileReader, content: &[u8]) {
        if let Some(tid) = content.get(4..8) {
            let name = content[8..].split(|byte| *byte == 0).next().unwrap_or_default();
            let tid = reader.byte_reader().read_u32(tid);
            self.comms.insert(tid, String::from_utf8_lossy(name).into_owned());
        }
    }

    /// Says whether the sample was one of a tracepoint.
    fn sample<E>(
        &mut self,
        reader: &PerfDataFileReader,
        event: &PerfEventBytes<'_>,
        each: &mut dyn FnMut(&Line<'_>) -> Result<(), E>,
    ) -> Result<bool, E> {
        let Ok(info) = reader.get_sample_event_info(event) else {
            return each(&Line::Unreadable).map(|()| false);
        };
        let Some(parsed) = info.format().filter(|_| !info.raw_data().is_empty()) else {
            return each(&Line::Unreadable).map(|()| false);
        };
        let format = self.formats.entry(parsed.id()).or_insert_with(|| Format::new(parsed));
        let comm = self.comms.get(&info.tid).map_or(":-1", String::as_str);
        each(&Line::Event(record(format, comm, &info, reader.source_big_endian())))?;
        Ok(true)
    }
}

fn record<'a>(
    format: &'a Format,
    comm: &'a str,
    info: &'a PerfSampleEventInfo<'_>,
    big_endian: bool,
) -> Record<'a> {
    Record {
        comm,
        pid: info.tid,
        tgid: Some(info.pid),
        cpu: Some(info.cpu),
        // As `perf script` prints it: cut, not rounded.
        time: Time::Micros(info.time / 1000),
        event: &format.name,
        body: Body::Raw(Raw { format, data: info.raw_data(), big_endian }),
    }
}
