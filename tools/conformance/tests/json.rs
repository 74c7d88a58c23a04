//! What `--json` prints and the page that documents it name the same fields, and the same words in them.

use anyhow::{Context, Result};
use serde_json::Value;
use std::{
    collections::BTreeSet,
    fs,
    path::Path,
    process::{Command, Stdio},
};
use vmtape_conformance::{skipped, tail, vmtape};

const PAGE: &str = include_str!("../../vmtape/JSON.md");
/// Objects whose keys are names out of the run, not fields.
const MAPS: [&str; 8] = ["cost", "exempted", "unknown", "verdicts", "exempt", "open", "open_events", "count"];
/// Fields that hold one of the words that the page lists.
const WORDS: [&str; 8] = ["verdict", "level", "class", "severity", "subject", "kind", "outcome", "procfs"];

/// Words in `code` of a text.
fn code(text: &str) -> BTreeSet<&str> {
    text.split('`').skip(1).step_by(2).collect()
}

/// Every field and every listed word of an answer.
fn walk<'v>(value: &'v Value, fields: &mut BTreeSet<&'v str>, words: &mut BTreeSet<&'v str>) {
    match value {
        Value::Array(items) => items.iter().for_each(|item| walk(item, fields, words)),
        Value::Object(members) => {
            for (name, member) in members {
                fields.insert(name);
                match member {
                    // A paging entry's level is a number; a story's outcome is a sentence.
                    Value::String(word) if WORDS.contains(&name.as_str()) && !word.contains(' ') => {
                        words.insert(word);
                    }
                    Value::Object(map) if MAPS.contains(&name.as_str()) => {
                        map.values().for_each(|value| walk(value, fields, words));
                    }
                    _ => walk(member, fields, words),
                }
            }
        }
        _ => {}
    }
}

fn answer(folder: &Path, line: &str) -> Result<Value> {
    let output = vmtape(folder, &line.split(' ').collect::<Vec<_>>())?;
    serde_json::from_slice(&output.stdout).with_context(|| format!("{line}: {}", tail(&output)))
}

const INJECT: &str = "inject plan.toml -b svm-npt builtin:touch,access=write --shrink small.toml --json";

/// A trace of the real KVM and its tape, a plan, and a campaign that was run.
fn inputs(folder: &Path) -> Result<()> {
    let traces = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../traces/recordings/npt1-guests");
    fs::copy(traces.join("hello/trace.txt.gz"), folder.join("trace.txt.gz"))?;
    answer(folder, "import -o real.tape trace.txt.gz --json")?;
    fs::write(folder.join("plan.toml"), "[[rule]]\nwhen = { point = \"lost-dirty\", n = 1 }\n")?;
    let campaign = "plans = 2\nguests = [\"builtin:hello\"]\n[[machine]]\nbackend = \"vmx\"\n";
    fs::write(folder.join("campaign.toml"), campaign)?;
    vmtape(folder, &["campaign", "run", "campaign.toml", "--shard", "0", "-o", "results"])?;
    Ok(())
}

