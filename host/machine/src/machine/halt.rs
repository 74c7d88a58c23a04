//! When nobody runs, and nothing will change that.

use crate::services::Services;

/// How long everybody has been halted.
#[derive(Default)]
pub(super) struct Halt {
    /// By then each timer that was armed has expired once more.
    round: u64,
    rounds: u32,
    /// Timers that expired.
    expired: u64,
}

impl Halt {
    /// A timer that expires again while nobody runs changes nothing that it did not change before; a fault may lose some.
    const ROUNDS: u32 = 16;
    /// And with one timer that is years away and another one that ticks, nobody waits for the first.
    const EXPIRED: u64 = 1 << 22;

    /// Whether the timers have expired often enough without waking anybody.
    pub(super) fn is_futile(&mut self, services: &Services) -> bool {
        self.expired += 1;
        if services.clock.now() >= self.round {
            self.round = services.devices.last_deadline().unwrap_or(0);
            self.rounds += 1;
        }
        self.rounds > Self::ROUNDS || self.expired > Self::EXPIRED
    }
}
