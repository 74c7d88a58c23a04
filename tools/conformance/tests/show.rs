//! `vmtape show`: the walk that led to an exit, rules by name, and the options that choose exits.

use anyhow::{Context, Result};
use serde_json::Value;
use std::path::Path;
use vmtape_conformance::{tail, vmtape};

/// One access to a page whose entry is illegal for the guest: silicon walks to the last level, then there is a nested page fault.
fn record(folder: &Path) -> Result<()> {
    let line = ["record", "-q", "-b", "svm-npt", "--cpu", "max,phys-bits=36", "-o", "a.tape"];
    let recorded = vmtape(folder, &[&line[..], &["builtin:touch,pte=0x1002000001"]].concat())?;
    assert!(recorded.status.success(), "{}", tail(&recorded));
    Ok(())
}

fn show(folder: &Path, options: &[&str]) -> Result<String> {
    let shown = vmtape(folder, &[&["show", "a.tape"], options].concat())?;
    assert!(shown.status.success(), "{options:?}: {}", tail(&shown));
    Ok(String::from_utf8(shown.stdout)?)
}

fn count(text: &str, what: &str) -> usize {
    text.lines().filter(|line| line.contains(what)).count()
}

#[test]
fn an_exit_comes_with_the_walk_that_led_to_it() -> Result<()> {
    let folder = tempfile::tempdir()?;
    record(folder.path())?;
    let text = show(folder.path(), &["--reason", "npf", "--gpa", "0x1002000000-0x1002000fff"])?;
    assert_eq!(count(&text, "kvm_exit: "), 1, "{text}");
    let (before, after) = text.split_once("kvm_exit: ").context("an exit")?;
    // The four levels of that walk, in order, and no other one's.
    let levels: Vec<_> = before.lines().filter_map(|line| line.split_once("vmtape_silicon_step: ")).collect();
    let levels: Vec<_> = levels.iter().map(|(_, step)| &step[..8]).collect();
    assert_eq!(levels, ["level 4 ", "level 3 ", "level 2 ", "level 1 "], "{text}");
    assert!(before.contains("1002000001 -> 1002000021"), "{text}");
    assert!(before.contains("vmtape_rule: accessed-before-npf | "), "rules have names: {text}");
    assert!(after.contains("mark_mmio_spte: ") && after.contains("kvm_mmio: mmio read"), "{text}");
    Ok(())
}

/// Each option alone and all together, against the whole tape.
#[test]
fn exits_are_chosen_by_what_they_are() -> Result<()> {
    let folder = tempfile::tempdir()?;
    record(folder.path())?;
    let all = show(folder.path(), &[])?;
    let exits = |text: &str| count(text, "kvm_exit: ");
    assert_eq!(exits(&show(folder.path(), &["--reason", "io"])?), count(&all, "reason io rip"));
    assert_eq!(
        exits(&show(folder.path(), &["--reason", "io,NPF"])?),
        count(&all, "reason io rip") + count(&all, "reason npf rip")
    );
    let rip = all.lines().find_map(|line| line.split_once("reason npf rip ")).context("a fault")?.1;
    let rip = rip.split(' ').next().context("an address")?;
    assert_eq!(exits(&show(folder.path(), &["--rip", rip])?), count(&all, &format!(" rip {rip} info1")));
    assert_eq!(exits(&show(folder.path(), &["--vcpu", "0"])?), exits(&all));
    assert_eq!(exits(&show(folder.path(), &["--vcpu", "1"])?), 0);
    assert_eq!(exits(&show(folder.path(), &["--level", "L2"])?), 0);
    let gva = show(folder.path(), &["--gva", "0xffff923400000000"])?;
    assert!(exits(&gva) > 0 && exits(&gva) == count(&gva, "supervisor 8 gva 0xffff923400000000"), "{gva}");
    let found = show(folder.path(), &["--grep", "mark_mmio_spte", "--reason", "npf", "--count", "1"])?;
    assert!(exits(&found) == 1 && found.contains("mark_mmio_spte"), "{found}");
    // What is chosen by number is what stands there, and the walk before it is no longer lost.
    let number =
        all.lines().filter(|l| l.contains("kvm_exit: ")).position(|l| l.contains("info2 0x0000001002000000"));
    let number = number.context("the fault")?.to_string();
    let one = show(folder.path(), &["--from", &number, "--count", "1"])?;
    assert!(exits(&one) == 1 && count(&one, "vmtape_silicon_step: ") == 4, "{one}");
    for wrong in
        [&["--rip", "here"][..], &["--level", "L7"], &["--ioctls", "--rip", "1"], &["--from", "99999"]]
    {
        let refused = vmtape(folder.path(), &[&["show", "a.tape"], wrong].concat())?;
        assert_eq!(refused.status.code(), Some(2), "{wrong:?}: {}", tail(&refused));
    }
    Ok(())
}