/// Each command's answers fit its schema, errors too; and no number needs more bits than every parser has.
#[test]
fn answers_fit_their_schemas() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let record =
        "record -q -b svm-npt --cpu max,phys-bits=36 -o a.tape builtin:touch,pte=0x1002000001 --json";
    inputs(folder.path())?;
    let rows: [(&str, &[&str]); 17] = [
        ("record", &[record, "record -b nothing -o x.tape builtin:hello --json"]),
        ("backends", &["backends --json", "backends vmx --json", "backends --patches --json"]),
        ("guests", &["guests --json", "guests nobody --json"]),
        ("host-show", &["host show intel-52-4level --json", "host show amd-48 --json"]),
        ("host-crash", &["host crash -b vmx --kvm v5.6 --json"]),
        (
            "replay",
            &[
                "replay a.tape --json",
                "replay a.tape -b vmx --json",
                "replay a.tape -b vmx --mode exits --json",
            ],
        ),
        ("diff", &["diff a.tape a.tape --json", "diff real.tape a.tape --json"]),
        ("bisect", &["bisect a.tape -b vmx --axis width --json"]),
        (
            "check",
            &[
                "check a.tape --to intel-46 amd-52 --pin --json",
                "check --fleet intel-39 amd-48 --pin --json",
                "check real.tape --to amd-52 --json",
            ],
        ),
        ("show", &["show a.tape --json", "show a.tape --reason npf --json", "show nothing.tape --json"]),
        ("stat", &["stat a.tape --json"]),
        ("scenarios", &["scenarios --list --json"]),
        (
            "inject",
            &["inject points -b vmx --json", INJECT, "inject nothing.toml -b vmx builtin:hello --json"],
        ),
        ("campaign-merge", &["campaign merge campaign.toml results --json"]),
        ("run", &["run -b vmx --json builtin:hello"]),
        (
            "migrate",
            &[
                "migrate a.tape --at exit=2 --to vmx --json",
                "migrate a.tape --at every-exit=4 --to vmx --classes lost-regs --json",
                "migrate a.tape --at start --to amd-52 --policies --json",
                "migrate a.tape --at exit=999999 --to nothing --json",
            ],
        ),
        ("import", &["import -o again.tape trace.txt.gz --json", "import -o x.tape nothing.txt --json"]),
    ];
    for (command, lines) in rows {
        let schema = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../vmtape/schemas/{command}.json"));
        let schema: Value = serde_json::from_str(&fs::read_to_string(schema)?)?;
        let (mut right, mut wrong) = (Vec::new(), Vec::new());
        for line in lines {
            let answer = answer(folder.path(), line)?;
            assert_eq!(answer["schema_version"], 2, "{line}");
            numbers(&answer, line);
            // The schema is of the fields that are there.
            for name in answer.as_object().context("an object")?.keys() {
                let mut bent = answer.clone();
                bent[name] = serde_json::json!([[0.5]]);
                wrong.push((format!("{line}: {name}"), bent));
            }
            right.push((*line, answer));
        }
        let answers = right.iter().map(|(_, answer)| answer).chain(wrong.iter().map(|(_, answer)| answer));
        let Some(errors) = errors(&schema, answers.collect())? else {
            skipped("Python's jsonschema is not installed (apt install python3-jsonschema)");
            return Ok(());
        };
        let (of_right, of_wrong) = errors.split_at(right.len());
        for ((line, _), errors) in right.iter().zip(of_right) {
            assert!(errors.is_empty(), "{line}: {errors:#?}");
        }
        for ((what, _), errors) in wrong.iter().zip(of_wrong) {
            assert!(!errors.is_empty(), "{what} may be anything");
        }
    }
    Ok(())
}

/// Asks Python's jsonschema what is wrong with each answer; `None`: it is not there.
fn errors(schema: &Value, answers: Vec<&Value>) -> Result<Option<Vec<Vec<String>>>> {
    const VALIDATE: &str = "import json, sys\n\
        from jsonschema.validators import validator_for\n\
        job = json.load(sys.stdin)\n\
        kind = validator_for(job['schema'])\n\
        kind.check_schema(job['schema'])\n\
        validator = kind(job['schema'])\n\
        print(json.dumps([[e.message for e in validator.iter_errors(a)] for a in job['answers']]))\n";
    let has_library = |python: &&str| {
        let tried = Command::new(python).args(["-c", "import jsonschema.validators"]).output();
        tried.is_ok_and(|tried| tried.status.success())
    };
    let Some(python) = ["python3", "/usr/bin/python3"].iter().find(|python| has_library(python)) else {
        return Ok(None);
    };
    let mut child =
        Command::new(python).args(["-c", VALIDATE]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let job = serde_json::json!({ "schema": schema, "answers": answers });
    serde_json::to_writer(child.stdin.take().context("a pipe")?, &job)?;
    let output = child.wait_with_output()?;
    anyhow::ensure!(output.status.success(), "{python} could not validate");
    let errors: Vec<Vec<String>> = serde_json::from_slice(&output.stdout)?;
    anyhow::ensure!(errors.len() == answers.len(), "not all answers were looked at");
    Ok(Some(errors))
}

/// Numbers are counts, and addresses text.
fn numbers(value: &Value, line: &str) {
    const MOST: u64 = 1 << 53;
    const WORDS: [&str; 11] =
        ["rip", "gpa", "gva", "hpa", "address", "value", "at", "last", "before", "after", "ept_vpid_cap"];
    match value {
        Value::Array(items) => items.iter().for_each(|item| numbers(item, line)),
        Value::Object(members) => {
            for (name, member) in members {
                let word = WORDS.contains(&name.as_str()) && member.is_number();
                assert!(!word, "{line}: {name} is a number");
                numbers(member, line);
            }
        }
        Value::Number(number) => {
            assert!(number.as_f64().is_some_and(|number| number.abs() < MOST as f64), "{line}: {number}");
        }
        _ => {}
    }
}

/// The words that a schema allows a field.
fn listed<'v>(schema: &'v Value, words: &mut BTreeSet<&'v str>) {
    match schema {
        Value::Array(items) => items.iter().for_each(|item| listed(item, words)),
        Value::Object(members) => {
            let list = members.get("enum").and_then(Value::as_array).into_iter().flatten();
            words.extend(members.get("const").into_iter().chain(list).filter_map(Value::as_str));
            members.values().for_each(|member| listed(member, words));
        }
        _ => {}
    }
}

