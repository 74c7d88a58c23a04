//! The local APIC's timer: one-shot, periodic and TSC-deadline, on virtual time.
//!
//! See: SDM vol. 3A 12.5.4 APIC Timer; KVM arch/x86/kvm/lapic.c start_apic_timer()

use crate::time::NS_PER_TICK;
use serde::{Deserialize, Serialize};
use vmtape_arch::open_enum;

/// The timer counts at the speed of the time-stamp counter: guests expect it to be no faster. A VMM says so through
/// KVM_CAP_X86_APIC_BUS_CYCLES_NS.
const BUS_CYCLE_NS: u64 = NS_PER_TICK;
/// Bits of the divide-configuration register.
const DIVIDE_BITS: u32 = 0xb;
/// KVM's `min_timer_period_us`: a periodic timer never fires more often.
const MIN_PERIOD_NS: u64 = 200_000;

open_enum! {
    /// The timer mode in the LVT.
    pub struct TimerMode(u8) {
        ONE_SHOT = 0 => "one-shot",
        PERIODIC = 1 => "periodic",
        TSC_DEADLINE = 2 => "TSC deadline",
    }
}

/// The timer of one local APIC.
#[derive(Serialize, Deserialize)]
pub struct Timer {
    has_deadline: bool,
    mode: TimerMode,
    initial: u32,
    divide: u32,
    /// When the running count reaches zero.
    due: Option<u64>,
    /// TSC-deadline mode: the guest's TSC value that it waits for, or zero.
    tsc_deadline: u64,
    /// What the guest's TSC is ahead of the host's.
    tsc_offset: u64,
}

impl Timer {
    pub fn new(has_deadline: bool) -> Self {
        Self {
            has_deadline,
            mode: TimerMode::ONE_SHOT,
            initial: 0,
            divide: 0,
            due: None,
            tsc_deadline: 0,
            tsc_offset: 0,
        }
    }

    pub fn reset(&mut self) {
        *self = Self { tsc_offset: self.tsc_offset, ..Self::new(self.has_deadline) };
    }

    pub fn has_deadline(&self) -> bool {
        self.has_deadline
    }

    pub fn initial(&self) -> u32 {
        if self.mode == TimerMode::TSC_DEADLINE { 0 } else { self.initial }
    }

    pub fn divide(&self) -> u32 {
        self.divide
    }

    pub fn next_deadline(&self) -> Option<u64> {
        self.due
    }

    /// Nanoseconds per count. See: SDM vol. 3A Figure 12-10. Divide Configuration Register
    fn count_ns(&self) -> u64 {
        let code = self.divide & 3 | self.divide >> 1 & 4;
        BUS_CYCLE_NS << ((code + 1) & 7)
    }

    fn period(&self) -> u64 {
        u64::from(self.initial) * self.count_ns()
    }

    /// What the current-count register shows.
    pub fn current(&self, now: u64) -> u32 {
        match self.due {
            Some(due) if self.mode != TimerMode::TSC_DEADLINE => {
                (due.saturating_sub(now) / self.count_ns()) as u32
            }
            _ => 0,
        }
    }

    pub fn set_initial(&mut self, value: u32, now: u64) {
        if self.mode == TimerMode::TSC_DEADLINE {
            return;
        }
        self.initial = value;
        self.start(now);
    }

    fn start(&mut self, now: u64) {
        let mut period = self.period();
        if self.mode == TimerMode::PERIODIC && period != 0 {
            period = period.max(MIN_PERIOD_NS);
        }
        self.due = (period != 0).then(|| now + period);
    }

    pub fn set_divide(&mut self, value: u32, now: u64) {
        let left = self.due.map(|due| due.saturating_sub(now) / self.count_ns());
        self.divide = value;
        if self.mode != TimerMode::TSC_DEADLINE
            && let Some(left) = left
        {
            self.due = Some(now + left * self.count_ns());
        }
    }

    /// See: KVM lapic.c apic_update_lvtt()
    pub fn set_mode(&mut self, mode: TimerMode) {
        if (mode == TimerMode::TSC_DEADLINE) != (self.mode == TimerMode::TSC_DEADLINE) {
            self.initial = 0;
            self.tsc_deadline = 0;
            self.due = None;
        }
        self.mode = mode;
    }

    /// RDMSR of IA32_TSC_DEADLINE.
    pub fn tsc_deadline(&self) -> u64 {
        if self.mode == TimerMode::TSC_DEADLINE { self.tsc_deadline } else { 0 }
    }

    /// WRMSR of IA32_TSC_DEADLINE.
    pub fn set_tsc_deadline(&mut self, value: u64, now: u64) {
        if self.mode == TimerMode::TSC_DEADLINE {
            self.tsc_deadline = value;
            self.rearm_deadline(now);
        }
    }

    /// The guest's TSC moved against virtual time.
    pub fn set_tsc_offset(&mut self, offset: u64, now: u64) {
        if self.tsc_offset != offset {
            self.tsc_offset = offset;
            if self.mode == TimerMode::TSC_DEADLINE && self.tsc_deadline != 0 {
                self.rearm_deadline(now);
            }
        }
    }

    fn rearm_deadline(&mut self, now: u64) {
        let guest_tsc = (now / NS_PER_TICK).wrapping_add(self.tsc_offset);
        let left = self.tsc_deadline.saturating_sub(guest_tsc);
        self.due = (self.tsc_deadline != 0).then(|| now.saturating_add(left.saturating_mul(NS_PER_TICK)));
    }

    /// KVM_SET_LAPIC: counts on from `current`; a one-shot count that has run out expires at once.
    /// See: KVM lapic.c set_target_expiration()
    pub fn restore(&mut self, mode: TimerMode, divide: u32, initial: u32, current: u32, now: u64) {
        self.set_mode(mode);
        self.divide = divide & DIVIDE_BITS;
        if self.mode == TimerMode::TSC_DEADLINE {
            return self.rearm_deadline(now);
        }
        self.initial = initial;
        let mut period = self.period();
        if self.mode == TimerMode::PERIODIC && period != 0 {
            period = period.max(MIN_PERIOD_NS);
        }
        let left = match u64::from(current) * self.count_ns() {
            0 if self.mode == TimerMode::PERIODIC => period,
            left => left.min(period),
        };
        self.due = (period != 0).then(|| now.saturating_add(left));
    }

    /// The count ends then, whatever it was to be.
    pub fn put_off(&mut self, due: u64) {
        self.due = Some(due);
    }

    /// Whether the timer expired; a periodic one is started again.
    pub fn take_due(&mut self, now: u64) -> bool {
        let Some(due) = self.due.filter(|due| *due <= now) else { return false };
        self.due = None;
        match self.mode {
            TimerMode::PERIODIC => {
                let period = self.period().max(MIN_PERIOD_NS);
                self.due = Some(due + ((now - due) / period + 1) * period);
            }
            TimerMode::TSC_DEADLINE => self.tsc_deadline = 0,
            _ => {}
        }
        true
    }
}
