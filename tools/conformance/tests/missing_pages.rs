//! Memory that is not there: guests whose pages arrive when they are needed end as those that always had them; pages that never
//! arrive, or that the host refuses, end KVM_RUN as the kernel says. All of it repeats.

use anyhow::{Context, Result, bail, ensure};
use proptest::prelude::*;
use std::{fs, path::Path};
use vmtape_arch::memory::MemoryStatus;
use vmtape_conformance::{BACKENDS, tail, vmtape};
use vmtape_traces::{
    Event, Tape,
    event::{End, FaultIn},
};

const GUESTS: [&str; 3] = ["builtin:io", "builtin:dirty,pages=40,rounds=2,by=all", "builtin:smp2"];
const MEMORY: &str = "64M";
const PAGES: u64 = (64 << 20) >> 12;

/// What both modes must answer of a tape that repeats.
const MODES: [&[&str]; 2] = [&[], &["--mode", "exits"]];

fn record(folder: &Path, tape: &str, backend: &str, guest: &str, options: &[String]) -> Result<Tape> {
    let mut line = vec!["record", "-q", "-o", tape, "-b", backend, "-m", MEMORY, guest];
    line.extend(["--max-insns", "600000", "--max-exits", "20000"]);
    line.extend(options.iter().map(String::as_str));
    let recorded = vmtape(folder, &line)?;
    let code = recorded.status.code();
    ensure!(code.is_some_and(|code| code != 101 && code != 125), "{line:?}: {code:?} {}", tail(&recorded));
    Tape::open_whole(&folder.join(tape)).with_context(|| format!("{line:?}: {}", tail(&recorded)))
}

fn repeats(folder: &Path, tape: &str) -> Result<()> {
    for mode in MODES {
        let replayed = vmtape(folder, &[&["replay", tape], mode].concat())?;
        ensure!(replayed.status.success(), "replay {mode:?}: {}", tail(&replayed));
    }
    Ok(())
}

/// What the guest made of its run: the end, the hashes over its state and over what devices saw.
fn of_guest(tape: &Tape) -> Result<Vec<Event>> {
    let of_guest = |event: &Result<Event, _>| {
        matches!(event, Ok(Event::End { .. } | Event::StateHash { .. } | Event::Devices { .. }))
    };
    let mut events: Vec<_> = tape.events().filter(of_guest).collect::<Result<_, _>>()?;
    for event in &mut events {
        // How many exits a guest takes is its backend's affair.
        if let Event::End { exits, .. } | Event::StateHash { exits, .. } = event {
            *exits = 0;
        }
    }
    Ok(events)
}

fn waits(tape: &Tape) -> Result<Vec<FaultIn>> {
    let mut waits = Vec::new();
    for event in tape.events() {
        if let Event::FaultIn(page) = event? {
            waits.push(page);
        }
    }
    Ok(waits)
}

fn end(tape: &Tape) -> Result<End> {
    match tape.events().last().context("a tape has an end")?? {
        Event::End { end, .. } => Ok(end),
        other => bail!("{other:?}"),
    }
}

#[test]
fn a_guest_whose_pages_arrive_on_demand_ends_as_one_that_always_had_them() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let folder = folder.path();
    let all = ["--missing".to_owned(), format!("gpa=0,size={MEMORY}")];
    let later = ["--missing".to_owned(), format!("gpa=0,size={MEMORY},exit=3")];
    let pushed = [&all[..], &["--supply".to_owned(), format!("gpa=0,size={MEMORY},exit=5")]].concat();
    for backend in BACKENDS.into_iter().chain(["vmx,ept=off", "svm-npt,tdp_mmu=off"]) {
        for guest in GUESTS {
            let twin = record(folder, "twin.tape", backend, guest, &[])?;
            for (tape, options) in [("all.tape", &all[..]), ("later.tape", &later), ("pushed.tape", &pushed)]
            {
                let moved = record(folder, tape, backend, guest, options)?;
                let waits = waits(&moved)?;
                ensure!(!waits.is_empty(), "{backend} {guest} {tape}: nobody waits for a page");
                ensure!(waits.iter().all(|page| page.answer == MemoryStatus::READY), "{waits:x?}");
                ensure!(of_guest(&moved)? == of_guest(&twin)?, "{backend} {guest} {tape}: it is another run");
                repeats(folder, tape).with_context(|| format!("{backend} {guest} {tape}"))?;
            }
        }
    }
    Ok(())
}

