//! What `--json` prints and the page that documents it name the same fields, and the same words in them.

use anyhow::{Context, Result};
use serde_json::Value;
use std::{collections::BTreeSet, fs, path::Path};
use vmtape_conformance::{tail, vmtape};

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

#[test]
fn every_field_is_documented_and_every_documented_field_is_there() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let record =
        "record -q -b vmx,allow_smaller_maxphyaddr=on --cpu max,phys-bits=36 -o a.tape builtin:illegal";
    answer(folder.path(), record).ok();
    let trace =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../traces/recordings/npt1-guests/hello/trace.txt.gz");
    let import = format!("import -o real.tape {} --json", trace.display());
    answer(folder.path(), &import)?;
    fs::write(
        folder.path().join("node.toml"),
        "vendor = 'intel'\nphys-bits = 39\niommu-bits = 36\nwithout = ['pku']\n",
    )?;
    let lines = [
        "check a.tape --to amd-48 node.toml intel-46,vmx,v5.6 --pin --json",
        "check --fleet node.toml amd-48 --guest builtin:cpuid --pin --json",
        "replay a.tape -b svm-npt --json",
        "host show intel-52-4level --json",
        "migrate a.tape --at start --to intel-46,vmx --json",
        "inject plan.toml -b svm-npt builtin:touch,access=write --shrink small.toml --json",
        "campaign merge campaign.toml results --json",
        "check real.tape --to amd-52 --json",
        "diff real.tape a.tape --json",
    ];
    fs::write(folder.path().join("plan.toml"), "[[rule]]\nwhen = { point = \"lost-dirty\", n = 1 }\n")?;
    let campaign = "plans = 2\nguests = [\"builtin:hello\"]\n[[machine]]\nbackend = \"vmx\"\n";
    fs::write(folder.path().join("campaign.toml"), campaign)?;
    vmtape(folder.path(), &["campaign", "run", "campaign.toml", "--shard", "0", "-o", "results"])?;
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
