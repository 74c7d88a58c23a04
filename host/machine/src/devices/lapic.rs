//! The local APIC in xAPIC and x2APIC mode, with the register semantics of KVM's model.
//!
//! See: SDM vol. 3A chapter 12 Advanced Programmable Interrupt Controller; KVM arch/x86/kvm/lapic.c

use super::{
    lapic_timer::{Timer, TimerMode},
    message::{DeliveryMode, Message, Shorthand},
};
use bitfield_struct::bitfield;
use serde::{Deserialize, Serialize};

pub const DEFAULT_BASE: u64 = 0xfee0_0000;
pub const SIZE: u64 = 0x1000;

/// Register offsets in the xAPIC page; an x2APIC MSR is 0x800 + offset / 16.
pub mod reg {
    pub const ID: u32 = 0x20;
    pub const VERSION: u32 = 0x30;
    pub const TPR: u32 = 0x80;
    pub const ARBITRATION: u32 = 0x90;
    pub const PPR: u32 = 0xa0;
    pub const EOI: u32 = 0xb0;
    pub const LDR: u32 = 0xd0;
    pub const DFR: u32 = 0xe0;
    pub const SPURIOUS: u32 = 0xf0;
    pub const ESR: u32 = 0x280;
    pub const ICR: u32 = 0x300;
    pub const ICR_HIGH: u32 = 0x310;
    pub const LVT_TIMER: u32 = 0x320;
    pub const LVT_THERMAL: u32 = 0x330;
    pub const LVT_PERFORMANCE: u32 = 0x340;
    pub const LVT_LINT0: u32 = 0x350;
    pub const LVT_LINT1: u32 = 0x360;
    pub const LVT_ERROR: u32 = 0x370;
    pub const TIMER_INITIAL: u32 = 0x380;
    pub const TIMER_CURRENT: u32 = 0x390;
    pub const TIMER_DIVIDE: u32 = 0x3e0;
    pub const SELF_IPI: u32 = 0x3f0;
}

const LVTS: std::ops::RangeInclusive<u32> = reg::LVT_TIMER..=reg::LVT_ERROR;
/// Version 0x14 with six LVT entries.
const VERSION: u32 = 0x5_0014;

/// IA32_APIC_BASE. See: SDM vol. 3A 12.4.4 Local APIC Status and Location
#[bitfield(u64)]
#[derive(PartialEq, Eq, Serialize, Deserialize)]
pub struct ApicBase {
    __: u8,
    pub bsp: bool,
    __: bool,
    pub x2apic: bool,
    pub enabled: bool,
    #[bits(52)]
    pub frame: u64,
}

/// A local vector table entry. See: SDM vol. 3A Figure 12-8. Local Vector Table (LVT)
#[bitfield(u32)]
pub struct Lvt {
    pub vector: u8,
    #[bits(3)]
    pub mode: u8,
    __: bool,
    pub send_pending: bool,
    pub active_low: bool,
    pub remote_irr: bool,
    pub level: bool,
    pub masked: bool,
    #[bits(2)]
    pub timer_mode: u8,
    #[bits(13)]
    __: u16,
}

/// The interrupt command register. See: SDM vol. 3A Figure 12-12
#[bitfield(u64)]
struct Icr {
    vector: u8,
    #[bits(3)]
    mode: u8,
    logical: bool,
    busy: bool,
    __: bool,
    assert: bool,
    level: bool,
    #[bits(2)]
    __: u8,
    #[bits(2)]
    shorthand: u8,
    #[bits(12)]
    __: u16,
    destination: u32,
}

/// Bits that a WRMSR of the x2APIC ICR must leave clear. See: KVM lapic.c X2APIC_ICR_RESERVED_BITS
const X2APIC_ICR_RESERVED: u64 = 0xfff3_2000;
const SPURIOUS_ENABLE: u32 = 0x100;
const SPURIOUS_MASK: u32 = 0x3ff;
const DFR_FLAT: u32 = u32::MAX;

/// The access is refused: #GP for an MSR, ignored in the xAPIC page.
#[derive(Debug, PartialEq, Eq)]
pub struct Refused;

/// One local APIC.
#[derive(Serialize, Deserialize)]
pub struct LocalApic {
    vcpu: u32,
    base: ApicBase,
    /// The feature bit in the guest's CPUID.
    has_x2apic: bool,
    /// xAPIC identifier; guests may change it.
    id: u8,
    tpr: u8,
    ldr: u32,
    dfr: u32,
    spurious: u32,
    esr: u32,
    icr: u64,
    lvt: [u32; 6],
    isr: [u32; 8],
    irr: [u32; 8],
    tmr: [u32; 8],
    pub timer: Timer,
    pub nmi_pending: bool,
    pub init_pending: bool,
    pub sipi_vector: Option<u8>,
}

/// The highest vector set in a 256-bit register.
fn highest(bits: &[u32; 8]) -> Option<u8> {
    let word = bits.iter().rposition(|word| *word != 0)?;
    Some((word * 32) as u8 + bits[word].ilog2() as u8)
}

