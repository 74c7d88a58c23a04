//! The 8254 interval timer and port 0x61, on virtual time.
//!
//! See: Intel 8254 data sheet (231164-005); KVM arch/x86/kvm/i8254.c

use crate::time::NS_PER_SECOND;
use serde::{Deserialize, Serialize};

pub const PORTS: std::ops::RangeInclusive<u16> = 0x40..=0x43;
pub const SPEAKER: u16 = 0x61;
pub const IRQ: u8 = 0;
pub const FREQUENCY: u64 = 1_193_182;

const CONTROL: u16 = 3;
const READ_BACK: u8 = 3;

#[derive(Clone, Copy, Default, Serialize, Deserialize)]
struct Channel {
    /// Reload value; zero stands for 65536.
    count: u64,
    mode: u8,
    /// 1 low byte, 2 high byte, 3 low then high.
    access: u8,
    bcd: bool,
    gate: bool,
    /// Virtual time when the count was loaded.
    loaded_at: u64,
    latched: Option<u16>,
    latched_status: Option<u8>,
    /// The next byte is the high one.
    read_high: bool,
    write_high: bool,
    write_low: u8,
}

/// Three channels and the speaker port.
#[derive(Default, Serialize, Deserialize)]
pub struct Pit {
    channels: [Channel; 3],
    speaker: bool,
    /// When channel 0 raises its interrupt next.
    next: Option<u64>,
}

fn ticks(ns: u64) -> u64 {
    (u128::from(ns) * u128::from(FREQUENCY) / u128::from(NS_PER_SECOND)) as u64
}

fn nanoseconds(ticks: u64) -> u64 {
    (u128::from(ticks) * u128::from(NS_PER_SECOND)).div_ceil(u128::from(FREQUENCY)) as u64
}

impl Channel {
    fn reload(&self) -> u64 {
        if self.count == 0 { 0x1_0000 } else { self.count }
    }

    fn elapsed(&self, now: u64) -> u64 {
        ticks(now.saturating_sub(self.loaded_at))
    }

    fn is_periodic(&self) -> bool {
        matches!(self.mode, 2 | 3)
    }

    /// The counter as it would be read.
    fn counter(&self, now: u64) -> u16 {
        let (elapsed, reload) = (self.elapsed(now), self.reload());
        let counter = match self.mode {
            2 => reload - elapsed % reload,
            3 => reload - (elapsed * 2) % reload,
            _ => reload.wrapping_sub(elapsed) & 0xffff,
        };
        counter as u16
    }

    fn output(&self, now: u64) -> bool {
        let (elapsed, reload) = (self.elapsed(now), self.reload());
        match self.mode {
            0 | 1 => elapsed >= reload,
            2 => elapsed % reload != reload - 1,
            3 => elapsed % reload < reload.div_ceil(2),
            _ => elapsed != reload,
        }
    }

    fn status(&self, now: u64) -> u8 {
        u8::from(self.output(now)) << 7 | self.access << 4 | self.mode << 1 | u8::from(self.bcd)
    }

    fn read(&mut self, now: u64) -> u8 {
        if let Some(status) = self.latched_status.take() {
            return status;
        }
        let value = self.latched.unwrap_or_else(|| self.counter(now)).to_le_bytes();
        let high = match self.access {
            1 => false,
            2 => true,
            _ => {
                self.read_high = !self.read_high;
                !self.read_high
            }
        };
        if high || self.access != 3 {
            self.latched = None;
        }
        value[usize::from(high)]
    }

    /// True once the count is complete.
    fn write(&mut self, value: u8, now: u64) -> bool {
        let count = match (self.access, self.write_high) {
            (1, _) => u16::from(value),
            (2, _) => u16::from(value) << 8,
            (_, false) => {
                self.write_low = value;
                self.write_high = true;
                return false;
            }
            (_, true) => {
                self.write_high = false;
                u16::from_le_bytes([self.write_low, value])
            }
        };
        self.count = u64::from(count);
        self.loaded_at = now;
        true
    }
}

impl Pit {
    pub fn new() -> Self {
        let mut pit = Self::default();
        for (n, channel) in pit.channels.iter_mut().enumerate() {
            channel.mode = 3;
            channel.access = 3;
            channel.gate = n != 2;
        }
        pit
    }

    /// When channel 0 raises its interrupt next.
    pub fn next_deadline(&self) -> Option<u64> {
        self.next
    }

    /// Channel 0 ends then, whatever it was to do.
    pub fn put_off(&mut self, due: u64) {
        self.next = Some(due);
    }

