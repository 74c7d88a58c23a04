//! What other tools read: exits as trace events and as a table, counted by programs that are not ours where they are there.

use anyhow::{Context, Result, ensure};
use std::{collections::BTreeMap, fs, path::Path, process::Command};
use vmtape_conformance::{skipped, tail, vmtape};

/// Exits by vCPU and reason.
type Counts = BTreeMap<(String, String), u64>;

fn export(folder: &Path) -> Result<()> {
    for line in [
        &["record", "-q", "-b", "svm-npt", "-o", "a.tape", "builtin:smp2"][..],
        &["export", "a.tape", "--format", "csv", "-o", "a.csv"],
        &["export", "a.tape", "--format", "chrome", "-o", "a.json"],
        &["export", "a.tape", "--format", "jsonl", "-o", "a.jsonl"],
    ] {
        let output = vmtape(folder, line)?;
        ensure!(output.status.success(), "{line:?}: {}", tail(&output));
    }
    Ok(())
}

/// The same out of the JSON lines, which say everything.
fn counts(folder: &Path) -> Result<Counts> {
    let mut counts = Counts::new();
    for line in fs::read_to_string(folder.join("a.jsonl"))?.lines().skip(1) {
        let event: serde_json::Value = serde_json::from_str(line)?;
        if event["event"] == "kvm_exit" {
            let reason = event["reason"].as_str().context("a reason")?.to_owned();
            *counts.entry((event["vcpu"].to_string(), reason)).or_default() += 1;
        }
    }
    ensure!(counts.len() > 4 && counts.keys().any(|(vcpu, _)| vcpu == "1"), "{counts:?}");
    Ok(counts)
}

#[test]
fn a_table_has_every_exit() -> Result<()> {
    let folder = tempfile::tempdir()?;
    export(folder.path())?;
    let text = fs::read_to_string(folder.path().join("a.csv"))?;
    let mut lines = text.lines();
    let names: Vec<&str> = lines.next().context("names")?.split(',').collect();
    let column = |name| names.iter().position(|other| *other == name).context("a column");
    let (vcpu, reason) = (column("vcpu")?, column("reason")?);
    let mut found = Counts::new();
    for line in lines {
        let values: Vec<&str> = line.split(',').collect();
        ensure!(values.len() == names.len(), "{line}");
        *found.entry((values[vcpu].to_owned(), values[reason].to_owned())).or_default() += 1;
    }
    assert_eq!(found, counts(folder.path())?);
    Ok(())
}

#[test]
fn slices_follow_each_other_on_each_track() -> Result<()> {
    let folder = tempfile::tempdir()?;
    export(folder.path())?;
    let events: Vec<serde_json::Value> = serde_json::from_slice(&fs::read(folder.path().join("a.json"))?)?;
    let (mut found, mut ends) = (Counts::new(), BTreeMap::<String, f64>::new());
    for slice in events.iter().filter(|event| event["ph"] == "X") {
        let track = slice["tid"].as_u64().context("a track")? - 1;
        let name = slice["name"].as_str().context("a name")?.to_owned();
        *found.entry((track.to_string(), name)).or_default() += 1;
        let (start, length) = (slice["ts"].as_f64(), slice["dur"].as_f64());
        let (start, length) = (start.context("a start")?, length.context("a length")?);
        let end = ends.insert(track.to_string(), start + length).unwrap_or(0.0);
        // A nanosecond is as exact as the numbers are.
        ensure!(start + 0.0005 >= end && length > 0.0, "{slice} begins before {end}");
    }
    assert_eq!(found, counts(folder.path())?);
    Ok(())
}

/// Runs a script of Python's, where a first line of it works: a module may fetch a program of its own.
fn python(folder: &Path, first: &str, script: &str) -> Result<Option<String>> {
    let has = Command::new("python3").args(["-c", first]).output();
    if !has.is_ok_and(|output| output.status.success()) {
        skipped(&format!("Python cannot `{first}`"));
        return Ok(None);
    }
    let output = Command::new("python3").current_dir(folder).args(["-c", script]).output()?;
    ensure!(output.status.success(), "{}", tail(&output));
    Ok(Some(String::from_utf8(output.stdout)?))
}

fn parsed(text: &str) -> Result<Counts> {
    let row = |line: &str| -> Option<((String, String), u64)> {
        let mut words = line.split('\t');
        let key = (words.next()?.to_owned(), words.next()?.to_owned());
        Some((key, words.next()?.parse().ok()?))
    };
    text.lines().map(|line| row(line).with_context(|| line.to_owned())).collect()
}

#[test]
fn duckdb_counts_the_same() -> Result<()> {
    let folder = tempfile::tempdir()?;
    export(folder.path())?;
    let script = "import duckdb\nfor r in duckdb.sql(\"select vcpu, reason, count(*) from 'a.csv' group by all\").fetchall():\n    \
                  print(*r, sep='\\t')";
    let Some(text) = python(folder.path(), "import duckdb", script)? else { return Ok(()) };
    assert_eq!(parsed(&text)?, counts(folder.path())?);
    Ok(())
}

