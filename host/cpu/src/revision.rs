//! What determines a run and is the interpreter's own. A tape names its revision, so that a later interpreter replays it as it
//! was recorded, or refuses.

use crate::{silicon::Rules, tlb::Geometry};
use vmtape_arch::{fpu::Fpu, host::Vendor};

/// The revision of new recordings. To be raised by whatever makes the same guest run otherwise: the TLB's size and
/// replacement, what an instruction does, when interrupts are taken.
///
/// - 0: every tape that names none. Rules of AMD's silicon for both vendors.
/// - 1: the rules of the host's vendor.
/// - 2: a TLB of 8192 pages, set-associative; before, [`Geometry::DirectMapped`].
/// - 3: KVM's emulator goes back to the guest within instructions that repeat ([`repeats_in_bunches`]).
/// - 4: the x87 starts as KVM leaves it to a guest ([`fcw`]).
/// - 5: devices see a store at its instruction, also where silicon exits after it ([`traps_keep_their_time`]);
///   a guest of which no instruction retires is where it is whenever a run was stopped ([`counts_on`]).
/// - 6: KVM's emulator reads a port for a bunch of INS at once ([`reads_ports_ahead`]).
pub const REVISION: u32 = 6;

/// The TLB in a revision.
pub const fn tlb(revision: u32) -> Geometry {
    if revision < 2 { Geometry::DirectMapped } else { Geometry::SetAssociative }
}

/// Whether KVM's emulator does a repeated instruction in bunches, each an exit of its own, as KVM does.
pub const fn repeats_in_bunches(revision: u32) -> bool {
    revision >= 3
}

/// Whether a bunch of INS reads its port once for all of its iterations, and then stores: one KVM_EXIT_IO with a count.
pub const fn reads_ports_ahead(revision: u32) -> bool {
    revision >= 6
}

/// The x87 control word that a vCPU starts with: all exceptions masked, where silicon's RESET has 40h.
/// See: Linux 5.10 arch/x86/include/asm/fpu/internal.h fpstate_init_fxstate()
pub const fn fcw(revision: u32) -> u16 {
    if revision < 4 { Fpu::RESET.fcw } else { 0x37f }
}

/// Whether what an exit after its instruction (a trap) does happens at the instruction, as with an exit before it: a timer that
/// APIC-register virtualization starts is due when it is due without. Before, one instruction later.
pub const fn traps_keep_their_time(revision: u32) -> bool {
    revision >= 5
}

/// Whether events that are delivered without an instruction retiring are counted across the stops of a run. Before, each stop
/// gave such a guest new patience.
pub const fn counts_on(revision: u32) -> bool {
    revision >= 5
}

/// The rules of silicon of a vendor in a revision.
pub const fn silicon(revision: u32, vendor: Vendor) -> Rules {
    if revision == 0 { Rules::AMD } else { Rules::of(vendor) }
}

/// The rules of KVM's emulator in a revision, for a guest that was told a vendor.
pub const fn emulator(revision: u32, guest: Vendor) -> Rules {
    if revision == 0 { Rules::AMD } else { Rules::emulator(guest) }
}
