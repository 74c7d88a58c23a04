//! The high-precision event timer: a counter of 100 MHz and three comparators, which the VMM models.
//!
//! See: IA-PC HPET Specification 1.0a, 2.3 Register Model and Memory Map

use crate::time::NS_PER_TICK;
use bitfield_struct::bitfield;
use serde::{Deserialize, Serialize};

pub const BASE: u64 = 0xfed0_0000;
pub const SIZE: u64 = 0x400;

/// Registers by offset.
mod reg {
    pub const CAPABILITIES: u64 = 0;
    pub const CONFIGURATION: u64 = 0x10;
    pub const STATUS: u64 = 0x20;
    pub const COUNTER: u64 = 0xf0;
    pub const TIMERS: u64 = 0x100;
    /// From one timer's registers to the next one's.
    pub const STRIDE: u64 = 0x20;
    pub const TIMER_CONFIGURATION: u64 = 0;
    pub const TIMER_COMPARATOR: u64 = 8;
}

const TIMERS: usize = 3;
/// Femtoseconds of a tick, which is the time-stamp counter's.
const PERIOD_FS: u64 = NS_PER_TICK * 1_000_000;
/// Revision 1, a 64-bit counter, legacy replacement, three timers; Intel's vendor identifier.
const CAPABILITIES: u64 = PERIOD_FS << 32 | 0x8086 << 16 | 1 << 15 | 1 << 13 | (TIMERS as u64 - 1) << 8 | 1;
/// I/O APIC inputs that a timer may be routed to: 2, 8, and those that no ISA device has.
const ROUTES: u32 = 0x00ff_0104;
/// With legacy replacement, the first timer is in the PIT's place, the second in the clock's.
const LEGACY: [u8; 2] = [0, 8];

/// General configuration.
#[bitfield(u64)]
#[derive(Serialize, Deserialize)]
struct Configuration {
    enabled: bool,
    legacy_replacement: bool,
    #[bits(62)]
    __: u64,
}

/// Timer N configuration and capability.
#[bitfield(u64)]
#[derive(Serialize, Deserialize)]
struct TimerConfiguration {
    __: bool,
    level: bool,
    interrupts: bool,
    periodic: bool,
    can_be_periodic: bool,
    is_64_bit: bool,
    /// The next write of the comparator sets the accumulator.
    set_accumulator: bool,
    __: bool,
    forced_to_32_bit: bool,
    #[bits(5)]
    route: u8,
    #[bits(18)]
    __: u32,
    routes: u32,
}

/// What a guest may write of it.
const WRITABLE: u64 = 0x3f4e;

/// A comparator.
#[derive(Clone, Copy, Serialize, Deserialize)]
struct Timer {
    configuration: TimerConfiguration,
    comparator: u64,
    period: u64,
    /// The tick at which it matches next, as [`Hpet`] counts ticks since the run began; none while it is not armed.
    due: Option<u64>,
}

impl Timer {
    /// The counter as the timer compares it.
    fn width(&self) -> u64 {
        if self.configuration.forced_to_32_bit() { u32::MAX.into() } else { u64::MAX }
    }
}

/// An interrupt line's change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    Pulse(u8),
    Set(u8, bool),
}

#[derive(Serialize, Deserialize)]
pub struct Hpet {
    configuration: Configuration,
    status: u64,
    /// The counter while it stands still; else how far it is ahead of virtual time's ticks.
    base: u64,
    timers: [Timer; TIMERS],
}

impl Default for Hpet {
    fn default() -> Self {
        let configuration =
            TimerConfiguration::new().with_can_be_periodic(true).with_is_64_bit(true).with_routes(ROUTES);
        let timer = Timer { configuration, comparator: u64::MAX, period: 0, due: None };
        Self { configuration: Configuration::new(), status: 0, base: 0, timers: [timer; TIMERS] }
    }
}

impl Hpet {
    fn counter(&self, now: u64) -> u64 {
        if self.configuration.enabled() { (now / NS_PER_TICK).wrapping_add(self.base) } else { self.base }
    }

    fn register(&self, offset: u64, now: u64) -> u64 {
        match offset {
            reg::CAPABILITIES => CAPABILITIES,
            reg::CONFIGURATION => self.configuration.into_bits(),
            reg::STATUS => self.status,
            reg::COUNTER => self.counter(now),
            _ => match self.timer_register(offset) {
                Some((n, reg::TIMER_CONFIGURATION)) => self.timers[n].configuration.into_bits(),
                Some((n, reg::TIMER_COMPARATOR)) => self.timers[n].comparator,
                _ => 0,
            },
        }
    }

