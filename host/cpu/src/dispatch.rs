//! From a decoded instruction to its handler.
//!
//! To add instructions, write a [`Handler`] in the file of their family and name it in that
//! file's `handler`, which maps iced's `Code` to it. A family is plugged in by one line in `integer/mod.rs`,
//! `system/mod.rs` or `fp/mod.rs`. The rules for a handler:
//!
//! - RIP points at the instruction. Branches set `core.next_rip`; nothing else does. Conditional ones, which do not end
//!   their block, leave it when they are taken.
//! - Everything that can fault comes before the first change of state. `core.rmw` and `core.probe_write` help.
//! - `state.rflags` is always up to date; `core.set_status` replaces the arithmetic flags.
//! - Instructions of `system/` end their block and are followed by `Core::refresh`; so segments, control registers,
//!   CPL and RFLAGS may be changed freely there, and only there. Those that `system::is_quiet` lists change none of it
//!   and stay in their block.
//! - Sensitive instructions ask `core.sensitive` first, after the faults that take priority over an exit.

use crate::{
    core::{Core, gp, ud},
    env::Interrupted,
    features::Features,
    fp,
    insn::{Handler, Insn},
    integer, system,
};
use iced_x86::{CpuidFeature, FlowControl, Instruction};
use std::cell::RefCell;
use std::collections::BTreeSet;

/// Decodes into our form.
pub(crate) fn insn(i: &Instruction, features: &Features) -> Insn {
    if !exists(i, features) {
        return end(i, undefined);
    }
    if let Some(handler) = integer::handler(i, features) {
        let mut insn = Insn::new(i, handler);
        let stays = matches!(i.flow_control(), FlowControl::Next | FlowControl::ConditionalBranch);
        insn.ends_block = !stays || i.has_rep_prefix() || i.has_repne_prefix();
        return insn;
    }
    if let Some(handler) = system::handler(i) {
        let mut insn = Insn::new(i, handler);
        insn.refresh = !system::is_quiet(i.mnemonic());
        insn.ends_block = insn.refresh;
        return insn;
    }
    match fp::handler(i) {
        Some(handler) => Insn::new(i, handler),
        None => end(i, unimplemented),
    }
}

fn end(i: &Instruction, handler: Handler) -> Insn {
    let mut insn = Insn::new(i, handler);
    insn.ends_block = true;
    insn
}

/// Whether the guest's CPU has the extensions that the instruction needs.
fn exists(i: &Instruction, features: &Features) -> bool {
    i.cpuid_features().iter().all(|feature| match feature {
        CpuidFeature::BMI1 => features.bmi1 || i.mnemonic() == iced_x86::Mnemonic::Tzcnt,
        CpuidFeature::BMI2 => features.bmi2,
        CpuidFeature::ADX => features.adx,
        CpuidFeature::MOVBE => features.movbe,
        CpuidFeature::RDTSCP => features.rdtscp,
        CpuidFeature::RDPID => features.rdpid,
        CpuidFeature::INVPCID => features.invpcid,
        CpuidFeature::RDRAND => features.rdrand,
        CpuidFeature::RDSEED => features.rdseed,
        CpuidFeature::SMAP => features.smap,
        CpuidFeature::XSAVE | CpuidFeature::XSAVEOPT | CpuidFeature::XSAVEC | CpuidFeature::XSAVES => {
            features.xsave
        }
        CpuidFeature::PKU => features.pku,
        CpuidFeature::CLFLUSHOPT => features.clflushopt,
        CpuidFeature::CLWB => features.clwb,
        CpuidFeature::MONITOR => features.monitor,
        _ => true,
    })
}

/// Not an instruction.
pub(crate) fn undefined(_: &mut Core<'_>, _: &Insn) -> Result<(), Interrupted> {
    ud()
}

/// Longer than 15 bytes.
pub(crate) fn too_long(_: &mut Core<'_>, _: &Insn) -> Result<(), Interrupted> {
    gp(0)
}

thread_local! {
    static REPORTED: RefCell<BTreeSet<u16>> = const { RefCell::new(BTreeSet::new()) };
}

/// An instruction that exists but not here: #UD, and a line in the log, once.
fn unimplemented(core: &mut Core<'_>, insn: &Insn) -> Result<(), Interrupted> {
    let first = REPORTED.with(|reported| reported.borrow_mut().insert(insn.code as u16));
    if first {
        tracing::warn!(code = ?insn.code, rip = core.state.rip, "instruction not implemented, #UD");
    }
    ud()
}