fn set(bits: &mut [u32; 8], vector: u8, on: bool) {
    let (word, mask) = (usize::from(vector >> 5), 1 << (vector & 31));
    bits[word] = if on { bits[word] | mask } else { bits[word] & !mask };
}

impl LocalApic {
    pub fn new(vcpu: u32, has_x2apic: bool, has_tsc_deadline: bool) -> Self {
        let base = ApicBase::new().with_frame(DEFAULT_BASE >> 12).with_enabled(true).with_bsp(vcpu == 0);
        let mut apic = Self {
            vcpu,
            base,
            has_x2apic,
            id: vcpu as u8,
            tpr: 0,
            ldr: 0,
            dfr: DFR_FLAT,
            spurious: 0xff,
            esr: 0,
            icr: 0,
            lvt: [0; 6],
            isr: [0; 8],
            irr: [0; 8],
            tmr: [0; 8],
            timer: Timer::new(has_tsc_deadline),
            nmi_pending: false,
            init_pending: false,
            sipi_vector: None,
        };
        apic.reset();
        apic
    }

    /// INIT: everything but the base register and the identifier.
    /// See: KVM lapic.c kvm_lapic_reset()
    pub fn reset(&mut self) {
        self.tpr = 0;
        self.dfr = DFR_FLAT;
        self.ldr = if self.base.x2apic() { self.x2apic_ldr() } else { 0 };
        self.spurious = 0xff;
        (self.esr, self.icr) = (0, 0);
        self.lvt = [Lvt::new().with_masked(true).into_bits(); 6];
        if self.base.bsp() {
            // KVM_X86_QUIRK_LINT0_REENABLED: the PIC reaches the boot processor through LINT0 from the start.
            *self.lvt_mut(reg::LVT_LINT0) = Lvt::new().with_mode(DeliveryMode::EXTINT.0).into_bits();
        }
        (self.isr, self.irr, self.tmr) = ([0; 8], [0; 8], [0; 8]);
        self.timer.reset();
        self.nmi_pending = false;
    }

    pub fn base(&self) -> ApicBase {
        self.base
    }

    pub fn is_x2apic(&self) -> bool {
        self.base.enabled() && self.base.x2apic()
    }

    pub fn tpr(&self) -> u8 {
        self.tpr
    }

    pub fn set_tpr(&mut self, tpr: u8) {
        self.tpr = tpr;
    }

    fn software_enabled(&self) -> bool {
        self.base.enabled() && self.spurious & SPURIOUS_ENABLE != 0
    }

    fn x2apic_id(&self) -> u32 {
        self.vcpu
    }

    fn x2apic_ldr(&self) -> u32 {
        let id = self.x2apic_id();
        id >> 4 << 16 | 1 << (id & 0xf)
    }

    fn lvt_mut(&mut self, register: u32) -> &mut u32 {
        &mut self.lvt[(register - reg::LVT_TIMER) as usize >> 4]
    }

    pub fn lvt(&self, register: u32) -> Lvt {
        Lvt::from_bits(self.lvt[(register - reg::LVT_TIMER) as usize >> 4])
    }

    /// WRMSR of IA32_APIC_BASE, `max_gpa` being the guest's highest address.
    /// See: KVM x86.c kvm_apic_set_base()
    pub fn set_base(&mut self, value: u64, max_gpa: u64) -> Result<(), Refused> {
        let new = ApicBase::from_bits(value);
        let reserved = !max_gpa | 0x2ff | ApicBase::new().with_x2apic(!self.has_x2apic).into_bits();
        if value & reserved != 0 || new.x2apic() && !new.enabled() {
            return Err(Refused);
        }
        let old = self.base;
        match (old.enabled(), old.x2apic(), new.enabled(), new.x2apic()) {
            // From x2APIC mode only to disabled; into it only from xAPIC mode.
            (true, true, true, false) | (false, _, true, true) => return Err(Refused),
            (false, _, true, false) => self.id = self.vcpu as u8,
            (true, false, true, true) => self.ldr = self.x2apic_ldr(),
            _ => {}
        }
        self.base = new;
        Ok(())
    }

    /// The processor priority. See: SDM vol. 3A 12.8.3.1 Task and Processor Priorities
    pub fn ppr(&self) -> u8 {
        let in_service = highest(&self.isr).unwrap_or(0);
        if self.tpr & 0xf0 >= in_service & 0xf0 { self.tpr } else { in_service & 0xf0 }
    }

    /// The interrupt that would be delivered now.
    pub fn pending(&self) -> Option<u8> {
        if !self.base.enabled() {
            return None;
        }
        highest(&self.irr).filter(|vector| vector & 0xf0 > self.ppr() & 0xf0)
    }

    pub fn ack(&mut self, vector: u8) {
        set(&mut self.irr, vector, false);
        set(&mut self.isr, vector, true);
    }

