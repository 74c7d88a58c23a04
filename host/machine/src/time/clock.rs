//! Virtual time.

use serde::{Deserialize, Serialize};
pub use vmtape_arch::time::{NS_PER_SECOND, NS_PER_TICK};

/// Nobody waits for longer in virtual time: a century, far from where nanoseconds overflow.
pub const MOST_NS: u64 = 100 * 365 * 24 * 3600 * NS_PER_SECOND;

/// Virtual time: a function of retired instructions.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Clock {
    /// Instructions retired by all vCPUs. Each one is a tick of the time-stamp counter.
    pub icount: u64,
    /// Ticks that passed while every vCPU was halted.
    idle: u64,
}

impl Clock {
    /// The time-stamp counter after `icount` instructions.
    pub fn tsc_at(&self, icount: u64) -> u64 {
        icount.wrapping_add(self.idle)
    }

    /// Nanoseconds since the machine was switched on, which devices live by.
    pub fn now(&self) -> u64 {
        self.tsc_at(self.icount).saturating_mul(NS_PER_TICK)
    }

    /// The instruction count at which a time is reached if no vCPU halts.
    pub fn icount_at(&self, ns: u64) -> u64 {
        ns.div_ceil(NS_PER_TICK).saturating_sub(self.idle)
    }

    /// Lets time pass without instructions, up to [`MOST_NS`].
    pub fn jump_to(&mut self, ns: u64) {
        self.idle += self.icount_at(ns.min(MOST_NS)).saturating_sub(self.icount);
    }

    /// Sets the time-stamp counter, and with it what devices live by. `false`: it cannot be less than the instructions that
    /// have retired, or more than [`MOST_NS`].
    pub fn set(&mut self, tsc: u64) -> bool {
        let idle = tsc.checked_sub(self.icount).filter(|_| tsc <= MOST_NS / NS_PER_TICK);
        self.idle = idle.unwrap_or(self.idle);
        idle.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_does_not_wrap() {
        let mut clock = Clock { icount: 1000, idle: 0 };
        clock.jump_to(u64::MAX);
        assert_eq!(clock.now(), MOST_NS);
        clock.jump_to(u64::MAX - 5);
        assert_eq!(clock.now(), MOST_NS);
        assert!(!clock.set(u64::MAX / 5) && clock.set(2000), "a time that overflows");
    }
}
