//! The only source of nondeterminism.

use super::faults::{Asked, Counts, Decision, Exited, Faults, HostPoint};
use rand::{Rng, SeedableRng};
use rand_pcg::Pcg64;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, VecDeque};
use vmtape_arch::exit::Exit;
use vmtape_traces::event::{Fault, InputSource, Skip};

/// What a run takes from outside: a live run draws it, a replay reads it from the tape, a fault plan disturbs it.
pub trait Inputs {
    /// 64 bits for RDRAND and RDSEED.
    fn random(&mut self, icount: u64) -> u64;

    /// The byte typed on the serial port that is due, if there is one.
    fn serial(&mut self, icount: u64) -> Option<u8>;

    /// The instruction count at which [`Inputs::serial`] is to be asked next.
    fn next_serial(&self) -> Option<u64> {
        None
    }

    /// Whether fault points may answer.
    fn has_faults(&self) -> bool {
        false
    }

    /// What comes of it that a fault point asks; `None`: it goes on.
    fn fault(&mut self, _asked: &Asked) -> Option<Decision> {
        None
    }

    /// A vCPU leaves the guest.
    fn exited(&mut self, _exit: &Exited) {}

    /// The instruction count of the host's next NMI, after so many.
    fn next_nmi(&self, _occurrences: u64) -> Option<u64> {
        None
    }

    /// Faults that were to come and have not: nobody has asked for them.
    fn missed_faults(&self) -> Vec<Fault> {
        Vec::new()
    }

    /// Passes over what a run has taken before the checkpoint that it starts from.
    fn skip(&mut self, taken: &Taken);
}

/// How much of its inputs a run has taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Taken {
    pub random: u64,
    pub serial: u64,
    pub faults: u64,
    /// The instruction count at which the last serial byte was due.
    pub last_serial: u64,
}

/// The inputs of a run, and how much of them it has taken.
pub(crate) struct InputStream {
    source: Box<dyn Inputs>,
    taken: Taken,
    counts: Counts,
}

impl InputStream {
    pub(crate) fn new(source: Box<dyn Inputs>) -> Self {
        Self { source, taken: Taken::default(), counts: Counts::default() }
    }

    /// As [`Inputs::random`].
    pub(crate) fn random(&mut self, icount: u64) -> u64 {
        self.taken.random += 1;
        self.source.random(icount)
    }

    /// As [`Inputs::next_serial`].
    pub(crate) fn next_serial(&self) -> Option<u64> {
        self.source.next_serial()
    }

    /// As [`Inputs::serial`].
    pub(crate) fn serial(&mut self, icount: u64) -> Option<u8> {
        let byte = self.source.serial(icount)?;
        (self.taken.serial, self.taken.last_serial) = (self.taken.serial + 1, icount);
        Some(byte)
    }

    /// As [`Inputs::has_faults`].
    pub(crate) fn has_faults(&self) -> bool {
        self.source.has_faults()
    }

    /// Whether a fault has come or may come.
    pub(crate) fn is_faulty(&self) -> bool {
        self.has_faults() || self.taken.faults > 0
    }

    /// Counts an occurrence of a fault point, and fills in which one it is.
    pub(crate) fn count_fault(&mut self, asked: &mut Fault) {
        [asked.occurrence, asked.since_exit] = self.counts.count(asked.vcpu, asked.point);
    }

    /// As [`Inputs::fault`].
    pub(crate) fn fault(&mut self, asked: &Asked) -> Option<Decision> {
        let decision = self.source.fault(asked)?;
        self.taken.faults += 1;
        Some(decision)
    }

    /// As [`Inputs::next_nmi`].
    pub(crate) fn next_nmi(&self) -> Option<u64> {
        if self.has_faults() { self.source.next_nmi(self.counts.of(HostPoint::NMI.0)) } else { None }
    }

    /// As [`Inputs::missed_faults`].
    pub(crate) fn missed_faults(&self) -> Vec<Fault> {
        self.source.missed_faults()
    }

