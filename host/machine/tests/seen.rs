//! What devices saw is on the tape, whether an access leaves the guest or not.

mod bare;
mod keep;

use keep::{Keep, Kept};
use std::{cell::RefCell, rc::Rc};
use vmtape_machine::{Digest, Limits, Live, Machine};
use vmtape_traces::event::{End, Event};

/// Prints a character, reads a port, and leaves; 32-bit code at 1 MiB.
fn run(character: u8, backend: bare::Bare) -> (Vec<Event>, Digest) {
    let (events, digest, _) = run_beside(character, backend, &[]);
    (events, digest)
}

/// The same beside another machine, whose guest left at these instruction counts. With those where this one left.
fn run_beside(character: u8, backend: bare::Bare, left: &[u64]) -> (Vec<Event>, Digest, Vec<u64>) {
    // mov dx, 0x3f8; mov al, character; out dx, al; in al, 0x61; cpuid; xor eax, eax; out 0xf4, eax
    let mut code = *b"\x66\xba\xf8\x03\xb0?\xee\xe4\x61\x0f\xa2\x31\xc0\xe7\xf4";
    code[5] = character;
    let mut spec = bare::spec("print", bare::multiboot(&code), 1);
    spec.memory = 8 << 20;
    spec.milestone_every = 4;
    let kept = Rc::new(RefCell::new(Kept::default()));
    let recorder = Box::new(Keep(kept.clone()));
    let mut machine = Machine::new(spec, Box::new(backend), Box::new(Live::new(3)), Some(recorder)).unwrap();
    machine.keep_digest();
    machine.sample_at(left.iter().copied());
    assert_eq!(machine.run(&Limits::default()), End::DebugExit { status: 1 });
    (kept.take().events, machine.digest(), machine.take_left())
}

fn devices(events: &[Event]) -> Vec<[u64; 3]> {
    let of = |event: &Event| match *event {
        Event::Devices { icount, accesses, hash } => Some([icount, accesses, hash]),
        _ => None,
    };
    events.iter().filter_map(of).collect()
}

#[test]
fn guests_that_print_other_text_have_other_tapes() {
    let ((a, _), (b, _)) = (run(b'a', bare::Bare::default()), run(b'b', bare::Bare::default()));
    assert!(!a.iter().any(|event| matches!(event, Event::Exit(_))), "nothing exits: {a:?}");
    let ends = [&a, &b].map(|events| *devices(events).last().expect("it is told before the end"));
    assert_eq!(ends.map(|[_, accesses, _]| accesses), [3; 2]);
    assert_ne!(ends[0], ends[1]);
    assert_eq!(a, run(b'a', bare::Bare::default()).0);
}

#[test]
fn an_exit_changes_nothing_that_a_guest_gets() {
    let (exits, other, left) = run_beside(b'a', bare::Bare::with_exits(), &[]);
    let (native, digest, _) = run_beside(b'a', bare::Bare::default(), &left);
    assert!(exits.iter().any(|event| matches!(event, Event::Exit(_))));
    assert_eq!(devices(&native), devices(&exits));
    assert_eq!(digest, other);
}
