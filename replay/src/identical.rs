//! The same backend again: every event is compared, nothing is exempt but what tapes of older schemas tell by other rules.

use crate::{
    Error,
    checker::{Checker, Mismatch},
    explain::{self, Widths},
    player::{Create, PIECE_EXITS, PIECE_INSTRUCTIONS, Player},
    report::{Class, Divergence, Level, Report, Row},
    signature::Signature,
    spec,
    text::{self, event_kind, named_event_text},
};
use vmtape_machine::MachineSpec;
use vmtape_traces::{Event, Tape};

/// Runs the tape's machine again and compares event by event. `from`: not from its start, but from the last checkpoint
/// with at most so many exits before it.
pub fn replay(
    tape: &Tape,
    machine: MachineSpec,
    create: Create,
    from: Option<u64>,
    report: &mut Report,
    reproduce: &str,
    progress: &mut dyn FnMut(u64),
) -> Result<(), Error> {
    let widths = Widths::of_machine(&machine);
    let (mut player, mut checker) = match from {
        None => {
            let inputs = Box::new(spec::inputs(tape)?);
            (Player::new(machine, inputs, spec::budget(tape), create, true)?, Checker::new(tape))
        }
        Some(exit) => middle(tape, machine, create, exit)?,
    };
    let mut found = None;
    while player.end.is_none() && found.is_none() && !checker.at_cut(tape) {
        let piece = player.machine.icount().saturating_add(PIECE_INSTRUCTIONS);
        player.advance(piece, player.machine.exits() + PIECE_EXITS)?;
        found = checker.check(player.take_events())?;
        // What the guest printed is compared by the accesses that printed it.
        player.take_serial();
        progress(checker.compared().exits);
    }
    checker.tell(report);
    report.actual_end = player.end.as_ref().map(text::end_text);
    report.compared.instructions = player.machine.icount();
    // A damaged tape breaks off: what a run does after that is no difference.
    let at_cut = checker.at_cut(tape);
    if let Some(mismatch) = found.filter(|mismatch| !at_cut || mismatch.expected.is_some()) {
        report.diverge(divergence(&checker, mismatch, widths, reproduce));
    }
    report.conclude();
    Ok(())
}

/// A machine restored from a checkpoint, and the tape from there on.
fn middle<'t>(
    tape: &'t Tape,
    machine: MachineSpec,
    create: Create,
    exit: u64,
) -> Result<(Player, Checker<'t>), Error> {
    let start = tape.checkpoint_before(exit).ok_or_else(|| {
        Error::Other(format!(
            "{}: has no checkpoint before exit {exit} (record --checkpoint-every)",
            tape.name()
        ))
    })?;
    let mut chain = Vec::new();
    for checkpoint in tape.checkpoints().take_while(|checkpoint| checkpoint.exit <= start.exit) {
        chain.push(tape.checkpoint(checkpoint)?.1);
    }
    let inputs = Box::new(spec::inputs(tape)?);
    let mut player = Player::new(machine, inputs, spec::budget(tape), create, true)?;
    player.machine.restore(chain.iter().map(Vec::as_slice))?;
    player.take_events();
    Ok((player, Checker::at(tape, tape.events_from(start.chunk))))
}

fn divergence(checker: &Checker, mismatch: Mismatch, widths: Widths, reproduce: &str) -> Divergence {
    let expected = checker.context(mismatch.expected.as_ref());
    let actual = checker.context(mismatch.actual.as_ref());
    let last = expected.last().or(actual.last());
    let words = |event: &Option<Event>| {
        event.as_ref().map_or("nothing".to_owned(), |event| named_event_text(event, &checker.names))
    };
    let kind = |event: &Option<Event>| event.as_ref().map_or("nothing".to_owned(), event_kind);
    let what = format!("{}>{}", kind(&mismatch.expected), kind(&mismatch.actual));
    Divergence {
        signature: Signature::new(&what, last.map_or(0, |group| group.exit.rip)),
        cause: None,
        level: Level::GuestVisible,
        class: Class::Unexplained,
        summary: "the run does not repeat itself: the same machine and inputs gave another event".into(),
        vcpu: last.map_or(0, |group| group.exit.vcpu),
        icount: last.map_or(0, |group| group.exit.icount),
        rip: last.map_or(0, |group| group.exit.rip),
        nested: last.and_then(|group| text::nested(&group.exit)),
        expected_exit: last.map(|group| group.number),
        actual_exit: actual.last().map(|group| group.number),
        rows: vec![Row::new("event", words(&mismatch.expected), words(&mismatch.actual))],
        stories: last.map(|group| explain::of_group(group, widths)).into_iter().collect(),
        expected_context: text::context(expected.iter(), 3),
        actual_context: text::context(actual.iter(), 3),
        rules: Vec::new(),
        reproduce: reproduce.to_owned(),
    }
}