    /// An exit of the vCPU begins.
    pub(crate) fn begin_exit(&mut self, vcpu: u32, icount: u64, exit: &Exit) {
        if self.has_faults() {
            self.counts.begin_exit(vcpu);
            let Exit { isa, reason, level, .. } = *exit;
            self.source.exited(&Exited { icount, vcpu, isa, reason, level });
        }
    }

    pub(crate) fn counts(&self) -> &Counts {
        &self.counts
    }

    pub(crate) fn taken(&self) -> Taken {
        self.taken
    }

    /// Goes on where a run is that has taken so much. Nothing was taken from this one yet.
    pub(crate) fn resume(&mut self, taken: Taken, counts: Counts) {
        self.source.skip(&taken);
        (self.taken, self.counts) = (taken, counts);
    }
}

/// Random numbers from a seed, and serial input that is known before the run.
pub struct Live {
    generator: Pcg64,
    serial: VecDeque<u8>,
    next_serial: u64,
    faults: Option<Box<dyn Faults>>,
}

/// Serial input arrives at the pace of a typist, in instructions.
const SERIAL_PACE: u64 = 1_000_000;

impl Live {
    pub fn new(seed: u64) -> Self {
        Self { generator: Pcg64::seed_from_u64(seed), serial: VecDeque::new(), next_serial: 0, faults: None }
    }

    /// Has fault points answer as `faults` decides.
    pub fn with_faults(mut self, faults: Box<dyn Faults>) -> Self {
        self.faults = Some(faults);
        self
    }

    /// Types `bytes` on the serial port, beginning after `from` instructions.
    pub fn with_serial(mut self, bytes: &[u8], from: u64) -> Self {
        self.serial.extend(bytes);
        self.next_serial = from;
        self
    }
}

impl Inputs for Live {
    fn random(&mut self, _icount: u64) -> u64 {
        self.generator.next_u64()
    }

    fn serial(&mut self, icount: u64) -> Option<u8> {
        if icount < self.next_serial {
            return None;
        }
        self.next_serial = icount + SERIAL_PACE;
        self.serial.pop_front()
    }

    fn next_serial(&self) -> Option<u64> {
        (!self.serial.is_empty()).then_some(self.next_serial)
    }

    fn has_faults(&self) -> bool {
        self.faults.is_some()
    }

    fn fault(&mut self, asked: &Asked) -> Option<Decision> {
        self.faults.as_mut()?.decide(asked)
    }

    fn exited(&mut self, exit: &Exited) {
        if let Some(faults) = &mut self.faults {
            faults.exited(exit);
        }
    }

    fn next_nmi(&self, occurrences: u64) -> Option<u64> {
        self.faults.as_ref()?.next_nmi(occurrences)
    }

    fn skip(&mut self, taken: &Taken) {
        self.generator.advance(taken.random.into());
        self.serial.drain(..self.serial.len().min(taken.serial as usize));
        if taken.serial != 0 {
            self.next_serial = taken.last_serial + SERIAL_PACE;
        }
    }
}

/// The inputs of a tape, in order.
pub struct Recorded {
    /// A tape may have more of them than memory.
    random: Box<dyn Iterator<Item = u64>>,
    serial: Vec<(u64, u8)>,
    faults: Vec<Fault>,
    /// Their places by vCPU, point and occurrence.
    places: BTreeMap<(u32, u32, u64), usize>,
    /// When the host's NMIs are due, in order.
    nmis: Vec<u64>,
    /// Which faults were asked for.
    asked: Vec<bool>,
    /// How many of serial bytes were taken.
    taken: usize,
    /// An input was asked for that the tape does not have.
    pub exhausted: bool,
}

