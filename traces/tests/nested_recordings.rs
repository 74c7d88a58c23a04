//! Recordings of the real kvm_amd whose guests run guests: the level of exits follows from the kernel's words.

mod common;

use common::tape_of;
use std::path::Path;
use vmtape_arch::{exit::SvmExitCode, level::Level};
use vmtape_traces::{
    Event, Tape,
    import::{self, Source},
    stat::stat,
};

fn tape(recording: &str) -> Tape {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("recordings").join(recording).join("trace.txt.gz");
    let mut events = Vec::new();
    let source = Source::Path(path);
    import::events(&source, &mut |event| {
        events.push(event);
        Ok(())
    })
    .expect("imports");
    Tape::from_bytes(tape_of(&events)).expect("a tape")
}

#[test]
fn every_exit_of_a_guests_guest_is_l2s() {
    for recording in ["npt1-nested/nested-npf", "npt0-nested/nested-touch-np0", "npt1-nested-6.1/nested-pat"]
    {
        let tape = tape(recording);
        let (mut l2, mut told, mut vmruns) = (0, 0, 0);
        for event in tape.events() {
            match event.expect("a good tape") {
                Event::Exit(exit) => {
                    l2 += u64::from(exit.exit.level == Level::L2);
                    // The hypervisor runs its guest from L1, the guest leaves by VMMCALL from L2.
                    let expected = match SvmExitCode(exit.exit.reason) {
                        SvmExitCode::VMRUN | SvmExitCode::VMSAVE | SvmExitCode::STGI => Level::L1,
                        SvmExitCode::VMMCALL => Level::L2,
                        _ => continue,
                    };
                    assert_eq!(exit.exit.level, expected, "{recording}: {exit:?}");
                    vmruns += u64::from(exit.exit.reason == SvmExitCode::VMRUN.0);
                }
                other => told += u64::from(other.name() == "kvm_nested_vmexit"),
            }
        }
        assert!(vmruns > 0 && l2 == told, "{recording}: {vmruns} VMRUNs, {l2} exits of L2, {told} told");
        let only = stat(&tape, Some(Level::L2)).expect("counts");
        assert_eq!((only.exits, only.exits_by_reason.get("vmrun")), (l2, None), "{recording}");
    }
}