    fn timer_register(&self, offset: u64) -> Option<(usize, u64)> {
        let from = offset.checked_sub(reg::TIMERS)?;
        let n = (from / reg::STRIDE) as usize;
        (n < TIMERS).then_some((n, from % reg::STRIDE))
    }

    /// Reads 4 or 8 bytes; other sizes give zero.
    pub fn read(&self, offset: u64, size: u8, now: u64) -> u64 {
        let value = self.register(offset & !7, now);
        match (size, offset % 8) {
            (8, 0) => value,
            (4, 0) => value & u64::from(u32::MAX),
            (4, 4) => value >> 32,
            _ => 0,
        }
    }

    /// Writes 4 or 8 bytes; other sizes do nothing. Gives the lines that follow.
    pub fn write(&mut self, offset: u64, size: u8, value: u64, now: u64) -> Vec<Signal> {
        let old = self.register(offset & !7, now);
        let low = u64::from(u32::MAX);
        let value = match (size, offset % 8) {
            (8, 0) => value,
            (4, 0) => old & !low | value & low,
            (4, 4) => old & low | value << 32,
            _ => return Vec::new(),
        };
        match offset & !7 {
            reg::CONFIGURATION => self.configure(Configuration::from_bits(value), now),
            reg::STATUS => return self.acknowledge(value),
            // A counter that runs ignores writes.
            reg::COUNTER if !self.configuration.enabled() => self.base = value,
            offset => match self.timer_register(offset) {
                Some((n, reg::TIMER_CONFIGURATION)) => self.configure_timer(n, value, now),
                Some((n, reg::TIMER_COMPARATOR)) => self.compare(n, value, now),
                _ => {}
            },
        }
        Vec::new()
    }

    fn configure(&mut self, new: Configuration, now: u64) {
        let counter = self.counter(now);
        self.configuration = Configuration::new()
            .with_enabled(new.enabled())
            .with_legacy_replacement(new.legacy_replacement());
        self.base = if new.enabled() { counter.wrapping_sub(now / NS_PER_TICK) } else { counter };
        (0..TIMERS).for_each(|n| self.arm(n, now));
    }

    /// Ends level-triggered interrupts.
    fn acknowledge(&mut self, value: u64) -> Vec<Signal> {
        let ended = self.status & value;
        self.status &= !value;
        (0..TIMERS).filter(|n| ended >> n & 1 != 0).map(|n| Signal::Set(self.line(n), false)).collect()
    }

    fn configure_timer(&mut self, n: usize, value: u64, now: u64) {
        let timer = &mut self.timers[n];
        let kept = timer.configuration.into_bits() & !WRITABLE;
        timer.configuration = TimerConfiguration::from_bits(kept | value & WRITABLE);
        timer.comparator &= timer.width();
        self.arm(n, now);
    }

    fn compare(&mut self, n: usize, value: u64, now: u64) {
        let timer = &mut self.timers[n];
        let value = value & timer.width();
        let configuration = timer.configuration;
        if !configuration.periodic() || configuration.set_accumulator() {
            timer.comparator = value;
        }
        if configuration.periodic() && !configuration.set_accumulator() {
            timer.period = value;
        }
        timer.configuration = configuration.with_set_accumulator(false);
        self.arm(n, now);
    }

    /// Finds when a timer matches next: never again this tick, in which it may just have.
    fn arm(&mut self, n: usize, now: u64) {
        let timer = self.timers[n];
        let left = timer.comparator.wrapping_sub(self.counter(now)).wrapping_sub(1) & timer.width();
        let armed = self.configuration.enabled() && timer.configuration.interrupts();
        let due = (now / NS_PER_TICK).checked_add(left).and_then(|due| due.checked_add(1));
        self.timers[n].due = due.filter(|_| armed);
    }

    fn line(&self, n: usize) -> u8 {
        match LEGACY.get(n) {
            Some(line) if self.configuration.legacy_replacement() => *line,
            _ => self.timers[n].configuration.route(),
        }
    }

    /// Whether the first timer is in the PIT's place.
    pub fn replaces_pit(&self) -> bool {
        self.configuration.legacy_replacement()
    }

    /// When a timer matches next, in nanoseconds.
    pub fn next_deadline(&self) -> Option<u64> {
        self.timers.iter().filter_map(|timer| timer.due).min().map(|due| due.saturating_mul(NS_PER_TICK))
    }

