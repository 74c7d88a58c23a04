//! The exits of a tape as rows of a table.

use crate::{Tape, error::Result, event::Event, text::tables::reason};
use vmtape_arch::exit::{Isa, SvmExitCode, VmxReason};

/// An exit.
pub(super) struct Row {
    pub exit: u64,
    pub vcpu: u32,
    /// Microseconds of a trace, instructions of a run.
    pub time: u64,
    pub rip: u64,
    pub isa: String,
    pub reason: String,
    pub code: u64,
    pub info1: u64,
    pub info2: u64,
    /// The guest physical address, where the exit is about one.
    pub gpa: Option<u64>,
    pub intr_info: u64,
    pub error_code: u64,
}

/// Reads the tape as it goes.
pub(super) fn rows(tape: &Tape) -> impl Iterator<Item = Result<Row>> + '_ {
    let exits = tape.events().filter_map(|event| match event {
        Ok(Event::Exit(exit)) => Some(Ok(exit)),
        Ok(_) => None,
        Err(error) => Some(Err(error)),
    });
    exits.zip(0..).map(|(exit, number)| {
        let e = exit?;
        let exit = &e.exit;
        let gpa = match exit.isa {
            Isa::SVM => (SvmExitCode(exit.reason) == SvmExitCode::NPF).then_some(exit.info2),
            _ => {
                matches!(VmxReason(exit.reason & 0xffff), VmxReason::EPT_VIOLATION | VmxReason::EPT_MISCONFIG)
                    // Lines of a trace have it in another event.
                    .then_some(exit.gpa)
                    .filter(|gpa| *gpa != 0)
            }
        };
        Ok(Row {
            exit: number,
            vcpu: e.vcpu,
            time: e.icount,
            rip: e.rip,
            isa: exit.isa.to_string(),
            reason: reason(exit.isa, exit.reason),
            code: exit.reason.into(),
            info1: exit.info1,
            info2: exit.info2,
            gpa,
            intr_info: exit.intr_info.into(),
            error_code: exit.error_code.into(),
        })
    })
}
