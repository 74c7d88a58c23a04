//! The bus of the devices that KVM models in the kernel: PIC, PIT, I/O APIC, local APICs.

use super::{
    Devices, ioapic,
    lapic::{self, Effects, Refused, reg},
    pic, pit,
};
use vmtape_abi::BusOp;
use vmtape_arch::{msr::Msr, note::Note};

/// What became of an access.
#[derive(Default)]
pub struct Answered {
    pub claimed: bool,
    /// The tracepoint that KVM's model of the device has.
    pub note: Option<Note>,
}

impl Answered {
    const NO: Self = Self { claimed: false, note: None };
    const YES: Self = Self { claimed: true, note: None };
}

impl Devices {
    pub fn kernel_pio(&mut self, op: &mut BusOp, now: u64) -> bool {
        let Ok(port) = u16::try_from(op.address) else { return false };
        // A wide access reaches only the first register: KVM's models take single bytes.
        let value = op.data as u8;
        match port {
            _ if port & !1 == pic::MASTER || port & !1 == pic::SLAVE => {
                if op.write.is_set() {
                    self.pic.write(port, value);
                    self.kicked |= self.pic.output();
                } else {
                    op.data = self.pic.read(port).into();
                }
            }
            port if pic::ELCR.contains(&port) => {
                if op.write.is_set() {
                    self.pic.set_elcr(port, value)
                } else {
                    op.data = self.pic.elcr(port).into()
                }
            }
            port if pit::PORTS.contains(&port) => {
                if op.write.is_set() {
                    self.pit.write(port, value, now);
                    self.kicked = true;
                } else {
                    op.data = self.pit.read(port, now).into();
                }
            }
            pit::SPEAKER => {
                if op.write.is_set() {
                    self.pit.write_speaker(value, now);
                } else {
                    op.data = self.pit.read_speaker(now).into();
                }
            }
            _ => return false,
        }
        true
    }

    pub fn kernel_mmio(&mut self, vcpu: u32, op: &mut BusOp, now: u64) -> Answered {
        if (ioapic::BASE..ioapic::BASE + ioapic::SIZE).contains(&op.address) {
            self.ioapic_access(op);
            return Answered::YES;
        }
        let base = self.apic_base(vcpu);
        let page = base.frame() << 12;
        if !(page..page + lapic::SIZE).contains(&op.address) {
            return Answered::NO;
        }
        if !base.enabled() || base.x2apic() {
            // KVM_X86_QUIRK_LAPIC_MMIO_HOLE: the page stays there, reads as ones and ignores writes.
            if !op.write {
                op.data = u64::MAX;
            }
            return Answered::YES;
        }
        let register = (op.address - page) as u32;
        let note = if op.write.is_set() {
            self.apic_write(vcpu, register, op.size, op.data as u32, now)
        } else {
            self.apic_read(vcpu, register, op, now)
        };
        Answered { claimed: true, note }
    }

    fn ioapic_access(&mut self, op: &mut BusOp) {
        let offset = op.address - ioapic::BASE;
        if op.write.is_set() {
            let mut messages = std::mem::take(&mut self.messages);
            self.ioapic.write(offset, op.data as u32, &mut messages);
            self.deliver_all(messages);
        } else {
            op.data = self.ioapic.read(offset).into();
        }
    }

    /// See: KVM arch/x86/kvm/lapic.c kvm_lapic_reg_read()
    fn apic_read(&mut self, vcpu: u32, register: u32, op: &mut BusOp, now: u64) -> Option<Note> {
        op.data = 0;
        let byte = register & 0xf;
        if byte + u32::from(op.size) > 4 {
            return None;
        }
        let value = self.lapics[vcpu as usize].read(register & !0xf, now).ok()?;
        op.data = u64::from(value >> (byte * 8));
        Some(Note::Apic { write: false, register: register & !0xf, value: value.into() })
    }

    /// See: KVM arch/x86/kvm/lapic.c apic_mmio_write()
    fn apic_write(&mut self, vcpu: u32, register: u32, size: u8, value: u32, now: u64) -> Option<Note> {
        if size != 4 || register & 0xf != 0 {
            return None;
        }
        // What the model refuses is still traced and otherwise ignored.
        let _ = self.with_effects(vcpu, |apic, effects| apic.write(register, value, now, effects));
        Some(Note::Apic { write: true, register, value: value.into() })
    }

    /// Writes a register and delivers what follows from it.
    fn with_effects(
        &mut self,
        vcpu: u32,
        write: impl FnOnce(&mut lapic::LocalApic, &mut Effects) -> Result<(), Refused>,
    ) -> Result<(), Refused> {
        let mut effects = Effects { messages: std::mem::take(&mut self.messages), ended: None };
        let result = write(&mut self.lapics[vcpu as usize], &mut effects);
        self.traced = Some(effects.messages.iter().map(lapic::ipi).collect());
        if let Some(vector) = effects.ended {
            self.ioapic.end_of_interrupt(vector, &mut effects.messages);
        }
        self.deliver_all(effects.messages);
        // Timers move and priorities fall by these writes.
        self.kicked = true;
        result
    }

