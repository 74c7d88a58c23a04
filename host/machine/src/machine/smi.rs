//! Firmware's part of system-management mode: a handler that has nothing to do.

use super::Machine;
use vmtape_arch::msr::Msr;

const SMBASE: Msr = Msr(0x9e);
/// Its value after reset, and where the handler begins from there. See: APM vol. 2 10.2.1 Entering SMM, 10.2.2 SMBASE Register
const SMBASE_RESET: u64 = 0x3_0000;
const HANDLER: u64 = 0x8000;
const RSM: [u8; 2] = [0x0f, 0xaa];

impl Machine {
    /// An SMI waits. Where nobody has put a handler, neither the guest nor what a tape tells of its memory, it finds one that returns.
    pub(super) fn place_smi_handler(&mut self, n: u32) {
        let pending = self.services.devices.lapics[n as usize].smi_pending;
        let state = &mut self.vcpus[n as usize].state;
        if !pending || state.interruptibility.smi() || self.services.fed.is_some() {
            return;
        }
        let smbase = self.backend.get_msr(n, state, SMBASE.0, &mut self.services);
        let Some(hpa) = self.services.memory.hpa(SMBASE_RESET + HANDLER) else { return };
        let (mut found, ram, icount) = ([0; RSM.len()], self.services.ram(), self.services.clock.icount);
        if smbase == Ok(SMBASE_RESET) && ram.read(hpa, &mut found) && found == [0; RSM.len()] {
            ram.write_at(hpa, &RSM, icount);
        }
    }
}
