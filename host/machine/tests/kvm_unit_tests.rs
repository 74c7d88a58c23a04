//! kvm-unit-tests on the machine alone, without virtualization.

mod bare;

use std::{cell::RefCell, io::Write, path::PathBuf, rc::Rc};
use vmtape_machine::{Limits, Live, Machine};
use vmtape_traces::event::End;

/// Collects the guest's serial output.
#[derive(Clone, Default)]
struct Output(Rc<RefCell<Vec<u8>>>);

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.borrow_mut().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Runs a test.
fn run(name: &str, vcpus: u32, instructions: u64) -> (End, String) {
    let directory = std::env::var_os("VMTAPE_KUT").expect("VMTAPE_KUT is kvm-unit-tests' x86 folder");
    let path = PathBuf::from(directory).join(format!("{name}.flat"));
    let bytes = std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let spec = bare::spec(name, bytes, vcpus);
    let output = Output::default();
    let mut machine =
        Machine::new(spec, Box::new(bare::Bare::default()), Box::new(Live::new(1)), None).unwrap();
    machine.set_serial(Box::new(output.clone()));
    let end = machine.run(&Limits { instructions, ..Limits::default() });
    eprintln!("{name}: {} instructions, {end:?}, rip {:#x}", machine.icount(), machine.state(0).unwrap().rip);
    let text = String::from_utf8_lossy(&output.0.borrow()).into_owned();
    (end, text)
}

fn passes(name: &str, vcpus: u32) {
    let (end, text) = run(name, vcpus, 2_000_000_000);
    assert_eq!(end, End::DebugExit { status: 1 }, "{name} printed:\n{text}");
}

#[test]
#[ignore = "needs kvm-unit-tests: VMTAPE_KUT=FOLDER, its x86, built"]
fn dummy() {
    passes("dummy", 1);
}

#[test]
#[ignore = "needs kvm-unit-tests: VMTAPE_KUT=FOLDER, its x86, built"]
fn setjmp() {
    passes("setjmp", 1);
}

/// The whole test takes some 3 billion instructions; its first two parts already cross from no paging to paging.
#[test]
#[ignore = "needs kvm-unit-tests: VMTAPE_KUT=FOLDER, its x86, built"]
fn sieve_begins() {
    let (end, text) = run("sieve", 1, 100_000_000);
    assert!(matches!(end, End::Limit { .. }), "{end:?}");
    assert!(text.contains("static:78498 out of 1000000"), "{text}");
    assert!(text.contains("mapped:78498 out of 1000000"), "{text}");
}

#[test]
#[ignore = "needs kvm-unit-tests: VMTAPE_KUT=FOLDER, its x86, built"]
fn smptest() {
    passes("smptest", 2);
}

#[test]
#[ignore = "needs kvm-unit-tests: VMTAPE_KUT=FOLDER, its x86, built"]
fn ioapic() {
    passes("ioapic", 4);
}
