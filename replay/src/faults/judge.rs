//! The verdict: the run with faults is held against its twin, instruction by instruction.

use super::{Told, fired};
use crate::{
    Error, Report, across, explain,
    player::Create,
    report::{Divergence, Level, Verdict as Compared},
    spec, text,
};
use vmtape_abi::Description;
use vmtape_faults::{Signature, Verdict};
use vmtape_machine::{HostPoint, Phase, vmm::When};
use vmtape_traces::{
    Tape,
    event::{End, Fault},
};

/// A run with faults and the same one without them.
pub struct Runs<'a> {
    pub twin: &'a Tape,
    pub faulty: &'a Tape,
    pub create: Create<'a>,
    /// What the backend says of itself.
    pub plugin: &'a Description,
}

/// What came of the faults.
#[derive(Clone, Debug)]
pub struct Judgement {
    pub verdict: Verdict,
    /// With the points of all faults that happened.
    pub signature: Signature,
    /// Why it is that verdict, in a sentence.
    pub why: String,
    pub fired: Vec<Fault>,
    pub skipped: Vec<Fault>,
    /// Errors that the VMM got because of the faults.
    pub told: Vec<String>,
    /// How the twin ended, and how the run with faults did.
    pub ends: [String; 2],
    /// The first difference.
    pub divergence: Option<Divergence>,
}

/// Exits of context before a difference.
const CONTEXT: usize = 3;

impl Runs<'_> {
    /// Judges. An error is a failure of this program or of the backend, and no verdict.
    pub fn judge(&self) -> Result<Judgement, Error> {
        let (fired, skipped) = fired(self.faulty)?;
        let (twin, faulty) = (Told::of(self.twin)?, Told::of(self.faulty)?);
        let report = if fired.is_empty() { None } else { Some(self.compare()?) };
        let divergence = report.as_ref().and_then(|report| report.divergence.clone());
        if let Some((divergence, first)) = divergence.as_ref().zip(fired.first()) {
            follows(divergence, first)?;
        }
        let told = faulty.beyond(&twin);
        let seen = Seen { ends: [&twin.end, &faulty.end], told: &told, fired: &fired };
        let (verdict, why) = match (&report, &divergence) {
            (None, _) => (Verdict::NotReached, "no fault happened".to_owned()),
            (Some(report), None) => seen.without_difference(report),
            (Some(_), Some(divergence)) => seen.of_difference(divergence, self.asks(divergence)?),
        };
        let what = divergence.as_ref().map_or("", |divergence| divergence.signature.what());
        let points = fired.iter().map(|fault| self.name(fault));
        let signature = Signature::new(verdict, what, points, &self.faulty.metadata().backend);
        let words = |end: &Option<End>| end.as_ref().map_or("no end".to_owned(), text::end_text);
        let ends = [words(&twin.end), words(&faulty.end)];
        Ok(Judgement { verdict, signature, why, told, ends, divergence, fired, skipped })
    }

    /// A fault's name.
    pub fn name(&self, fault: &Fault) -> String {
        let name = self.faulty.metadata().fault_point(fault.point);
        name.map_or_else(|| format!("point {:#x}", fault.point), str::to_owned)
    }

    fn sides(&self) -> Result<across::Sides<'_>, Error> {
        Ok(across::Sides {
            tape: self.twin,
            expected: spec::machine(self.twin)?,
            actual: spec::machine(self.faulty)?,
            create: self.create,
            expected_plugin: self.plugin,
            plugin: self.plugin,
            context: CONTEXT,
            at: When::Start,
            way: None,
            explain: false,
            reproduce: String::new(),
            inputs: Some(self.faulty),
        })
    }

    fn compare(&self) -> Result<Report, Error> {
        let mut report = Report::new("", self.twin.name(), self.faulty.name());
        self.sides()?.compare(&mut report, &mut |_| {})?;
        Ok(report)
    }

    /// Whether the instruction that differs asks silicon or a device for something, whose answer is another one.
    fn asks(&self, divergence: &Divergence) -> Result<bool, Error> {
        let player = self.sides()?.other_at(divergence.icount)?;
        let Some(state) = player.machine.state(divergence.vcpu) else { return Ok(false) };
        Ok(asks(&explain::instruction(&player.machine, state)))
    }
}

/// A difference comes after a fault, or it is none of the fault's: the run does not repeat itself.
fn follows(divergence: &Divergence, first: &Fault) -> Result<(), Error> {
    // A fault at an exit comes where the instruction that exits counts already.
    if divergence.icount.saturating_add(1) >= first.icount {
        return Ok(());
    }
    let (differs, faulted, what) = (divergence.icount, first.icount, &divergence.summary);
    Err(Error::Other(format!(
        "a run differs from its twin after {differs} instructions ({what}), and its first fault comes after {faulted}: runs are not \
         deterministic"
    )))
}

