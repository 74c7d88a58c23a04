//! The exits as comma-separated values, for tools that count.

use super::{failed, hex, rows::rows};
use crate::{Tape, error::Result};
use std::io::Write;

/// The columns. Numbers are decimal; addresses and codes are hexadecimal after `0x`; what an exit does not have is empty.
pub const COLUMNS: &str = "exit,vcpu,time_us,rip,isa,reason,reason_code,info1,info2,gpa,intr_info,error_code";

/// Writes a line of names, then one per exit. None of the values has a comma.
pub fn write(tape: &Tape, mut out: impl Write) -> Result<()> {
    writeln!(out, "{COLUMNS}").map_err(failed)?;
    for row in rows(tape) {
        let r = row?;
        writeln!(
            out,
            "{},{},{},{},{},{},{},{},{},{},{},{}",
            r.exit,
            r.vcpu,
            r.time,
            hex(r.rip),
            r.isa,
            r.reason,
            hex(r.code),
            hex(r.info1),
            hex(r.info2),
            r.gpa.map(hex).unwrap_or_default(),
            hex(r.intr_info),
            hex(r.error_code),
        )
        .map_err(failed)?;
    }
    out.flush().map_err(failed)
}
