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

/// Runs a test; `None` where kvm-unit-tests are not there.
fn run(name: &str, vcpus: u32, instructions: u64) -> Option<(End, String)> {
    let Some(directory) = std::env::var_os("VMTAPE_KUT") else {
        // Not by a macro: what those print of a test that passes nobody sees.
        let _ = writeln!(
            std::io::stderr(),
            "SKIPPED {name}: it needs kvm-unit-tests: VMTAPE_KUT=FOLDER cargo test -p vmtape_machine, FOLDER being its x86, built"
        );
        return None;
    };
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
    Some((end, text))
}

fn passes(name: &str, vcpus: u32) {
    if let Some((end, text)) = run(name, vcpus, 2_000_000_000) {
        assert_eq!(end, End::DebugExit { status: 1 }, "{name} printed:\n{text}");
    }
}

#[test]
fn dummy() {
    passes("dummy", 1);
}

#[test]
fn setjmp() {
    passes("setjmp", 1);
}

/// The whole test takes some 3 billion instructions; its first two parts already cross from no paging to paging.
#[test]
fn sieve_begins() {
    if let Some((end, text)) = run("sieve", 1, 100_000_000) {
        assert!(matches!(end, End::Limit { .. }), "{end:?}");
        assert!(text.contains("static:78498 out of 1000000"), "{text}");
        assert!(text.contains("mapped:78498 out of 1000000"), "{text}");
    }
}

#[test]
fn smptest() {
    passes("smptest", 2);
}

#[test]
fn ioapic() {
    passes("ioapic", 4);
}