#[test]
fn a_page_that_does_not_come_ends_kvm_run_as_in_the_kernel() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let folder = folder.path();
    for backend in BACKENDS {
        for (supply, answer, errno) in
            [("never", MemoryStatus::MISSING, -4), ("refused", MemoryStatus::REFUSED, -14)]
        {
            let options = ["--missing".to_owned(), format!("gpa=1M,size=1M,supply={supply}")];
            let tape = record(folder, "gone.tape", backend, "builtin:io", &options)?;
            let last = waits(&tape)?.pop().context("somebody waits")?;
            ensure!(last.answer == answer, "{backend} {supply}: {last:?}");
            let End::Fatal { resume, reason, .. } = end(&tape)? else {
                bail!("{backend}: {:?}", end(&tape)?)
            };
            ensure!(
                resume.errno == errno && reason.contains("KVM_RUN failed"),
                "{backend} {supply}: {reason}"
            );
            repeats(folder, "gone.tape").with_context(|| format!("{backend} {supply}"))?;
            let shown = String::from_utf8(vmtape(folder, &["show", "gone.tape"])?.stdout)?;
            let told =
                [format!("missing pages gpa 0x100000 size 0x100000, supply {supply}"), answer.to_string()];
            ensure!(told.iter().all(|text| shown.contains(text)), "{backend}: show does not tell of it");
        }
    }
    Ok(())
}

/// Pages anywhere go at any moment and come back in any way.
fn anything() -> impl Strategy<Value = Vec<String>> {
    // Most of what a guest uses lies low.
    let first = prop_oneof![0..600u64, 0..PAGES];
    let moment = prop_oneof![
        Just("start".to_owned()),
        (0..60u32).prop_map(|exit| format!("exit={exit}")),
        (0..20_000u32).prop_map(|insn| format!("insn={insn}")),
    ];
    let kind = prop_oneof![
        3 => Just(("--missing", "")),
        1 => Just(("--missing", ",supply=never")),
        1 => Just(("--missing", ",supply=refused")),
        1 => Just(("--supply", "")),
    ];
    let one = (kind, first, 1..300u64, moment).prop_map(|((option, supply), first, size, moment)| {
        let (first, size) = (first << 12, size.min(PAGES - first) << 12);
        format!("{option}=gpa={first:#x},size={size:#x},{moment}{supply}")
    });
    prop::collection::vec(one, 1..6)
}

fn is_determined(backend: &str, guest: &str, options: &[String]) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let folder = folder.path();
    record(folder, "one.tape", backend, guest, options)?;
    record(folder, "two.tape", backend, guest, options)?;
    let [one, two] = ["one.tape", "two.tape"].map(|tape| fs::read(folder.join(tape)));
    ensure!(one? == two?, "two recordings differ");
    repeats(folder, "one.tape")
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, max_shrink_iters: 40, ..ProptestConfig::default() })]

    #[test]
    fn whatever_is_missing_two_recordings_are_equal_and_both_modes_agree(
        backend in prop::sample::select(&[BACKENDS[0], BACKENDS[1], BACKENDS[2], "vmx,ept=off"][..]),
        guest in prop::sample::select(&GUESTS[..]),
        options in anything(),
    ) {
        let done = is_determined(backend, guest, &options);
        prop_assert!(done.is_ok(), "{} {} {:?}: {:#}", backend, guest, options, done.unwrap_err());
    }
}
