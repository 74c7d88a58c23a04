//! Power management as QEMU's PIIX4 has it: PM1 event and control registers, and the timer. It raises no SCI.
//!
//! See: ACPI 6.5, 4.8.3 Fixed Hardware Registers; QEMU 10 hw/acpi/core.c, hw/acpi/piix4.c

use crate::time::NS_PER_SECOND;
use bitfield_struct::bitfield;
use serde::{Deserialize, Serialize};
use vmtape_arch::open_enum;

pub const PM1_EVENT: u16 = 0x600;
pub const PM1_CONTROL: u16 = PM1_EVENT + CONTROL;
pub const TIMER: u16 = PM1_EVENT + 8;
pub const PORTS: std::ops::Range<u16> = PM1_EVENT..TIMER + 4;

/// Where registers of two bytes are: status, enable, control.
const STATUS: u16 = 0;
const ENABLE: u16 = 2;
const CONTROL: u16 = 4;
const TIMER_HZ: u128 = 3_579_545;
const TIMER_MASK: u32 = 0xff_ffff;

/// PM1 status and enable.
#[bitfield(u16)]
#[derive(PartialEq, Eq, Serialize, Deserialize)]
struct Event {
    #[bits(10)]
    _others: u16,
    /// RTC_STS, RTC_EN.
    rtc: bool,
    #[bits(4)]
    _reserved: u8,
    /// WAK_STS.
    wake: bool,
}

/// PM1 control.
#[bitfield(u16)]
#[derive(PartialEq, Eq, Serialize, Deserialize)]
struct Control {
    #[bits(10)]
    _others: u16,
    /// SLP_TYP.
    #[bits(3)]
    kind: u8,
    /// SLP_EN.
    sleep: bool,
    #[bits(2)]
    _reserved: u8,
}

open_enum! {
    /// What SLP_TYP asks for.
    pub struct Sleep(u8) {
        OFF = 0 => "S5",
        TO_RAM = 1 => "S3",
        TO_DISK = 2 => "S4",
    }
}

#[derive(Default, Serialize, Deserialize)]
pub struct Pm {
    status: Event,
    enable: Event,
    control: Control,
}

impl Pm {
    /// Reads up to four bytes.
    pub fn read(&self, port: u16, now: u64) -> u32 {
        let ticks = u128::from(now) * TIMER_HZ / u128::from(NS_PER_SECOND);
        let mut bytes = [0; 16];
        for (at, word) in [
            (STATUS, self.status.into_bits()),
            (ENABLE, self.enable.into_bits()),
            (CONTROL, self.control.into_bits()),
        ] {
            bytes[usize::from(at)..usize::from(at) + 2].copy_from_slice(&word.to_le_bytes());
        }
        bytes[8..12].copy_from_slice(&(ticks as u32 & TIMER_MASK).to_le_bytes());
        let at = usize::from(port - PM1_EVENT);
        u32::from_le_bytes(std::array::from_fn(|n| bytes[at + n]))
    }

    /// Writes a register, or a byte of one. What the guest asks for, if it is to sleep.
    pub fn write(&mut self, port: u16, size: u8, value: u32) -> Option<Sleep> {
        let at = port - PM1_EVENT;
        let shift = 8 * (at & 1);
        let mask = if size == 1 { 0xff << shift } else { u16::MAX };
        let word = (value as u16) << shift & mask;
        let merged = |old: u16| old & !mask | word;
        match at & !1 {
            // Written ones clear.
            STATUS => self.status = Event::from_bits(self.status.into_bits() & !word),
            ENABLE => self.enable = Event::from_bits(merged(self.enable.into_bits())),
            CONTROL => {
                let control = Control::from_bits(merged(self.control.into_bits()));
                self.control = control.with_sleep(false);
                return control.sleep().then_some(Sleep(control.kind()));
            }
            _ => {}
        }
        None
    }

    /// Whether the clock's alarm wakes the guest.
    pub fn wakes_by_clock(&self) -> bool {
        self.enable.rtc()
    }

    /// What is there after the clock's alarm has.
    pub fn woken() -> Self {
        Self { status: Event::new().with_rtc(true).with_wake(true), ..Self::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registers_are_words_of_bytes() {
        let mut pm = Pm::default();
        assert_eq!(pm.write(PM1_EVENT + ENABLE, 2, 0x400), None);
        assert!(pm.wakes_by_clock());
        assert_eq!(pm.read(PM1_EVENT, 0), 0x400_0000);
        assert_eq!(pm.read(PM1_EVENT + 3, 0), 4);
        assert_eq!(pm.write(PM1_EVENT + 3, 1, 0), None);
        assert!(!pm.wakes_by_clock());
        assert_eq!(pm.write(PM1_CONTROL, 2, 0x2400), Some(Sleep::TO_RAM));
        assert_eq!(pm.write(PM1_CONTROL + 1, 1, 0x20), Some(Sleep::OFF));
        let mut woken = Pm::woken();
        woken.write(PM1_EVENT, 2, 0x8000);
        assert_eq!(woken.read(PM1_EVENT, 0) & 0xffff, 0x400, "written ones clear");
    }

    #[test]
    fn the_timer_has_24_bits() {
        assert_eq!(Pm::default().read(TIMER, NS_PER_SECOND), 3_579_545);
        assert_eq!(Pm::default().read(TIMER, 5 * NS_PER_SECOND), 5 * 3_579_545 - (1 << 24));
    }
}
