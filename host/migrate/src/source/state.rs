//! A vCPU's state as it is saved, and what a VMM may do wrong with it.

use crate::{
    Error,
    points::{MovePoint, Points},
    stream::Record,
};
use vmtape_arch::state::{Layout, StateKind, msrs_from_bytes, msrs_to_bytes};
use vmtape_machine::Machine;

/// The records of a vCPU, in the list's order.
pub(super) fn saved(machine: &mut Machine, vcpu: u32, points: &Points) -> Result<Vec<Record>, Error> {
    let mut states = machine.states(vcpu)?;
    if points.are_asked() {
        take_back_completion(machine, vcpu, points, &mut states);
        lose_msrs(vcpu, points, &mut states);
    }
    Ok(states.into_iter().map(|(kind, bytes)| Record::State { vcpu, kind, bytes }).collect())
}

fn take_back_completion(machine: &Machine, vcpu: u32, points: &Points, states: &mut [(StateKind, Vec<u8>)]) {
    let before = machine.before_completion().filter(|(whose, _)| *whose == vcpu);
    let Some((_, before)) = before else { return };
    if points.ask(MovePoint::EXIT_UNCOMPLETED, vcpu.into(), before.rip).is_some()
        && let Some((_, regs)) = states.iter_mut().find(|(kind, _)| *kind == StateKind::REGS)
    {
        *regs = before.to_bytes();
    }
}

fn lose_msrs(vcpu: u32, points: &Points, states: &mut [(StateKind, Vec<u8>)]) {
    let Some((_, bytes)) = states.iter_mut().find(|(kind, _)| *kind == StateKind::MSRS) else { return };
    let Some(mut listed) = msrs_from_bytes(bytes) else { return };
    listed.retain(|msr| points.ask(MovePoint::MSR_LOST, msr.index.into(), vcpu.into()).is_none());
    *bytes = msrs_to_bytes(&listed);
}
