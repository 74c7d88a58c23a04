//! The backend in C carries guests: what it lacks is nowhere else either.

mod common;
#[path = "common/guest.rs"]
mod guest;

use std::{fs, path::PathBuf};
use vmtape_arch::{exit::ResumeKind, memory::Supply};
use vmtape_machine::vmm::{Action, Step, When};
use vmtape_traces::event::End;

/// Runs a guest to its end and gives that and what it printed.
fn run(name: &str, bytes: Vec<u8>, defines: &[&str]) -> (End, String) {
    let folder = tempfile::tempdir().unwrap();
    guest::run(&common::compile(folder.path(), "libidentity.so", defines), name, bytes)
}

#[test]
fn built_in_guests() {
    for name in ["hello", "io"] {
        let (end, text) = run(name, vmtape_guests::image(name).unwrap(), &[]);
        assert_eq!(end, End::DebugExit { status: 1 }, "{name}: {text}");
    }
}

#[test]
fn the_outer_host_is_busy_while_it_emulates() {
    let (end, text) = run("io", vmtape_guests::image("io").unwrap(), &["-DVARIANT_OUTER_HOST"]);
    assert_eq!(end, End::DebugExit { status: 1 }, "{text}");
}

#[test]
#[ignore = "needs kvm-unit-tests: VMTAPE_KUT=FOLDER, its x86, built"]
fn setjmp_of_kvm_unit_tests() {
    let folder = std::env::var_os("VMTAPE_KUT").expect("VMTAPE_KUT is kvm-unit-tests' x86 folder");
    let (end, text) = run("setjmp.flat", fs::read(PathBuf::from(folder).join("setjmp.flat")).unwrap(), &[]);
    assert_eq!(end, End::DebugExit { status: 1 }, "{text}");
    assert!(text.contains("SUMMARY: 10 tests"), "{text}");
}

/// Pages of the guest's first megabytes that are not there.
fn missing(supply: Supply) -> Vec<Step> {
    let action = Action::TakePages { supply, gpa: 0, size: 16 << 20 };
    vec![Step { at: When::Start, action }]
}

#[test]
fn pages_that_a_backend_asks_for_arrive() {
    let folder = tempfile::tempdir().unwrap();
    let library = common::compile(folder.path(), "libidentity.so", &[]);
    let image = || vmtape_guests::image("io").unwrap();
    let (end, text) = guest::run_scripted(&library, "io", image(), missing(Supply::DEMAND));
    assert_eq!(end, End::DebugExit { status: 1 }, "{text}");
}

#[test]
fn a_backend_that_does_not_look_whether_memory_is_there_ends_its_guest_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let library = common::compile(folder.path(), "libidentity.so", &["-DVARIANT_IGNORES_STATUS"]);
    for (supply, errno) in [(Supply::NEVER, -4), (Supply::REFUSED, -14), (Supply::DEMAND, 0)] {
        let (end, _) =
            guest::run_scripted(&library, "io", vmtape_guests::image("io").unwrap(), missing(supply));
        // Entries of tables that are not there read as nothing: the guest may get lost, and its host does not.
        match end {
            End::Fatal { resume, reason, .. } => {
                assert_eq!(resume.errno, errno);
                assert!(reason.contains("without asking"), "{reason}");
            }
            End::DebugExit { .. } => assert_eq!(supply, Supply::DEMAND),
            _ => {}
        }
    }
}

#[test]
fn a_backend_that_breaks_ends_the_run() {
    let (end, _) = run("hello", vmtape_guests::image("hello").unwrap(), &["-DVARIANT_PANICS"]);
    let End::Fatal { resume, .. } = end else { panic!("{end:?}") };
    assert_eq!(resume.kind, ResumeKind::BACKEND_FAILED);
}
