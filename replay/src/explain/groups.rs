//! What tapes tell of an exit, where nothing runs.

use super::{Story, Teller, Widths, focus, outcome};
use crate::{
    causes::{Case, Cause, Seen, catalogue},
    observer::{Entry, Observation},
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
    let observations = groups.map(|group| group.map(Observation::of).unwrap_or_default());
    let focus = focus([&observations[0], &observations[1]], None);
    let seen = |n: usize| Seen {
        name: names[n].clone(),
        vendor: machines[n].silicon.vendor,
        widths: Widths::of_machine(machines[n]),
        outcome: outcome(&observations[n], false),
        tables: entries(&observations[n]),
        observations: observations[n].clone(),
    };
    let (expected, actual) = (seen(0), seen(1));
    let case = Case { what, focus, insn: &[], expected: &expected, actual: &actual };
    let tell = |side: &Seen| {
        let teller = Teller { widths: side.widths, focus };
        teller.tell(&side.name, &side.observations, &side.outcome, &[])
    };
    let told = [&expected, &actual].into_iter().filter(|side| !side.observations.is_empty());
    (told.map(tell).collect(), catalogue::find(&case))
}

/// The entries that a tape has of an exit's walk.
fn entries(observations: &[Observation]) -> Vec<Entry> {
    let walks = observations.iter().filter_map(|observation| match observation {
        Observation::Walk(walk) => Some(walk.entries.clone()),
        _ => None,
    });
    walks.flatten().collect()
}
