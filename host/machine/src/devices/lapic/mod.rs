//! The local APIC in xAPIC and x2APIC mode, with the register semantics of KVM's model: its interrupts here, its registers
//! in the files below.
//!
//! See: SDM vol. 3A chapter 12 Advanced Programmable Interrupt Controller; KVM arch/x86/kvm/lapic.c

mod layout;
mod registers;
mod state;
mod timer;

pub use layout::{ApicBase, DEFAULT_BASE, Lvt, SIZE, reg};
pub use registers::{Effects, ipi, message};

use super::message::{DeliveryMode, Message, Shorthand};
use layout::{DFR_FLAT, SPURIOUS_ENABLE};
use serde::{Deserialize, Serialize};
use timer::Timer;
use vmtape_arch::note::Note;

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
    pub smi_pending: bool,
    pub init_pending: bool,
    pub sipi_vector: Option<u8>,
    /// A halt is over, or the next one will be at once (`pv_unhalted`).
    pub unhalted: bool,
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
            smi_pending: false,
            init_pending: false,
            sipi_vector: None,
            unhalted: false,
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
        (self.nmi_pending, self.smi_pending) = (false, false);
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

    /// The highest interrupt in service.
    pub fn in_service(&self) -> Option<u8> {
        highest(&self.isr)
    }

    /// Whether the vector was last accepted as a level-triggered interrupt.
    pub fn is_level_triggered(&self, vector: u8) -> bool {
        self.tmr[usize::from(vector >> 5)] >> (vector & 31) & 1 != 0
    }

    /// The processor priority. See: SDM vol. 3A 12.8.3.1 Task and Processor Priorities
    pub fn ppr(&self) -> u8 {
        let in_service = self.in_service().unwrap_or(0);
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

    /// The tracepoint of a message that [`LocalApic::matches`]. See: KVM lapic.c __apic_accept_irq()
    pub fn accepted(&self, message: &Message) -> Note {
        let Message { vector, mode, level, .. } = *message;
        Note::ApicAcceptIrq { apic: self.vcpu, mode: mode.0, level, vector }
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
            DeliveryMode::REMOTE_READ => self.unhalted = true,
            DeliveryMode::SMI => self.smi_pending = true,
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
        let vector = self.in_service()?;
        set(&mut self.isr, vector, false);
        self.is_level_triggered(vector).then_some(vector)
    }

    /// An interrupt that is in service never was.
    pub fn forget(&mut self, vector: u8) {
        set(&mut self.isr, vector, false);
    }

    /// Takes a due timer interrupt; `tsc` is the guest's.
    pub fn take_due_timer(&mut self, now: u64) -> bool {
        self.timer.take_due(now) && self.local_interrupt(reg::LVT_TIMER)
    }
}
