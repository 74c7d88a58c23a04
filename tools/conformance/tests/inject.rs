//! Fault plans: what they do is on the tape, a replay repeats it without them, and the verdict is the right one.

use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::{collections::BTreeSet, fs, path::Path};
use vmtape_conformance::{BACKENDS, tail, vmtape};
use vmtape_migrate::points::MovePoint;

/// Injects a plan into a guest; what came of it, and the exit code.
fn inject(folder: &Path, backend: &str, guest: &str, plan: &str, more: &[&str]) -> Result<(Value, i32)> {
    fs::write(folder.join("plan.toml"), plan)?;
    let line = ["inject", "plan.toml", "-b", backend, guest, "--json"];
    let output = vmtape(folder, &[&line, more].concat())?;
    let code = output.status.code().context("a signal")?;
    if code > 1 {
        bail!("{backend} {guest}: {}", tail(&output));
    }
    Ok((serde_json::from_slice(&output.stdout)?, code))
}

fn rule(when: &str, answer: &str) -> String {
    format!("[[rule]]\nwhen = {{ {when} }}\nwhat = {{ answer = {answer} }}\n")
}

const TOUCH: &str = "builtin:touch,access=write";

#[test]
fn each_verdict_comes_where_it_is_right() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let enomem = rule("point = \"mmu-cache-enomem\", n = 1", "12");
    let cases = [
        (rule("point = \"lost-dirty\"", "1"), "silent-corruption"),
        (rule("point = \"spurious-fault\", n = 4", "1"), "masked"),
        (rule("point = \"spurious-fault\", n = 1000000", "1"), "not-reached"),
        (rule("point = \"rdmsr-refused\"", "1"), "guest-lost"),
        (rule("point = \"page-fault-retry\", n = \"1-\"", "1"), "hang"),
        (enomem.clone(), "guest-lost"),
        (format!("retries = 1\n{enomem}"), "detected"),
        (rule("point = \"host-nmi\", insn = 300", "1"), "masked"),
    ];
    for (plan, verdict) in &cases {
        for expected in [verdict, &"parked"] {
            let plan = format!("expect = \"{expected}\"\n{plan}");
            let (report, code) = inject(folder.path(), "svm-npt", TOUCH, &plan, &["-o", "a.tape"])?;
            assert_eq!(report["verdict"], *verdict, "{plan}{report:#}");
            assert_eq!(
                (code == 0, report["as_expected"] == true),
                (expected == verdict, expected == verdict)
            );
        }
        let replayed = vmtape(folder.path(), &["replay", "a.tape"])?;
        assert!(replayed.status.success(), "{plan}{}", tail(&replayed));
    }
    Ok(())
}

/// Chance and states: the same plan gives the same tape, and the tape needs no plan.
#[test]
fn a_plan_repeats_itself_and_its_tape_needs_it_no_more() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let plan = "seed = 3\nheal-from = 4000\n\
        [[rule]]\nwhen = { point = \"exit\", exit-n = 5 }\nwhat.goto = 2\n\
        [[rule]]\nwhen = { point = \"spurious-fault\", state = 2, probability = 0.1 }\n\
        [[rule]]\nwhen = { point = \"lost-flush\", active = 0.0 }\n";
    for backend in BACKENDS {
        for name in ["a.tape", "b.tape"] {
            inject(folder.path(), backend, TOUCH, plan, &["-o", name])?;
        }
        let read = |name: &str| fs::read(folder.path().join(name));
        assert!(read("a.tape")? == read("b.tape")?, "{backend}");
        fs::remove_file(folder.path().join("plan.toml"))?;
        for mode in ["run", "exits"] {
            let replayed = vmtape(folder.path(), &["replay", "a.tape", "--mode", mode])?;
            assert!(replayed.status.success(), "{backend} {mode}: {}", tail(&replayed));
        }
        let shown = vmtape(folder.path(), &["show", "a.tape"])?;
        let shown = String::from_utf8(shown.stdout)?;
        assert!(shown.contains("spurious-fault #") && shown.contains("(rule 2)"), "{backend}");
        assert!(shown.contains("skipped, "), "{backend}: what was due and did not happen");
    }
    Ok(())
}

