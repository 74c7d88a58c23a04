//! What is the interpreter's own follows the revision that a tape names.

mod bare;

use vmtape_machine::{CPU_REVISION, Limits, Live, Machine, MachineSpec};

fn machine(cpu_revision: u32) -> Result<Machine, vmtape_machine::Error> {
    // xor eax, eax; out 0xf4, eax
    let spec = bare::spec("leave", bare::multiboot(b"\x31\xc0\xe7\xf4"), 1);
    let spec = MachineSpec { cpu_revision, memory: 8 << 20, ..spec };
    Machine::new(spec, Box::new(bare::Bare::default()), Box::new(Live::new(3)), None)
}

#[test]
fn a_revision_that_is_not_known_is_refused() {
    let error = machine(CPU_REVISION + 1).err().unwrap().to_string();
    assert!(error.contains("revision"), "{error}");
    machine(CPU_REVISION).unwrap().run(&Limits::default());
}

/// FNINIT's value is what KVM leaves; silicon's own after RESET is 40h.
#[test]
fn the_x87_starts_as_its_revision_has_it() {
    let fcw = |revision| machine(revision).unwrap().state(0).unwrap().fpu.fcw;
    assert_eq!([fcw(0), fcw(3), fcw(4), fcw(CPU_REVISION)], [0x40, 0x40, 0x37f, 0x37f]);
}
