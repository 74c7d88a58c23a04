//! The guest, run again on the host that it is to move to.

use super::{
    Guest, Host,
    finding::{Finding, Pin, Severity, Subject},
    footprint::Place,
    machine_text, rules,
    tables::Entry,
};
use crate::{
    Error, Report,
    across::{COMPARED, Sides},
    explain, identical,
    player::Create,
    report::{self, Divergence},
};
use vmtape_arch::{
    cpuid::{CpuidEntry, find, maxphyaddr},
    exit::StimulusKind,
};
use vmtape_machine::{
    MachineSpec,
    model::{Feature, Register},
    vmm::When,
};
use vmtape_traces::{Event, event::End};

const SOURCE: &str = "the guest's run on that host, beside the tape's machine";
/// Exits of context before a difference.
const CONTEXT: usize = 3;

/// What the run showed.
pub struct Ran {
    pub report: Report,
    pub findings: Vec<Finding>,
}

/// A host on which the VM cannot even be built.
pub fn refused(cause: &vmtape_machine::Error) -> Finding {
    let sentence = format!("the VM cannot be built there: {cause}");
    Finding::new(Severity::Refuses, Subject::Replay, sentence, SOURCE)
}

/// Runs the guest there and compares. Where the host lacks features that the guest has not asked for, it runs once more
/// without them: a guest may use what it has not asked for.
pub fn run(
    guest: &Guest,
    host: &Host,
    create: Create,
    reproduce: &str,
    progress: &mut dyn FnMut(u64),
) -> Result<Ran, Error> {
    let sides = sides(guest, host, &host.machine, create, reproduce);
    let report = compare(guest, &sides, progress)?;
    let mut findings = Vec::new();
    if let Some(divergence) = &report.divergence {
        let place = first_place(guest, host, &sides, divergence)?;
        let of_reserved_bits = is_of_reserved_bits(guest, host, create, progress);
        findings
            .push(finding(divergence, of_reserved_bits).at(place.as_ref()).at_exit(divergence.expected_exit));
    } else {
        let unasked = unasked(guest, host);
        if !unasked.is_empty() {
            let machine =
                MachineSpec { cpuid: without(&host.machine.cpuid, &unasked), ..host.machine.clone() };
            let bare = compare(guest, &self::sides(guest, host, &machine, create, reproduce), progress)?;
            findings.extend(bare.divergence.map(|divergence| uses(&divergence, &unasked)));
        }
    }
    Ok(Ran { report, findings })
}

fn sides<'a>(
    guest: &'a Guest,
    host: &'a Host,
    machine: &MachineSpec,
    create: Create<'a>,
    reproduce: &str,
) -> Sides<'a> {
    Sides {
        way: None,
        tape: guest.tape,
        expected: guest.machine.clone(),
        actual: machine.clone(),
        create,
        expected_plugin: guest.plugin,
        plugin: host.plugin,
        context: CONTEXT,
        at: guest.at,
        explain: true,
        reproduce: reproduce.to_owned(),
        inputs: None,
    }
}

fn compare(guest: &Guest, sides: &Sides, progress: &mut dyn FnMut(u64)) -> Result<Report, Error> {
    let (expected, actual) = (machine_text(&sides.expected), machine_text(&sides.actual));
    if guest.at == When::Start && same(&sides.expected, &sides.actual) {
        let method = "the same machine runs the guest again; every event is compared";
        let mut report = Report::new(method, expected, actual);
        let Sides { actual: machine, create, reproduce, .. } = sides;
        identical::replay(guest.tape, machine.clone(), *create, None, &mut report, reproduce, progress)?;
        return Ok(report);
    }
    let method = match guest.at {
        When::Start => "both machines run the guest".to_owned(),
        at => format!("the guest moves at {at}; from there both machines run it"),
    };
    let method = format!("{method}; {COMPARED}");
    let mut report = Report::new(method, expected, actual);
    sides.compare(&mut report, progress)?;
    Ok(report)
}

/// Whether two specifications are of one machine: everything but names.
fn same(a: &MachineSpec, b: &MachineSpec) -> bool {
    let plain = |machine: &MachineSpec| {
        let mut options = machine.options.clone();
        options.sort();
        MachineSpec { options, host: String::new(), ..machine.clone() }
    };
    plain(a) == plain(b)
}

fn finding(divergence: &Divergence, of_reserved_bits: Option<u8>) -> Finding {
    let mut sentence = format!("run there, {}", divergence.summary);
    if let Some(cause) = &divergence.cause {
        sentence += &format!(" ({}: {})", cause.name, cause.sentence);
    }
    let Some(width) = of_reserved_bits else {
        return Finding::new(Severity::Breaks, Subject::Replay, sentence, SOURCE);
    };
    sentence += &format!(
        "; only a guest that relies on reserved bits sees that: on the same host with {width} address bits nothing differs"
    );
    Finding::new(Severity::Conditional, Subject::Replay, sentence, SOURCE)
}

