//! A list of the exits of a guest's guest, in parts: what instructions do, what events do, what VMRUN refuses, which injected
//! events it refuses, what it leaves then, and what KVM's emulator leaves to it. Parts that may be the end of the machine run by name only.

mod branches;
mod checks;
mod events;
mod forced;
mod history;
mod instructions;
mod signals;
mod smm;

use super::{
    hypervisor::{self, Hypervisor},
    report, vmcb,
};
use crate::{
    kernel::Kernel,
    parameters::{Kind, Parameter, Values},
};
use iced_x86::{IcedError, code_asm::*};

pub const PARAMETERS: &[Parameter] = &[
    Parameter::new("npt", Kind::Flag, "1", "nested paging"),
    Parameter::new(
        "part",
        Kind::Choice(&[
            "all",
            "instructions",
            "events",
            "checks",
            "injections",
            "failures",
            "old-checks",
            "no-memory",
            "svme",
            "vmmcall",
            "forced",
            "single-step",
            "clean-bits",
            "vmload",
            "branches",
            "fields",
            "elsewhere",
            "signals",
            "smm",
            "smm-lost",
            "smm-asid",
        ]),
        "all",
        "which part of the list; by name only, from old-checks on: those that may end the machine, need a parameter of KVM or \
         memory of the VMM's, or are about one change of KVM each",
    ),
];

type Part = fn(&mut Kernel, &Hypervisor) -> Result<(), IcedError>;
type Emit = fn(&mut Kernel) -> Result<(), IcedError>;

/// One line of the list.
struct Step {
    name: &'static str,
    /// What the hypervisor changes in the VMCB; the rest is as [`Hypervisor::reset`] leaves it.
    setup: Emit,
    /// What the guest's guest does, up to a VMMCALL.
    guest: Emit,
    /// Whether the exit's information means something.
    informs: bool,
    /// Whether the event that was on its way, and the virtual interrupt, are worth a word.
    delivers: bool,
}

const fn step(name: &'static str, setup: Emit, guest: Emit) -> Step {
    Step { name, setup, guest, informs: false, delivers: false }
}

impl Step {
    const fn informs(self) -> Self {
        Self { informs: true, ..self }
    }

    const fn delivers(self) -> Self {
        Self { delivers: true, ..self }
    }
}

fn nothing(_: &mut Kernel) -> Result<(), IcedError> {
    Ok(())
}

pub fn program(k: &mut Kernel, values: &Values) -> Result<(), IcedError> {
    let hypervisor = Hypervisor::start(k, values.flag("npt"))?;
    let part = values.word("part").unwrap_or("all");
    for (name, emit, in_all) in [
        ("instructions", instructions::list as Part, true),
        ("events", events::list, true),
        ("checks", checks::list, true),
        ("injections", checks::injections, true),
        ("failures", checks::failures, true),
        ("old-checks", checks::list_without_ncr3, false),
        ("no-memory", checks::no_memory, false),
        ("svme", checks::svme_cleared, false),
        ("vmmcall", checks::vmmcall, false),
        ("forced", forced::list, false),
        ("single-step", history::single_step, false),
        ("clean-bits", history::clean_bits, false),
        ("vmload", history::vmload, false),
        ("branches", branches::list, false),
        ("fields", history::fields, false),
        ("elsewhere", history::elsewhere, false),
        ("signals", signals::list, false),
        ("smm", smm::list, false),
        ("smm-lost", smm::lost, false),
        ("smm-asid", smm::without_asid, false),
    ] {
        if part == name || part == "all" && in_all {
            emit(k, &hypervisor)?;
        }
    }
    k.a.xor(eax, eax)?;
    k.exit()
}

/// Runs one step and prints its line.
fn run(k: &mut Kernel, hypervisor: &Hypervisor, step: &Step) -> Result<(), IcedError> {
    let entry = hypervisor::guest(k, step.guest)?;
    hypervisor.reset(k, entry)?;
    (step.setup)(k)?;
    k.print(step.name)?;
    k.print(":")?;
    hypervisor.run(k)?;
    report::print_exit(k)?;
    if step.informs {
        report::print_info(k)?;
    }
    if step.delivers {
        report::print_field(k, " event 0x", vmcb::EXITINTINFO)?;
        report::print_field(k, " int_ctl 0x", vmcb::INT_CTL)?;
    }
    k.print("\n")
}