#[test]
fn each_occurrence_fails_until_there_is_none() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let plan = format!(
        "retries = 2\nexpect = \"detected\"\n{}",
        rule("point = \"mmu-cache-enomem\", each = true", "12")
    );
    for backend in BACKENDS {
        let (report, code) = inject(folder.path(), backend, TOUCH, &plan, &[])?;
        let members = report["members"].as_array().context("members")?;
        assert!(code == 0 && members.len() > 1, "{backend}: {report:#}");
        let numbers: Vec<_> = members.iter().filter_map(|member| member["n"].as_u64()).collect();
        assert_eq!(numbers, Vec::from_iter(1..=numbers.len() as u64), "{backend}");
    }
    Ok(())
}

/// A broken entry leads to memory that is not there: the guest is lost or sees other data, and nothing here breaks.
#[test]
fn memory_that_is_not_there_is_written_to_no_harm() -> Result<()> {
    let folder = tempfile::tempdir()?;
    for (backend, point) in
        [("vmx", "nested-entry-flip"), ("svm-npt", "spte-flip"), ("svm", "shadow-entry-flip")]
    {
        for bit in [26, 34, 41] {
            let plan = rule(
                &format!("point = \"{point}\", each = true, insn = \"0-400\""),
                &format!("{:#x}", 1u64 << bit),
            );
            inject(folder.path(), backend, TOUCH, &plan, &[])?;
        }
    }
    Ok(())
}

/// One fault of many matters: both searches find it.
#[test]
fn the_fault_that_matters_is_found() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let plan = "seed = 1\n[[rule]]\nwhen = { point = \"spurious-fault\", probability = 0.5 }\n\
        [[rule]]\nwhen = { point = \"lost-dirty\", n = 1 }\n";
    let (report, _) =
        inject(folder.path(), "svm-npt", TOUCH, plan, &["-o", "a.tape", "--shrink", "small.toml"])?;
    assert!(report["faults"].as_array().is_some_and(|faults| faults.len() > 2), "{report:#}");
    let small = fs::read_to_string(folder.path().join("small.toml"))?;
    assert!(small.matches("[[rule]]").count() == 1 && small.contains("lost-dirty"), "{small}");
    let again = report["smallest"]["command"].as_str().context("a command")?;
    let again = again.replace('\'', "");
    let words: Vec<&str> = again.split(' ').skip(1).collect();
    let output = vmtape(folder.path(), &words)?;
    assert!(output.status.success(), "{again}: {}", tail(&output));
    let found = vmtape(folder.path(), &["bisect", "a.tape", "--axis", "faults"])?;
    let text = String::from_utf8(found.stdout.clone())?;
    let first = text.lines().next().unwrap_or_default();
    assert!(first.contains("lost-dirty #1") && !first.contains("spurious"), "{text}{}", tail(&found));
    Ok(())
}

#[test]
fn bad_plans_are_told_with_their_lines() -> Result<()> {
    let folder = tempfile::tempdir()?;
    for (plan, words) in [
        ("", "needs a [[rule]]"),
        (
            "\n[[rule]]\nwhen = { point = \"flush\" }",
            "line 3: the backend has no fault point `flush`; there is `lost-flush`",
        ),
        ("[[rule]]\nwhen = { point = \"lost-flush\", msr = 1 }", "line 2: `lost-flush` tells no msr"),
        ("[[rule]]\nwhen = 3", "line 2"),
        ("seed = 'x'", "line 1"),
        ("\u{0}", "line 1"),
    ] {
        fs::write(folder.path().join("plan.toml"), plan)?;
        let output = vmtape(folder.path(), &["inject", "plan.toml", "-b", "vmx", "builtin:hello"])?;
        assert_eq!(output.status.code(), Some(125), "{plan}");
        assert!(tail(&output).contains(words), "{plan}: {}", tail(&output));
    }
    let output = vmtape(folder.path(), &["inject", "points", "-b", "vmx"])?;
    let text = String::from_utf8(output.stdout)?;
    assert!(text.contains("lost-flush") && text.contains("host-timer"), "{text}");
    Ok(())
}

