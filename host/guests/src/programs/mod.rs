//! The programs, one file each.

mod access;
mod bar;
mod cpuid;
mod dirty;
mod expect;
mod hello;
mod illegal;
mod io;
mod judge;
mod late;
mod legacy;
mod luggage;
mod matrix;
mod nested;
mod paging;
mod pending;
mod role;
mod smm;
mod smp;
mod smp2;
mod stale;
mod touch;
mod vectoring;
mod work;

use crate::{GuestInfo, Program};

/// Every program, simplest first.
pub const ALL: &[GuestInfo] = &[
    GuestInfo {
        name: "hello",
        summary: "prints a line and leaves",
        parameters: &[],
        default_memory: 64,
        default_smp: 1,
        program: Program::Long(hello::program),
    },
    GuestInfo {
        name: "cpuid",
        summary: "walks CPUID leaves and MSRs, known and unknown",
        parameters: &[],
        default_memory: 64,
        default_smp: 1,
        program: Program::Long(cpuid::program),
    },
    GuestInfo {
        name: "io",
        summary: "port I/O, string I/O, and the memory-mapped registers of the APICs",
        parameters: &[],
        default_memory: 64,
        default_smp: 1,
        program: Program::Long(io::program),
    },
    GuestInfo {
        name: "illegal",
        summary: "touches one address beyond its own MAXPHYADDR and says what happened",
        parameters: &[],
        default_memory: 64,
        default_smp: 1,
        program: Program::Long(illegal::program),
    },
    GuestInfo {
        name: "touch",
        summary: "one access through entries of your choice, in one line",
        parameters: touch::PARAMETERS,
        default_memory: 64,
        default_smp: 1,
        program: Program::Long(touch::program),
    },
    GuestInfo {
        name: "matrix",
        summary: "all combinations of paging permissions, an illegal address bit among them",
        parameters: &[],
        default_memory: 64,
        default_smp: 1,
        program: Program::Long(matrix::program),
    },
    GuestInfo {
        name: "bar",
        summary: "probes a 64-bit BAR at the top of its address space, as firmware does",
        parameters: bar::PARAMETERS,
        default_memory: 64,
        default_smp: 1,
        program: Program::Long(bar::program),
    },
    GuestInfo {
        name: "vectoring",
        summary: "takes an event through an IDT that lies in MMIO",
        parameters: vectoring::PARAMETERS,
        default_memory: 64,
        default_smp: 1,
        program: Program::Long(vectoring::program),
    },
    GuestInfo {
        name: "smp2",
        summary: "two vCPUs: INIT and SIPI, a handshake in memory, interrupts both ways",
        parameters: smp2::PARAMETERS,
        default_memory: 64,
        default_smp: 2,
        program: Program::Long(smp2::program),
    },
    GuestInfo {
        name: "role",
        summary: "reads an address, waits for somebody to change its CPUID, and reads it again",
        parameters: role::PARAMETERS,
        default_memory: 64,
        default_smp: 1,
        program: Program::Long(role::program),
    },
    GuestInfo {
        name: "stale",
        summary: "two vCPUs read one address through the same tables; give them different widths",
        parameters: stale::PARAMETERS,
        default_memory: 64,
        default_smp: 2,
        program: Program::Long(stale::program),
    },
    GuestInfo {
        name: "late",
        summary: "takes a page fault early and finds out much later that it was a wrong one",
        parameters: late::PARAMETERS,
        default_memory: 64,
        default_smp: 1,
        program: Program::Long(late::program),
    },
    GuestInfo {
        name: "dirty",
        summary: "writes pages in the ways in which they become dirty",
        parameters: dirty::PARAMETERS,
        default_memory: 64,
        default_smp: 1,
        program: Program::Long(dirty::program),
    },
    GuestInfo {
        name: "luggage",
        summary: "looks whether pages, FPU, protection keys, a timer and accessed bits are as it left them",
        parameters: luggage::PARAMETERS,
        default_memory: 64,
        default_smp: 1,
        program: Program::Long(luggage::program),
    },
    GuestInfo {
        name: "pending",
        summary: "has a timer on its way and interrupts pending at every moment, and looks whether each comes in its time",
        parameters: pending::PARAMETERS,
        default_memory: 64,
        default_smp: 1,
        program: Program::Long(pending::program),
    },
    GuestInfo {
        name: "smm",
        summary: "sends itself SMIs, moves SMBASE, and looks at the state-save area",
        parameters: smm::PARAMETERS,
        default_memory: 64,
        default_smp: 1,
        program: Program::Long(smm::program),
    },
    GuestInfo {
        name: "work",
        summary: "keeps the processor busy, for measurements",
        parameters: work::PARAMETERS,
        default_memory: 64,
        default_smp: 1,
        program: Program::Long(work::program),
    },
    GuestInfo {
        name: "legacy",
        summary: "32-bit paging: one read through a table that knows no MAXPHYADDR",
        parameters: legacy::PARAMETERS,
        default_memory: 64,
        default_smp: 1,
        program: Program::Legacy(legacy::program, legacy::tables),
    },
    nested::EXITS,
    nested::TOUCH,
    nested::NPF,
    nested::PAT,
    nested::RANDOM,
];
