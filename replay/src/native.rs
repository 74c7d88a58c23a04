//! What a guest did without exits, where nothing but its exits is compared.
//!
//! Between two exits the guest's instructions are executed by silicon, and no tape tells what came of them. They are *known* to be
//! the same only under the tape's own machine: its backend with the same options, on the same silicon, with the same CPUID. Its
//! silicon has executed them already, under the intercepts and mappings that its handlers left, and what those do is compared event by
//! event.
//!
//! Under any other machine they are *unknown*, however alike the two are. Intercepts and the format of tables decide only
//! in part which instruction exits and what an access finds: so do masks of error codes, the entries that are there already, and
//! widths. The guest has to run to tell.

use vmtape_arch::note::Note;
use vmtape_traces::ExitGroup;

/// By what they are counted in a report.
pub const UNKNOWN: &str = "instructions between exits, for which the guest would have to run";

/// And what tells.
pub const SETTLED_BY: &str = "`vmtape replay` without --mode exits, which runs the guest";

/// Whether the handling of an exit completed an instruction: the backend skipped or emulated it, so RIP moved. One that leaves RIP
/// where it was counts as none, so that rather too much is unknown than too little.
pub fn retired(group: &ExitGroup) -> bool {
    let entered = group.notes.iter().rev().find_map(|note| match note {
        Note::Entry { rip, .. } => Some(*rip),
        _ => None,
    });
    entered.is_some_and(|rip| rip != group.exit.rip)
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmtape_traces::event::ExitEvent;

    #[test]
    fn an_exit_retires_where_rip_moves() {
        let exit = ExitEvent { rip: 0x1000, ..ExitEvent::default() };
        let group = |notes| ExitGroup { exit, notes, ..ExitGroup::default() };
        let entry = |rip| Note::Entry { rip, intr_info: 0, error_code: 0 };
        assert!(retired(&group(vec![entry(0x1002)])));
        assert!(!retired(&group(vec![entry(0x1000)])), "the instruction is executed again");
        assert!(!retired(&group(Vec::new())), "the tape ends within the handling");
    }
}
