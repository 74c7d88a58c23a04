//! The real-time clock and its CMOS memory: ports 0x70 and 0x71, on virtual time.
//!
//! See: Motorola MC146818A data sheet

use crate::time::NS_PER_SECOND;
use serde::{Deserialize, Serialize};

pub const INDEX: u16 = 0x70;
pub const DATA: u16 = 0x71;

/// [`vmtape_arch::time::EPOCH_SECONDS`] as a date: 2026-01-01 00:00:00, a Thursday.
const EPOCH_YEAR: u64 = 2026;
const EPOCH_WEEKDAY: u64 = 5;

mod register {
    pub const SECONDS: u8 = 0;
    pub const SECONDS_ALARM: u8 = 1;
    pub const MINUTES: u8 = 2;
    pub const MINUTES_ALARM: u8 = 3;
    pub const HOURS: u8 = 4;
    pub const HOURS_ALARM: u8 = 5;
    pub const WEEKDAY: u8 = 6;
    pub const DAY: u8 = 7;
    pub const MONTH: u8 = 8;
    pub const YEAR: u8 = 9;
    pub const A: u8 = 0xa;
    pub const B: u8 = 0xb;
    pub const C: u8 = 0xc;
    pub const D: u8 = 0xd;
    pub const CENTURY: u8 = 0x32;
}

const A_DIVIDER_32_KHZ: u8 = 0x26;
const A_UPDATE_IN_PROGRESS: u8 = 0x80;
const B_24_HOURS: u8 = 0x02;
const B_BINARY: u8 = 0x04;
const B_ALARM: u8 = 0x20;
/// Of an alarm: at every one.
const ANY: u8 = 0xc0;
const D_VALID: u8 = 0x80;
/// How long the update-in-progress bit is set before a second begins.
const UPDATE_NS: u64 = 244_000;

/// Index register and memory.
#[derive(Serialize, Deserialize)]
pub struct Cmos {
    index: u8,
    memory: Vec<u8>,
}

impl Default for Cmos {
    fn default() -> Self {
        let mut memory = vec![0; 128];
        memory[usize::from(register::A)] = A_DIVIDER_32_KHZ;
        memory[usize::from(register::B)] = B_24_HOURS;
        Self { index: 0, memory }
    }
}

impl Cmos {
    /// Fills in the memory size as a BIOS does: base memory, then extended memory in KiB and in 64 KiB above 16 MiB.
    pub fn new(ram: u64) -> Self {
        let mut cmos = Self::default();
        let mut word = |at: usize, value: u64| {
            let value = value.min(0xffff) as u16;
            cmos.memory[at..at + 2].copy_from_slice(&value.to_le_bytes());
        };
        word(0x15, 640);
        word(0x17, ram.saturating_sub(1 << 20) >> 10);
        word(0x30, ram.saturating_sub(1 << 20) >> 10);
        word(0x34, ram.min(3 << 30).saturating_sub(16 << 20) >> 16);
        cmos
    }

    pub fn select(&mut self, index: u8) {
        self.index = index & 0x7f;
    }

    pub fn index(&self) -> u8 {
        self.index
    }

    pub fn write(&mut self, value: u8) {
        // Setting the time is accepted and ignored: it stays a function of retired instructions.
        if self.index != register::C && self.index != register::D {
            self.memory[usize::from(self.index)] = value;
        }
    }

    pub fn read(&self, now: u64) -> u8 {
        let date = Date::at(now / NS_PER_SECOND);
        let value = match self.index {
            register::SECONDS => date.second,
            register::MINUTES => date.minute,
            register::HOURS => return self.hours(date.hour),
            register::WEEKDAY => date.weekday,
            register::DAY => date.day,
            register::MONTH => date.month,
            register::YEAR => date.year % 100,
            register::CENTURY => date.year / 100,
            register::A => return self.status_a(now),
            register::C => return 0,
            register::D => return D_VALID,
            index => return self.memory[usize::from(index)],
        };
        self.encode(value)
    }

    /// When the alarm strikes next, if its interrupt is enabled.
    pub fn next_alarm(&self, now: u64) -> Option<u64> {
        const DAY: u64 = 86_400;
        let memory = |index: u8| self.memory[usize::from(index)];
        if memory(register::B) & B_ALARM == 0 {
            return None;
        }
        let strikes = |second: &u64| {
            let date = Date::at(*second);
            let at = [self.encode(date.second), self.encode(date.minute), self.hours(date.hour)];
            let alarm = [register::SECONDS_ALARM, register::MINUTES_ALARM, register::HOURS_ALARM].map(memory);
            at.iter().zip(alarm).all(|(at, alarm)| alarm & ANY == ANY || *at == alarm)
        };
        let first = now / NS_PER_SECOND + 1;
        let second = (first..first + DAY).find(strikes)?;
        Some(second * NS_PER_SECOND)
    }