/// Plans reach migrations too.
#[test]
fn a_migration_takes_a_plan() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let line = ["record", "-q", "-b", "vmx", "-o", "a.tape", "builtin:dirty"];
    let recorded = vmtape(folder.path(), &line)?;
    assert!(recorded.status.success(), "{}", tail(&recorded));
    let kill = "when = { point = \"move-kill-destination\", phase = \"hand-over\" }";
    for (when, verdict) in
        [(kill, "detected"), ("when = { point = \"move-page-lost\", n = 100000 }", "not-reached")]
    {
        for (expected, code) in [(verdict, 0), ("two-running", 1)] {
            let plan = format!("expect = \"{expected}\"\n[[rule]]\n{when}\n");
            fs::write(folder.path().join("plan.toml"), plan)?;
            let line = [
                "migrate",
                "a.tape",
                "--at",
                "exit=20",
                "--to",
                "svm-npt,host=amd-52",
                "--plan",
                "plan.toml",
            ];
            let moved = vmtape(folder.path(), &line)?;
            assert_eq!(moved.status.code(), Some(code), "{when}: {}", tail(&moved));
            assert!(tail(&moved).contains(verdict), "{}", tail(&moved));
        }
    }
    Ok(())
}

/// Every fault point of a migration happens, in a move that comes there.
#[test]
fn every_point_of_a_migration_happens() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let line = ["record", "-q", "-b", "svm-npt", "-o", "a.tape", "builtin:dirty,pages=3,rounds=9000"];
    let recorded = vmtape(folder.path(), &line)?;
    assert!(recorded.status.success(), "{}", tail(&recorded));
    let line = ["record", "-q", "-b", "svm-npt", "-o", "b.tape", "builtin:hello"];
    assert!(vmtape(folder.path(), &line)?.status.success());
    for (point, name) in MovePoint::NAMED {
        let method: &[&str] = match *name {
            "move-log-clear" => &["--method", "precopy", "--log", "manual"],
            "move-retry-dirty" => &["--method", "precopy", "--attempts", "2"],
            name if name.starts_with("move-log") => &["--method", "precopy"],
            name if name.starts_with("move-request") => &["--method", "postcopy"],
            _ => &[],
        };
        let mut plan = rule(&format!("point = \"{name}\", n = 1"), "1");
        if *name == "move-retry-dirty" {
            // There is a second attempt where the first one fails.
            plan += &rule("point = \"move-log-failed\", n = 1", "\"0xfffffffffffffff2\"");
        }
        fs::write(folder.path().join("plan.toml"), plan)?;
        // Behind an exit to userspace.
        let (tape, moment) = match *name {
            "move-exit-uncompleted" => ("b.tape", "exit=12"),
            _ => ("a.tape", "insn=5000"),
        };
        let line =
            ["migrate", tape, "--at", moment, "--to", "svm-npt,host=amd-52", "--plan", "plan.toml", "--json"];
        let moved = vmtape(folder.path(), &[&line, method].concat())?;
        let report: Value =
            serde_json::from_slice(&moved.stdout).with_context(|| format!("{name}: {}", tail(&moved)))?;
        let faults = report["outcomes"].as_array().and_then(|outcomes| outcomes.last()?["faults"].as_array());
        let fired = faults.is_some_and(|faults| faults.iter().any(|fault| fault["point"] == point.0));
        assert!(fired, "{name}: {report:#}");
    }
    Ok(())
}

/// Every point of the page of what is covered is there, and every point is on the page.
#[test]
fn the_page_of_points_is_whole() -> Result<()> {
    let page = include_str!("../../../host/faults/COVERAGE.md");
    let mut known: BTreeSet<String> = MovePoint::NAMED.iter().map(|(_, name)| (*name).to_owned()).collect();
    for backend in BACKENDS {
        let listed = vmtape(Path::new("."), &["inject", "points", "-b", backend, "--json"])?;
        let listed: Value = serde_json::from_slice(&listed.stdout).with_context(|| tail(&listed))?;
        let points = listed["points"].as_array().context("points")?;
        known.extend(points.iter().filter_map(|point| point["name"].as_str()).map(str::to_owned));
    }
    let is_point =
        |word: &&str| word.contains('-') && word.chars().all(|c| c.is_ascii_lowercase() || c == '-');
    let named: BTreeSet<String> =
        page.split('`').skip(1).step_by(2).filter(is_point).map(str::to_owned).collect();
    let histories = ["event-vectoring", "smaller-maxphyaddr", "ept-5level"].map(str::to_owned);
    let unknown: Vec<_> =
        named.iter().filter(|name| !known.contains(*name) && !histories.contains(name)).collect();
    assert!(unknown.is_empty(), "no such points: {unknown:?}");
    let left_out: Vec<_> = known.difference(&named).collect();
    assert!(left_out.is_empty(), "not on the page: {left_out:?}");
    Ok(())
}
