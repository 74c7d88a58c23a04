//! The watchdog: guests that leave again and again without an instruction in between, and what is said of runs that cannot
//! go on.

use serde::{Deserialize, Serialize};
use vmtape_arch::{
    exit::{Exit, Resume, ResumeKind, reason_name},
    vcpu::VcpuState,
};
use vmtape_traces::event::End;

/// What the watchdog remembers of a vCPU's last exit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Progress {
    pub(crate) icount: u64,
    pub(crate) rip: u64,
    pub(crate) counters: [u64; 3],
    pub(crate) repeats: u64,
    /// The last exit's isa, reason, info1 and gpa, and how often it came in a row.
    pub(crate) exit: (u32, u32, u64, u64),
    pub(crate) equal: u64,
}

impl Progress {
    /// Takes note of an exit; gives the count once `most` or more came in a row at one place. Whether they are equal does not
    /// matter: two exits that undo each other's work loop as endlessly as one that repeats.
    pub(crate) fn stuck(&mut self, state: &VcpuState, icount: u64, exit: &Exit, most: u64) -> Option<Self> {
        // A REP instruction makes progress in these.
        let counters = [state.gpr[1], state.gpr[6], state.gpr[7]];
        let here = (icount, state.rip, counters) == (self.icount, self.rip, self.counters);
        let of_exit = (exit.isa.0, exit.reason, exit.info1, exit.gpa);
        *self = Self {
            icount,
            rip: state.rip,
            counters,
            repeats: if here { self.repeats + 1 } else { 0 },
            exit: of_exit,
            equal: if here && of_exit == self.exit { self.equal + 1 } else { 1 },
        };
        (self.repeats >= most).then_some(*self)
    }
}

fn exit_name(exit: &Exit) -> String {
    reason_name(exit.isa, exit.reason).map_or_else(|| format!("reason {:#x}", exit.reason), str::to_owned)
}

pub(crate) fn no_progress(vcpu: u32, progress: &Progress, exit: &Exit, rip: u64) -> End {
    let Progress { repeats, equal, .. } = *progress;
    let same = if equal > repeats { "all of them".to_owned() } else { format!("the last {equal} of them") };
    let reason = format!(
        "vCPU {vcpu} left the guest {repeats} times at rip {rip:#x} and retired no instruction in between; {same} {}, info1 \
         {:#x}, gpa {:#x}",
        exit_name(exit),
        exit.info1,
        exit.gpa,
    );
    End::NoProgress { vcpu, repeats, reason }
}

pub(crate) fn describe(resume: &Resume, exit: Option<&Exit>, state: &VcpuState) -> String {
    let after = exit.map_or_else(|| "at entry".to_owned(), |exit| format!("after {}", exit_name(exit)));
    let what = match resume.kind {
        ResumeKind::ERRNO => format!("KVM_RUN failed with errno {}", resume.errno),
        ResumeKind::NOT_MODELLED => "the guest needs something that is not modelled".to_owned(),
        kind => format!("{kind} with data {:x?}", resume.data),
    };
    format!("{what} {after}, rip {:#x}", state.rip)
}