    /// Silicon that virtualizes the APIC handles the write itself: the effect without the exit and the tracepoint.
    pub fn silicon_apic_write(&mut self, vcpu: u32, register: u32, value: u32, now: u64) {
        let _ = self.with_effects(vcpu, |apic, effects| apic.write(register, value, now, effects));
        self.traced = None;
    }

    /// Likewise an MSR that silicon lets through.
    pub fn silicon_msr(&mut self, vcpu: u32, op: &mut BusOp, now: u64) -> bool {
        let claimed = self.msr(vcpu, op, now).claimed;
        self.traced = None;
        claimed
    }

    /// As the virtual-APIC page holds it.
    pub fn silicon_apic_read(&self, vcpu: u32, register: u32, now: u64) -> u32 {
        self.lapics[vcpu as usize].read(register & !0xf, now).unwrap_or(0)
    }

    pub fn silicon_apic_store(&mut self, vcpu: u32, register: u32, value: u32) {
        self.lapics[vcpu as usize].store(register, value);
    }

    /// Silicon's EOI: whether the I/O APIC must hear of it, and that it was done.
    /// See: KVM lapic.c kvm_apic_set_eoi_accelerated(), ioapic.c kvm_ioapic_scan_entry()
    pub fn silicon_eoi(&mut self, vcpu: u32, op: &mut BusOp) -> bool {
        let apic = &self.lapics[vcpu as usize];
        if op.write.is_set() {
            let vector = op.data as u8;
            if apic.is_level_triggered(vector) {
                let mut messages = std::mem::take(&mut self.messages);
                self.ioapic.end_of_interrupt(vector, &mut messages);
                self.deliver_all(messages);
            }
        } else {
            let heard = apic
                .in_service()
                .filter(|vector| self.ioapic.hears_end_of(*vector).any(|message| apic.matches(&message)));
            op.data = heard.unwrap_or(0).into();
        }
        true
    }

    /// An interrupt that KVM sends to one local APIC. See: KVM lapic.c __pv_send_ipi(), kvm_apic_set_irq()
    pub fn send(&mut self, op: &BusOp) -> bool {
        let Some(apic) = self.lapics.get_mut(op.address as usize).filter(|_| op.write.is_set()) else {
            return false;
        };
        let message = lapic::message(op.data as u32);
        let accepted = apic.accept(&message);
        self.traced = Some(vec![apic.accepted(&message)]);
        self.kicked |= accepted;
        accepted
    }

    /// MSRs that the local APIC owns. Not claimed: #GP.
    pub fn msr(&mut self, vcpu: u32, op: &mut BusOp, now: u64) -> Answered {
        let claimed = |ok: bool| if ok { Answered::YES } else { Answered::NO };
        let apic = &mut self.lapics[vcpu as usize];
        match (Msr(op.address as u32), op.write.is_set()) {
            (Msr::IA32_APIC_BASE, false) => {
                op.data = apic.base().into_bits();
                Answered::YES
            }
            (Msr::IA32_APIC_BASE, true) => {
                self.kicked = true;
                claimed(apic.set_base(op.data, self.max_gpa[vcpu as usize]).is_ok())
            }
            (Msr::IA32_TSC_DEADLINE, false) => {
                op.data = apic.timer.tsc_deadline();
                Answered::YES
            }
            (Msr::IA32_TSC_DEADLINE, true) => {
                apic.timer.set_tsc_deadline(op.data, now);
                self.kicked = true;
                Answered::YES
            }
            (Msr(index), write) if (Msr::X2APIC_FIRST.0..=Msr::X2APIC_LAST.0).contains(&index) => {
                self.x2apic_msr(vcpu, index, write, op, now)
            }
            _ => Answered::NO,
        }
    }

