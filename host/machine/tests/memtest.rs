//! Debian's memtest86+ on the machine alone.

mod bare;

use std::{cell::RefCell, io::Write, rc::Rc};
use vmtape_machine::{Limits, Live, Machine};
use vmtape_traces::event::End;

const IMAGE: &str = "/boot/memtest86+x64.bin";

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

#[test]
fn memtest_shows_its_screen_on_the_serial_port() {
    let Ok(bytes) = std::fs::read(IMAGE) else {
        let _ = writeln!(
            std::io::stderr(),
            "SKIPPED memtest: {IMAGE} is not there; Debian's package memtest86+ has it"
        );
        return;
    };
    let mut spec = bare::spec("memtest86+x64.bin", bytes, 1);
    spec.memory = 64 << 20;
    spec.cmdline = "console=ttyS0,115200".into();
    let output = Output::default();
    let mut machine =
        Machine::new(spec, Box::new(bare::Bare::default()), Box::new(Live::new(1)), None).unwrap();
    machine.set_serial(Box::new(output.clone()));
    let end = machine.run(&Limits { instructions: 400_000_000, ..Limits::default() });
    let text = String::from_utf8_lossy(&output.0.borrow()).into_owned();
    assert!(matches!(end, End::Limit { .. }), "{end:?}");
    assert!(text.contains("Memtest86+ v"), "{text}");
    assert!(text.contains("Address test, walking ones"), "{text}");
    assert!(text.contains("Errors: 0"), "{text}");
}
