//! Plans whose verdict is known. If one of them gives another one, the campaign has judged nothing.

use crate::{Engine, Plan, Source, Verdict, points::Point};
use vmtape_machine::Phase;

/// A plan with its verdict.
#[derive(Clone, Copy, Debug)]
pub struct Canary {
    pub verdict: Verdict,
    pub guest: &'static str,
    plan: &'static str,
}

const GUEST: &str = "builtin:touch,access=write";

/// One for each verdict that a machine without a migration may come to.
pub const CANARIES: &[Canary] = &[
    Canary {
        verdict: Verdict::NotReached,
        guest: GUEST,
        plan: "[[rule]]\nwhen = { point = \"mmu-cache-enomem\", n = 1000000000 }",
    },
    Canary {
        verdict: Verdict::Masked,
        guest: GUEST,
        plan: "[[rule]]\nwhen = { point = \"host-nmi\", insn = 300 }",
    },
    Canary {
        verdict: Verdict::Detected,
        guest: GUEST,
        plan: "retries = 1\n[[rule]]\nwhen = { point = \"mmu-cache-enomem\", n = 1 }\nwhat.answer = 12",
    },
    Canary {
        verdict: Verdict::GuestLost(Phase::NONE),
        guest: GUEST,
        plan: "[[rule]]\nwhen = { point = \"mmu-cache-enomem\", n = 1 }\nwhat.answer = 12",
    },
    Canary {
        verdict: Verdict::GuestVisible,
        guest: "builtin:cpuid",
        plan: "[[rule]]\nwhen = { point = \"rdmsr-refused\", n = 3 }",
    },
    Canary {
        verdict: Verdict::Hang,
        guest: GUEST,
        plan: "[[rule]]\nwhen = { point = \"page-fault-retry\", n = \"1-\" }",
    },
    Canary {
        verdict: Verdict::Refused,
        guest: GUEST,
        plan: "[[rule]]\nwhen = { point = \"enable-busy\", n = 1 }",
    },
    Canary {
        verdict: Verdict::SilentCorruption,
        guest: GUEST,
        plan: "[[rule]]\nwhen = { point = \"lost-dirty\", n = 1 }",
    },
];

/// And one whose guest moves: the link breaks before anything is told, and the guest stays where it is.
pub(super) const MOVING_CANARY: Canary = Canary {
    verdict: Verdict::Detected,
    guest: GUEST,
    plan: "[[rule]]\nwhen = { point = \"move-send-cut\", n = 1 }\nwhat.answer = 0",
};

impl Canary {
    /// The plan; `None`: a machine that comes to these points only has no use for it.
    pub fn plan(&self, points: &[Point]) -> Option<Plan> {
        let source: Source = self.plan.parse().ok()?;
        Engine::check(&source, points).ok()?;
        Some(source.plan)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn canaries_are_plans() {
        for canary in CANARIES.iter().chain([&MOVING_CANARY]) {
            assert!(canary.plan.parse::<Source>().is_ok_and(|source| !source.plan.rules.is_empty()));
        }
        let points = Point::of_host();
        assert_eq!(CANARIES.iter().filter(|canary| canary.plan(&points).is_some()).count(), 1);
    }
}
