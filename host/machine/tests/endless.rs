//! Guests that would never end: each run does, and says why.

mod bare;
mod keep;

use bare::Bare;
use keep::{Keep, Kept};
use std::{cell::RefCell, rc::Rc};
use vmtape_arch::vcpu::{VcpuState, gpr};
use vmtape_machine::{Limits, Live, Machine};
use vmtape_traces::event::{End, Event};

/// 32-bit code at 1 MiB.
fn machine(code: &[u8], backend: Bare) -> (Machine, Rc<RefCell<Kept>>) {
    let mut spec = bare::spec("endless", bare::multiboot(code), 1);
    spec.memory = 8 << 20;
    let kept = Rc::new(RefCell::new(Kept::default()));
    let recorder = Box::new(Keep(kept.clone()));
    (Machine::new(spec, Box::new(backend), Box::new(Live::new(3)), Some(recorder)).unwrap(), kept)
}

fn why_idle(code: &[u8]) -> String {
    let (mut machine, kept) = machine(code, Bare::default());
    let end = machine.run(&Limits::default());
    let told = kept.borrow().events.last().cloned();
    assert!(matches!(&told, Some(Event::End { end: told, .. }) if *told == end), "{told:?}");
    match end {
        End::Idle { reason } => reason,
        other => panic!("{other:?}"),
    }
}

/// mov al, 0x34; out 0x43, al; xor al, al; out 0x40, al; out 0x40, al: the PIT's channel 0 as a rate generator.
const PIT: &[u8] = b"\xb0\x34\xe6\x43\x30\xc0\xe6\x40\xe6\x40";
const CLI: &[u8] = b"\xfa";
const STI: &[u8] = b"\xfb";
const HLT: &[u8] = b"\xf4";

/// mov dword [register of the local APIC], value
fn apic(register: u32, value: u32) -> Vec<u8> {
    [b"\xc7\x05".as_slice(), &(0xfee0_0000 | register).to_le_bytes(), &value.to_le_bytes()].concat()
}

/// The local APIC's timer ticks as its LVT entry says, under a task priority.
fn apic_timer(lvt: u32, tpr: u32) -> Vec<u8> {
    const SPURIOUS: u32 = 0xf0;
    const TPR: u32 = 0x80;
    const LVT_TIMER: u32 = 0x320;
    const INITIAL_COUNT: u32 = 0x380;
    [(SPURIOUS, 0x1ff), (TPR, tpr), (LVT_TIMER, lvt), (INITIAL_COUNT, 100_000)]
        .map(|(register, value)| apic(register, value))
        .concat()
}

#[test]
fn a_timer_that_cannot_wake_anybody_ends_the_run() {
    const PERIODIC: u32 = 1 << 17;
    const MASKED: u32 = 1 << 16;
    assert_eq!(why_idle(&[PIT, CLI, HLT].concat()), "interrupts are off");
    assert_eq!(why_idle(&[&apic_timer(PERIODIC | 0x40, 0), CLI, HLT].concat()), "interrupts are off");
    assert_eq!(why_idle(&[CLI, HLT].concat()), "interrupts are off");
    assert_eq!(why_idle(&[STI, HLT].concat()), "no timer is armed");
    for code in [apic_timer(PERIODIC | MASKED | 0x40, 0), apic_timer(PERIODIC | 0x40, 0xff)] {
        let reason = why_idle(&[&code, STI, HLT].concat());
        assert!(reason.contains("masked, or below the task priority"), "{reason}");
    }
}

/// KVM's emulator goes back to the guest after each 1024 iterations, and leaves it to finish.
// See: KVM arch/x86/kvm/emulate.c x86_emulate_insn()
#[test]
fn an_emulated_repetition_is_as_many_exits_as_in_kvm() {
    const PAGE: u64 = 0x20_0000;
    // mov esi, PAGE; mov ecx, 3000; cld; rep lodsb; cli; hlt
    let code = b"\xbe\x00\x00\x20\x00\xb9\xb8\x0b\x00\x00\xfc\xf3\xac\xfa\xf4";
    let (mut machine, kept) = machine(code, Bare::emulating(PAGE, None));
    let end = machine.run(&Limits::default());
    assert!(matches!(end, End::Idle { .. }), "{end:?}");
    assert_eq!(machine.icount(), 6);
    let of_exit = |event: &Event| match event {
        Event::Exit(exit) => Some(exit.icount),
        _ => None,
    };
    let exits: Vec<_> = kept.borrow().events.iter().filter_map(of_exit).collect();
    assert_eq!(exits, [3; 3], "3000 iterations are 952, 1024 and 1024");
    let gpr = machine.state(0).unwrap().gpr;
    assert_eq!([gpr[gpr::RCX], gpr[gpr::RSI]], [0, PAGE + 3000]);
}

/// Limits are looked at between the bunches.
#[test]
fn an_endless_repetition_ends_at_a_limit() {
    const PAGE: u64 = 0x20_0000;
    let again = |state: &mut VcpuState| {
        state.gpr[gpr::RCX] += 4096;
        state.gpr[gpr::RSI] = PAGE;
    };
    // mov esi, PAGE; mov ecx, 4096; cld; rep lodsb
    let code = b"\xbe\x00\x00\x20\x00\xb9\x00\x10\x00\x00\xfc\xf3\xac";
    let (mut machine, _) = machine(code, Bare::emulating(PAGE, Some(again)));
    let end = machine.run(&Limits { exits: 2_000, ..Limits::default() });
    assert_eq!(end, End::Limit { what: "2000 exits".into() });
    assert_eq!(machine.icount(), 3);
}
