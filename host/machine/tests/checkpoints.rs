//! A run that goes on from a checkpoint is the run that made it.

mod bare;
mod keep;

use keep::{Keep, Kept};
use std::{cell::RefCell, rc::Rc};
use vmtape_machine::{Limits, Live, Machine};
use vmtape_traces::event::End;

/// Writes to port 0x80, draws random numbers, loops over memory; 32-bit code at 1 MiB.
fn image() -> Vec<u8> {
    // mov edi, 0x200000; mov ecx, 200; l: rdrand eax; stosd; out 0x80, al; in al, 0x61; add [0x300000], eax; loop l;
    // xor eax, eax; out 0xf4, eax
    let code =
        b"\xbf\x00\x00\x20\x00\xb9\xc8\x00\x00\x00\x0f\xc7\xf0\xab\xe6\x80\xe4\x61\x01\x05\x00\x00\x30\x00\
                 \xe2\xf0\x31\xc0\xe7\xf4";
    bare::multiboot(code)
}

fn machine() -> (Machine, Rc<RefCell<Kept>>) {
    let mut spec = bare::spec("loop", image(), 1);
    spec.memory = 8 << 20;
    spec.checkpoint_every = 100;
    let kept = Rc::new(RefCell::new(Kept::default()));
    let recorder = Box::new(Keep(kept.clone()));
    let backend = Box::new(bare::Bare::with_exits());
    (Machine::new(spec, backend, Box::new(Live::new(3)), Some(recorder)).unwrap(), kept)
}

#[test]
fn the_rest_of_a_run_follows_from_any_checkpoint() {
    let (mut whole, kept) = machine();
    assert_eq!(whole.run(&Limits::default()), End::DebugExit { status: 1 });
    let hash = whole.state_hash().unwrap();
    let kept = kept.borrow();
    assert_eq!(kept.checkpoints.len(), 4);
    for n in 1..=kept.checkpoints.len() {
        let (mut rest, again) = machine();
        rest.restore(kept.checkpoints[..n].iter().map(|(_, bytes)| bytes.as_slice())).unwrap();
        assert_eq!(rest.exits(), kept.checkpoints[n - 1].0);
        assert_eq!(rest.run(&Limits::default()), End::DebugExit { status: 1 });
        assert_eq!(rest.state_hash().unwrap(), hash);
        let again = again.borrow();
        assert!(kept.events.ends_with(&again.events), "after checkpoint {n}");
    }
}

#[test]
fn a_second_run_is_equal() {
    let ((mut first, a), (mut second, b)) = (machine(), machine());
    first.run(&Limits::default());
    second.run(&Limits::default());
    assert_eq!(a.borrow().events, b.borrow().events);
    assert_eq!(a.borrow().checkpoints, b.borrow().checkpoints);
}

#[test]
fn a_machine_that_starts_over_goes_to_any_checkpoint() {
    let (mut machine, kept) = machine();
    machine.run(&Limits::default());
    let hash = machine.state_hash().unwrap();
    let (events, checkpoints) = (kept.borrow().events.clone(), kept.borrow().checkpoints.clone());
    for n in [3, 1, 4, 2] {
        let again = Rc::new(RefCell::new(Kept::default()));
        machine.start_over(Box::new(Live::new(3)), Some(Box::new(Keep(again.clone())))).unwrap();
        machine.restore(checkpoints[..n].iter().map(|(_, bytes)| bytes.as_slice())).unwrap();
        assert_eq!(machine.exits(), checkpoints[n - 1].0);
        assert_eq!(machine.run(&Limits::default()), End::DebugExit { status: 1 });
        assert_eq!(machine.state_hash().unwrap(), hash);
        assert!(events.ends_with(&again.borrow().events), "checkpoint {n}");
        assert_eq!(again.borrow().checkpoints, checkpoints[n..], "checkpoint {n}");
    }
}

#[test]
fn damaged_checkpoints_are_refused() {
    let (mut whole, kept) = machine();
    whole.run(&Limits::default());
    let bytes = kept.borrow().checkpoints[0].1.clone();
    for cut in [0, 7, 8, 100, bytes.len() - 1] {
        assert!(machine().0.restore([&bytes[..cut]]).is_err(), "cut at {cut}");
    }
    let mut flipped = bytes.clone();
    *flipped.last_mut().unwrap() ^= 1;
    assert!(machine().0.restore([flipped.as_slice()]).is_err());
}
