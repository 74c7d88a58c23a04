//! What a guest prints is shown while it runs, not at its end.

mod bare;

use std::{cell::RefCell, io, rc::Rc};
use vmtape_machine::{Limits, Live, Machine};
use vmtape_traces::event::End;

/// Keeps what arrives at once apart.
#[derive(Clone, Default)]
struct Arrivals(Rc<RefCell<Vec<Vec<u8>>>>);

impl io::Write for Arrivals {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.borrow_mut().push(bytes.to_vec());
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_guest_without_timers_is_heard_at_each_milestone() {
    // mov dx, 0x3f8; mov al, 'a'; out dx, al; mov ecx, 100; loop $; mov al, 'b'; out dx, al; xor eax, eax; out 0xf4, eax
    let code = *b"\x66\xba\xf8\x03\xb0a\xee\xb9\x64\0\0\0\xe2\xfe\xb0b\xee\x31\xc0\xe7\xf4";
    for backend in [bare::Bare::default(), bare::Bare::with_exits()] {
        let mut spec = bare::spec("print", bare::multiboot(&code), 1);
        spec.memory = 8 << 20;
        spec.milestone_every = 16;
        let arrivals = Arrivals::default();
        let mut machine = Machine::new(spec, Box::new(backend), Box::new(Live::new(1)), None).unwrap();
        machine.set_serial(Box::new(arrivals.clone()));
        assert_eq!(machine.run(&Limits::default()), End::DebugExit { status: 1 });
        assert_eq!(*arrivals.0.borrow(), [b"a", b"b"]);
    }
}