/// Whether an instruction's result comes from elsewhere than registers and memory: port input, CPUID, time, random numbers, MSRs,
/// performance counters. See: SDM vol. 2D appendix A, tables
fn asks(bytes: &[u8]) -> bool {
    let is_prefix =
        |byte: &&u8| matches!(**byte, 0x66 | 0x67 | 0xf2 | 0xf3 | 0x2e | 0x36 | 0x3e | 0x26 | 0x40..=0x4f);
    let prefixes = bytes.iter().take_while(is_prefix).count();
    match bytes[prefixes..] {
        [0xe4 | 0xe5 | 0xec | 0xed | 0x6c | 0x6d, ..] => true,
        [0x0f, 0xa2 | 0x31 | 0x32 | 0x33, ..] => true,
        [0x0f, 0x01, 0xf9, ..] => true,
        // RDRAND and RDSEED, of a register.
        [0x0f, 0xc7, modrm, ..] => modrm >> 6 == 3 && modrm >> 3 & 7 >= 6,
        _ => false,
    }
}

/// What decides the verdict.
struct Seen<'a> {
    /// Of the twin and of the run with faults.
    ends: [&'a Option<End>; 2],
    told: &'a [String],
    fired: &'a [Fault],
}

impl Seen<'_> {
    fn without_difference(&self, report: &Report) -> (Verdict, String) {
        match report.verdict {
            Compared::Same if self.told.is_empty() => (Verdict::Masked, Verdict::Masked.meaning().into()),
            Compared::Same => (Verdict::Detected, format!("the VMM was told: {}", self.told.join(", "))),
            _ => {
                let unknown: Vec<_> = report.unknown.keys().cloned().collect();
                (Verdict::Unknown, format!("not everything could be compared: {}", unknown.join(", ")))
            }
        }
    }

    fn of_difference(&self, divergence: &Divergence, asks: bool) -> (Verdict, String) {
        if let Some(verdict) = self.ended() {
            return verdict;
        }
        let what = divergence.signature.what();
        let is_ioctl = divergence.level == Level::VmmVisible;
        match () {
            () if is_ioctl && !self.told.is_empty() && self.ended_alike() => {
                (Verdict::Detected, format!("the VMM was told: {}", self.told.join(", ")))
            }
            () if is_told(what) => (Verdict::GuestVisible, divergence.summary.clone()),
            () if asks => (Verdict::GuestVisible, format!("another answer: {}", divergence.summary)),
            () if self.only_times() => {
                (Verdict::GuestVisible, format!("devices and clocks alone: {}", divergence.summary))
            }
            () => (Verdict::SilentCorruption, divergence.summary.clone()),
        }
    }

    /// The end says enough, if it is a bad one that the twin does not have.
    fn ended(&self) -> Option<(Verdict, String)> {
        let [twin, faulty] = self.ends;
        let faulty = faulty.as_ref()?;
        if self.ended_alike() {
            return None;
        }
        let twin_words = twin.as_ref().map_or("no end".to_owned(), text::end_text);
        let why = format!("{}; without the faults: {twin_words}", text::end_text(faulty));
        match faulty {
            End::Fatal { .. } | End::Shutdown { .. } => Some((Verdict::GuestLost(Phase::NONE), why)),
            End::NoProgress { .. } | End::Limit { .. } | End::Idle { .. } => Some((Verdict::Hang, why)),
            End::DebugExit { .. } | End::Cut | End::Interrupted => None,
        }
    }

    fn ended_alike(&self) -> bool {
        matches!(self.ends, [Some(twin), Some(faulty)] if text::same_end(twin, faulty))
    }

    /// Whether all that happened is that time passed otherwise, or that a device or an interrupt came or did not come.
    fn only_times(&self) -> bool {
        self.fired.iter().all(|fault| HostPoint(fault.point).is_timing())
    }
}

/// Whether a difference is that the guest takes an exception that it would not have taken, or another one.
fn is_told(what: &str) -> bool {
    let taken = |pair: &str| pair.rsplit_once('>').map(|(_, taken)| taken.to_owned());
    if let Some(pair) = what.strip_prefix("outcome:") {
        return taken(pair).is_some_and(|taken| taken.starts_with('#'));
    }
    what.strip_prefix("page-fault:").and_then(taken).is_some_and(|taken| taken != "none")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_is_told_by_exceptions() {
        for told in ["outcome:none>#GP(0x0)", "outcome:#PF(0x9)>#GP(0x0)", "page-fault:none>0x2"] {
            assert!(is_told(told), "{told}");
        }
        for silent in
            ["outcome:#PF(0x9)>none", "outcome:none>mmio", "page-fault:0x2>none", "memory", "entry:-D"]
        {
            assert!(!is_told(silent), "{silent}");
        }
    }

    #[test]
    fn instructions_that_ask() {
        for bytes in [
            &[0x0f, 0x31][..],
            &[0xec],
            &[0x66, 0xed],
            &[0xf3, 0x6c],
            &[0x0f, 0x32],
            &[0x48, 0x0f, 0xc7, 0xf0],
            &[0x0f, 0xc7, 0xf8],
        ] {
            assert!(asks(bytes), "{bytes:02x?}");
        }
        for bytes in [&[][..], &[0x8b, 0x00], &[0x0f, 0xc7, 0x08], &[0xee], &[0x0f, 0x30], &[0x66]] {
            assert!(!asks(bytes), "{bytes:02x?}");
        }
    }
}
