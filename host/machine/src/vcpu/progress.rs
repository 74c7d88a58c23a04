//! The watchdog: guests that leave again and again without an instruction in between, and what is said of runs that cannot
//! go on.

use serde::{Deserialize, Serialize};
use vmtape_arch::{
    exit::{Exit, Resume, ResumeKind, StimulusKind, reason_name},
    sensitive::SensitiveKind,
    vcpu::{VcpuState, gpr},
};
use vmtape_traces::event::End;

/// What the watchdog remembers of a vCPU's last exit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Progress {
    pub(crate) icount: u64,
    pub(crate) rip: u64,
    pub(crate) counters: [u64; 3],
    pub(crate) repeats: u64,
    /// Exits in a row at one place, and iterations that KVM's emulator did there, whatever the counters say.
    #[serde(skip)]
    standing: u64,
    #[serde(skip)]
    repetitions: u64,
    /// The last exit's isa, reason, info1 and gpa, and how often it came in a row.
    pub(crate) exit: (u32, u32, u64, u64),
    pub(crate) equal: u64,
    /// Events that were delivered without an instruction retiring: see [`vmtape_cpu::Cpu::deliveries`].
    pub(crate) deliveries: (u32, u64),
}

/// An instruction that repeats may exit for every page that it touches, and be emulated iteration by iteration; no guest waits
/// for more than this, and no virtual time passes meanwhile.
const MOST_STANDING: u64 = 1 << 19;
const MOST_REPETITIONS: u64 = 1 << 24;

/// Whether an exit may come from an instruction that repeats, which makes progress in RCX, RSI and RDI.
fn may_repeat(exit: &Exit) -> bool {
    exit.stimulus != StimulusKind::SENSITIVE
        || matches!(exit.insn.kind, SensitiveKind::INS | SensitiveKind::OUTS)
}

impl Progress {
    /// No exit came before the next one.
    pub(crate) fn begin_anew(&mut self) {
        *self = Self { deliveries: self.deliveries, ..Self::default() };
    }

    /// Takes note of an exit; gives the count once `most` or more came in a row at one place. Whether they are equal does not
    /// matter: two exits that undo each other's work loop as endlessly as one that repeats. `repetitions`: of KVM's emulator.
    pub(crate) fn stuck(
        &mut self,
        state: &VcpuState,
        icount: u64,
        exit: &Exit,
        repetitions: u64,
        most: u64,
    ) -> Option<Self> {
        let counters = [state.gpr[gpr::RCX], state.gpr[gpr::RSI], state.gpr[gpr::RDI]];
        let place = (icount, state.rip) == (self.icount, self.rip);
        let here = place && (counters == self.counters || !may_repeat(exit));
        let of_exit = (exit.isa.0, exit.reason, exit.info1, exit.gpa);
        *self = Self {
            icount,
            rip: state.rip,
            counters,
            deliveries: self.deliveries,
            repeats: if here { self.repeats + 1 } else { 0 },
            standing: if place { self.standing + 1 } else { 0 },
            repetitions: if place { self.repetitions + repetitions } else { repetitions },
            exit: of_exit,
            equal: if here && of_exit == self.exit { self.equal + 1 } else { 1 },
        };
        let endless = self.standing >= MOST_STANDING || self.repetitions >= MOST_REPETITIONS;
        (self.repeats >= most || endless).then_some(*self)
    }
}

fn exit_name(exit: &Exit) -> String {
    reason_name(exit.isa, exit.reason).map_or_else(|| format!("reason {:#x}", exit.reason), str::to_owned)
}

pub(crate) fn no_progress(vcpu: u32, progress: &Progress, exit: &Exit, rip: u64) -> End {
    let Progress { repeats, equal, standing, repetitions, .. } = *progress;
    if standing > repeats {
        let reason = format!(
            "vCPU {vcpu} is still at one instruction that repeats, rip {rip:#x}, after {standing} exits and {repetitions} \
             emulated iterations"
        );
        return End::NoProgress { vcpu, repeats: standing, reason };
    }
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

/// Why a vCPU cannot go on. `said`: the last error that the backend has logged.
pub(crate) fn describe(
    resume: &Resume,
    exit: Option<&Exit>,
    state: &VcpuState,
    said: Option<&str>,
) -> String {
    let after = exit.map_or_else(|| "at entry".to_owned(), |exit| format!("after {}", exit_name(exit)));
    let what = match resume.kind {
        ResumeKind::ERRNO => format!("KVM_RUN failed with errno {}", resume.errno),
        ResumeKind::BACKEND_FAILED => said.unwrap_or("it does not say why").to_owned(),
        ResumeKind::NOT_MODELLED => "the guest needs something that is not modelled".to_owned(),
        kind => format!("{kind} with data {:x?}", resume.data),
    };
    format!("{what} {after}, rip {:#x}", state.rip)
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmtape_arch::sensitive::Sensitive;

    const MOST: u64 = 1_000;

    /// After how many exits an instruction is stuck that changes RCX each time.
    fn stuck_after(exit: &Exit, repetitions: u64) -> Option<u64> {
        let (mut progress, mut state) = (Progress::default(), VcpuState::reset());
        (1..=2 * MOST).find(|n| {
            state.gpr[gpr::RCX] = *n;
            progress.stuck(&state, 7, exit, repetitions, MOST).is_some()
        })
    }

    #[test]
    fn registers_are_progress_only_where_an_instruction_repeats() {
        let sensitive = |kind| {
            let insn = Sensitive { kind, ..Sensitive::default() };
            Exit { stimulus: StimulusKind::SENSITIVE, insn, ..Exit::default() }
        };
        assert_eq!(stuck_after(&sensitive(SensitiveKind::CPUID), 0), Some(MOST + 1));
        assert_eq!(stuck_after(&sensitive(SensitiveKind::OUTS), 1), None);
        let access = Exit { stimulus: StimulusKind::ACCESS, ..Exit::default() };
        assert_eq!(stuck_after(&access, 1), None);
        assert_eq!(stuck_after(&access, MOST_REPETITIONS / 100), Some(101), "nobody waits for that long");
    }
}