/// Whether nothing differs where the host's processor is as narrow as the guest, and the host otherwise as it is: what differs
/// follows from address bits that are reserved for the guest alone. Gives that width.
fn is_of_reserved_bits(
    guest: &Guest,
    host: &Host,
    create: Create,
    progress: &mut dyn FnMut(u64),
) -> Option<u8> {
    let width = rules::reserved_from(guest, host)?;
    let mut machine = host.machine.clone();
    machine.silicon.phys_bits = width;
    let sides = Sides { explain: false, ..sides(guest, host, &machine, create, "") };
    // A host that cannot be so is no evidence.
    let report = compare(guest, &sides, progress).ok()?;
    (report.verdict == report::Verdict::Same).then_some(width)
}

/// The entry, device or slot at which a difference shows: looked up in the other machine, right after it.
fn first_place(
    guest: &Guest,
    host: &Host,
    sides: &Sides,
    divergence: &Divergence,
) -> Result<Option<Place>, Error> {
    let mut player = sides.other_at(divergence.icount)?;
    player.listen(true);
    player.advance(divergence.icount + 1, u64::MAX)?;
    let exits: Vec<_> = player
        .take_events()
        .into_iter()
        .filter_map(|event| match event {
            Event::Exit(exit) if exit.vcpu == divergence.vcpu => Some(exit.exit),
            _ => None,
        })
        .collect();
    let accessed = exits.iter().filter(|e| e.stimulus == StimulusKind::ACCESS).map(|e| e.access.gva);
    let faulted = player.machine.state(divergence.vcpu).map(|state| state.cr2);
    let bits = maxphyaddr(&guest.machine.cpuid).min(host.passport.silicon.phys_bits);
    for gva in accessed.chain(faulted) {
        let state = player.machine.state(divergence.vcpu);
        let entries = state.map(|state| explain::tables(&player.machine, state, gva)).unwrap_or_default();
        let mut places = entries.iter().map(|entry| {
            let (level, value) = (entry.level, entry.after);
            shown(divergence, Place::entry(Entry { level, at: entry.gpa.unwrap_or(0), value }, None))
        });
        if let Some(place) = places.find(|place| place.bits() > bits) {
            return Ok(Some(place));
        }
    }
    let stuck = matches!(player.end, Some(End::NoProgress { .. } | End::Fatal { .. }));
    let gpa = exits.last().map(|exit| exit.gpa).filter(|gpa| stuck && *gpa != 0);
    Ok(gpa.map(|gpa| {
        let slot = player.machine.memory().slots().iter().find(|slot| gpa.wrapping_sub(slot.gpa) < slot.size);
        shown(divergence, slot.map_or(Place::device(gpa, 0), |slot| Place::slot(slot.gpa, slot.size)))
    }))
}

/// A place as a difference shows it: by the tape's exit, where there is one.
fn shown(divergence: &Divergence, place: Place) -> Place {
    Place { exit: divergence.expected_exit, instruction: Some(divergence.icount), ..place }
}

/// Features that the guest has not asked for on this tape, and that the other host does not have.
fn unasked(guest: &Guest, host: &Host) -> Vec<&'static Feature> {
    let mut missing = rules::missing(guest, host);
    missing.retain(|feature| {
        let entry = find(&guest.machine.cpuid, feature.leaf, feature.subleaf);
        entry.is_none_or(|entry| guest.footprint.read_at(entry).is_none())
    });
    missing
}

/// A table without some features.
fn without(table: &[CpuidEntry], features: &[&Feature]) -> Vec<CpuidEntry> {
    let mut table = table.to_vec();
    for feature in features {
        let entry = table.iter_mut().find(|e| (e.function, e.index) == (feature.leaf, feature.subleaf));
        if let Some(entry) = entry {
            let register = match feature.register {
                Register::Eax => &mut entry.eax,
                Register::Ebx => &mut entry.ebx,
                Register::Ecx => &mut entry.ecx,
                Register::Edx => &mut entry.edx,
            };
            *register &= !(1 << feature.bit);
        }
    }
    table
}

fn uses(divergence: &Divergence, features: &[&Feature]) -> Finding {
    let names: Vec<_> = features.iter().map(|feature| feature.name).collect();
    let sentence = format!(
        "run without {}, which is not there, {}: the guest uses it without asking",
        names.join(", "),
        divergence.summary
    );
    let finding = Finding::new(Severity::Breaks, Subject::Replay, sentence, SOURCE);
    let names = names.into_iter().map(str::to_owned).collect();
    finding.at_exit(divergence.expected_exit).pin(Pin::Without(names))
}