    fn status_a(&self, now: u64) -> u8 {
        let updating = now % NS_PER_SECOND >= NS_PER_SECOND - UPDATE_NS;
        self.memory[usize::from(register::A)] & !A_UPDATE_IN_PROGRESS
            | if updating { A_UPDATE_IN_PROGRESS } else { 0 }
    }

    fn hours(&self, hour: u64) -> u8 {
        const PM: u8 = 0x80;
        if self.memory[usize::from(register::B)] & B_24_HOURS != 0 {
            return self.encode(hour);
        }
        let pm = if hour >= 12 { PM } else { 0 };
        self.encode((hour + 11) % 12 + 1) | pm
    }

    fn encode(&self, value: u64) -> u8 {
        let value = value as u8;
        if self.memory[usize::from(register::B)] & B_BINARY != 0 {
            value
        } else {
            ((value / 10) << 4) | (value % 10)
        }
    }
}

struct Date {
    second: u64,
    minute: u64,
    hour: u64,
    weekday: u64,
    day: u64,
    month: u64,
    year: u64,
}

impl Date {
    fn at(seconds: u64) -> Self {
        let days = seconds / 86_400;
        let (mut year, mut left) = (EPOCH_YEAR, days);
        while left >= year_days(year) {
            left -= year_days(year);
            year += 1;
        }
        let mut month = 1;
        while left >= month_days(year, month) {
            left -= month_days(year, month);
            month += 1;
        }
        Self {
            second: seconds % 60,
            minute: seconds / 60 % 60,
            hour: seconds / 3600 % 24,
            weekday: (EPOCH_WEEKDAY - 1 + days) % 7 + 1,
            day: left + 1,
            month,
            year,
        }
    }
}

fn is_leap(year: u64) -> bool {
    year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
}

fn year_days(year: u64) -> u64 {
    365 + u64::from(is_leap(year))
}

fn month_days(year: u64, month: u64) -> u64 {
    match month {
        2 => 28 + u64::from(is_leap(year)),
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(cmos: &mut Cmos, index: u8, now: u64) -> u8 {
        cmos.select(index);
        cmos.read(now)
    }

    #[test]
    fn the_calendar_carries() {
        let mut cmos = Cmos::default();
        let new_year_2029 = (365 * 3 + 1) * 86_400 * NS_PER_SECOND;
        let now = new_year_2029 - NS_PER_SECOND;
        let fields = [register::SECONDS, register::MINUTES, register::HOURS, register::DAY, register::MONTH];
        assert_eq!(fields.map(|index| read(&mut cmos, index, now)), [0x59, 0x59, 0x23, 0x31, 0x12]);
        assert_eq!(read(&mut cmos, register::YEAR, now), 0x28);
        assert_eq!(read(&mut cmos, register::YEAR, new_year_2029), 0x29);
        assert_eq!(read(&mut cmos, register::CENTURY, now), 0x20);
    }

    #[test]
    fn the_first_second_is_that_of_the_epoch() {
        let days: u64 = (1970..EPOCH_YEAR).map(year_days).sum();
        assert_eq!(days * 86_400, vmtape_arch::time::EPOCH_SECONDS);
    }

    #[test]
    fn an_alarm_strikes_when_it_matches() {
        let mut cmos = Cmos::default();
        let mut set = |index, value| {
            cmos.select(index);
            cmos.write(value);
            cmos.next_alarm(1)
        };
        set(register::SECONDS_ALARM, ANY);
        set(register::MINUTES_ALARM, ANY);
        assert_eq!(set(register::HOURS_ALARM, ANY), None, "it is not enabled");
        assert_eq!(set(register::B, B_24_HOURS | B_ALARM), Some(NS_PER_SECOND));
        assert_eq!(set(register::SECONDS_ALARM, 0x30), Some(30 * NS_PER_SECOND));
        assert_eq!(set(register::HOURS_ALARM, 0x13), Some((13 * 3600 + 30) * NS_PER_SECOND));
        assert_eq!(set(register::HOURS_ALARM, 0x30), None, "no such hour");
    }

    #[test]
    fn twelve_hour_mode_counts_from_twelve() {
        let mut cmos = Cmos::default();
        cmos.select(register::B);
        cmos.write(B_BINARY);
        assert_eq!(read(&mut cmos, register::HOURS, 0), 12);
        assert_eq!(read(&mut cmos, register::HOURS, 13 * 3600 * NS_PER_SECOND), 0x80 | 1);
    }
}
