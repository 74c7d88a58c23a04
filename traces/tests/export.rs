//! What is counted on a tape, and a tape as JSON.

mod common;

use common::{PageTableTest, tape_of};
use serde_json::Value;
use std::path::Path;
use vmtape_traces::{Event, Options, Tape, export, import, stat::stat};

fn imported(recording: &str) -> (tempfile::TempDir, Tape) {
    let folder = tempfile::tempdir().unwrap();
    let trace = Path::new(env!("CARGO_MANIFEST_DIR")).join("recordings").join(recording).join("trace.txt.gz");
    let path = folder.path().join("real.tape");
    import::to_tape(&trace, &path, Options::default()).unwrap();
    let tape = Tape::open_whole(&path).unwrap();
    (folder, tape)
}

#[test]
fn counts_of_a_recording() {
    let (_folder, tape) = imported("ept1/setjmp");
    let stat = stat(&tape, None).unwrap();
    assert_eq!((stat.exits, stat.exits_by_reason["IO_INSTRUCTION"]), (770, 732));
    assert_eq!((stat.events_by_kind["kvm_exit"], stat.events_by_kind["kvm_fpu"]), (770, 1460));
    assert_eq!(stat.ports.values().map(|p| p.reads + p.writes).sum::<u64>(), 732);
    assert_eq!((stat.msrs["0xc0000080"].reads, stat.msrs["0xc0000080"].writes), (1, 1));
    assert_eq!(stat.hottest.iter().map(|hot| hot.exits).max(), Some(stat.hottest[0].exits));
    assert_eq!(stat.exits_per_million_instructions, None);
    assert_eq!(stat.bytes_by_kind.values().sum::<u64>(), stat.bytes);
}

#[test]
fn every_event_is_a_line_of_json() {
    let events = PageTableTest::exits(3, 200);
    let tape = Tape::from_bytes(tape_of(&events)).unwrap();
    let mut out = Vec::new();
    export::json_lines(&tape, &mut out).unwrap();
    let lines: Vec<Value> =
        String::from_utf8(out).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), events.len() + 1);
    assert_eq!(lines[0]["schema_version"], 1);
    assert_eq!(lines[0]["metadata"]["options"][0][0], "kvm");
    for (line, event) in lines[1..].iter().zip(&events) {
        assert_eq!(line["event"], event.name().as_ref());
    }
    let first = &lines[2];
    let Event::Exit(exit) = &events[1] else { panic!("{:?}", events[1]) };
    assert_eq!((&first["exit"], &first["reason"]), (&Value::from(0), &Value::from("PF excp")));
    assert_eq!(first["access"]["gva"], format!("{:#x}", exit.exit.access.gva));
    assert_eq!(first["icount"], exit.icount);
    let insn = lines.iter().find(|line| line["event"] == "kvm_emulate_insn").unwrap();
    assert_eq!(insn["insn"], "48 89 18");
}