impl Recorded {
    /// Random numbers one by one, and what else there is (instruction count, source, value), which is kept.
    pub fn new(
        random: impl Iterator<Item = u64> + 'static,
        others: impl IntoIterator<Item = (u64, InputSource, u64)>,
    ) -> Self {
        let mut recorded = Self {
            random: Box::new(random),
            serial: Vec::new(),
            faults: Vec::new(),
            places: BTreeMap::new(),
            nmis: Vec::new(),
            asked: Vec::new(),
            taken: 0,
            exhausted: false,
        };
        for (icount, source, value) in others {
            if source == InputSource::SERIAL {
                recorded.serial.push((icount, value as u8));
            }
        }
        recorded
    }

    /// With the tape's faults, in place of those it has.
    pub fn with_faults(mut self, faults: Vec<Fault>) -> Self {
        self.asked = vec![false; faults.len()];
        let key = |fault: &Fault| (fault.vcpu, fault.point, fault.occurrence);
        // Of two with one key the first answers.
        self.places = faults.iter().enumerate().rev().map(|(place, fault)| (key(fault), place)).collect();
        let nmis = faults.iter().filter(|fault| fault.point == HostPoint::NMI.0);
        self.nmis = nmis.map(|fault| fault.icount).collect();
        self.faults = faults;
        self
    }
}

impl Inputs for Recorded {
    fn random(&mut self, _icount: u64) -> u64 {
        let value = self.random.next();
        self.exhausted |= value.is_none();
        value.unwrap_or(0)
    }

    fn serial(&mut self, icount: u64) -> Option<u8> {
        let (due, byte) = *self.serial.get(self.taken)?;
        (due <= icount).then(|| {
            self.taken += 1;
            byte
        })
    }

    fn next_serial(&self) -> Option<u64> {
        self.serial.get(self.taken).map(|(icount, _)| *icount)
    }

    fn has_faults(&self) -> bool {
        !self.faults.is_empty()
    }

    /// The tape's answer for this occurrence. Words that are not the taped ones show where the event is compared.
    fn fault(&mut self, asked: &Asked) -> Option<Decision> {
        let at = *self.places.get(&(asked.vcpu, asked.point, asked.occurrence))?;
        self.asked[at] = true;
        let Fault { rule, skipped, answer, .. } = self.faults[at];
        Some(Decision { rule, skipped, answer })
    }

    fn next_nmi(&self, occurrences: u64) -> Option<u64> {
        self.nmis.get(usize::try_from(occurrences).ok()?).copied()
    }

    fn missed_faults(&self) -> Vec<Fault> {
        let missed = self.faults.iter().zip(&self.asked);
        let missed = missed.filter(|(fault, asked)| !**asked && fault.skipped == Skip::NONE);
        missed.map(|(fault, _)| *fault).collect()
    }

    fn skip(&mut self, taken: &Taken) {
        self.taken = taken.serial as usize;
        self.asked.iter_mut().take(taken.faults as usize).for_each(|asked| *asked = true);
        if let Some(last) = taken.random.checked_sub(1) {
            self.random.nth(last as usize);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_taken_is_passed_over() {
        let mut live = Live::new(7).with_serial(b"abc", 10);
        let _ = (live.random(0), live.random(1), live.serial(10));
        let mut other = Live::new(7).with_serial(b"abc", 10);
        other.skip(&Taken { random: 2, serial: 1, faults: 0, last_serial: 10 });
        assert_eq!(other.random(2), live.random(2));
        assert_eq!(other.next_serial(), live.next_serial());
        assert_eq!(other.serial(10 + SERIAL_PACE), Some(b'b'));
    }

    #[test]
    fn random_numbers_of_a_tape_are_taken_one_by_one_however_many_there_are() {
        let mut inputs = Recorded::new(0.., [(5, InputSource::SERIAL, 7)]);
        inputs.skip(&Taken { random: 1000, ..Taken::default() });
        assert_eq!((inputs.random(0), inputs.random(0), inputs.serial(5)), (1000, 1001, Some(7)));
        let mut inputs = Recorded::new([3].into_iter(), []);
        assert_eq!((inputs.random(0), inputs.exhausted), (3, false));
        assert_eq!((inputs.random(0), inputs.exhausted), (0, true));
    }
}
