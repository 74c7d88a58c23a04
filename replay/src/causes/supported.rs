//! Why two tables of KVM_GET_SUPPORTED_CPUID differ: each part that differs has a cause of its own.
//!
//! No guest needs to run for that. A candidate ([`candidates`]) is the cause of the parts that are equal with it; what is
//! left differs in silicon's own table already, or else because KVM has nested paging on one side only.

use super::{
    cause::{Cause, Kind},
    toggle::Side,
    trial::candidates,
};
use crate::{Error, cpuid::Change, sides::Sides};
use vmtape_arch::cpuid::CpuidEntry;
use vmtape_machine::{MachineSpec, model::silicon_cpuid};

/// Something that makes tables differ, and the parts in which it does.
struct Reason {
    kind: Kind,
    name: String,
    sentence: String,
    source: String,
    confirmed: Option<String>,
    parts: Vec<String>,
}

impl Reason {
    /// Takes the parts that `explains` out of those that nothing has explained yet.
    fn take(mut self, left: &mut Vec<Change>, explains: impl Fn(&Change) -> bool) -> Option<Self> {
        let (own, others): (Vec<_>, Vec<_>) = std::mem::take(left).into_iter().partition(explains);
        *left = others;
        self.parts = own.iter().map(Change::long_text).collect();
        (!self.parts.is_empty()).then_some(self)
    }
}

/// The causes of all parts in which two tables differ; `None` if one of them has none.
pub fn find(sides: &Sides, expected: &[CpuidEntry], actual: &[CpuidEntry]) -> Option<Cause> {
    let mut left = Change::between(expected, actual);
    let mut reasons = Vec::new();
    for toggle in candidates(sides) {
        let Ok(table) = table(sides, &toggle.machine) else { continue };
        let still = match toggle.side {
            Side::Expected => Change::between(&table, actual),
            Side::Actual => Change::between(expected, &table),
        };
        let reason = Reason {
            kind: toggle.kind,
            name: toggle.name.clone(),
            sentence: toggle.text.clone(),
            source: toggle.source.clone(),
            confirmed: Some(toggle.with(sides)),
            parts: Vec::new(),
        };
        reasons.extend(reason.take(&mut left, |part| !still.iter().any(|other| other.same_place(part))));
    }
    let machines = [&sides.expected, &sides.actual];
    let [own, other] = machines.map(|machine| silicon_cpuid(&machine.silicon));
    let raw = Change::between(&own, &other);
    reasons.extend(silicon(machines).take(&mut left, |part| raw.iter().any(|other| other.same_place(part))));
    reasons.extend(nested_paging(machines).and_then(|reason| reason.take(&mut left, |_| true)));
    if left.is_empty() { join(reasons) } else { None }
}

/// What the ioctl gives on a machine.
fn table(sides: &Sides, machine: &MachineSpec) -> Result<Vec<CpuidEntry>, Error> {
    Ok((sides.create)(machine)?.supported_cpuid(&silicon_cpuid(&machine.silicon)))
}

fn silicon(machines: [&MachineSpec; 2]) -> Reason {
    let [a, b] = machines.map(|machine| machine.silicon.vendor);
    let (kind, sentence) = match a == b {
        true => {
            (Kind::Configuration, format!("the hosts {} and {} differ", machines[0].host, machines[1].host))
        }
        false => (Kind::Silicon, format!("the vendors of the two hosts' processors, {a} and {b}, differ")),
    };
    Reason {
        kind,
        name: if a == b { "the host" } else { "the vendor" }.to_owned(),
        sentence,
        source: "SDM vol. 2A CPUID; APM vol. 3 appendix E; KVM cpuid.c kvm_set_cpu_caps(), __do_cpuid_func()"
            .to_owned(),
        confirmed: None,
        parts: Vec::new(),
    }
}

fn nested_paging(machines: [&MachineSpec; 2]) -> Option<Reason> {
    let (a, b) = (machines[0].has_nested_paging()?, machines[1].has_nested_paging()?);
    let nested = if a { machines[0] } else { machines[1] };
    (a != b).then(|| Reason {
        kind: Kind::Configuration,
        name: "nested paging".to_owned(),
        sentence: format!("only {} has nested paging, which KVM needs for them", nested.backend),
        source: "KVM cpuid.c kvm_set_cpu_caps(), __do_cpuid_func(): tdp_enabled".to_owned(),
        confirmed: None,
        parts: Vec::new(),
    })
}

/// One cause of all reasons.
fn join(reasons: Vec<Reason>) -> Option<Cause> {
    let kind = reasons.first()?.kind;
    let words = |text: &dyn Fn(&Reason) -> Option<String>, between: &str| {
        let mut words: Vec<String> = reasons.iter().filter_map(text).collect();
        words.dedup();
        words.join(between)
    };
    let confirmed = words(&|reason| reason.confirmed.clone(), "; ");
    Some(Cause {
        kind,
        name: words(&|reason| Some(reason.name.clone()), " and "),
        sentence: words(&|reason| Some(format!("{}: {}", reason.sentence, reason.parts.join(", "))), "; "),
        source: words(&|reason| Some(reason.source.clone()), "; "),
        confirmed: (!confirmed.is_empty()).then(|| format!("{confirmed}: these parts are equal")),
    })
}
