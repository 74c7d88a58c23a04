//! Classes of faults that a map of moments has: what goes wrong at each of them, one class at a time.

use crate::{
    handover::Moment,
    points::{MovePoint, Named, Points},
    stream::SectionKind,
};
use vmtape_arch::state::StateKind;

/// A class.
#[derive(Clone, Debug)]
pub struct Class {
    pub name: String,
    pub text: String,
    faults: Named,
}

/// Places in the order of kinds that a late part of the state is behind: all of them.
const LAST: u64 = StateKind::ALL.len() as u64;
/// -EINVAL.
const EINVAL: u64 = -22i64 as u64;
/// Where images of guests lie, 1 MiB: a page of slot 0.
const IMAGE: u64 = 0x100;

impl Class {
    fn new(
        name: impl Into<String>,
        text: impl Into<String>,
        faults: Vec<(MovePoint, u64, Option<u64>, u64)>,
    ) -> Self {
        Self { name: name.into(), text: text.into(), faults: Named(faults) }
    }

    /// All of them; the first is without faults.
    pub fn all() -> Vec<Self> {
        let mut all = vec![Self::new("plain", "nothing goes wrong", Vec::new())];
        for kind in StateKind::ALL {
            let place = u64::from(kind.0);
            let lost = vec![(MovePoint::STATE_LOST, place, None, 1)];
            all.push(Self::new(format!("lost-{kind}"), format!("{kind} of vCPU 0 is not loaded"), lost));
        }
        for kind in StateKind::ALL {
            let late = vec![(MovePoint::STATE_LATER, u64::from(kind.0), None, LAST)];
            all.push(Self::new(format!("late-{kind}"), format!("{kind} of vCPU 0 is loaded last"), late));
        }
        let section = |kind: SectionKind| u64::from(kind.0);
        let one = |name, text, point, a, b, answer| Self::new(name, text, vec![(point, a, b, answer)]);
        let regs = u64::from(StateKind::REGS.0);
        let (image, go, done) = (Some(IMAGE), section(SectionKind::GO), section(SectionKind::DONE));
        let state = section(SectionKind::STATE);
        all.extend([
            one(
                "refused",
                "the kernel refuses regs, and the VMM looks",
                MovePoint::STATE_REFUSED,
                regs,
                None,
                EINVAL,
            ),
            one(
                "refused-unseen",
                "the kernel refuses regs, and nobody looks",
                MovePoint::STATE_REFUSED,
                regs,
                None,
                0,
            ),
            one(
                "exit-uncompleted",
                "state is saved before userspace has completed the exit",
                MovePoint::EXIT_UNCOMPLETED,
                0,
                None,
                1,
            ),
            one(
                "apic-of-kernel",
                "the VMM has no models of the local APICs, only what the kernel gives of them",
                MovePoint::APIC_OF_KERNEL,
                0,
                None,
                1,
            ),
            one("page-lost", "the page at 1 MiB is not sent", MovePoint::PAGE_LOST, 0, image, 1),
            one("page-zero", "the page at 1 MiB is sent as one of zeros", MovePoint::PAGE_ZERO, 0, image, 1),
            one(
                "bent",
                "a bit of the state on the link is another one",
                MovePoint::SEND_FLIP,
                state,
                None,
                200,
            ),
            one("cut", "the link breaks within the state", MovePoint::SEND_CUT, state, None, 20),
            one("go-cut", "the link breaks within GO", MovePoint::SEND_CUT, go, None, 9),
            one("done-lost", "DONE does not arrive", MovePoint::SEND_CUT, done, None, 0),
            one(
                "source-dies",
                "the source dies before GO",
                MovePoint::KILL_SOURCE,
                Moment::BEFORE_GO.0,
                None,
                1,
            ),
            one(
                "destination-dies",
                "the destination dies before READY",
                MovePoint::KILL_DESTINATION,
                Moment::BEFORE_READY.0,
                None,
                1,
            ),
        ]);
        all
    }

    /// Those that a name stands for: one of theirs, `all`, or the beginning of several up to a dash, as `lost`. None: nobody is
    /// called so.
    pub fn named(name: &str) -> Vec<Self> {
        let is_one = |class: &Self| {
            name == "all"
                || class.name == name
                || class.name.strip_prefix(name).is_some_and(|rest| rest.starts_with('-'))
        };
        Self::all().into_iter().filter(is_one).collect()
    }

    /// The fault points of a move with them.
    pub fn points(&self) -> Points {
        if self.faults.0.is_empty() { Points::default() } else { Points::new(Box::new(self.faults.clone())) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn names_are_each_ones_own() {
        let all = Class::all();
        let names: BTreeSet<_> = all.iter().map(|class| class.name.clone()).collect();
        assert_eq!((names.len(), all[0].name.as_str()), (all.len(), "plain"));
        assert_eq!(Class::named("lost").len(), StateKind::ALL.len());
        assert_eq!(Class::named("lost-regs").len(), 1);
        assert_eq!(Class::named("all").len(), all.len());
        assert!(Class::named("lo").is_empty() && Class::named("").is_empty());
    }
}
