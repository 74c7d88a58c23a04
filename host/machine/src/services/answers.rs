//! A backend's answers, looked at where they enter the host: what follows relies on them. A wrong one ends the run, and the
//! end names the call and the field.

use crate::memory::Memory;
use vmtape_abi::Translation;
use vmtape_arch::{
    PAGE_SIZE,
    access::{Answer, Mapping, MappingKind, Verdict},
    event::{Event, EventKind},
    exception::{Exception, Vector},
    exit::{Resume, ResumeKind},
    vcpu::{Activity, VcpuState},
};

/// What is wrong with an answer: the call, the field, and the rule. See: plugins/README.md
pub(crate) type Wrong = String;

/// Exceptions have the first 32 vectors.
const EXCEPTIONS: u8 = 32;

/// The answer to `access`; `memory`: where mappings may lead, `None` where a fault may have bent the entry that leads there.
pub(crate) fn access(memory: Option<&Memory>, answer: &Answer) -> Result<(), Wrong> {
    match answer.verdict {
        Verdict::NATIVE => mapping(memory, &answer.mapping),
        Verdict::FAULT => exception("access", &answer.fault),
        verdict => known("access", verdict, &[Verdict::EXIT]),
    }
}

fn mapping(memory: Option<&Memory>, mapping: &Mapping) -> Result<(), Wrong> {
    let Mapping { gpa, hpa, kind, .. } = *mapping;
    if MappingKind::NAMED.iter().all(|(named, _)| *named != kind) {
        return Err(format!("`access` answers with mapping.kind {kind}, which there is not"));
    }
    if !gpa.is_multiple_of(PAGE_SIZE) {
        return Err(format!("`access` answers with mapping.gpa {gpa:#x}, which is not a page's"));
    }
    if kind != MappingKind::RAM {
        return Ok(());
    }
    if !hpa.is_multiple_of(PAGE_SIZE) {
        return Err(format!("`access` answers with mapping.hpa {hpa:#x}, which is not a page's"));
    }
    match memory.is_none_or(|memory| memory.contains_hpa(hpa, PAGE_SIZE)) {
        true => Ok(()),
        false => Err(format!("`access` answers with mapping.hpa {hpa:#x}, which is in no memory slot")),
    }
}

/// The answer to `sensitive`, `exception` or `host_nmi`, which may be one of these, and an exception with FAULT.
pub(crate) fn verdict(
    call: &str,
    verdict: Verdict,
    allowed: &[Verdict],
    fault: &Exception,
) -> Result<(), Wrong> {
    known(call, verdict, allowed)?;
    if verdict == Verdict::FAULT { exception(call, fault) } else { Ok(()) }
}

fn known(call: &str, verdict: Verdict, allowed: &[Verdict]) -> Result<(), Wrong> {
    match allowed.contains(&verdict) {
        true => Ok(()),
        false => Err(format!("`{call}` answers with verdict {verdict}, which is not allowed there")),
    }
}

fn exception(call: &str, fault: &Exception) -> Result<(), Wrong> {
    let Vector(vector) = fault.vector;
    match vector < EXCEPTIONS && fault.vector != Vector::NMI {
        true => Ok(()),
        false => Err(format!("`{call}` answers with fault.vector {vector}, which is no exception's")),
    }
}

/// How `handle_exit` or `enter` came back, and the registers that it leaves.
pub(crate) fn resume(call: &str, resume: &Resume, state: &VcpuState) -> Result<(), Wrong> {
    if resume.kind == ResumeKind::BACKEND_FAILED {
        return Ok(());
    }
    if ResumeKind::NAMED.iter().all(|(kind, _)| *kind != resume.kind) {
        return Err(format!("`{call}` comes back with kind {}, which there is not", resume.kind));
    }
    if resume.kind == ResumeKind::ERRNO && !(-4095..0).contains(&resume.errno) {
        return Err(format!("`{call}` comes back with errno {}, which is no negative errno", resume.errno));
    }
    if Activity::NAMED.iter().all(|(activity, _)| *activity != state.activity) {
        return Err(format!("`{call}` leaves state.activity {}, which there is not", state.activity));
    }
    if state.cpl > 3 {
        return Err(format!("`{call}` leaves state.cpl {}, which there is not", state.cpl));
    }
    event(call, &state.inject)
}