    /// Takes a due interrupt of channel 0.
    pub fn take_due(&mut self, now: u64) -> bool {
        let Some(due) = self.next.filter(|due| *due <= now) else { return false };
        let channel = &self.channels[0];
        self.next = channel.is_periodic().then(|| {
            let period = channel.reload();
            let count = ticks(due.max(now) - channel.loaded_at) / period + 1;
            let next = channel.loaded_at + nanoseconds(count * period);
            if next > now { next } else { channel.loaded_at + nanoseconds((count + 1) * period) }
        });
        true
    }

    pub fn write(&mut self, port: u16, value: u8, now: u64) {
        match port & 3 {
            CONTROL => self.control(value, now),
            n => {
                if self.channels[usize::from(n)].write(value, now) && n == 0 {
                    self.start(now);
                }
            }
        }
    }

    pub fn read(&mut self, port: u16, now: u64) -> u8 {
        match port & 3 {
            CONTROL => 0,
            n => self.channels[usize::from(n)].read(now),
        }
    }

    fn start(&mut self, now: u64) {
        let channel = &self.channels[0];
        // Modes 1 and 5 wait for a gate edge, which channel 0 never sees.
        self.next = (!matches!(channel.mode, 1 | 5)).then(|| now + nanoseconds(channel.reload()));
    }

    fn control(&mut self, value: u8, now: u64) {
        let select = value >> 6;
        if select == READ_BACK {
            for n in (0..3).filter(|n| value & 2 << n != 0) {
                let channel = &mut self.channels[n];
                if value & 0x20 == 0 && channel.latched.is_none() {
                    channel.latched = Some(channel.counter(now));
                    channel.read_high = false;
                }
                if value & 0x10 == 0 && channel.latched_status.is_none() {
                    channel.latched_status = Some(channel.status(now));
                }
            }
            return;
        }
        let channel = &mut self.channels[usize::from(select)];
        match value >> 4 & 3 {
            0 => {
                if channel.latched.is_none() {
                    channel.latched = Some(channel.counter(now));
                    channel.read_high = false;
                }
            }
            access => {
                let mode = value >> 1 & 7;
                channel.access = access;
                channel.mode = if mode > 5 { mode & 3 } else { mode };
                channel.bcd = value & 1 != 0;
                channel.read_high = false;
                channel.write_high = false;
                channel.latched = None;
                if select == 0 {
                    self.next = None;
                }
            }
        }
    }

    pub fn write_speaker(&mut self, value: u8, now: u64) {
        let gate = value & 1 != 0;
        let channel = &mut self.channels[2];
        // A rising gate restarts the counter in every mode that reacts to one.
        if gate && !channel.gate && matches!(channel.mode, 1 | 2 | 3 | 5) {
            channel.loaded_at = now;
        }
        channel.gate = gate;
        self.speaker = value & 2 != 0;
    }

    pub fn read_speaker(&self, now: u64) -> u8 {
        const REFRESH_NS: u64 = 15_085;
        let channel = &self.channels[2];
        let refresh = !(now / REFRESH_NS).is_multiple_of(2);
        u8::from(channel.gate)
            | u8::from(self.speaker) << 1
            | u8::from(refresh) << 4
            | u8::from(channel.output(now)) << 5
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_generator_ticks_without_drift() {
        let mut pit = Pit::new();
        pit.write(0x43, 0x34, 0);
        pit.write(0x40, 0x9c, 0);
        pit.write(0x40, 0x2e, 0);
        for tick in 1..=1000 {
            let due = pit.next_deadline().unwrap();
            assert_eq!(due, nanoseconds(tick * 0x2e9c));
            assert!(!pit.take_due(due - 1));
            assert!(pit.take_due(due));
        }
    }

    #[test]
    fn a_latched_count_stands_still() {
        let mut pit = Pit::new();
        pit.write(0x43, 0xb0, 0);
        pit.write(0x42, 0xff, 0);
        pit.write(0x42, 0xff, 0);
        pit.write(0x43, 0x80, nanoseconds(0x100));
        let low = pit.read(0x42, nanoseconds(0x200));
        let high = pit.read(0x42, nanoseconds(0x300));
        assert_eq!(u16::from_le_bytes([low, high]), 0xfeff);
        assert_eq!(pit.read_speaker(nanoseconds(0xfffe)) & 0x20, 0);
        assert_eq!(pit.read_speaker(nanoseconds(0xffff)) & 0x20, 0x20);
    }
}