#[test]
fn every_word_of_the_schemas_is_documented() -> Result<()> {
    let documented = code(PAGE);
    let schemas = Path::new(env!("CARGO_MANIFEST_DIR")).join("../vmtape/schemas");
    let mut all = 0;
    for file in fs::read_dir(schemas)? {
        let path = file?.path();
        let schema: Value = serde_json::from_str(&fs::read_to_string(&path)?)?;
        let mut words = BTreeSet::new();
        listed(&schema, &mut words);
        all += words.len();
        let missing: Vec<_> = words.iter().filter(|word| !documented.contains(*word)).collect();
        assert!(missing.is_empty(), "{}: not on the page: {missing:?}", path.display());
    }
    assert!(all > 100, "{all}");
    Ok(())
}

#[test]
fn every_field_is_documented_and_every_documented_field_is_there() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let record =
        "record -q -b vmx,allow_smaller_maxphyaddr=on --cpu max,phys-bits=36 -o a.tape builtin:illegal";
    answer(folder.path(), record).ok();
    inputs(folder.path())?;
    let walked = "record -q -b svm-npt --cpu max,phys-bits=36 -o b.tape builtin:touch,pte=0x1002000001";
    answer(folder.path(), walked).ok();
    fs::write(
        folder.path().join("node.toml"),
        "vendor = 'intel'\nphys-bits = 39\niommu-bits = 36\nwithout = ['pku']\n",
    )?;
    let lines = [
        "check a.tape --to amd-48 node.toml intel-46,vmx,v5.6 --pin --json",
        "check --fleet node.toml amd-48 --guest builtin:cpuid --pin --json",
        "replay a.tape -b svm-npt --json",
        "replay a.tape -b svm-npt --mode exits --json",
        "host show intel-52-4level --json",
        "migrate a.tape --at start --to intel-46,vmx --json",
        INJECT,
        "campaign merge campaign.toml results --json",
        "check real.tape --to amd-52 --json",
        "diff real.tape a.tape --json",
        "show b.tape --json",
        "replay nothing.tape --json",
    ];
    let answers = lines.iter().map(|line| answer(folder.path(), line)).collect::<Result<Vec<_>>>()?;
    let (mut fields, mut words) = (BTreeSet::new(), BTreeSet::new());
    for answer in &answers {
        assert_eq!(answer["schema_version"], 2);
        walk(answer, &mut fields, &mut words);
    }
    let documented = code(PAGE);
    let undocumented: Vec<_> = fields.union(&words).filter(|name| !documented.contains(*name)).collect();
    assert!(undocumented.is_empty(), "not on the page: {undocumented:?}");
    // The first column of every table names fields.
    let rows = PAGE.lines().filter(|line| line.starts_with("| `")).filter_map(|line| line.split('|').nth(1));
    let missing: Vec<_> = rows.flat_map(code).filter(|name| !fields.contains(name)).collect();
    assert!(missing.is_empty(), "on the page and nowhere else: {missing:?}");
    Ok(())
}
