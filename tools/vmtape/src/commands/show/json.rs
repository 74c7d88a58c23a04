//! The exits that are asked for, as JSON, one after the other.

use super::{
    Args,
    choice::{Looked, gva},
};
use crate::output::print_json;
use anyhow::{Result, anyhow};
use schemars::JsonSchema;
use serde::{Serialize, Serializer};
use std::cell::{Cell, RefCell};
use vmtape_arch::note::Note;
use vmtape_replay::text;
use vmtape_traces::{ExitGroup, Metadata, Tape, hex};

#[derive(Serialize, JsonSchema)]
struct Shown<'a> {
    tape: &'a str,
    #[serde(serialize_with = "one_by_one")]
    #[schemars(with = "Vec<Exit>")]
    shown: RefCell<Option<Box<dyn Iterator<Item = Exit> + 'a>>>,
}

/// An exit.
#[derive(Serialize, JsonSchema)]
struct Exit {
    /// Its number on the tape, from 0 on.
    number: u64,
    vcpu: u32,
    /// Instructions retired before it.
    icount: u64,
    #[serde(serialize_with = "hex::word")]
    #[schemars(with = "String")]
    rip: u64,
    exit_reason: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    nested: Option<String>,
    #[serde(serialize_with = "hex::word")]
    #[schemars(with = "String")]
    info1: u64,
    #[serde(serialize_with = "hex::word")]
    #[schemars(with = "String")]
    info2: u64,
    #[serde(serialize_with = "hex::word_or_null")]
    #[schemars(with = "Option<String>")]
    gva: Option<u64>,
    #[serde(serialize_with = "hex::word_or_null")]
    #[schemars(with = "Option<String>")]
    gpa: Option<u64>,
    /// Silicon's walk of the guest's tables that led to it.
    walk: Vec<Step>,
    /// Rules of the backend that decided.
    rules: Vec<String>,
    /// The exit and what was done about it, in words.
    lines: Vec<String>,
    /// How its handling ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    resume: Option<String>,
}

/// A paging entry that silicon read.
#[derive(Serialize, JsonSchema)]
struct Step {
    paging_level: u8,
    #[serde(serialize_with = "hex::word")]
    #[schemars(with = "String")]
    gpa: u64,
    #[serde(serialize_with = "hex::word")]
    #[schemars(with = "String")]
    before: u64,
    #[serde(serialize_with = "hex::word")]
    #[schemars(with = "String")]
    after: u64,
}

fn one_by_one<S: Serializer>(
    exits: &RefCell<Option<Box<dyn Iterator<Item = Exit> + '_>>>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(exits.take().into_iter().flatten())
}

pub fn print(tape: &Tape, names: &Metadata, args: &Args) -> Result<Looked> {
    let (failed, looked) = (RefCell::new(None), Cell::new(Looked::default()));
    let count = |at: u64, shown: u64| {
        let Looked { at: before, shown: already } = looked.get();
        looked.set(Looked { at: before + at, shown: already + shown });
    };
    let mut groups = tape.exits_from(args.from)?;
    let exits = std::iter::from_fn(|| match groups.next()? {
        Ok(group) => Some(group),
        Err(error) => {
            failed.replace(Some(error));
            None
        }
    });
    let exits = exits.inspect(|_| count(1, 0));
    let wanted = exits.filter(|group| args.choice.takes(&group.exit)).map(|group| exit(&group, names));
    let wanted = wanted.filter(|exit| args.choice.takes_text(&exit.lines.join("\n")));
    let wanted = wanted.take(args.count.map_or(usize::MAX, |count| count as usize)).inspect(|_| count(0, 1));
    print_json(&Shown { tape: tape.name(), shown: RefCell::new(Some(Box::new(wanted))) })?;
    match failed.take() {
        Some(error) => Err(anyhow!(error)),
        None => Ok(looked.get()),
    }
}

fn exit(group: &ExitGroup, names: &Metadata) -> Exit {
    let event = &group.exit;
    let mut rules: Vec<String> = Vec::new();
    for note in group.before.iter().chain(&group.notes) {
        let Note::Rule { id } = note else { continue };
        let name = names.rule(*id).map_or_else(|| format!("rule {id}"), str::to_owned);
        if !rules.contains(&name) {
            rules.push(name);
        }
    }
    Exit {
        number: group.number,
        vcpu: event.vcpu,
        icount: event.icount,
        rip: event.rip,
        exit_reason: text::reason(&event.exit),
        nested: text::nested(event),
        info1: event.exit.info1,
        info2: event.exit.info2,
        gva: gva(&event.exit),
        gpa: Some(event.exit.gpa).filter(|gpa| *gpa != 0),
        walk: group.walk().filter_map(step).collect(),
        rules,
        lines: text::group_lines(group),
        resume: group.resume.as_ref().map(text::resume_text),
    }
}

fn step(note: &Note) -> Option<Step> {
    match *note {
        Note::SiliconStep { gpa, before, after, level } => {
            Some(Step { paging_level: level, gpa, before, after })
        }
        _ => None,
    }
}

/// What it prints as JSON.
#[cfg(test)]
pub const SCHEMA: &[crate::schemas::Part] = &[crate::output::schema::<Shown<'static>>];
