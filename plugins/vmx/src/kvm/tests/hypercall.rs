//! VMMCALL on Intel's silicon. See: KVM x86.c emulator_fix_hypercall()

use crate::testing::{DATA, GVA, Guest, PTE, silicon};
use vmtape_abi::{Backend, Host};
use vmtape_arch::{
    access::Verdict,
    event::Event,
    exception::{Exception, Vector},
};
use vmtape_testing::{VMCALL, VMMCALL};

const WRITABLE: u64 = 1 << 1;

/// A guest at this address, whose VMMCALL raised #UD and was handled, and what it takes next.
fn vmmcall(rip: u64, cpl: u32, read_only: bool, options: &[(&str, &str)]) -> (Guest, Event) {
    let mut guest = Guest::new(silicon(46), 46, options);
    guest.populate();
    let pte = guest.get(PTE);
    guest.set(PTE, if read_only { pte & !WRITABLE } else { pte });
    (guest.state.rip, guest.state.cpl) = (rip, cpl);
    guest.host.insn = VMMCALL;
    guest.host.write(DATA + (rip - GVA), VMMCALL);
    guest.host.access = Default::default();
    let verdict = guest.vm.exception(0, &mut guest.state, &Exception::ud(), &mut guest.host, &mut guest.exit);
    assert_eq!(verdict, Verdict::EXIT);
    guest.handle();
    let event = guest.state.inject;
    assert_eq!(guest.state.rip, rip, "nothing retires");
    (guest, event)
}

fn code(guest: &mut Guest, offset: u64) -> [u8; 3] {
    let mut bytes = [0; 3];
    assert!(guest.host.read(DATA + offset, &mut bytes));
    bytes
}

#[test]
fn it_becomes_a_vmcall() {
    // Any privilege level may; before v5.19 nobody could forbid it.
    for (cpl, options) in [(0, &[][..]), (3, &[]), (0, &[("kvm", "v5.18"), ("fix_hypercall_insn", "off")])] {
        let (mut guest, event) = vmmcall(GVA, cpl, false, options);
        assert!(!event.valid, "{options:?}");
        assert_eq!(code(&mut guest, 0), VMCALL);
    }
}

#[test]
fn without_the_quirk_it_is_undefined() {
    let (mut guest, event) = vmmcall(GVA, 0, false, &[("kvm", "v5.19"), ("fix_hypercall_insn", "off")]);
    assert_eq!((event.valid.is_set(), Vector(event.vector)), (true, Vector::UD));
    assert_eq!(code(&mut guest, 0), VMMCALL);
}

/// The guest takes a #PF for a write that it never made.
#[test]
fn a_read_only_page_faults() {
    let (mut guest, _) = vmmcall(GVA, 0, true, &[]);
    assert_eq!((guest.injected(), guest.state.cr2), (Some(0x3), GVA));
    assert_eq!(code(&mut guest, 0), VMMCALL);
}

/// The part before a page that is not there is written all the same.
#[test]
fn two_pages_are_written_one_after_the_other() {
    let (mut guest, _) = vmmcall(GVA + 0xffe, 0, false, &[]);
    assert_eq!((guest.injected(), guest.state.cr2), (Some(0x2), GVA + 0x1000));
    assert_eq!(code(&mut guest, 0xffe)[..2], VMCALL[..2]);
}
