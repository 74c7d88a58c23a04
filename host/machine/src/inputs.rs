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

    /// The position, for checkpoints.
    fn save(&self) -> Vec<u8>;

    /// The inverse of `save`. False: the bytes are not a position.
    #[must_use]
    fn restore(&mut self, saved: &[u8]) -> bool;
}

/// Random numbers from a seed, and serial input that is known before the run.
#[derive(Serialize, Deserialize)]
pub struct Live {
    seed: u64,
    /// Numbers drawn so far: the generator is rebuilt from it.
    drawn: u64,
    serial: VecDeque<u8>,
    next_serial: u64,
    #[serde(skip, default = "unseeded")]
    generator: Pcg64,
}

/// Serial input arrives at the pace of a typist, in instructions.
const SERIAL_PACE: u64 = 1_000_000;

fn unseeded() -> Pcg64 {
    Pcg64::seed_from_u64(0)
}

impl Live {
    pub fn new(seed: u64) -> Self {
        Self {
            seed,
            drawn: 0,
            serial: VecDeque::new(),
            next_serial: 0,
            generator: Pcg64::seed_from_u64(seed),
        }
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
        self.drawn += 1;
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

    fn save(&self) -> Vec<u8> {
        postcard::to_stdvec(self).unwrap_or_default()
    }

    fn restore(&mut self, saved: &[u8]) -> bool {
        let Ok(mut saved) = postcard::from_bytes::<Self>(saved) else { return false };
        saved.generator = Pcg64::seed_from_u64(saved.seed);
        saved.generator.advance(saved.drawn.into());
        *self = saved;
        true
    }
}

/// The inputs of a tape, in order.
#[derive(Default)]
pub struct Recorded {
    random: Vec<u64>,
    serial: Vec<(u64, u8)>,
    faults: Vec<(u64, u64)>,
    /// How many of each were taken.
    taken: [usize; 3],
    /// An input was asked for that the tape does not have.
    pub exhausted: bool,
}

impl Recorded {
    pub fn new(inputs: impl IntoIterator<Item = (u64, InputSource, u64)>) -> Self {
        let mut recorded = Self::default();
        for (icount, source, value) in inputs {
            match source {
                InputSource::RANDOM => recorded.random.push(value),
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
        let value = self.random.get(self.taken[0]).copied();
        self.taken[0] += 1;
        self.exhausted |= value.is_none();
        value.unwrap_or(0)
    }

    fn serial(&mut self, icount: u64) -> Option<u8> {
        let (due, byte) = *self.serial.get(self.taken[1])?;
        (due <= icount).then(|| {
            self.taken[1] += 1;
            byte
        })
    }

    fn next_serial(&self) -> Option<u64> {
        self.serial.get(self.taken[1]).map(|(icount, _)| *icount)
    }

    fn fault(&mut self, icount: u64, _vcpu: u32, _point: u32) -> Option<u64> {
        let (at, value) = *self.faults.get(self.taken[2])?;
        (at == icount).then(|| {
            self.taken[2] += 1;
            value
        })
    }

    fn save(&self) -> Vec<u8> {
        postcard::to_stdvec(&self.taken).unwrap_or_default()
    }

    fn restore(&mut self, saved: &[u8]) -> bool {
        match postcard::from_bytes(saved) {
            Ok(taken) => {
                self.taken = taken;
                true
            }
            Err(_) => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_restored_generator_goes_on_where_it_was() {
        let mut live = Live::new(7).with_serial(b"ab", 10);
        let _ = (live.random(0), live.random(1), live.serial(10));
        let saved = live.save();
        let expected: Vec<_> = (0..4).map(|i| live.random(i)).collect();
        let mut other = Live::new(7);
        assert!(other.restore(&saved));
        assert_eq!((0..4).map(|i| other.random(i)).collect::<Vec<_>>(), expected);
        assert_eq!(other.serial(u64::MAX - SERIAL_PACE), Some(b'b'));
    }
}
