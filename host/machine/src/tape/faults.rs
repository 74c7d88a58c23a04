//! The faults of a tape whose exits are replayed without their guest.

use crate::time::Decision;
use crate::time::HostPoint;
use std::collections::VecDeque;
use vmtape_traces::event::{Fault, Skip};

/// The faults of the exit that a fed machine is at.
#[derive(Debug, Default)]
pub(crate) struct TapedFaults {
    /// Of what came before the exit; silicon's are among them, which nobody asks for.
    before: VecDeque<Fault>,
    within: VecDeque<Fault>,
}

impl TapedFaults {
    pub(crate) fn begin(&mut self, before: &[Fault], within: &[Fault]) {
        for (list, told) in [(&mut self.before, before), (&mut self.within, within)] {
            // As nearly all exits have it.
            if !(list.is_empty() && told.is_empty()) {
                *list = told.iter().copied().collect();
            }
        }
    }

    pub(crate) fn take(&mut self, asked: &Fault) -> Option<Decision> {
        // How often a device asks since an exit depends on what runs in between.
        let own = asked.point >= HostPoint::FIRST;
        let since_exit = |fault: &Fault| if own { 0 } else { fault.since_exit };
        let key = |fault: &Fault| (fault.vcpu, fault.point, since_exit(fault), fault.a, fault.b);
        let mut found = None;
        for list in [&mut self.before, &mut self.within] {
            if let Some(at) = list.iter().position(|fault| key(fault) == key(asked)) {
                found = found.or_else(|| list.remove(at));
            }
        }
        found.map(|Fault { rule, skipped, answer, .. }| Decision { rule, skipped, answer })
    }

    /// Those of the exit that were not asked for.
    pub(crate) fn missed(&self) -> impl Iterator<Item = &Fault> {
        self.within.iter().filter(|fault| fault.skipped == Skip::NONE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_taped_fault_answers_who_asks_alike() {
        let fault = Fault { vcpu: 0, point: 3, since_exit: 2, a: 1, b: 2, answer: 9, ..Fault::default() };
        let mut taped = TapedFaults::default();
        taped.begin(&[], &[fault]);
        assert_eq!(taped.take(&Fault { a: 2, ..fault }), None);
        assert_eq!(taped.take(&Fault { since_exit: 1, ..fault }), None);
        assert_eq!(taped.missed().count(), 1);
        let answer = Decision { answer: 9, ..Decision::default() };
        assert_eq!(taped.take(&Fault { icount: 5, occurrence: 7, ..fault }), Some(answer));
        assert_eq!((taped.take(&fault), taped.missed().count()), (None, 0));
    }
}
