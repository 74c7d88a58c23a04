//! The machine's state by kinds, as a VMM gets and sets it: one call for each over the backend's and the machine's own.
//!
//! The local APIC and the clock are devices of the machine, which are there for every backend; so are, of a vCPU's events, a
//! pending NMI, a pending SMI, a latched INIT and the SIPI vector.

use super::Machine;
use crate::{
    model::silicon_cpuid,
    time::{NS_PER_SECOND, NS_PER_TICK},
    vcpu::Msrs,
};
use vmtape_abi::Errno;
use vmtape_arch::state::{
    ClockData, LapicState, Layout, MachineState, MpState, Owner, StateKind, VcpuEvents, clock_flags,
    msrs_from_bytes, msrs_to_bytes,
};

/// What KVM_GET_TSC_KHZ gives.
const TSC_KHZ: u32 = (NS_PER_SECOND / NS_PER_TICK / 1000) as u32;

impl Machine {
    /// KVM_GET_* of a vCPU, or of the VM.
    /// -ENOTTY: the backend does not have it. -ENOENT: no such vCPU.
    pub fn get_state(&mut self, vcpu: u32, kind: StateKind) -> Result<Vec<u8>, Errno> {
        let v = self.vcpus.get_mut(vcpu as usize).ok_or(Errno::ENOENT)?;
        match kind.owner().ok_or(Errno::ENOTTY)? {
            Owner::Machine(own) => Ok(self.own_state(vcpu, own)),
            Owner::Msrs => {
                let mut msrs = self.msrs(vcpu);
                let listed = msrs.list();
                Ok(msrs_to_bytes(&msrs.get(&listed)))
            }
            Owner::Backend(_) => {
                // `kvm_get_cr8` asks the local APIC, whosever CR8 is loaded.
                let loaded = std::mem::replace(&mut v.state.cr8, self.services.devices.cr8(vcpu));
                let got = self.backend.get_state(vcpu, &mut v.state, kind, &mut self.services);
                v.state.cr8 = loaded;
                let bytes = got?;
                Ok(if kind == StateKind::VCPU_EVENTS { self.with_signals(vcpu, bytes) } else { bytes })
            }
        }
    }

    /// KVM_SET_* of a vCPU, or of the VM. What is refused is not set, but for MSRs: those before the one that is refused are.
    pub fn set_state(&mut self, vcpu: u32, kind: StateKind, bytes: &[u8]) -> Result<(), Errno> {
        let v = self.vcpus.get_mut(vcpu as usize).ok_or(Errno::ENOENT)?;
        v.needs_entry = true;
        match kind.owner().ok_or(Errno::ENOTTY)? {
            Owner::Machine(own) => self.set_own_state(vcpu, own, bytes),
            Owner::Msrs => {
                let entries = msrs_from_bytes(bytes).ok_or(Errno::EINVAL)?;
                let done = self.backend.set_msrs(vcpu, &mut v.state, &entries, &mut self.services)?;
                if done as usize == entries.len() { Ok(()) } else { Err(Errno::EINVAL) }
            }
            Owner::Backend(_) => {
                let loaded = std::mem::replace(&mut v.state.cr8, self.services.devices.cr8(vcpu));
                let done = self.backend.set_state(vcpu, &mut v.state, kind, bytes, &mut self.services);
                let cr8 = std::mem::replace(&mut v.state.cr8, loaded);
                done?;
                match kind {
                    StateKind::SREGS2 => {
                        self.services.devices.set_cr8(vcpu, cr8 as u8);
                        self.services.devices.tpr_to_cr8(vcpu, &mut v.state);
                    }
                    StateKind::VCPU_EVENTS => self.set_signals(vcpu, bytes),
                    StateKind::MP_STATE if MpState::from_bytes(bytes) == Some(MpState::SIPI_RECEIVED) => {
                        let vector = &mut self.services.devices.lapics[vcpu as usize].sipi_vector;
                        *vector = vector.or(Some(0));
                    }
                    _ => {}
                }
                Ok(())
            }
        }
    }

    /// The MSRs of a vCPU, which must exist.
    pub(super) fn msrs(&mut self, vcpu: u32) -> Msrs<'_> {
        let state = &mut self.vcpus[vcpu as usize].state;
        let silicon = silicon_cpuid(&self.spec.silicon);
        Msrs { backend: &mut *self.backend, vcpu, state, host: &mut self.services, silicon }
    }

    fn own_state(&self, vcpu: u32, kind: MachineState) -> Vec<u8> {
        let clock = self.services.clock;
        match kind {
            MachineState::Lapic => self.services.devices.lapics[vcpu as usize].state(clock.now()).to_bytes(),
            MachineState::Clock => {
                let flags = clock_flags::TSC_STABLE | clock_flags::HOST_TSC;
                let host_tsc = clock.tsc_at(clock.icount);
                ClockData { clock: clock.now(), flags, host_tsc, ..ClockData::default() }.to_bytes()
            }
            MachineState::TscKhz => TSC_KHZ.to_bytes(),
        }
    }

    fn set_own_state(&mut self, vcpu: u32, kind: MachineState, bytes: &[u8]) -> Result<(), Errno> {
        match kind {
            MachineState::Lapic => {
                let page = LapicState::from_bytes(bytes).ok_or(Errno::EINVAL)?;
                let now = self.services.clock.now();
                self.services.devices.set_lapic(vcpu, &page, now);
            }
            MachineState::Clock => {
                let data = ClockData::from_bytes(bytes).ok_or(Errno::EINVAL)?;
                // Time is a function of retired instructions: it cannot be before them. There is no time of day.
                let legal = data.flags & !clock_flags::ALL == 0;
                if !legal || !self.services.clock.set(data.clock / NS_PER_TICK) {
                    return Err(Errno::EINVAL);
                }
            }
            // Silicon has no other frequency, and none to scale it to. See: KVM x86.c kvm_set_tsc_khz()
            MachineState::TscKhz if u32::from_bytes(bytes) != Some(TSC_KHZ) => return Err(Errno::EINVAL),
            MachineState::TscKhz => {}
        }
        Ok(())
    }

    /// Fills in what of a vCPU's events the local APIC holds; the backend has asked it for NMIs and SMIs.
    fn with_signals(&self, vcpu: u32, bytes: Vec<u8>) -> Vec<u8> {
        let Some(mut events) = VcpuEvents::from_bytes(&bytes) else { return bytes };
        events.smi_latched_init = self.services.devices.lapics[vcpu as usize].init_pending.into();
        events.to_bytes()
    }

    fn set_signals(&mut self, vcpu: u32, bytes: &[u8]) {
        let Some(events) = VcpuEvents::from_bytes(bytes) else { return };
        let apic = &mut self.services.devices.lapics[vcpu as usize];
        if events.flags.nmi_pending() {
            apic.nmi_pending = events.nmi_pending != 0;
        }
        if events.flags.smm() {
            apic.init_pending = events.smi_latched_init != 0;
            apic.smi_pending = events.smi_pending != 0;
        }
        if events.flags.sipi_vector() {
            apic.sipi_vector = Some(events.sipi_vector as u8);
        }
    }
}
