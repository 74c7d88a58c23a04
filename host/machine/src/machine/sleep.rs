//! Suspend to RAM (S3): time goes on to the alarm that wakes the guest, and firmware goes to where the guest wants to go on.
//!
//! See: ACPI 6.5, 16.1.3.1 Firmware and waking vectors; QEMU 10 hw/acpi/core.c acpi_pm1_cnt_write()

use super::Machine;
use crate::{devices::Woken, vcpu::init};
use vmtape_abi::{FlushScope, Host};
use vmtape_arch::vcpu::{Activity, seg};
use vmtape_traces::event::End;

impl Machine {
    /// Sleeps and wakes, if the guest has asked for that in the exit that was handled.
    pub(super) fn sleep(&mut self) -> Option<End> {
        let Woken { at, vector } = match self.services.devices.take_sleep()? {
            Some(woken) => woken,
            None => {
                let reason = "suspended to RAM (S3), and no alarm is to wake it".to_owned();
                return Some(End::Shutdown { reason });
            }
        };
        self.services.clock.jump_to(at);
        self.uncompleted = None;
        for (n, vcpu) in (0..).zip(&mut self.vcpus) {
            let state = &mut vcpu.state;
            init(state);
            state.activity = if n == 0 { Activity::ACTIVE } else { Activity::WAIT_FOR_SIPI };
            if n == 0 {
                // Real mode, at a paragraph.
                state.seg[seg::CS].selector = (vector >> 4) as u16;
                state.seg[seg::CS].base = u64::from(vector) & !0xf;
                state.rip = u64::from(vector) & 0xf;
            }
            self.backend.state_changed(n, state, &mut self.services);
            self.services.flush_tlb(n, FlushScope::ALL, 0);
            vcpu.needs_entry = true;
        }
        None
    }
}
