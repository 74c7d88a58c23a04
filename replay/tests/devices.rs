//! Two tapes that differ in nothing but what devices saw.

use std::path::Path;
use vmtape_arch::{
    flag::Flag,
    host::{Silicon, Vendor},
};
use vmtape_machine::{GuestImage, MachineSpec};
use vmtape_replay::{
    Report,
    report::Verdict,
    spec::{self, Budget},
    tapes,
};
use vmtape_traces::{Event, Options, Tape, Writer, event::End};

fn machine(backend: &str) -> MachineSpec {
    MachineSpec {
        memory: 1 << 20,
        cpu: "test".into(),
        host: "test".into(),
        backend: backend.into(),
        seed: 1,
        ..MachineSpec::new(
            GuestImage { name: "guest".into(), bytes: Vec::new() },
            Silicon {
                vendor: Vendor::INTEL,
                phys_bits: 40,
                host_levels: 4,
                ept_levels: 4,
                gbpages: Flag::NO,
                ept_ad: Flag::YES,
                ept_advanced: Flag::YES,
                apicv: Flag::NO,
                nrips: Flag::YES,
                decode_assists: Flag::YES,
                backing_shift: 21,
                rmw_reads_first: Flag::NO,
                encryption_bits: 0,
                vgif: false.into(),
                vls: false.into(),
                vnmi: false.into(),
            },
        )
    }
}

/// A tape without exits, of a guest whose devices saw this after 1000, 2000, ... instructions.
fn tape(folder: &Path, name: &str, backend: &str, seen: &[u64]) -> Tape {
    let path = folder.join(name);
    let budget = Budget { instructions: u64::MAX, exits: u64::MAX, ..Budget::default() };
    let metadata = spec::metadata(&machine(backend), &budget).unwrap();
    let mut writer = Writer::create(&path, &metadata, &[], Options::default()).unwrap();
    for (n, hash) in (1..).zip(seen) {
        writer.push(Event::Devices { icount: 1000 * n, accesses: n, hash: *hash });
    }
    writer.push(Event::End { icount: 10_000, exits: 0, end: End::Idle { reason: String::new() } });
    writer.finish().unwrap();
    Tape::open(&path).unwrap()
}

fn diff(backends: [&str; 2], seen: [&[u64]; 2]) -> Report {
    let folder = tempfile::tempdir().unwrap();
    let a = tape(folder.path(), "a", backends[0], seen[0]);
    let b = tape(folder.path(), "b", backends[1], seen[1]);
    let mut report = Report::new("", "a", "b");
    tapes::compare(&a, &b, &mut report, "").unwrap();
    report
}

#[test]
fn other_output_is_a_difference_though_nothing_exits() {
    for backends in [["bare", "bare"], ["bare", "other"]] {
        let report = diff(backends, [&[7, 8, 9], &[7, 5, 6]]);
        assert_eq!(report.verdict, Verdict::Different);
        let first = report.divergence.unwrap();
        assert_eq!(first.icount, 1000);
        assert_eq!(first.rows[0].what, "what devices saw, between 1000 and 2000 instructions");
    }
}

#[test]
fn equal_output_is_compared() {
    assert_eq!(diff(["bare", "bare"], [&[7, 8], &[7, 8]]).verdict, Verdict::Same);
    let other = diff(["bare", "other"], [&[7, 8], &[7, 8]]);
    assert_eq!((other.verdict, other.compared.events), (Verdict::Unknown, 2));
    assert_eq!(other.unknown.into_values().collect::<Vec<_>>(), [10_000], "no instruction had an exit");
}
