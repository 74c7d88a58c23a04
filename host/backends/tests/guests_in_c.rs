//! The backend in C carries guests: what it lacks is nowhere else either.

mod common;
#[path = "common/guest.rs"]
mod guest;

use std::{fs, path::PathBuf};
use vmtape_arch::exit::ResumeKind;
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

#[test]
fn a_backend_that_breaks_ends_the_run() {
    let (end, _) = run("hello", vmtape_guests::image("hello").unwrap(), &["-DVARIANT_PANICS"]);
    let End::Fatal { resume, .. } = end else { panic!("{end:?}") };
    assert_eq!(resume.kind, ResumeKind::BACKEND_FAILED);
}
