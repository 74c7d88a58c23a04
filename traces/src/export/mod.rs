//! A tape as JSON lines: one object for the tape, then one per event, in order.
//!
//! Small numbers are numbers. Addresses, values, masks and codes are hexadecimal text, because a reader whose numbers are
//! floating point would round them.

pub mod chrome;
pub mod csv;
#[cfg(feature = "parquet")]
pub mod parquet;
pub mod redact;
mod rows;

use crate::{
    Metadata, Tape,
    error::{Cause, Error, Place, Result},
    event::Event,
    text::tables::reason,
};
use serde::Serialize;
use serde_json::{Map, Value, json};
use std::io::{self, Write};
use vmtape_arch::note::Note;

/// The version of the objects' fields.
pub const SCHEMA_VERSION: u32 = 1;

/// Fields that are counts or small numbers.
const NUMBERS: [&str; 27] = [
    "vcpu",
    "icount",
    "exit",
    "exits",
    "level",
    "size",
    "len",
    "count",
    "errno",
    "repeats",
    "status",
    "slot",
    "result",
    "id",
    "number",
    "gpr",
    "segment",
    "address_size",
    "insn_len",
    "guest_page_shift",
    "memory",
    "vcpus",
    "phys_bits",
    "host_levels",
    "ept_levels",
    "backing_shift",
    "events",
];

#[derive(Serialize)]
struct Head<'a> {
    schema_version: u32,
    tape: &'a str,
    damage: Option<String>,
    metadata: Metadata,
}

/// Writes the whole tape, as far as it is good.
pub fn json_lines(tape: &Tape, mut out: impl Write) -> Result<()> {
    // The machine's own description is opaque bytes: no use in JSON.
    let metadata = Metadata { machine: Vec::new(), ..tape.metadata().clone() };
    let damage = tape.damage().map(ToString::to_string);
    let head = Head { schema_version: SCHEMA_VERSION, tape: tape.name(), damage, metadata };
    line(&mut out, &exact(value(&head))).map_err(failed)?;
    let mut exit = None;
    for event in tape.events() {
        let event = event?;
        if matches!(event, Event::Exit(_)) {
            exit = Some(exit.map_or(0, |number: u64| number + 1));
        }
        line(&mut out, &object(&event, exit, tape.metadata())).map_err(failed)?;
    }
    out.flush().map_err(failed)
}

fn failed(error: io::Error) -> Error {
    Cause::Io(error).at("the export", Place::File)
}

fn hex(value: u64) -> String {
    format!("{value:#x}")
}

fn line(out: &mut impl Write, value: &Value) -> io::Result<()> {
    serde_json::to_writer(&mut *out, value)?;
    out.write_all(b"\n")
}

/// An event as one flat object; `exit` is the number of the last exit.
fn object(event: &Event, exit: Option<u64>, metadata: &Metadata) -> Value {
    let mut object = Map::new();
    object.insert("event".into(), event.name().into());
    object.insert("exit".into(), exit.into());
    let mut put = |value: Value| {
        if let Value::Object(fields) = exact(value) {
            object.extend(fields);
        }
    };
    match event {
        Event::Exit(e) => {
            put(json!({ "vcpu": e.vcpu, "icount": e.icount, "rip": e.rip }));
            put(value(&e.exit));
            put(json!({ "isa": e.exit.isa.to_string(), "reason": reason(e.exit.isa, e.exit.reason) }));
        }
        Event::Registers(registers) => put(value(registers)),
        Event::Read { hpa, data } => put(json!({ "hpa": hpa, "data": value(data) })),
        Event::Note { vcpu, place, note } => {
            put(json!({ "vcpu": vcpu }));
            if *place != vmtape_arch::level::Place::L1 {
                put(json!({ "of": place.level.to_string(), "dimension": place.dimension.to_string() }));
            }
            put(note_fields(note));
        }
        Event::Resume { vcpu, resume, changes } => {
            put(json!({ "vcpu": vcpu, "changes": value(changes) }));
            put(value(resume));
            put(json!({ "kind": resume.kind.to_string() }));
        }
        Event::Entry(entry) => put(value(&**entry)),
        Event::Input { icount, source, value } => {
            put(json!({ "icount": icount, "source": source.to_string(), "value": value }));
        }
        Event::Fault(fault) => {
            put(value(fault));
            put(json!({ "name": metadata.fault_point(fault.point) }));
        }
        Event::FaultIn(page) => {
            put(value(page));
            put(json!({ "answer": page.answer.to_string() }));
        }
        Event::Pcpu(event) => {
            put(value(event));
            put(json!({ "kind": event.kind.to_string() }));
        }
        Event::Control { icount, control } => put(json!({ "icount": icount, "control": value(control) })),
        Event::StateHash { icount, exits, hash } => {
            put(json!({ "icount": icount, "exits": exits, "hash": hash }));
        }
        Event::Milestone(m) => put(value(m)),
        Event::Devices { icount, accesses, hash } => {
            put(json!({ "icount": icount, "accesses": accesses, "hash": hash }));
        }
        Event::Line { vcpu, text } => {
            let text = text.split_once(": ").map_or("", |(_, text)| text);
            put(json!({ "vcpu": vcpu, "text": text }));
        }
        Event::Moment { vcpu, icount, rip } => put(json!({ "vcpu": vcpu, "icount": icount, "rip": rip })),
        Event::End { icount, exits, end } => {
            put(json!({ "icount": icount, "exits": exits, "end": value(end) }));
        }
    }
    Value::Object(object)
}

fn note_fields(note: &Note) -> Value {
    match *note {
        // Fifteen bytes are more than a JSON number.
        Note::EmulateInsn { rip, csbase, len, insn, mode, failed } => {
            let bytes = &insn.to_le_bytes()[..usize::from(len.min(15))];
            let insn: Vec<_> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            json!({ "rip": rip, "csbase": csbase, "insn": insn.join(" "), "mode": mode, "failed": failed })
        }
        // {"Kind": {fields}}: the kind is the event's name already.
        _ => match value(note) {
            Value::Object(kind) => kind.into_iter().next().map(|(_, fields)| fields).unwrap_or_default(),
            other => other,
        },
    }
}

/// Words as fields. They hold nothing that JSON cannot.
fn value(words: &impl Serialize) -> Value {
    serde_json::to_value(words).unwrap_or_default()
}

/// Numbers of fields that are no counts as hexadecimal text; padding goes.
fn exact(value: Value) -> Value {
    fn convert(name: &str, value: Value) -> Value {
        match value {
            Value::Number(number) if !NUMBERS.contains(&name) && !name.ends_with("version") => {
                number.as_u64().map_or(Value::Number(number.clone()), |n| format!("{n:#x}").into())
            }
            Value::Array(items) => items.into_iter().map(|item| convert(name, item)).collect(),
            Value::Object(fields) => {
                let kept = fields.into_iter().filter(|(name, _)| name != "pad");
                Value::Object(
                    kept.map(|(name, value)| {
                        let value = convert(&name, value);
                        (name, value)
                    })
                    .collect(),
                )
            }
            other => other,
        }
    }
    convert("", value)
}