    /// Lets timers match that are due, and gives the lines that follow.
    pub fn take_due(&mut self, now: u64) -> Vec<Signal> {
        let is_due = |timer: &Timer| timer.due.is_some_and(|due| due <= now / NS_PER_TICK);
        let due: Vec<usize> = (0..TIMERS).filter(|n| is_due(&self.timers[*n])).collect();
        due.into_iter().map(|n| self.fire(n, now)).collect()
    }

    fn fire(&mut self, n: usize, now: u64) -> Signal {
        let line = self.line(n);
        let timer = &mut self.timers[n];
        if timer.configuration.periodic() && timer.period != 0 {
            // What was missed is not made up for.
            let behind = (now / NS_PER_TICK).saturating_sub(timer.due.unwrap_or(0));
            let periods = behind / timer.period + 1;
            timer.comparator =
                timer.comparator.wrapping_add(timer.period.wrapping_mul(periods)) & timer.width();
        }
        let level = timer.configuration.level();
        self.arm(n, now);
        if level {
            self.status |= 1 << n;
            Signal::Set(line, true)
        } else {
            Signal::Pulse(line)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn timer(n: u64, register: u64) -> u64 {
        reg::TIMERS + n * reg::STRIDE + register
    }

    /// See: 2.3.4 General Capabilities and ID Register; the fields of QEMU's, whose clock has this period too
    #[test]
    fn capabilities() {
        let hpet = Hpet::default();
        assert_eq!(hpet.read(reg::CAPABILITIES, 8, 0), 0x0098_9680_8086_a201);
        assert_eq!(hpet.read(4, 4, 0), 10_000_000);
        assert_eq!(hpet.read(timer(0, reg::TIMER_CONFIGURATION) + 4, 4, 0), u64::from(ROUTES));
    }

    #[test]
    fn the_counter_stands_still_unless_it_is_enabled() {
        let mut hpet = Hpet::default();
        assert_eq!(hpet.read(reg::COUNTER, 8, 1000), 0);
        hpet.write(reg::COUNTER, 8, 5, 1000);
        hpet.write(reg::CONFIGURATION, 8, 1, 1000);
        assert_eq!(hpet.read(reg::COUNTER, 8, 1250), 5 + 25);
        hpet.write(reg::COUNTER, 8, 7, 1250);
        hpet.write(reg::CONFIGURATION, 4, 0, 2000);
        assert_eq!(hpet.read(reg::COUNTER, 8, 9000), 5 + 100);
    }

    /// See: 2.3.9.2.1 Timer 0 Operation
    #[test]
    fn timers_match_once_or_again_and_again() {
        const ONCE: u64 = 1 << 2 | 16 << 9;
        const PERIODIC: u64 = 1 << 2 | 1 << 3 | 1 << 6 | 17 << 9;
        let mut hpet = Hpet::default();
        hpet.write(timer(0, reg::TIMER_CONFIGURATION), 8, ONCE, 0);
        hpet.write(timer(0, reg::TIMER_COMPARATOR), 8, 50, 0);
        hpet.write(timer(1, reg::TIMER_CONFIGURATION), 8, PERIODIC, 0);
        hpet.write(timer(1, reg::TIMER_COMPARATOR), 8, 100, 0);
        hpet.write(timer(1, reg::TIMER_COMPARATOR), 8, 30, 0);
        assert_eq!(hpet.next_deadline(), None, "the counter stands still");
        hpet.write(reg::CONFIGURATION, 8, 1, 0);
        let mut seen = Vec::new();
        while seen.len() < 4 {
            let due = hpet.next_deadline().unwrap();
            seen.extend(hpet.take_due(due).into_iter().map(|signal| (due / NS_PER_TICK, signal)));
        }
        let pulse = Signal::Pulse;
        assert_eq!(seen, [(50, pulse(16)), (100, pulse(17)), (130, pulse(17)), (160, pulse(17))]);
    }

    /// See: 2.3.6 General Interrupt Status Register; 2.3.5 LEG_RT_CNF
    #[test]
    fn a_level_lasts_until_it_is_acknowledged() {
        let mut hpet = Hpet::default();
        hpet.write(timer(1, reg::TIMER_CONFIGURATION), 8, 1 << 1 | 1 << 2, 0);
        hpet.write(timer(1, reg::TIMER_COMPARATOR), 8, 3, 0);
        hpet.write(reg::CONFIGURATION, 8, 3, 0);
        assert_eq!(hpet.take_due(30), [Signal::Set(8, true)]);
        assert_eq!(hpet.read(reg::STATUS, 8, 30), 2);
        assert_eq!(hpet.write(reg::STATUS, 8, 2, 30), [Signal::Set(8, false)]);
        assert_eq!(hpet.read(reg::STATUS, 8, 30), 0);
    }
}
