//! What tapes tell of an exit, where nothing runs.

use super::{Story, Teller, focus, outcome};
use crate::{
    causes::{Case, Cause, Seen, catalogue},
    identical::widths,
    witness::{Deed, Entry},
};
use vmtape_machine::MachineSpec;
use vmtape_traces::ExitGroup;

/// What both tapes tell of an exit, and what the catalogue knows of it. `what`: what differs, as signatures have it.
pub fn groups(
    groups: [Option<&ExitGroup>; 2],
    machines: [&MachineSpec; 2],
    names: &[String; 2],
    what: &str,
) -> (Vec<Story>, Option<Cause>) {
    let deeds = groups.map(|group| group.map(Deed::of).unwrap_or_default());
    let focus = focus([&deeds[0], &deeds[1]], None);
    let seen = |n: usize| Seen {
        name: names[n].clone(),
        vendor: machines[n].silicon.vendor,
        widths: widths(machines[n]),
        outcome: outcome(&deeds[n], false),
        tables: entries(&deeds[n]),
        deeds: deeds[n].clone(),
    };
    let (expected, actual) = (seen(0), seen(1));
    let case = Case { what, focus, insn: &[], expected: &expected, actual: &actual };
    let tell = |side: &Seen| {
        let teller = Teller { widths: side.widths, focus };
        teller.tell(&side.name, &side.deeds, &side.outcome, &[])
    };
    let told = [&expected, &actual].into_iter().filter(|side| !side.deeds.is_empty());
    (told.map(tell).collect(), catalogue::find(&case))
}

/// The entries that a tape has of an exit's walk.
fn entries(deeds: &[Deed]) -> Vec<Entry> {
    let walks = deeds.iter().filter_map(|deed| match deed {
        Deed::Walk(walk) => Some(walk.entries.clone()),
        _ => None,
    });
    walks.flatten().collect()
}