    /// Whether the PIC's output reaches this processor. See: KVM lapic.c kvm_apic_accept_pic_intr()
    pub fn accepts_pic(&self) -> bool {
        let lint0 = self.lvt(reg::LVT_LINT0);
        !self.base.enabled() || !lint0.masked() && lint0.mode() == DeliveryMode::EXTINT.0
    }

    /// Whether a message is meant for this APIC.
    /// See: KVM lapic.c kvm_apic_match_dest()
    pub fn matches(&self, message: &Message) -> bool {
        match message.shorthand {
            Shorthand::SELF => message.source == self.vcpu,
            Shorthand::ALL => true,
            Shorthand::ALL_BUT_SELF => message.source != self.vcpu,
            _ if message.logical => self.matches_logical(message.destination),
            _ => self.matches_physical(message.destination),
        }
    }

    fn matches_physical(&self, destination: u32) -> bool {
        let broadcast = if self.is_x2apic() { u32::MAX } else { 0xff };
        // Interrupts from the I/O APIC carry eight bits, whatever the mode of the receiver.
        destination == broadcast
            || destination == 0xff
            || destination == if self.is_x2apic() { self.x2apic_id() } else { self.id.into() }
    }

    fn matches_logical(&self, destination: u32) -> bool {
        if self.is_x2apic() {
            return destination == u32::MAX
                || destination == 0xff
                || destination >> 16 == self.ldr >> 16 && destination & self.ldr & 0xffff != 0;
        }
        let (mda, logical) = (destination & 0xff, self.ldr >> 24);
        match self.dfr >> 28 {
            0xf => mda & logical != 0,
            0 => mda == 0xff || mda >> 4 == logical >> 4 && mda & logical & 0xf != 0,
            _ => false,
        }
    }

    /// Takes a message that [`LocalApic::matches`]. True: the processor has to look.
    /// See: KVM lapic.c __apic_accept_irq()
    pub fn accept(&mut self, message: &Message) -> bool {
        match message.mode {
            DeliveryMode::FIXED | DeliveryMode::LOWEST_PRIORITY => {
                if !self.software_enabled() {
                    return false;
                }
                set(&mut self.tmr, message.vector, message.level);
                set(&mut self.irr, message.vector, true);
            }
            DeliveryMode::NMI => self.nmi_pending = true,
            DeliveryMode::INIT => {
                if message.level && message.deassert {
                    return false;
                }
                self.init_pending = true;
                self.sipi_vector = None;
            }
            DeliveryMode::SIPI => self.sipi_vector = Some(message.vector),
            _ => return false,
        }
        true
    }

    /// Delivers a local interrupt. See: KVM lapic.c kvm_apic_local_deliver()
    pub fn local_interrupt(&mut self, register: u32) -> bool {
        let lvt = self.lvt(register);
        if !self.base.enabled() || lvt.masked() {
            return false;
        }
        let mode = if register == reg::LVT_TIMER { DeliveryMode::FIXED } else { DeliveryMode(lvt.mode()) };
        self.accept(&Message { vector: lvt.vector(), mode, level: lvt.level(), ..Message::default() })
    }

    /// Ends the interrupt in service; gives its vector if it was level triggered, for the I/O APIC.
    pub fn end_of_interrupt(&mut self) -> Option<u8> {
        let vector = highest(&self.isr)?;
        set(&mut self.isr, vector, false);
        (self.tmr[usize::from(vector >> 5)] >> (vector & 31) & 1 != 0).then_some(vector)
    }

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
                self.icr = self.icr & !0xffff_ffff
                    | u64::from(Icr::from_bits(value.into()).with_busy(false).into_bits() as u32);
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
                source: self.vcpu,
                ..Message::default()
            }),
            _ => return Err(Refused),
        }
        Ok(())
    }

    /// Stores a register's value without its effect, as virtualized silicon does before an APIC-write exit.
    pub fn store(&mut self, register: u32, value: u32) {
        match register {
            reg::ICR_HIGH => self.icr = self.icr & 0xffff_ffff | u64::from(value) << 32,
            reg::TPR => self.tpr = value as u8,
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
        let icr = Icr::from_bits(self.icr);
        Message {
            vector: icr.vector(),
            mode: DeliveryMode(icr.mode()),
            logical: icr.logical(),
            destination: if self.is_x2apic() { icr.destination() } else { icr.destination() >> 24 },
            shorthand: Shorthand(icr.shorthand()),
            level: icr.level(),
            deassert: !icr.assert(),
            source: self.vcpu,
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

    /// Takes a due timer interrupt; `tsc` is the guest's.
    pub fn take_due_timer(&mut self, now: u64) -> bool {
        self.timer.take_due(now) && self.local_interrupt(reg::LVT_TIMER)
    }
}

/// What a register write sets off outside its APIC.
#[derive(Default)]
pub struct Effects {
    pub messages: Vec<Message>,
    /// A level-triggered interrupt that ended.
    pub ended: Option<u8>,
}