/// An empty answer says what it is about.
#[test]
fn that_nothing_fits_is_said() -> Result<()> {
    let folder = tempfile::tempdir()?;
    record(folder.path())?;
    let exits = count(&show(folder.path(), &[])?, "kvm_exit: ");
    for more in [&[][..], &["--json"]] {
        for filter in [["--rip", "0x1"], ["--vcpu", "1"], ["--grep", "no such text"]] {
            let shown = vmtape(folder.path(), &[&["show", "a.tape"], &filter[..], more].concat())?;
            let told = String::from_utf8_lossy(&shown.stderr).into_owned();
            let says = format!("nothing fits: {exits} exits were looked at");
            assert!(shown.status.success() && told.contains(&says), "{filter:?}: {}", tail(&shown));
        }
        let found = vmtape(folder.path(), &[&["show", "a.tape", "--reason", "npf"], more].concat())?;
        assert!(found.stderr.is_empty(), "{}", tail(&found));
    }
    Ok(())
}

#[test]
fn json_has_the_same() -> Result<()> {
    let folder = tempfile::tempdir()?;
    record(folder.path())?;
    let text = show(folder.path(), &["--reason", "npf", "--gpa", "0x1002000000", "--json"])?;
    let json: Value = serde_json::from_str(&text)?;
    let exits = json["shown"].as_array().context("exits")?;
    assert_eq!(exits.len(), 1, "{text}");
    let exit = &exits[0];
    assert_eq!((&exit["gva"], &exit["gpa"]), (&"0xffff923400000000".into(), &"0x1002000000".into()));
    let walk = exit["walk"].as_array().context("a walk")?;
    assert_eq!(walk.len(), 4, "{text}");
    assert_eq!((&walk[3]["before"], &walk[3]["after"]), (&"0x1002000001".into(), &"0x1002000021".into()));
    let rules = exit["rules"].as_array().context("rules")?;
    assert!(rules.contains(&"accessed-before-npf".into()), "{text}");
    Ok(())
}

/// The program, its plugins and their tapes say which build they are; `stat` shows it.
#[test]
fn builds_are_named() -> Result<()> {
    let folder = tempfile::tempdir()?;
    record(folder.path())?;
    let version = String::from_utf8(vmtape(folder.path(), &["--version"])?.stdout)?;
    assert!(version.starts_with("vmtape 0.") && version.contains("commit"), "{version}");
    let stat = String::from_utf8(vmtape(folder.path(), &["stat", "a.tape"])?.stdout)?;
    assert!(stat.contains(&format!("made by {}", version.trim())), "{stat}");
    assert!(stat.contains("backend svm-npt, made by vmtape_svm_npt 0.") && stat.contains("commit"), "{stat}");
    Ok(())
}

/// `stat` tells the release and what was chosen beside it, all with -v, as JSON always.
#[test]
fn stat_tells_the_options_that_were_chosen() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let line = "record -q -b vmx,eptad=0 --kvm v5.9 -o a.tape builtin:hello";
    let recorded = vmtape(folder.path(), &line.split(' ').collect::<Vec<_>>())?;
    assert!(recorded.status.success(), "{}", tail(&recorded));
    let stat = |more: &[&str]| -> Result<String> {
        let output = vmtape(folder.path(), &[&["stat", "a.tape"], more].concat())?;
        Ok(String::from_utf8(output.stdout)?)
    };
    let short = stat(&[])?;
    assert!(short.contains("(kvm=v5.9 eptad=off; -v: all)"), "{short}");
    let long = stat(&["-v"])?;
    assert!(long.contains(" ept=on ") && long.lines().nth(1).is_some_and(|line| line.len() > 1000), "{long}");
    let json: Value = serde_json::from_str(&stat(&["--json"])?)?;
    assert!(json["options"].as_array().is_some_and(|options| options.len() > 50), "{json}");
    Ok(())
}

/// A tape that another build recorded, and that this one does not repeat: both are named.
#[test]
fn another_build_is_named_with_this_one() -> Result<()> {
    use vmtape_arch::note::Note;
    use vmtape_replay::spec;
    use vmtape_traces::{Event, Metadata, Options, Tape, Writer};
    let folder = tempfile::tempdir()?;
    record(folder.path())?;
    let tape = Tape::open_whole(&folder.path().join("a.tape"))?;
    let mut metadata = tape.metadata().clone();
    metadata.notes.retain(|(name, _)| *name != Metadata::build_note("").0);
    metadata.notes.push(Metadata::build_note("vmtape_svm_npt 9.9 (commit 0123456789ab)"));
    let machine = spec::machine(&tape)?;
    let path = folder.path().join("other.tape");
    let mut writer = Writer::create(&path, &metadata, &spec::images(&machine), Options::default())?;
    // It told nothing of MMIO.
    for event in tape.events() {
        let event = event?;
        if !matches!(event, Event::Note { note: Note::Mmio { .. }, .. }) {
            writer.push(event);
        }
    }
    writer.finish()?;
    for mode in ["run", "exits"] {
        let replayed = vmtape(folder.path(), &["replay", "other.tape", "--mode", mode])?;
        assert_eq!(replayed.status.code(), Some(1), "{}", tail(&replayed));
        let told = String::from_utf8_lossy(&replayed.stderr).into_owned();
        assert!(
            told.contains("recorded by vmtape_svm_npt 9.9 (commit 0123456789ab); this is vmtape_svm_npt 0."),
            "{told}"
        );
    }
    Ok(())
}
