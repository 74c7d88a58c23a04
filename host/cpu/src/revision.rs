//! What determines a run and is the interpreter's own. A tape names its revision, so that a later interpreter replays it as it
//! was recorded, or refuses.

use crate::silicon::Rules;
use vmtape_arch::host::Vendor;

/// The revision of new recordings. To be raised by whatever makes the same guest run otherwise: the TLB's size and
/// replacement, what an instruction does, when interrupts are taken.
///
/// Each has a direct-mapped TLB of 1024 pages per privilege context, of which there are three.
/// - 0: every tape that names none. Rules of AMD's silicon for both vendors.
/// - 1: the rules of the host's vendor.
pub const REVISION: u32 = 1;

/// The rules of silicon of a vendor in a revision.
pub const fn silicon(revision: u32, vendor: Vendor) -> Rules {
    if revision == 0 { Rules::AMD } else { Rules::of(vendor) }
}

/// The rules of KVM's emulator in a revision, for a guest that was told a vendor.
pub const fn emulator(revision: u32, guest: Vendor) -> Rules {
    if revision == 0 { Rules::AMD } else { Rules::emulator(guest) }
}
