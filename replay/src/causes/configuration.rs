//! Causes by elimination: runs are deterministic, so two machines that differ in one thing differ because of it.

use super::{Cause, Kind};
use crate::spec::PROFILE;
use vmtape_arch::{
    cpuid::{self, CpuidEntry, maxphyaddr},
    note::NoteKind,
};
use vmtape_machine::MachineSpec;

/// One thing in which two machines differ: a short name, and both values for people.
type Thing = (String, String, String);

/// The one thing in which two machines differ; `None` if there are none or several. `what`: what differs, as signatures
/// have it.
pub fn find(expected: &MachineSpec, actual: &MachineSpec, what: &str) -> Option<Cause> {
    let asks = what.contains(&NoteKind::CPUID.to_string());
    let (name, sentence) = if asks && expected.cpuid != actual.cpuid {
        let leaf = differing_leaf(expected, actual);
        let sentence = format!("the guests were given different CPUID tables, and look at them here: {leaf}");
        (CPUID.to_owned(), sentence)
    } else {
        let mut things = things(expected, actual).into_iter();
        let (Some((name, a, b)), None) = (things.next(), things.next()) else { return None };
        let sentence = format!("the two machines differ in nothing but {name}: {a} and {b}");
        (name, sentence)
    };
    Some(Cause {
        kind: Kind::Configuration,
        sentence,
        name,
        source: "both tapes' headers; a run is determined by its machine".to_owned(),
        confirmed: None,
    })
}

/// The first entry in which two tables differ.
fn differing_leaf(expected: &MachineSpec, actual: &MachineSpec) -> String {
    let words = |entry: Option<&CpuidEntry>| {
        entry.map_or("absent".to_owned(), |e| format!("{:x} {:x} {:x} {:x}", e.eax, e.ebx, e.ecx, e.edx))
    };
    let tables = expected.cpuid.iter().chain(&actual.cpuid);
    let mut pairs =
        tables.map(|e| [expected, actual].map(|side| cpuid::find(&side.cpuid, e.function, e.index)));
    let pair = pairs.find(|[a, b]| a != b).unwrap_or_default();
    let function = pair.iter().flatten().next().map_or(0, |entry| entry.function);
    format!("the first difference is in leaf {function:#x}, {} and {}", words(pair[0]), words(pair[1]))
}

const CPUID: &str = "the guest's CPUID";

/// Everything in which they differ.
pub fn things(expected: &MachineSpec, actual: &MachineSpec) -> Vec<Thing> {
    let mut things = Vec::new();
    let mut add = |name: &str, a: String, b: String| {
        if a != b {
            things.push((name.to_owned(), a, b));
        }
    };
    add("the backend", expected.backend.clone(), actual.backend.clone());
    let same_backend = expected.backend == actual.backend;
    let host = |machine: &MachineSpec| format!("{} ({} bits)", machine.host, machine.silicon.phys_bits);
    if expected.silicon != actual.silicon {
        add("the host", host(expected), host(actual));
    }
    let release = |machine: &MachineSpec| {
        machine
            .options
            .iter()
            .find(|(key, _)| key == PROFILE)
            .map_or(String::new(), |(_, value)| value.clone())
    };
    add("the release of KVM", release(expected), release(actual));
    // Another release sets other switches.
    let same_kvm = same_backend && release(expected) == release(actual);
    for (key, value) in expected.options.iter().filter(|_| same_kvm) {
        let other = actual.options.iter().find(|(name, _)| name == key).map_or("absent", |(_, value)| value);
        add(key, value.clone(), other.to_owned());
    }
    let width = |machine: &MachineSpec| format!("{} bits", maxphyaddr(&machine.cpuid));
    add("the guest's MAXPHYADDR", width(expected), width(actual));
    let same_width = maxphyaddr(&expected.cpuid) == maxphyaddr(&actual.cpuid);
    if same_width && expected.cpuid != actual.cpuid {
        add(CPUID, expected.cpu.clone(), format!("{}, resolved otherwise", actual.cpu));
    }
    let script = |machine: &MachineSpec| match machine.script.len() {
        0 => "none".to_owned(),
        _ => machine
            .script
            .iter()
            .map(|step| format!("{:?} at {}", step.action, step.at))
            .collect::<Vec<_>>()
            .join(", "),
    };
    add("what the VMM does", script(expected), script(actual));
    add("the guest", expected.image.name.clone(), actual.image.name.clone());
    if expected.image.name == actual.image.name && expected.image.bytes != actual.image.bytes {
        add("the guest", "one image".into(), "another image of that name".into());
    }
    add("the guest's arguments", expected.cmdline.clone(), actual.cmdline.clone());
    add("memory", expected.memory.to_string(), actual.memory.to_string());
    add("vCPUs", expected.vcpus.to_string(), actual.vcpus.to_string());
    add("the seed", expected.seed.to_string(), actual.seed.to_string());
    things
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A description in which everything is zero.
    fn machine() -> MachineSpec {
        MachineSpec::decode(&[]).unwrap()
    }

    #[test]
    fn the_only_thing_that_differs_is_the_cause() {
        let (mut a, mut b) = (machine(), machine());
        assert_eq!(find(&a, &b, "memory"), None);
        a.options = vec![("parameter".into(), "on".into())];
        b.options = vec![("parameter".into(), "off".into())];
        let cause = find(&a, &b, "memory").unwrap();
        assert_eq!(cause.name, "parameter");
        assert!(cause.sentence.ends_with("nothing but parameter: on and off"), "{}", cause.sentence);
        b.memory += 1;
        assert_eq!(find(&a, &b, "memory"), None, "two things");
    }
}