#[test]
fn perfetto_opens_the_slices() -> Result<()> {
    let folder = tempfile::tempdir()?;
    export(folder.path())?;
    let start = "from perfetto.trace_processor import TraceProcessor as T; T()";
    let script = "from perfetto.trace_processor import TraceProcessor\ntp = TraceProcessor(trace='a.json')\n\
                  q = \"select t.name as track, s.name as name, count(*) as n from slice s join thread_track k on s.track_id = k.id \
                  join thread t using(utid) group by 1, 2\"\nfor r in tp.query(q):\n    print(r.track.split()[1], r.name, r.n, sep='\\t')";
    let Some(text) = python(folder.path(), start, script)? else { return Ok(()) };
    assert_eq!(parsed(&text)?, counts(folder.path())?);
    Ok(())
}

/// The published schema of the JSON lines.
const SCHEMA: &str = include_str!("../../../traces/schema/events.json");

/// Whether a value is what the schema says of it: by `$ref` to `hex`, or `type`.
fn is_as(schema: &serde_json::Value, value: &serde_json::Value) -> bool {
    if schema["$ref"] == "#/$defs/hex" {
        return value
            .as_str()
            .and_then(|text| text.strip_prefix("0x"))
            .is_some_and(|text| u64::from_str_radix(text, 16).is_ok());
    }
    let is = |name: &str| match name {
        "integer" => value.is_u64() || value.is_i64(),
        "number" => value.is_number(),
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "object" => value.is_object(),
        "array" => value.is_array(),
        "null" => value.is_null(),
        _ => false,
    };
    match &schema["type"] {
        serde_json::Value::String(name) => is(name),
        serde_json::Value::Array(names) => names.iter().filter_map(|name| name.as_str()).any(is),
        _ => true,
    }
}

/// What is wrong with an event: a field that the schema does not have, has otherwise, or asks for.
fn wrong(schema: &serde_json::Value, event: &serde_json::Value) -> Option<String> {
    let name = event["event"].as_str()?;
    let definition = &schema["$defs"][name];
    let kept = event.get("text").is_some();
    let definition = if kept { &schema["$defs"]["kept"] } else { definition };
    let Some(known) = definition["properties"].as_object() else {
        return Some(format!("{name}: not in the schema"));
    };
    let fields = event.as_object()?.iter().filter(|(field, _)| !matches!(field.as_str(), "event" | "exit"));
    for (field, value) in fields {
        match known.get(field) {
            None => return Some(format!("{name}: {field} is not in the schema")),
            Some(schema) if !is_as(schema, value) => return Some(format!("{name}: {field} is {value}")),
            _ => {}
        }
    }
    let required = definition["required"].as_array()?.iter().filter_map(|field| field.as_str());
    required.filter(|field| event.get(field).is_none()).map(|field| format!("{name}: no {field}")).next()
}

#[test]
fn every_line_is_as_the_schema_says() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let schema: serde_json::Value = serde_json::from_str(SCHEMA)?;
    let mut seen = std::collections::BTreeSet::new();
    let trace =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../traces/recordings/ept1/setjmp/trace.txt.gz");
    let import = format!("import -o a.tape {}", trace.display());
    for make in [
        "record -q -b svm-npt -o a.tape builtin:smp2",
        "record -q -b svm --cpu max,+svm -o a.tape builtin:nested-exits",
        "record -q -b vmx,allow_smaller_maxphyaddr=on --cpu max,phys-bits=36 -o a.tape builtin:illegal",
        "record -q -b svm --host amd-52 -o a.tape builtin:bar",
        &import,
    ] {
        for line in [make, "export a.tape --format jsonl -o a.jsonl"] {
            let output = vmtape(folder.path(), &line.split(' ').collect::<Vec<_>>())?;
            ensure!(output.status.success(), "{line}: {}", tail(&output));
        }
        let text = fs::read_to_string(folder.path().join("a.jsonl"))?;
        let head: serde_json::Value = serde_json::from_str(text.lines().next().context("a line")?)?;
        ensure!(
            head["schema_version"] == schema["$defs"]["tape"]["properties"]["schema_version"]["const"],
            "{head}"
        );
        for line in text.lines().skip(1) {
            let event = serde_json::from_str(line)?;
            let wrong = wrong(&schema, &event);
            ensure!(wrong.is_none(), "{make}: {}: {line}", wrong.unwrap_or_default());
            seen.extend(event["event"].as_str().map(str::to_owned));
        }
    }
    ensure!(seen.len() > 25, "{seen:?}");
    // It can fail.
    let bad = serde_json::json!({"event": "kvm_pio", "exit": 0, "vcpu": 0, "port": 1016});
    ensure!(wrong(&schema, &bad).is_some(), "a number where an address is");
    Ok(())
}
