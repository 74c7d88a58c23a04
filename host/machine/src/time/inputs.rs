//! The only source of nondeterminism.

use rand::{Rng, SeedableRng};
use rand_pcg::Pcg64;
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use vmtape_traces::event::InputSource;

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

    /// What a fault point answers instead of going on.
    fn fault(&mut self, _icount: u64, _vcpu: u32, _point: u32) -> Option<u64> {
        None
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
}

impl InputStream {
    pub(crate) fn new(source: Box<dyn Inputs>) -> Self {
        Self { source, taken: Taken::default() }
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

    /// As [`Inputs::fault`].
    pub(crate) fn fault(&mut self, icount: u64, vcpu: u32, point: u32) -> Option<u64> {
        let value = self.source.fault(icount, vcpu, point)?;
        self.taken.faults += 1;
        Some(value)
    }

    pub(crate) fn taken(&self) -> Taken {
        self.taken
    }

    /// Goes on where a run is that has taken so much. Nothing was taken from this one yet.
    pub(crate) fn resume(&mut self, taken: Taken) {
        self.source.skip(&taken);
        self.taken = taken;
    }
}

/// Random numbers from a seed, and serial input that is known before the run.
pub struct Live {
    generator: Pcg64,
    serial: VecDeque<u8>,
    next_serial: u64,
}

/// Serial input arrives at the pace of a typist, in instructions.
const SERIAL_PACE: u64 = 1_000_000;

impl Live {
    pub fn new(seed: u64) -> Self {
        Self { generator: Pcg64::seed_from_u64(seed), serial: VecDeque::new(), next_serial: 0 }
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
    faults: Vec<(u64, u64)>,
    /// How many of serial bytes and of faults were taken.
    taken: [usize; 2],
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
            taken: [0; 2],
            exhausted: false,
        };
        for (icount, source, value) in others {
            match source {
                InputSource::SERIAL => recorded.serial.push((icount, value as u8)),
                InputSource::FAULT => recorded.faults.push((icount, value)),
                _ => {}
            }
        }
        recorded
    }
}

impl Inputs for Recorded {
    fn random(&mut self, _icount: u64) -> u64 {
        let value = self.random.next();
        self.exhausted |= value.is_none();
        value.unwrap_or(0)
    }

    fn serial(&mut self, icount: u64) -> Option<u8> {
        let (due, byte) = *self.serial.get(self.taken[0])?;
        (due <= icount).then(|| {
            self.taken[0] += 1;
            byte
        })
    }

    fn next_serial(&self) -> Option<u64> {
        self.serial.get(self.taken[0]).map(|(icount, _)| *icount)
    }

    fn fault(&mut self, icount: u64, _vcpu: u32, _point: u32) -> Option<u64> {
        let (at, value) = *self.faults.get(self.taken[1])?;
        (at == icount).then(|| {
            self.taken[1] += 1;
            value
        })
    }

    fn skip(&mut self, taken: &Taken) {
        self.taken = [taken.serial as usize, taken.faults as usize];
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
}
