//! The last messages of a migration: whoever is killed when, and wherever the link is cut, the guest never runs twice under the
//! strict hand-over; under others their known flaws show.

use anyhow::{Result, ensure};
use std::path::Path;
use vmtape_conformance::bench::Bench;
use vmtape_machine::vmm::When;
use vmtape_migrate::{
    Conversation, Outcome, Plan,
    destination::Terms,
    handover::{Handover, Moment, State, Witness},
    points::{MovePoint, Named, Points},
    policy::{Ground, Policy},
    stream::{Offer, Record, SectionKind, Writer},
};

fn bench(folder: &Path, backend: &str) -> Result<Bench> {
    Bench::record(folder, backend, &["-m", "16M", "builtin:io"])
}

/// A guest on its way moves, or does not.
fn moves(bench: &Bench, handover: Handover, witness: Witness, faults: Vec<Fault>) -> Result<Outcome> {
    let (mut source, mut destination) = (bench.player()?, bench.player()?);
    ensure!(source.come_to_rest(When::Exit(20))?, "the guest has ended");
    let plan = Plan { handover, epoch: 7, ..Plan::default() };
    let conversation = Conversation {
        plan,
        offer: Offer::of(&mut source.machine, plan.epoch)?,
        terms: Terms {
            policy: Policy::Strict,
            ground: Ground::of(&destination.machine),
            identity: destination.machine.spec().identity()?,
            rules: handover.rules(),
        },
        points: Points::new(Box::new(Named(faults))),
        witness,
    };
    Ok(conversation.run(&mut source, &mut destination.machine, &|_| {}))
}

/// A point answers where its first word is this one.
type Fault = (MovePoint, u64, Option<u64>, u64);

fn kill(point: MovePoint, moment: Moment) -> Fault {
    (point, moment.0, None, 1)
}

fn cut(kind: SectionKind, bytes: usize) -> Fault {
    (MovePoint::SEND_CUT, kind.0.into(), None, bytes as u64)
}

/// Bytes of one of the last messages, on its own stream as it is sent: the destination's READY is not the first there.
fn length(kind: SectionKind) -> usize {
    let mut writer = Writer::new();
    writer.record(&Record::Accept { epoch: 7 });
    let record = match kind {
        SectionKind::READY => Record::Ready { epoch: 7 },
        SectionKind::GO => Record::Go { epoch: 7 },
        _ => Record::Done { epoch: 7 },
    };
    writer.record(&record).len()
}

const LAST: [SectionKind; 3] = [SectionKind::READY, SectionKind::GO, SectionKind::DONE];

#[test]
fn a_guest_moves_under_every_hand_over() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let bench = bench(folder.path(), "svm-npt")?;
    for handover in Handover::ALL {
        let outcome = moves(&bench, handover, Witness::new(), Vec::new())?;
        ensure!(
            outcome.has_moved() && outcome.runners == 1 && !outcome.two_running,
            "{handover}: {outcome:?}"
        );
        ensure!(outcome.source == State::Gone && outcome.failure.is_none(), "{handover}: {outcome:?}");
    }
    Ok(())
}

/// Each process is killed at each of the five moments.
#[test]
fn the_kill_cells_of_the_strict_hand_over() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let bench = bench(folder.path(), "vmx")?;
    let (source, destination) = (MovePoint::KILL_SOURCE, MovePoint::KILL_DESTINATION);
    let partly = cut(SectionKind::GO, 9);
    let lost = cut(SectionKind::DONE, 0);
    use State::{Dead, Destroyed, Parked, Running};
    let cells: [(&str, Vec<Fault>, State, State, usize); 10] = [
        ("source before READY", vec![kill(source, Moment::BEFORE_READY)], Dead, Destroyed, 0),
        ("source before GO", vec![kill(source, Moment::BEFORE_GO)], Dead, Destroyed, 0),
        ("source within GO", vec![partly, kill(source, Moment::WITHIN_GO)], Dead, Destroyed, 0),
        ("source after GO", vec![kill(source, Moment::AFTER_GO)], Dead, Running, 1),
        ("source, DONE lost", vec![lost, kill(source, Moment::AFTER_DONE)], Dead, Running, 1),
        ("destination before READY", vec![kill(destination, Moment::BEFORE_READY)], Running, Dead, 1),
        ("destination before GO", vec![kill(destination, Moment::BEFORE_GO)], Running, Dead, 1),
        ("destination within GO", vec![partly, kill(destination, Moment::WITHIN_GO)], Parked, Dead, 0),
        ("destination after GO", vec![kill(destination, Moment::AFTER_GO)], Parked, Dead, 0),
        ("destination, DONE lost", vec![lost, kill(destination, Moment::AFTER_DONE)], Parked, Dead, 0),
    ];
    for (what, faults, ours, theirs, runners) in cells {
        let outcome = moves(&bench, Handover::Strict, Witness::new(), faults)?;
        ensure!(!outcome.two_running && outcome.runners == runners, "{what}: {outcome:?}");
        ensure!((outcome.source, outcome.destination) == (ours, theirs), "{what}: {outcome:?}");
    }
    Ok(())
}

