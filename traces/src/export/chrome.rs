//! Chrome's trace events, which Perfetto opens: a track for each vCPU, each exit a slice.
//!
//! See: "Trace Event Format", the array form with complete (X) and metadata (M) events

use super::{
    failed, hex,
    rows::{Row, rows},
};
use crate::{Tape, error::Result};
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, Write},
};

/// Nanoseconds in the tape's microsecond.
const NS: u64 = 1000;

/// A slice that is told when its end is known.
struct Open {
    row: Row,
    start: u64,
}

/// Writes the exits. How long their handling took is on no tape: a slice ends with the vCPU's next exit, or after a microsecond.
/// Exits at one instruction follow each other by nanoseconds.
pub fn write(tape: &Tape, mut out: impl Write) -> Result<()> {
    let mut open: BTreeMap<u32, Open> = BTreeMap::new();
    let mut known = BTreeSet::new();
    let mut first = true;
    let mut put = |out: &mut dyn Write, value: &Value| -> io::Result<()> {
        out.write_all(if std::mem::take(&mut first) { b"[\n" } else { b",\n" })?;
        serde_json::to_writer(&mut *out, value).map_err(io::Error::from)
    };
    for row in rows(tape) {
        let row = row?;
        if known.insert(row.vcpu) {
            put(&mut out, &track(row.vcpu)).map_err(failed)?;
        }
        let vcpu = row.vcpu;
        let last = open.remove(&vcpu);
        let start = (row.time * NS).max(last.as_ref().map_or(0, |last| last.start + 1));
        if let Some(last) = last {
            put(&mut out, &slice(&last, start)).map_err(failed)?;
        }
        open.insert(vcpu, Open { row, start });
    }
    for last in open.into_values() {
        put(&mut out, &slice(&last, u64::MAX)).map_err(failed)?;
    }
    let end: &[u8] = if first { b"[]\n" } else { b"\n]\n" };
    out.write_all(end).and_then(|()| out.flush()).map_err(failed)
}

fn track(vcpu: u32) -> Value {
    json!({ "ph": "M", "pid": 1, "tid": vcpu + 1, "name": "thread_name", "args": { "name": format!("vCPU {vcpu}") } })
}

fn slice(open: &Open, next: u64) -> Value {
    let row = &open.row;
    let mut args = json!({
        "exit": row.exit,
        "rip": hex(row.rip),
        "info1": hex(row.info1),
        "info2": hex(row.info2),
    });
    if let (Value::Object(args), Some(gpa)) = (&mut args, row.gpa) {
        args.insert("gpa".into(), hex(gpa).into());
    }
    json!({
        "ph": "X",
        "pid": 1,
        "tid": row.vcpu + 1,
        "cat": "exit",
        "name": row.reason,
        "ts": micros(open.start),
        "dur": micros(next.saturating_sub(open.start).min(NS)),
        "args": args,
    })
}

fn micros(ns: u64) -> f64 {
    ns as f64 / NS as f64
}