fn event(call: &str, event: &Event) -> Result<(), Wrong> {
    let Event { kind, vector, .. } = *event;
    if !event.valid.is_set() {
        return Ok(());
    }
    if EventKind::NAMED.iter().all(|(named, _)| *named != kind) {
        return Err(format!("`{call}` leaves state.inject.kind {kind}, which there is not"));
    }
    let is_exception = matches!(
        kind,
        EventKind::HARDWARE_EXCEPTION
            | EventKind::SOFTWARE_EXCEPTION
            | EventKind::PRIVILEGED_SOFTWARE_EXCEPTION
    );
    match is_exception && vector >= EXCEPTIONS || kind == EventKind::NMI && vector != Vector::NMI.0 {
        true => Err(format!("`{call}` leaves state.inject.vector {vector}, which is not one of a {kind}")),
        false => Ok(()),
    }
}

/// Where `translate` leads an emulated access to; `memory` as in [`access`].
pub(crate) fn translation(memory: Option<&Memory>, found: &Translation, size: u8) -> Result<(), Wrong> {
    let Translation { hpa, ram, .. } = *found;
    match !ram.is_set() || memory.is_none_or(|memory| memory.contains_hpa(hpa, size.into())) {
        true => Ok(()),
        false => Err(format!("`translate` answers with hpa {hpa:#x}, which is in no memory slot")),
    }
}

/// The words of a dirty bitmap that `get_dirty_log` gives for a slot of so many bytes.
pub(crate) fn dirty_log(words: usize, size: u64) -> Result<(), Wrong> {
    let wanted = (size / PAGE_SIZE).div_ceil(64);
    match words as u64 == wanted {
        true => Ok(()),
        false => Err(format!("`get_dirty_log` answers with {words} words for a slot of {wanted}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::Layout;

    fn inject(kind: EventKind, vector: u8) -> VcpuState {
        VcpuState {
            inject: Event { valid: true.into(), kind, vector, ..Event::default() },
            ..VcpuState::reset()
        }
    }

    #[test]
    fn each_wrong_answer_is_named() {
        let memory = Memory::new(1 << 20, Layout::Flat, 21, &[]).unwrap();
        let hpa = memory.slots()[0].hpa;
        let good = Mapping { hpa, ..Mapping::default() };
        let native = |mapping| Answer { verdict: Verdict::NATIVE, mapping, ..Answer::default() };
        let fault =
            |vector| Answer { verdict: Verdict::FAULT, fault: Exception::new(vector), ..Answer::default() };
        assert_eq!(access(Some(&memory), &native(good)), Ok(()));
        assert_eq!(access(Some(&memory), &fault(Vector::PF)), Ok(()));
        let wrong = [
            (native(Mapping { hpa: hpa + 8, ..good }), "mapping.hpa"),
            (native(Mapping { hpa: u64::MAX << 12, ..good }), "in no memory slot"),
            (native(Mapping { gpa: 1, ..good }), "mapping.gpa"),
            (native(Mapping { kind: MappingKind(9), ..good }), "mapping.kind"),
            (fault(Vector(77)), "fault.vector 77"),
            (Answer { verdict: Verdict(9), ..Answer::default() }, "verdict"),
        ];
        for (answer, field) in wrong {
            let told = access(Some(&memory), &answer).expect_err(field);
            assert!(told.starts_with("`access`") && told.contains(field), "{told}");
        }
        assert_eq!(access(None, &native(Mapping { hpa: u64::MAX << 12, ..good })), Ok(()));
    }

    #[test]
    fn events_and_ways_back_are_looked_at() {
        let back = |kind, state: &VcpuState| resume("enter", &Resume::new(kind), state);
        assert_eq!(back(ResumeKind::RESUME, &inject(EventKind::EXTERNAL_INTERRUPT, 0xff)), Ok(()));
        assert_eq!(back(ResumeKind::RESUME, &inject(EventKind::NMI, 2)), Ok(()));
        for state in [
            inject(EventKind(1), 0),
            inject(EventKind::NMI, 3),
            inject(EventKind::HARDWARE_EXCEPTION, 32),
            VcpuState { activity: Activity(77), ..VcpuState::reset() },
            VcpuState { cpl: 4, ..VcpuState::reset() },
        ] {
            assert!(back(ResumeKind::RESUME, &state).is_err(), "{:?} {:?}", state.inject, state.activity);
        }
        assert!(back(ResumeKind(77), &VcpuState::reset()).is_err());
        assert!(resume("enter", &Resume::errno(5), &VcpuState::reset()).is_err(), "errnos are negative");
    }
}
