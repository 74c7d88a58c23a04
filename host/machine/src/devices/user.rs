//! The bus of the devices that a VMM models: serial port, debug exit, reset lines, test device, clock.

use super::{
    Devices, cmos, hpet,
    pm::{self, Sleep},
    testdev, uart,
    vmport::VmPort,
};
use crate::time::NS_PER_SECOND;
use vmtape_abi::BusOp;
use vmtape_arch::vmware;
use vmtape_traces::event::End;

const DEBUG_EXIT: std::ops::RangeInclusive<u16> = 0xf4..=0xf7;
const KEYBOARD_DATA: u16 = 0x60;
const KEYBOARD_COMMAND: u16 = 0x64;
const PULSE_RESET: u8 = 0xfe;
const RESET_CONTROL: u16 = 0xcf9;
const RESET_CPU: u8 = 4;
const FAST_A20: u16 = 0x92;
const A20_ENABLED: u8 = 2;
const FAST_RESET: u8 = 1;
const BOCHS_SHUTDOWN: u16 = 0x8900;
const SHUTDOWN_WORD: &[u8] = b"Shutdown";

impl Devices {
    /// Port I/O of the VMM. Unclaimed reads give ones.
    pub fn user_pio(&mut self, op: &mut BusOp, now: u64) -> bool {
        let Ok(port) = u16::try_from(op.address) else { return false };
        let claimed = if op.write.is_set() {
            self.out(port, op.size, op.data as u32, now)
        } else {
            self.input(port, op, now)
        };
        if !claimed && !op.write {
            op.data = u64::MAX;
        }
        claimed
    }

    fn input(&mut self, port: u16, op: &mut BusOp, now: u64) -> bool {
        op.data = match port {
            port if (uart::BASE..uart::BASE + uart::PORTS).contains(&port) => {
                let value = self.uart.read(port);
                self.service_uart();
                value.into()
            }
            cmos::INDEX => self.cmos.index().into(),
            cmos::DATA => self.cmos.read(now).into(),
            testdev::FW_CFG_DATA => self.fw_cfg.read().into(),
            // An idle keyboard controller, always ready for a command.
            KEYBOARD_COMMAND => 0,
            FAST_A20 => A20_ENABLED.into(),
            RESET_CONTROL => self.reset_control.into(),
            port if pm::PORTS.contains(&port) && self.pm.is_some() => {
                self.pm.as_ref().map_or(0, |pm| pm.read(port, now)).into()
            }
            vmware::PORT if self.vmport.is_some() => self.vmport.as_mut().map_or(0, VmPort::call).into(),
            port if testdev::LATCH.contains(&port) => self.test.read_latch().into(),
            port if testdev::BYTE_LATCH.contains(&port) => (*self.test.byte(port)).into(),
            _ => return false,
        };
        true
    }

    fn out(&mut self, port: u16, size: u8, value: u32, now: u64) -> bool {
        let byte = value as u8;
        match port {
            port if (uart::BASE..uart::BASE + uart::PORTS).contains(&port) => {
                self.uart.write(port, byte);
                self.service_uart();
            }
            port if DEBUG_EXIT.contains(&port) => self.end(End::DebugExit { status: value << 1 | 1 }),
            cmos::INDEX => self.cmos.select(byte),
            cmos::DATA => self.cmos.write(byte),
            testdev::FW_CFG_SELECTOR if size >= 2 => self.fw_cfg.select(value as u16),
            KEYBOARD_COMMAND if byte == PULSE_RESET => self.shutdown("reset by the keyboard controller", now),
            KEYBOARD_COMMAND | KEYBOARD_DATA => {}
            FAST_A20 if byte & FAST_RESET != 0 => self.shutdown("reset by port 0x92", now),
            FAST_A20 => {}
            RESET_CONTROL => {
                self.reset_control = byte & 0xe;
                if byte & RESET_CPU != 0 {
                    self.shutdown("reset by port 0xcf9", now);
                }
            }
            BOCHS_SHUTDOWN => self.bochs_shutdown(byte, now),
            port if testdev::LATCH.contains(&port) => self.test.write_latch(value),
            port if pm::PORTS.contains(&port) && self.pm.is_some() => {
                let sleep = self.pm.as_mut().and_then(|pm| pm.write(port, size, value));
                match sleep {
                    Some(Sleep::TO_RAM) => self.suspend(now),
                    Some(Sleep::OFF) => self.shutdown("soft off (S5) by ACPI", now),
                    Some(Sleep::TO_DISK) => self.shutdown("suspended to disk (S4) by ACPI", now),
                    _ => {}
                }
            }
            // As IN, but that OUT has no room for EAX.
            vmware::PORT if self.vmport.is_some() => _ = self.vmport.as_mut().map(VmPort::call),
            testdev::FLUSH => {}
            port if testdev::BYTE_LATCH.contains(&port) => *self.test.byte(port) = byte,
            port if testdev::IRQ_LINES.contains(&port) => {
                self.set_irq((port - testdev::IRQ_LINES.start) as u8, value != 0);
            }
            _ => return false,
        }
        true
    }

    /// MMIO of the VMM. Unclaimed reads give ones.
    pub fn user_mmio(&mut self, op: &mut BusOp, now: u64) -> bool {
        if let Some(hpet) = &mut self.hpet
            && (hpet::BASE..hpet::BASE + hpet::SIZE).contains(&op.address)
        {
            let offset = op.address - hpet::BASE;
            if op.write.is_set() {
                let signals = hpet.write(offset, op.size, op.data, now);
                self.signal(signals);
                // Its timers may be due at other times.
                self.kicked = true;
            } else {
                op.data = hpet.read(offset, op.size, now);
            }
            return true;
        }
        match self.test.iomem(op.address, op.size) {
            Some(bytes) if op.write.is_set() => {
                bytes.copy_from_slice(&op.data.to_le_bytes()[..bytes.len()]);
                true
            }
            Some(bytes) => {
                let mut value = [0; 8];
                value[..bytes.len()].copy_from_slice(bytes);
                op.data = u64::from_le_bytes(value);
                true
            }
            None => {
                if !op.write {
                    op.data = u64::MAX;
                }
                false
            }
        }
    }

    fn bochs_shutdown(&mut self, byte: u8, now: u64) {
        let expected = SHUTDOWN_WORD[self.bochs_shutdown % SHUTDOWN_WORD.len()];
        self.bochs_shutdown = if byte == expected { self.bochs_shutdown + 1 } else { 0 };
        if self.bochs_shutdown == SHUTDOWN_WORD.len() {
            self.shutdown("power off by port 0x8900", now);
        }
    }

    fn shutdown(&mut self, by: &str, now: u64) {
        let (seconds, ms) = (now / NS_PER_SECOND, now % NS_PER_SECOND / 1_000_000);
        self.end(End::Shutdown { reason: format!("{by} after {seconds}.{ms:03} s of virtual time") });
    }

    /// The first end counts.
    fn end(&mut self, end: End) {
        self.ended.get_or_insert(end);
    }
}
