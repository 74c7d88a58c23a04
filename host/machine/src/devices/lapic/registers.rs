//! What a guest reads and writes of its local APIC.

use super::{LocalApic, Refused, layout::*, timer::TimerMode};
use crate::devices::message::{DeliveryMode, Message, Shorthand};
use vmtape_arch::{apic::Icr, note::Note};

impl LocalApic {
    /// Reads a 32-bit register.
    /// See: KVM lapic.c kvm_lapic_readable_reg_mask(), __apic_read()
    pub fn read(&self, register: u32, now: u64) -> Result<u32, Refused> {
        let bank = |bits: &[u32; 8]| bits[(register >> 4 & 7) as usize];
        Ok(match register {
            reg::ID if self.is_x2apic() => self.x2apic_id(),
            reg::ID => u32::from(self.id) << 24,
            reg::VERSION => VERSION,
            reg::TPR => self.tpr.into(),
            reg::PPR => self.ppr().into(),
            reg::LDR => self.ldr,
            reg::SPURIOUS => self.spurious,
            0x100..0x180 => bank(&self.isr),
            0x180..0x200 => bank(&self.tmr),
            0x200..0x280 => bank(&self.irr),
            reg::ESR => self.esr,
            reg::ICR => self.icr as u32,
            register if LVTS.contains(&register) => self.lvt(register).into_bits(),
            reg::TIMER_INITIAL => self.timer.initial(),
            reg::TIMER_CURRENT => self.timer.current(now),
            reg::TIMER_DIVIDE => self.timer.divide(),
            _ if self.is_x2apic() => return Err(Refused),
            reg::ARBITRATION => 0,
            reg::DFR => self.dfr,
            reg::ICR_HIGH => (self.icr >> 32) as u32,
            _ => return Err(Refused),
        })
    }

    /// Writes a 32-bit register. Messages to send are appended; an ended level interrupt goes to `ended`.
    /// See: KVM lapic.c kvm_lapic_reg_write()
    pub fn write(
        &mut self,
        register: u32,
        value: u32,
        now: u64,
        effects: &mut Effects,
    ) -> Result<(), Refused> {
        let x2apic = self.is_x2apic();
        match register {
            reg::ID if !x2apic => self.id = (value >> 24) as u8,
            reg::TPR => self.tpr = value as u8,
            reg::EOI => effects.ended = self.end_of_interrupt(),
            reg::LDR if !x2apic => self.ldr = value & 0xff00_0000,
            reg::DFR if !x2apic => self.dfr = value | 0x0fff_ffff,
            reg::SPURIOUS => self.write_spurious(value),
            reg::ESR if !x2apic || value == 0 => self.esr = 0,
            reg::ICR => {
                self.icr = self.icr & !0xffff_ffff | u64::from(Icr::from_low(value).with_busy(false).low());
                effects.messages.push(self.ipi());
            }
            reg::ICR_HIGH if !x2apic => {
                self.icr = self.icr & 0xffff_ffff | u64::from(value & 0xff00_0000) << 32
            }
            reg::LVT_TIMER => self.write_lvt_timer(value),
            register if LVTS.contains(&register) && register & 0xf == 0 => self.write_lvt(register, value),
            reg::TIMER_INITIAL => self.timer.set_initial(value, now),
            reg::TIMER_DIVIDE => self.timer.set_divide(value & 0xb, now),
            reg::SELF_IPI if x2apic && value >> 8 == 0 => effects.messages.push(Message {
                vector: value as u8,
                shorthand: Shorthand::SELF,
                deassert: true,
                source: self.vcpu,
                ..Message::default()
            }),
            _ => return Err(Refused),
        }
        Ok(())
    }

    /// Stores a register's value without its effect outside, as virtualized silicon does before an APIC-write or EOI-induced
    /// exit.
    pub fn store(&mut self, register: u32, value: u32) {
        match register {
            reg::ICR_HIGH => self.icr = self.icr & 0xffff_ffff | u64::from(value) << 32,
            reg::TPR => self.tpr = value as u8,
            reg::EOI => _ = self.end_of_interrupt(),
            _ => {}
        }
    }

