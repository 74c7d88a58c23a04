//! What the VMM does beside running the guest happens at its moment, is told, and can be gone on from.

mod bare;
mod keep;

use keep::{Keep, Kept};
use std::{cell::RefCell, rc::Rc};
use vmtape_arch::cpuid::maxphyaddr;
use vmtape_machine::{
    Limits, Live, Machine, MachineSpec,
    vmm::{Action, Step, When},
};
use vmtape_traces::event::{Control, End, Event, Milestone};

/// mov ecx, 100; l: out 0x80, al; in al, 0x61; add [0x300000], eax; loop l; xor eax, eax; out 0xf4, eax
const LOOP: &[u8] = b"\xb9\x64\x00\x00\x00\xe6\x80\xe4\x61\x01\x05\x00\x00\x30\x00\xe2\xf4\x31\xc0\xe7\xf4";

fn at(at: When, action: Action) -> Step {
    Step { at, action }
}

fn script() -> Vec<Step> {
    let set_cpuid = |change: &str| Action::SetCpuid { vcpu: 0, change: change.to_owned() };
    let region = |size| Action::SetMemoryRegion { slot: 1, gpa: 1 << 36, size, flags: 0 };
    vec![
        at(When::Exit(50), set_cpuid("phys-bits=36")),
        at(When::Start, Action::CheckExtension { cap: 185 }),
        at(When::Insn(111), Action::GetCpuid { vcpu: 0 }),
        at(When::Exit(10), region(2 << 20)),
        at(When::Exit(120), region(0)),
        at(When::Exit(199), set_cpuid("reorder")),
    ]
}

fn spec() -> MachineSpec {
    let mut spec = bare::spec("loop", bare::multiboot(LOOP), 1);
    spec.memory = 8 << 20;
    spec.checkpoint_every = 60;
    spec.milestone_every = 64;
    spec.script = script();
    spec
}

fn machine(spec: MachineSpec) -> (Machine, Rc<RefCell<Kept>>) {
    let kept = Rc::new(RefCell::new(Kept::default()));
    let recorder = Box::new(Keep(kept.clone()));
    let backend = Box::new(bare::Bare::with_exits());
    (Machine::new(spec, backend, Box::new(Live::new(3)), Some(recorder)).unwrap(), kept)
}

#[test]
fn steps_come_at_their_moments() {
    let (mut machine, kept) = machine(spec());
    assert_eq!(machine.run(&Limits::default()), End::DebugExit { status: 1 });
    let kept = kept.borrow();
    let mut exits = 0;
    let mut found = Vec::new();
    for event in &kept.events {
        match event {
            Event::Exit(_) => exits += 1,
            Event::Control { icount, control } => found.push((exits, *icount, control.clone())),
            _ => {}
        }
    }
    let moments: Vec<_> = found.iter().map(|(exits, ..)| *exits).collect();
    // Instruction 111 is in the middle of the loop, between two exits.
    assert_eq!(moments, [0, 10, 50, 56, 120, 199]);
    assert_eq!(found[3].1, 111);
    assert!(matches!(&found[2].2, Control::SetCpuid { entries, result: 0, .. } if maxphyaddr(entries) == 36));
    assert!(
        matches!(found[1].2, Control::SetMemoryRegion { size, hpa, result: 0, .. } if size != 0 && hpa != 0)
    );
    let told: Vec<_> = found.into_iter().map(|(exits, _, control)| (exits, control)).collect();
    assert_eq!(machine.controls(), told);
    assert_eq!(machine.steps_left().count(), 0);
    assert_eq!(machine.memory().slots().len(), 1);
}

#[test]
fn a_run_with_a_script_goes_on_from_any_checkpoint() {
    let (mut whole, kept) = machine(spec());
    whole.run(&Limits::default());
    let hash = whole.state_hash().unwrap();
    let kept = kept.borrow();
    assert_eq!(kept.checkpoints.len(), 3);
    for n in 1..=kept.checkpoints.len() {
        let (mut rest, again) = machine(spec());
        rest.restore(kept.checkpoints[..n].iter().map(|(_, bytes)| bytes.as_slice())).unwrap();
        assert_eq!(rest.run(&Limits::default()), End::DebugExit { status: 1 });
        assert_eq!(rest.state_hash().unwrap(), hash);
        assert!(kept.events.ends_with(&again.borrow().events), "after checkpoint {n}");
    }
}

#[test]
fn milestones_are_the_same_without_a_recorder_in_between() {
    let milestones = |spec: MachineSpec, stops: &[u64]| -> Vec<Milestone> {
        let (mut machine, kept) = machine(spec);
        for stop in stops {
            machine.advance(&Limits { instructions: *stop, ..Limits::default() });
        }
        machine.run(&Limits::default());
        let kept = kept.borrow();
        let milestone = |event: &Event| match event {
            Event::Milestone(milestone) => Some(*milestone),
            _ => None,
        };
        kept.events.iter().filter_map(milestone).collect()
    };
    let plain = || MachineSpec { checkpoint_every: 0, script: Vec::new(), ..spec() };
    let whole = milestones(plain(), &[]);
    assert!(whole.len() > 5 && whole.iter().all(|milestone| milestone.icount % 64 == 0));
    assert_eq!(milestones(plain(), &[1, 64, 100, 128, 200]), whole);
    // Another guest: different from the first milestone on, and for ever.
    let other = MachineSpec { cpu: "max".into(), image: image_with(b"\xb9\x65"), ..plain() };
    let others = milestones(other, &[]);
    assert!(whole.iter().zip(&others).all(|(a, b)| a.hash != b.hash));
}

/// The loop's image with other first bytes.
fn image_with(first: &[u8]) -> vmtape_machine::GuestImage {
    let mut code = LOOP.to_vec();
    code[..first.len()].copy_from_slice(first);
    vmtape_machine::GuestImage { name: "loop".into(), bytes: bare::multiboot(&code) }
}

#[test]
fn scripts_that_do_not_fit_are_refused() {
    for (action, cause) in [
        (Action::SetCpuid { vcpu: 1, change: "same".into() }, "vCPU 1"),
        (Action::SetCpuid { vcpu: 0, change: "nonsense".into() }, "nonsense"),
        (Action::SetMemoryRegion { slot: 0, gpa: 0, size: 1 << 30, flags: 0 }, "slot 0"),
        (Action::SetMemoryRegion { slot: 1, gpa: 0, size: 1 << 50, flags: 0 }, "256 GiB"),
    ] {
        let spec = MachineSpec { script: vec![at(When::Start, action)], ..spec() };
        let backend = Box::new(bare::Bare::default());
        let error = Machine::new(spec, backend, Box::new(Live::new(3)), None).err().unwrap();
        assert!(error.to_string().contains(cause), "{error}");
    }
}