    fn x2apic_msr(&mut self, vcpu: u32, index: u32, write: bool, op: &mut BusOp, now: u64) -> Answered {
        let register = (index - Msr::X2APIC_FIRST.0) << 4;
        if write {
            let value = op.data;
            let result =
                self.with_effects(vcpu, |apic, effects| apic.write_msr(register, value, now, effects));
            // KVM traces the ICR only once it is sent, other registers before they are looked at.
            let traced = register != reg::ICR || result.is_ok();
            let note = traced.then_some(Note::Apic { write: true, register, value });
            return Answered { claimed: result.is_ok(), note };
        }
        match self.lapics[vcpu as usize].read_msr(register, now) {
            Ok(value) => {
                op.data = value;
                // KVM reads the 64-bit ICR without its tracepoint.
                let note = (register != reg::ICR).then_some(Note::Apic { write: false, register, value });
                Answered { claimed: true, note }
            }
            Err(Refused) => Answered::NO,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::DeviceConfig;
    use vmtape_abi::BusSpace;

    const LINE: u8 = 9;
    const VECTOR: u64 = 0x55;
    const LEVEL: u64 = 1 << 15;

    fn devices(entry: u64) -> Devices {
        let mut devices = Devices::new(&DeviceConfig {
            vcpus: 1,
            ram: 1 << 20,
            has_x2apic: true,
            has_tsc_deadline: true,
            max_gpa: (1 << 36) - 1,
            hpet: false,
            vmport: false,
            acpi: false,
        });
        let registers = [
            (lapic::DEFAULT_BASE + u64::from(reg::SPURIOUS), 0x1ff),
            (ioapic::BASE, 0x10 + 2 * u64::from(LINE)),
            (ioapic::BASE + 0x10, entry),
        ];
        for (address, data) in registers {
            let mut op =
                BusOp { space: BusSpace::KERNEL_MMIO, write: true.into(), size: 4, pad: 0, address, data };
            assert!(devices.kernel_mmio(0, &mut op, 0).claimed);
        }
        devices
    }

    fn eoi(devices: &mut Devices, write: bool, data: u64) -> u64 {
        let mut op = BusOp { space: BusSpace::EOI, write: write.into(), size: 1, data, ..Default::default() };
        assert!(devices.silicon_eoi(0, &mut op));
        op.data
    }

    /// What silicon does by itself KVM has no tracepoint for, and what comes of later accesses is not taken for it.
    #[test]
    fn silicons_own_writes_leave_nothing_to_trace() {
        let write = |address: u32, data| BusOp {
            space: BusSpace::MSR,
            write: true.into(),
            size: 8,
            address: address.into(),
            data,
            ..Default::default()
        };
        let mut devices = devices(VECTOR | LEVEL);
        let x2apic = lapic::DEFAULT_BASE | 0xd00;
        assert!(devices.msr(0, &mut write(Msr::IA32_APIC_BASE.0, x2apic), 0).claimed);
        let eoi = Msr::X2APIC_FIRST.0 + (reg::EOI >> 4);
        assert!(devices.silicon_msr(0, &mut write(eoi, 0), 0));
        devices.set_irq(LINE, true);
        assert_eq!(devices.take_traced().count(), 0);
        assert!(devices.msr(0, &mut write(eoi, 0), 0).claimed);
        assert!(devices.traced.is_some(), "KVM's own access is traced");
    }

    #[test]
    fn a_level_comes_again_once_the_io_apic_hears_of_its_end() {
        let mut devices = devices(VECTOR | LEVEL);
        devices.set_irq(LINE, true);
        for _ in 0..2 {
            assert_eq!(devices.virtual_interrupt(0), Some(VECTOR as u8));
            assert_eq!(eoi(&mut devices, false, 0), VECTOR);
            devices.silicon_apic_store(0, reg::EOI, 0);
            assert_eq!(devices.virtual_interrupt(0), None, "nobody has told the I/O APIC");
            eoi(&mut devices, true, VECTOR);
        }
        devices.set_irq(LINE, false);
        assert_eq!(devices.virtual_interrupt(0), Some(VECTOR as u8), "it was raised when the last one ended");
        devices.silicon_apic_store(0, reg::EOI, 0);
        eoi(&mut devices, true, VECTOR);
        assert_eq!(devices.virtual_interrupt(0), None);
    }

    fn sent(devices: &mut Devices, apic: u64, icr: u64) -> bool {
        let op = BusOp {
            space: BusSpace::INTERRUPT,
            write: true.into(),
            size: 4,
            address: apic,
            data: icr,
            ..Default::default()
        };
        devices.send(&op)
    }

    /// See: KVM lapic.c __apic_accept_irq()
    #[test]
    fn kvm_sends_interrupts_and_ends_halts() {
        const REMOTE_READ: u64 = 3 << 8;
        let mut devices = devices(VECTOR);
        assert!(
            !sent(&mut devices, 1, VECTOR) && !sent(&mut devices, u64::MAX, VECTOR),
            "nobody has the number"
        );
        assert!(sent(&mut devices, 0, VECTOR));
        assert_eq!(devices.virtual_interrupt(0), Some(VECTOR as u8));
        assert!(!devices.can_wake(0, false));
        assert!(sent(&mut devices, 0, REMOTE_READ));
        assert!(devices.can_wake(0, false), "interrupts or not");
        assert_eq!(devices.virtual_interrupt(0), None);
    }

    #[test]
    fn the_end_of_an_edge_is_nobodys_business() {
        let mut devices = devices(VECTOR);
        devices.set_irq(LINE, true);
        assert_eq!(devices.virtual_interrupt(0), Some(VECTOR as u8));
        assert_eq!(eoi(&mut devices, false, 0), 0);
    }
}
