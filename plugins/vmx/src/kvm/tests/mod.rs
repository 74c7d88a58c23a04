//! What KVM makes of accesses out of the ordinary, row by row. Expectations are those that kvm-unit-tests' x86/access.c and
//! the kernel's selftests assert; where neither runs (the switch off), they follow from KVM's sources.

mod apic;
mod cpus;
mod dirty;
mod hypercall;
mod levels;
mod memory_types;
mod msr;
mod series;
mod state;
mod widths;

use crate::testing::{DATA, Ended, Guest, silicon};
use vmtape_arch::{
    access::AccessKind,
    exit::{Resume, ResumeKind},
};

pub const READ: AccessKind = AccessKind::READ;
pub const WRITE: AccessKind = AccessKind::WRITE;
pub const FETCH: AccessKind = AccessKind::FETCH;

/// The first address bit that a guest of 36 bits must not use.
pub const BIT36: u64 = 1 << 36;
/// The illegal address that access.c tests.
pub const ILLEGAL: u64 = BIT36 | DATA;
pub const ASM: &[(&str, &str)] = &[("allow_smaller_maxphyaddr", "on")];
pub const NO_ASM: &[(&str, &str)] = &[("allow_smaller_maxphyaddr", "off")];

/// How an access ends, once nothing but an answer is left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It reaches memory.
    Done,
    /// The guest takes #PF with this error code and CR2.
    PageFault(u32, u64),
    /// KVM_EXIT_MMIO, or a device in the kernel, at this address.
    Mmio(u64),
    /// KVM_RUN returns.
    Userspace(Resume),
    /// The same exits for ever.
    Stuck,
}

/// Exits after which nothing will change any more.
const PATIENCE: usize = 16;

/// Accesses memory until it is settled what comes of it; gives the exits on the way, too.
pub fn outcome(guest: &mut Guest, kind: AccessKind, user: bool) -> (Outcome, Vec<Ended>) {
    let mut exits = Vec::new();
    for _ in 0..PATIENCE {
        match guest.access(kind, user) {
            Ended::Mapped => return (Outcome::Done, exits),
            Ended::Fault(code) => return (Outcome::PageFault(code, guest.gva), exits),
            exit => exits.push(exit),
        }
        let resume = guest.handle();
        let result = match (guest.injected(), guest.host.emulated) {
            _ if resume.kind != ResumeKind::RESUME => Outcome::Userspace(resume),
            (Some(code), _) => Outcome::PageFault(code, guest.state.cr2),
            (None, Some(Ok(operand))) if !operand.ram => Outcome::Mmio(operand.gpa),
            (None, Some(Ok(_))) => Outcome::Done,
            (None, _) => continue,
        };
        return (result, exits);
    }
    (Outcome::Stuck, exits)
}

/// A guest of 36 bits on a host of 46, with everything mapped that the guest has used so far.
pub fn guest(options: &[(&str, &str)]) -> Guest {
    let mut guest = Guest::new(silicon(46), 36, options);
    guest.populate();
    guest
}
