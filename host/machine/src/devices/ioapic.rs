//! The I/O APIC: 24 pins at 0xfec00000.
//!
//! See: Intel 82093AA data sheet (290566-001); KVM arch/x86/kvm/ioapic.c

use super::message::{DeliveryMode, Message};
use bitfield_struct::bitfield;
use serde::{Deserialize, Serialize};

pub const BASE: u64 = 0xfec0_0000;
pub const SIZE: u64 = 0x100;
pub const PINS: usize = 24;

/// The PIT's pin, and the RTC's.
pub const PIT_PIN: usize = 2;
const RTC_PIN: usize = 8;

const SELECT: u64 = 0x00;
const WINDOW: u64 = 0x10;
const REG_ID: u8 = 0;
const REG_VERSION: u8 = 1;
const REG_ARBITRATION: u8 = 2;
const REG_REDIRECTION: u8 = 0x10;
const VERSION: u32 = 0x11 | (PINS as u32 - 1) << 16;

/// A redirection entry. See: data sheet 3.2.4
#[bitfield(u64)]
#[derive(Serialize, Deserialize)]
pub struct Redirection {
    pub vector: u8,
    #[bits(3)]
    pub delivery_mode: u8,
    pub logical: bool,
    pub delivery_status: bool,
    pub active_low: bool,
    pub remote_irr: bool,
    pub level: bool,
    pub masked: bool,
    #[bits(39)]
    __: u64,
    pub destination: u8,
}

impl Redirection {
    fn message(&self) -> Message {
        Message {
            vector: self.vector(),
            mode: DeliveryMode(self.delivery_mode()),
            logical: self.logical(),
            destination: self.destination().into(),
            level: self.level(),
            ..Message::default()
        }
    }
}

/// The I/O APIC. Whatever it wants delivered is appended to the caller's list.
#[derive(Serialize, Deserialize)]
pub struct IoApic {
    select: u8,
    id: u8,
    /// Pins that are raised (level) or have seen an edge.
    irr: u32,
    entries: [Redirection; PINS],
}

impl Default for IoApic {
    fn default() -> Self {
        Self { select: 0, id: 0, irr: 0, entries: [Redirection::new().with_masked(true); PINS] }
    }
}

impl IoApic {
    pub fn read(&self, offset: u64) -> u32 {
        match offset & 0xf0 {
            SELECT => self.select.into(),
            WINDOW => self.read_register(),
            _ => 0,
        }
    }

    fn read_register(&self) -> u32 {
        match self.select {
            REG_VERSION => VERSION,
            REG_ID | REG_ARBITRATION => u32::from(self.id & 0xf) << 24,
            index => match self.entries.get(usize::from(index.wrapping_sub(REG_REDIRECTION) >> 1)) {
                Some(entry) if index & 1 != 0 => (entry.into_bits() >> 32) as u32,
                Some(entry) => entry.into_bits() as u32,
                None => u32::MAX,
            },
        }
    }

    pub fn write(&mut self, offset: u64, value: u32, out: &mut Vec<Message>) {
        match offset & 0xf0 {
            SELECT => self.select = value as u8,
            WINDOW => self.write_register(value, out),
            _ => {}
        }
    }

    /// See: KVM ioapic.c ioapic_write_indirect()
    fn write_register(&mut self, value: u32, out: &mut Vec<Message>) {
        match self.select {
            REG_ID => self.id = (value >> 24) as u8 & 0xf,
            REG_VERSION | REG_ARBITRATION => {}
            index => {
                let pin = usize::from(index.wrapping_sub(REG_REDIRECTION) >> 1);
                let Some(entry) = self.entries.get_mut(pin) else { return };
                let old = *entry;
                let bits = old.into_bits();
                *entry = Redirection::from_bits(if index & 1 != 0 {
                    bits & 0xffff_ffff | u64::from(value) << 32
                } else {
                    bits & !0xffff_ffff | u64::from(value)
                })
                .with_remote_irr(old.remote_irr())
                .with_delivery_status(old.delivery_status());
                // Guests rely on the switch to edge mode to clear a stuck Remote IRR.
                if !entry.level() {
                    entry.set_remote_irr(false);
                }
                if entry.level() && self.irr & 1 << pin != 0 {
                    self.service(pin, out);
                }
            }
        }
    }

    /// See: KVM ioapic.c ioapic_set_irq()
    pub fn set_irq(&mut self, pin: usize, level: bool, out: &mut Vec<Message>) {
        let Some(entry) = self.entries.get(pin) else { return };
        let mask = 1 << pin;
        let was_set = self.irr & mask != 0;
        if !level {
            self.irr &= !mask;
            return;
        }
        self.irr |= mask;
        if entry.level() || !was_set {
            self.service(pin, out);
        }
    }

    fn service(&mut self, pin: usize, out: &mut Vec<Message>) {
        let entry = &mut self.entries[pin];
        if entry.masked() || entry.level() && entry.remote_irr() {
            return;
        }
        entry.set_remote_irr(entry.level());
        out.push(entry.message());
    }

    /// The messages of those pins with the vector whose end KVM has to know of: level-triggered ones, and the PIT's and the
    /// RTC's, whose ticks it counts. See: KVM ioapic.c kvm_ioapic_scan_entry()
    pub fn hears_end_of(&self, vector: u8) -> impl Iterator<Item = Message> {
        let counted = |pin: usize| matches!(pin, PIT_PIN | RTC_PIN);
        let pins = self.entries.iter().enumerate();
        pins.filter(move |(pin, entry)| entry.vector() == vector && (entry.level() || counted(*pin)))
            .map(|(_, entry)| entry.message())
    }

    /// A local APIC ended the interrupt `vector`.
    /// See: KVM ioapic.c kvm_ioapic_update_eoi_one()
    pub fn end_of_interrupt(&mut self, vector: u8, out: &mut Vec<Message>) {
        for pin in 0..PINS {
            let entry = &mut self.entries[pin];
            if entry.vector() != vector || !entry.level() {
                continue;
            }
            entry.set_remote_irr(false);
            if self.irr & 1 << pin != 0 {
                self.service(pin, out);
            }
        }
    }
}
