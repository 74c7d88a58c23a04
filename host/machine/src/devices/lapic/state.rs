//! The local APIC as KVM_GET_LAPIC and KVM_SET_LAPIC show it: the xAPIC page, in x2APIC mode too.
//!
//! See: KVM lapic.c kvm_apic_get_state(), kvm_apic_set_state(), kvm_apic_state_fixup()

use super::{LocalApic, Lvt, layout::*, timer::TimerMode};
use vmtape_arch::state::LapicState;

/// Registers of 256 bits: eight of 32.
const BANKS: [u32; 3] = [0x100, 0x180, 0x200];
const STRIDE: u32 = 0x10;

/// Where the word of a bank is.
fn word_at(bank: u32, word: usize) -> u32 {
    bank + word as u32 * STRIDE
}

impl LocalApic {
    /// KVM_GET_LAPIC, without KVM_X2APIC_API_USE_32BIT_IDS: the identifier stands in the upper byte in both modes.
    pub fn state(&self, now: u64) -> LapicState {
        let id = if self.is_x2apic() { self.x2apic_id() << 24 } else { u32::from(self.id) << 24 };
        let mut page = LapicState::new();
        let registers = [
            (reg::ID, id),
            (reg::VERSION, VERSION),
            (reg::TPR, self.tpr.into()),
            (reg::PPR, self.ppr().into()),
            (reg::LDR, self.ldr),
            (reg::DFR, self.dfr),
            (reg::SPURIOUS, self.spurious),
            (reg::ESR, self.esr),
            (reg::ICR, self.icr as u32),
            (reg::ICR_HIGH, (self.icr >> 32) as u32),
            (reg::TIMER_INITIAL, self.timer.initial()),
            (reg::TIMER_CURRENT, self.timer.current(now)),
            (reg::TIMER_DIVIDE, self.timer.divide()),
        ];
        registers.into_iter().for_each(|(register, value)| page.set(register, value));
        for (bank, words) in BANKS.into_iter().zip([&self.isr, &self.tmr, &self.irr]) {
            words.iter().enumerate().for_each(|(n, word)| page.set(word_at(bank, n), *word));
        }
        for (n, lvt) in self.lvt.into_iter().enumerate() {
            page.set(word_at(reg::LVT_TIMER, n), lvt);
        }
        page
    }

    /// KVM_SET_LAPIC. The timer starts with the count that it shows; where that is what it does already, it goes on as it is,
    /// between two counts.
    pub fn set_state(&mut self, page: &LapicState, now: u64) {
        let timer = [reg::LVT_TIMER, reg::TIMER_INITIAL, reg::TIMER_CURRENT, reg::TIMER_DIVIDE];
        let shown = self.state(now);
        let restart = timer.iter().any(|register| page.get(*register) != shown.get(*register));
        if !self.is_x2apic() {
            self.id = (page.get(reg::ID) >> 24) as u8;
        }
        self.tpr = page.get(reg::TPR) as u8;
        self.ldr = if self.is_x2apic() { self.x2apic_ldr() } else { page.get(reg::LDR) };
        self.dfr = page.get(reg::DFR);
        self.spurious = page.get(reg::SPURIOUS) & SPURIOUS_MASK;
        self.esr = page.get(reg::ESR);
        self.icr = u64::from(page.get(reg::ICR)) | u64::from(page.get(reg::ICR_HIGH)) << 32;
        for (bank, words) in BANKS.into_iter().zip([&mut self.isr, &mut self.tmr, &mut self.irr]) {
            words.iter_mut().enumerate().for_each(|(n, word)| *word = page.get(word_at(bank, n)));
        }
        for (n, lvt) in self.lvt.iter_mut().enumerate() {
            *lvt = page.get(word_at(reg::LVT_TIMER, n));
        }
        if restart {
            let mode = Lvt::from_bits(page.get(reg::LVT_TIMER)).timer_mode();
            let [_, initial, current, divide] = timer.map(|register| page.get(register));
            self.timer.restore(TimerMode(mode), divide, initial, current, now);
        }
    }
}
