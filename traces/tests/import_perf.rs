//! `perf.data` files, written by another library, give the tape of the text that `perf script` prints.

mod common;

use common::dat::{self, Item};
use std::{collections::BTreeMap, fs, path::Path, sync::Arc};
use tracepoint_decode::{
    PerfEventAttr, PerfEventAttrOptions, PerfEventAttrSampleType, PerfEventAttrSize, PerfEventAttrType,
    PerfEventFormat,
};
use tracepoint_perf::PerfDataFileWriter;
use vmtape_traces::{
    Event,
    import::{self, Source, Summary},
};

const SAMPLE: u32 = 9;
const COMM: u32 = 3;
const LOST: u32 = 2;

fn record(kind: u32, body: &[u8]) -> Vec<u8> {
    let size = (8 + body.len()).next_multiple_of(8);
    let mut out = kind.to_le_bytes().to_vec();
    out.extend(0u16.to_le_bytes());
    out.extend((size as u16).to_le_bytes());
    out.extend(body);
    out.resize(size, 0);
    out
}

/// What follows a record that is no sample: task, time, CPU and the event's id.
fn trailer(pid: u32, time: u64, cpu: u32, id: u64) -> Vec<u8> {
    let mut out = Vec::new();
    out.extend([pid, pid].iter().flat_map(|word| word.to_le_bytes()));
    out.extend(time.to_le_bytes());
    out.extend([cpu, 0].iter().flat_map(|word| word.to_le_bytes()));
    out.extend(id.to_le_bytes());
    out
}

fn sample(id: u64, cpu: u32, time: u64, data: &[u8]) -> Vec<u8> {
    let pid = u32::from_le_bytes(data[4..8].try_into().unwrap());
    let mut body = id.to_le_bytes().to_vec();
    body.extend(trailer(pid, time, cpu, 1));
    // The trailer's last word is the period here.
    let padded = (4 + data.len()).next_multiple_of(8) - 4;
    body.extend((padded as u32).to_le_bytes());
    body.extend(data);
    body.resize(body.len() + padded - data.len(), 0);
    record(SAMPLE, &body)
}

fn write(path: &Path, comms: &BTreeMap<u32, &str>, items: &[Item]) {
    let mut writer = PerfDataFileWriter::new();
    writer.create_file(path.to_str().unwrap()).unwrap();
    writer.set_tracing_data_required(8, 4096);
    let types = [
        PerfEventAttrSampleType::Identifier,
        PerfEventAttrSampleType::Tid,
        PerfEventAttrSampleType::Time,
        PerfEventAttrSampleType::Cpu,
        PerfEventAttrSampleType::Period,
        PerfEventAttrSampleType::Raw,
    ];
    for (n, text) in dat::format_files().iter().enumerate() {
        let format = PerfEventFormat::parse(true, "kvm", text).unwrap();
        let attr = PerfEventAttr {
            attr_type: PerfEventAttrType::Tracepoint,
            size: PerfEventAttrSize::Ver6,
            config: format.id().into(),
            sample_type: PerfEventAttrSampleType(
                types.iter().map(|kind| kind.0).fold(0, |all, bit| all | bit),
            ),
            // sample_id_all
            options: PerfEventAttrOptions(1 << 18),
            ..Default::default()
        };
        let name = format!("kvm:{}", format.name());
        assert!(writer.add_tracepoint_event_desc(&[100 + n as u64], &attr, &name, &Arc::new(format)));
    }
    for (pid, comm) in comms {
        let mut body = [pid.to_le_bytes(), pid.to_le_bytes()].concat();
        body.extend(comm.bytes());
        body.resize((body.len() + 1).next_multiple_of(8), 0);
        body.extend(trailer(*pid, 1, 0, 100));
        writer.write_event_data(&record(COMM, &body)).unwrap();
    }
    for item in items {
        let bytes = match item {
            Item::Event { cpu, time, data } => {
                let kind = u16::from_le_bytes(data[..2].try_into().unwrap());
                sample(100 + u64::from(kind - dat::EXIT), *cpu, *time, data)
            }
            Item::Lost { cpu, events } => {
                let mut body = [100u64.to_le_bytes(), events.to_le_bytes()].concat();
                body.extend(trailer(0, 5_000_000_000 + (1 << 31) - 1, *cpu, 100));
                record(LOST, &body)
            }
        };
        writer.write_event_data(&bytes).unwrap();
    }
    writer.finalize_and_close().unwrap();
}

fn events(source: &Source) -> Result<(Vec<Event>, Summary), import::Error> {
    let mut events = Vec::new();
    let summary = import::events(source, &mut |event| {
        events.push(event);
        Ok(())
    })?;
    Ok((events, summary))
}

/// Without times, which perf cuts where ftrace rounds, and which order events of the same time.
fn comparable(event: &Event) -> Option<String> {
    match event {
        Event::Moment { .. } => None,
        Event::Exit(exit) => Some(format!("{} {:#x} {:?}", exit.vcpu, exit.rip, exit.exit)),
        other => Some(format!("{other:?}")),
    }
}

#[test]
fn samples_give_the_tape_of_their_text() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("perf.data");
    write(&path, &dat::comms(), &dat::items());
    if let Some(kept) = std::env::var_os("VMTAPE_KEEP") {
        fs::copy(&path, kept).unwrap();
    }
    let (ours, summary) = events(&Source::Path(path)).unwrap();
    let (theirs, of_text) = events(&Source::Text(dat::text())).unwrap();
    assert_eq!((summary.exits, summary.vms, summary.lost_events, summary.unreadable), (800, 2, 77, 0));
    assert_eq!((summary.decoded, summary.kept), (of_text.decoded, of_text.kept));
    // Which lines of two CPUs come first is not the matter here: each vCPU's own are in order.
    for vcpu in [0, 1 << 16] {
        let own = |events: &[Event]| -> Vec<_> {
            let of = |event: &&Event| match event {
                Event::Exit(exit) => exit.vcpu == vcpu,
                Event::Note { vcpu: of, .. }
                | Event::Resume { vcpu: of, .. }
                | Event::Line { vcpu: of, .. } => *of == vcpu,
                _ => false,
            };
            events.iter().filter(of).filter_map(comparable).collect()
        };
        assert_eq!(own(&ours), own(&theirs));
    }
}

/// Cut anywhere, a file is refused by name, or what was before the cut is read.
#[test]
fn cut_files() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("perf.data");
    write(&path, &dat::comms(), &dat::items()[..40]);
    let whole = fs::read(&path).unwrap();
    for at in (10..whole.len()).step_by(53) {
        fs::write(&path, &whole[..at]).unwrap();
        if let Err(error) = events(&Source::Path(path.clone())) {
            assert!(error.to_string().contains("perf.data"), "{error}");
        }
    }
}