    fn write_spurious(&mut self, value: u32) {
        self.spurious = value & SPURIOUS_MASK;
        if self.spurious & SPURIOUS_ENABLE == 0 {
            for lvt in &mut self.lvt {
                *lvt = Lvt::from_bits(*lvt).with_masked(true).into_bits();
            }
        }
    }

    /// Which bits of an LVT entry can be set. See: KVM lapic.c apic_lvt_mask
    fn write_lvt(&mut self, register: u32, value: u32) {
        let common = Lvt::new().with_vector(0xff).with_send_pending(true).with_masked(true);
        let mask = match register {
            reg::LVT_THERMAL | reg::LVT_PERFORMANCE => common.with_mode(7),
            reg::LVT_LINT0 | reg::LVT_LINT1 => {
                common.with_mode(7).with_active_low(true).with_remote_irr(true).with_level(true)
            }
            reg::LVT_TIMER => common.with_timer_mode(if self.timer.has_deadline() { 3 } else { 1 }),
            _ => common,
        };
        let lvt = Lvt::from_bits(value & mask.into_bits());
        let masked = lvt.masked() || self.spurious & SPURIOUS_ENABLE == 0;
        *self.lvt_mut(register) = lvt.with_masked(masked).into_bits();
    }

    fn write_lvt_timer(&mut self, value: u32) {
        self.write_lvt(reg::LVT_TIMER, value);
        self.timer.set_mode(TimerMode(self.lvt(reg::LVT_TIMER).timer_mode()));
    }

    /// The message that the ICR describes. See: KVM lapic.c kvm_apic_send_ipi()
    fn ipi(&self) -> Message {
        let destination = Icr::from_bits(self.icr).destination();
        Message {
            destination: if self.is_x2apic() { destination } else { destination >> 24 },
            source: self.vcpu,
            ..message(self.icr as u32)
        }
    }

    /// RDMSR of an x2APIC register.
    pub fn read_msr(&self, register: u32, now: u64) -> Result<u64, Refused> {
        match register {
            _ if !self.is_x2apic() => Err(Refused),
            reg::ICR => Ok(self.icr),
            _ => self.read(register, now).map(u64::from),
        }
    }

    /// WRMSR of an x2APIC register.
    pub fn write_msr(
        &mut self,
        register: u32,
        value: u64,
        now: u64,
        effects: &mut Effects,
    ) -> Result<(), Refused> {
        if !self.is_x2apic() {
            return Err(Refused);
        }
        if register == reg::ICR {
            if value & X2APIC_ICR_RESERVED != 0 {
                return Err(Refused);
            }
            self.icr = Icr::from_bits(value).with_busy(false).into_bits();
            effects.messages.push(self.ipi());
            return Ok(());
        }
        if value >> 32 != 0 {
            return Err(Refused);
        }
        self.write(register, value as u32, now, effects)
    }
}

/// The message that the lower half of an ICR describes.
pub fn message(icr: u32) -> Message {
    let icr = Icr::from_low(icr);
    Message {
        vector: icr.vector(),
        mode: DeliveryMode(icr.mode()),
        logical: icr.logical(),
        shorthand: Shorthand(icr.shorthand()),
        level: icr.level(),
        deassert: !icr.assert(),
        ..Message::default()
    }
}

/// What a register write sets off outside its APIC.
#[derive(Default)]
pub struct Effects {
    pub messages: Vec<Message>,
    /// A level-triggered interrupt that ended.
    pub ended: Option<u8>,
}

/// The tracepoint of a local APIC that sends a message. See: KVM lapic.c kvm_apic_send_ipi()
pub fn ipi(message: &Message) -> Note {
    let icr = Icr::new()
        .with_vector(message.vector)
        .with_mode(message.mode.0)
        .with_logical(message.logical)
        .with_assert(!message.deassert)
        .with_level(message.level)
        .with_shorthand(message.shorthand.0);
    Note::ApicIpi { icr: icr.low(), destination: message.destination }
}
