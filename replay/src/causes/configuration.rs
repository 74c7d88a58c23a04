//! Causes by elimination: runs are deterministic, so two machines that differ in one thing differ because of it.

use super::cause::{Cause, Kind};
use crate::spec::PROFILE;
use vmtape_arch::{
    cpuid::{self, CpuidEntry, maxphyaddr},
    note::NoteKind,
};
use vmtape_machine::{MachineSpec, hosts};

/// One thing in which two machines differ: a short name, and both values for people.
type Thing = (String, String, String);

/// The one thing in which two machines differ, as the cause of whatever differs between their runs; `None` if there are none
/// or several. `what`: what differs, as signatures have it.
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
    Some(Cause { kind: Kind::Configuration, sentence, name, source: SOURCE.to_owned(), confirmed: None })
}

/// What two backends differ in by what they are, as the cause of what no change of a switch or a host makes equal. `several`:
/// it may be more than one thing.
pub fn built_in(expected: &MachineSpec, actual: &MachineSpec, several: bool) -> Option<Cause> {
    let things = backends(expected, actual);
    let words = |text: fn(&(&str, String, String)) -> String| {
        things.iter().map(text).collect::<Vec<_>>().join(" and ")
    };
    let name = words(|(name, ..)| (*name).to_owned());
    let both = words(|(name, a, b)| format!("{name} ({a} and {b})"));
    let sentence = format!(
        "the two machines differ in {both}, and nothing else in which they do makes them alike by itself"
    );
    (things.len() == 1 || several && !things.is_empty()).then(|| Cause {
        kind: Kind::Configuration,
        name,
        sentence,
        source: SOURCE.to_owned(),
        confirmed: None,
    })
}

/// A backend is a vendor's silicon with KVM's module for it, with nested paging or without.
fn backends(expected: &MachineSpec, actual: &MachineSpec) -> Vec<(&'static str, String, String)> {
    if expected.backend == actual.backend {
        return Vec::new();
    }
    let sides = [expected, actual];
    let word = |machine: &MachineSpec| {
        machine.has_nested_paging().map_or("unknown", |on| if on { "on" } else { "off" }).to_owned()
    };
    let ([a, b], [vendor, other]) =
        (sides.map(word), sides.map(|machine| machine.silicon.vendor.to_string()));
    let mut things = vec![("the vendor", vendor, other), (NESTED, a, b)];
    things.retain(|(_, a, b)| a != b);
    if things.is_empty() {
        things.push(("the backend", expected.backend.clone(), actual.backend.clone()));
    }
    things
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
const SOURCE: &str = "the two machines' descriptions; a run is determined by its machine";
const NESTED: &str = "nested paging";

/// Everything in which they differ.
pub fn things(expected: &MachineSpec, actual: &MachineSpec) -> Vec<Thing> {
    let mut things = Vec::new();
    let mut add = |name: &str, a: String, b: String| {
        if a != b {
            things.push((name.to_owned(), a, b));
        }
    };
    let same_backend = expected.backend == actual.backend;
    for (name, a, b) in backends(expected, actual) {
        add(name, a, b);
    }
    let (vendor, other) = (expected.silicon.vendor, actual.silicon.vendor);
    let host = |machine: &MachineSpec| format!("{} ({} bits)", machine.host, machine.silicon.phys_bits);
    let counterpart =
        if vendor == other { expected.silicon } else { hosts::counterpart(&expected.silicon, other) };
    if counterpart != actual.silicon {
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
            .map(|step| format!("{} at {}", step.action, step.at))
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

    #[test]
    fn backends_of_one_vendor_differ_in_nested_paging() {
        let side = |backend: &str, host: &str, option: &str, value: &str| MachineSpec {
            backend: backend.into(),
            silicon: hosts::find(host).unwrap(),
            options: vec![(option.into(), value.into())],
            nested_paging: option.into(),
            ..machine()
        };
        let (shadow, nested) = (side("a", "amd-46", "tables", "off"), side("b", "amd-46", "tables", "on"));
        let cause = find(&shadow, &nested, "outcome").unwrap();
        assert!(cause.sentence.ends_with("nothing but nested paging: off and on"), "{}", cause.sentence);
        let other = side("c", "intel-46", "pages", "on");
        assert_eq!(find(&other, &nested, "outcome").unwrap().name, "the vendor");
        assert_eq!(find(&other, &shadow, "outcome"), None, "the vendor, and nested paging");
        assert_eq!(built_in(&other, &shadow, false), None);
        assert_eq!(built_in(&other, &shadow, true).unwrap().name, "the vendor and nested paging");
        let wider = side("c", "intel-52", "pages", "on");
        assert_eq!(find(&wider, &nested, "outcome"), None, "the vendor, and the host's width");
    }
}