/// The link is cut at every byte of the last three messages, the sender knowing or not.
#[test]
fn wherever_the_link_is_cut_the_guest_never_runs_twice() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let bench = bench(folder.path(), "svm")?;
    for kind in LAST {
        for bytes in 0..=length(kind) {
            for point in [MovePoint::SEND_CUT, MovePoint::SEND_LOST] {
                let fault = (point, kind.0.into(), None, bytes as u64);
                let what = || format!("{kind} cut at byte {bytes}, {point}");
                for decides in [false, true] {
                    let witness = if decides { Witness::deciding() } else { Witness::new() };
                    let outcome = moves(&bench, Handover::Strict, witness, vec![fault])?;
                    ensure!(!outcome.two_running, "{}: {outcome:?}", what());
                    let parked = outcome.source == State::Parked && outcome.runners == 0;
                    ensure!(outcome.runners == 1 || parked && !decides, "{}: {outcome:?}", what());
                }
            }
        }
    }
    Ok(())
}

/// See: Cloud Hypervisor ae44c2971 vmm/src/lib.rs, where a destination resumes before it answers
#[test]
fn a_lost_answer_makes_two_of_one_guest_where_the_source_goes_on_without_it() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let bench = bench(folder.path(), "svm-npt")?;
    let mut found = 0;
    for bytes in 0..length(SectionKind::DONE) {
        for (handover, two) in [
            (Handover::Ch, true),
            (Handover::Qemu, true),
            (Handover::Strict, false),
            (Handover::Propolis, false),
        ] {
            let outcome = moves(&bench, handover, Witness::new(), vec![cut(SectionKind::DONE, bytes)])?;
            ensure!(outcome.two_running == two, "{handover} cut at byte {bytes}: {outcome:?}");
            found += usize::from(two);
        }
    }
    ensure!(found > 0);
    Ok(())
}

/// Each design where a message never arrives and nobody notices.
#[test]
fn what_each_hand_over_makes_of_a_lost_go() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let bench = bench(folder.path(), "svm-npt")?;
    let lost = (MovePoint::SEND_LOST, SectionKind::GO.0.into(), None, 3);
    for (handover, runners, source) in [
        (Handover::Strict, 0, State::Parked),
        (Handover::Ch, 1, State::Running),
        (Handover::Propolis, 0, State::Gone),
    ] {
        let outcome = moves(&bench, handover, Witness::new(), vec![lost])?;
        ensure!((outcome.runners, outcome.source) == (runners, source), "{handover}: {outcome:?}");
    }
    Ok(())
}

#[test]
fn a_go_of_another_attempt_does_nothing() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let bench = bench(folder.path(), "vmx")?;
    let late = (MovePoint::GO_EPOCH, 7, None, 6);
    let outcome = moves(&bench, Handover::Strict, Witness::new(), vec![late])?;
    ensure!(outcome.runners == 0 && outcome.source == State::Parked, "{outcome:?}");
    ensure!(outcome.loaded.dropped.iter().any(|text| text.contains("epoch 6")), "{outcome:?}");
    let outcome = moves(&bench, Handover::Strict, Witness::deciding(), vec![late])?;
    ensure!(outcome.runners == 1 && outcome.source == State::Running, "{outcome:?}");
    Ok(())
}

/// Whatever happens to a section on its way, the guest runs on exactly one side, and nobody is told that all is well.
#[test]
fn a_bent_stream_leaves_the_guest_where_it_was() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let bench = bench(folder.path(), "svm-npt")?;
    let kinds =
        [SectionKind::OFFER, SectionKind::CPUID, SectionKind::PAGES, SectionKind::STATE, SectionKind::END];
    for kind in kinds.into_iter().chain([SectionKind::DEVICES, SectionKind::BOOKS, SectionKind::SLOTS]) {
        for (point, answer) in [
            (MovePoint::SEND_FLIP, 77),
            (MovePoint::SEND_FLIP, 200),
            (MovePoint::SEND_TWICE, 1),
            (MovePoint::SEND_CUT, 5),
            (MovePoint::SEND_LOST, 21),
        ] {
            let fault = (point, kind.0.into(), None, answer);
            let outcome = moves(&bench, Handover::Strict, Witness::new(), vec![fault])?;
            let what = format!("{kind}, {point} {answer}: {outcome:?}");
            ensure!(outcome.source == State::Running && outcome.runners == 1, "{what}");
            ensure!(outcome.failure.is_some() && !outcome.has_moved(), "{what}");
        }
    }
    Ok(())
}
