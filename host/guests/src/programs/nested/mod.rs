//! Guests that are hypervisors: each runs a guest of its own with SVM and says what came of it.

mod exits;
mod hypervisor;
pub mod layout;
mod npf;
mod pat;
mod random;
mod report;
mod tables;
mod touch;
pub mod vmcb;

use crate::{GuestInfo, Program};

pub const PAT: GuestInfo = GuestInfo {
    name: "nested-pat",
    summary: "a hypervisor whose guest has, or has not, a PAT of its own",
    parameters: pat::PARAMETERS,
    default_memory: 64,
    default_smp: 1,
    program: Program::Long(pat::program),
};

pub const NPF: GuestInfo = GuestInfo {
    name: "nested-npf",
    summary: "a hypervisor that provokes every kind of nested page fault",
    parameters: npf::PARAMETERS,
    default_memory: 64,
    default_smp: 1,
    program: Program::Long(npf::program),
};

pub const TOUCH: GuestInfo = GuestInfo {
    name: "nested-touch",
    summary: "a hypervisor whose guest is `touch`: widths and entries of both levels",
    parameters: touch::PARAMETERS,
    default_memory: 64,
    default_smp: 1,
    program: Program::Long(touch::program),
};

pub const EXITS: GuestInfo = GuestInfo {
    name: "nested-exits",
    summary: "a hypervisor that lists the exits of its guest: instructions, events, what VMRUN refuses",
    parameters: exits::PARAMETERS,
    default_memory: 64,
    default_smp: 1,
    program: Program::Long(exits::program),
};

pub const RANDOM: GuestInfo = GuestInfo {
    name: "nested-random",
    summary: "a hypervisor whose VMCBs are nearly valid, or nearly not",
    parameters: random::PARAMETERS,
    default_memory: 64,
    default_smp: 1,
    program: Program::Long(random::program),
};
