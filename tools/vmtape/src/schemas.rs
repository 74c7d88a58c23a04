//! The schema of what each command prints as JSON, made from the types that it prints.

use crate::{
    commands::{
        backends, bisect, campaign, check, guests, host, import, inject, migrate, outcome, report, scenarios,
        show, stat,
    },
    output::{Failure, schema},
};
use schemars::{Schema, SchemaGenerator, generate::SchemaSettings};
use serde_json::{Value, json};
use std::{fs, path::Path};

/// Adds a schema to others.
pub type Part = fn(&mut SchemaGenerator) -> Schema;

/// Each command with what it may print, but for errors.
const COMMANDS: [(&str, &[Part]); 17] = [
    ("backends", backends::SCHEMA),
    ("bisect", bisect::SCHEMA),
    ("campaign-merge", campaign::merge::SCHEMA),
    ("check", check::SCHEMA),
    ("diff", report::SCHEMA),
    ("guests", guests::SCHEMA),
    ("host-crash", host::crash::SCHEMA),
    ("host-show", host::show::SCHEMA),
    ("import", import::SCHEMA),
    ("inject", inject::print::SCHEMA),
    ("migrate", migrate::SCHEMA),
    ("record", outcome::SCHEMA),
    ("replay", report::SCHEMA),
    ("run", outcome::SCHEMA),
    ("scenarios", scenarios::SCHEMA),
    ("show", show::json::SCHEMA),
    ("stat", stat::SCHEMA),
];

/// The schema of a command: one of its reports, or an error.
fn of(command: &str, parts: &[Part]) -> Value {
    let mut generator = SchemaSettings::draft2020_12().for_serialize().into_generator();
    let failure: Part = schema::<Failure>;
    let any: Vec<_> = parts.iter().chain([&failure]).map(|part| part(&mut generator).to_value()).collect();
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": format!("vmtape {} --json", command.replace('-', " ")),
        "anyOf": any,
        "$defs": generator.take_definitions(true),
    })
}

/// VMTAPE_BLESS=1 writes the files anew.
#[test]
fn the_files_are_the_programs_own_types() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("schemas");
    for (command, parts) in COMMANDS {
        let text = serde_json::to_string_pretty(&of(command, parts)).unwrap() + "\n";
        let path = folder.join(format!("{command}.json"));
        if std::env::var_os("VMTAPE_BLESS").is_some() {
            fs::create_dir_all(&folder).and_then(|()| fs::write(&path, text)).unwrap();
        } else {
            let there = fs::read_to_string(&path).unwrap_or_default();
            assert!(there == text, "{}: VMTAPE_BLESS=1 cargo test -p vmtape schemas", path.display());
        }
    }
    assert_eq!(fs::read_dir(&folder).unwrap().count(), COMMANDS.len(), "a file of no command");
}
