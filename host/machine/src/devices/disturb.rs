//! What a fault plan does to devices: timers that come late, twice or never, interrupts that get lost or that nobody sent.

use super::{Devices, Message, pit};
use crate::devices::lapic::reg;

/// A timer of the guest's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimerId {
    /// Of this vCPU's local APIC.
    Lapic(u32),
    Pit,
}

impl Devices {
    /// The timers that are due, and since when.
    pub fn due_timers(&self, now: u64) -> Vec<(TimerId, u64)> {
        let lapics = (0..).zip(&self.lapics);
        let lapics = lapics.filter_map(|(n, apic)| Some((TimerId::Lapic(n), apic.timer.next_deadline()?)));
        let pit = self.pit.next_deadline().map(|due| (TimerId::Pit, due));
        lapics.chain(pit).filter(|(_, due)| *due <= now).collect()
    }

    /// A due timer expires; with an interrupt, or without anybody hearing of it.
    pub fn expire(&mut self, timer: TimerId, now: u64, heard: bool) {
        match timer {
            TimerId::Lapic(n) => {
                let apic = &mut self.lapics[n as usize];
                self.kicked |= apic.timer.take_due(now) && heard && apic.local_interrupt(reg::LVT_TIMER);
            }
            TimerId::Pit => {
                if self.pit.take_due(now) && heard {
                    self.pulse_irq(pit::IRQ);
                }
            }
        }
    }

    /// When a timer is due instead.
    pub fn put_off(&mut self, timer: TimerId, due: u64) {
        match timer {
            TimerId::Lapic(n) => self.lapics[n as usize].timer.put_off(due),
            TimerId::Pit => self.pit.put_off(due),
        }
    }

    /// The interrupt that waits for a vCPU is gone.
    pub fn lose_interrupt(&mut self, vcpu: u32) {
        let from_pic = self.wants_extint(vcpu);
        if let Some(vector) = self.interrupt(vcpu, true) {
            if from_pic {
                self.pic.end_of_any_interrupt();
            } else {
                self.lapics[vcpu as usize].forget(vector);
            }
        }
    }

    /// An interrupt that nobody sent reaches a vCPU.
    pub fn pretend_interrupt(&mut self, vcpu: u32, vector: u8) {
        let message = Message { vector, ..Message::default() };
        self.kicked |= self.lapics.get_mut(vcpu as usize).is_some_and(|apic| apic.accept(&message));
    }
}
