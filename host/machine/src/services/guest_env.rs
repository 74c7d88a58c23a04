//! The environment of a running guest: the silicon half of the backend, and the devices behind it.

use super::{Services, answers};
use crate::devices::lapic::reg;
use vmtape_abi::{Backend, BusOp, BusSpace, Host};
use vmtape_arch::{
    PAGE_SHIFT, PAGE_SIZE,
    access::{Access, Mapping, Verdict},
    cpuid::find,
    exception::Exception,
    exit::{Exit, StimulusKind},
    msr::Msr,
    sensitive::{Sensitive, SensitiveKind},
    vcpu::VcpuState,
};
use vmtape_cpu::{Decision, Env, Interrupted, Ram};

/// One vCPU's way out of the interpreter.
pub(crate) struct GuestEnv<'a> {
    pub(crate) vcpu: u32,
    pub(crate) backend: &'a mut dyn Backend,
    pub(crate) services: &'a mut Services,
    /// Filled in when the interpreter is left with an exit.
    pub(crate) exit: &'a mut Exit,
    pub(crate) ram: Ram,
    /// An APIC write traps after it was made: the register is stored, its effect is left to the exit.
    pub(crate) apic_write_traps: bool,
}

impl Services {
    /// CPUID as silicon answers it from the guest's table, with the bits that follow the processor's state.
    pub(crate) fn native_cpuid(&self, vcpu: u32, state: &VcpuState, function: u32, index: u32) -> [u32; 4] {
        const APIC: u32 = 9;
        const OSXSAVE: u32 = 27;
        const OSPKE: u32 = 4;
        let entry = self.cpuid.get(vcpu as usize).and_then(|table| find(table, function, index));
        let mut entry = entry.copied().unwrap_or_default();
        let follow = |word: &mut u32, bit: u32, on: bool| *word = *word & !(1 << bit) | u32::from(on) << bit;
        match function {
            1 => {
                follow(&mut entry.edx, APIC, self.devices.apic_base(vcpu).enabled());
                follow(&mut entry.ecx, OSXSAVE, state.cr4().osxsave());
            }
            7 if index == 0 => follow(&mut entry.ecx, OSPKE, state.cr4().pke()),
            _ => {}
        }
        [entry.eax, entry.ebx, entry.ecx, entry.edx]
    }
}

impl GuestEnv<'_> {
    fn bus(&mut self, space: BusSpace, address: u64, size: u8, write: Option<u64>) -> (bool, u64) {
        let data = write.unwrap_or(0);
        let mut op = BusOp { space, write: write.is_some().into(), size, pad: 0, address, data };
        (self.services.bus(self.vcpu, &mut op), op.data)
    }
}

impl Env for GuestEnv<'_> {
    fn ram(&self) -> &Ram {
        &self.ram
    }

    fn access(&mut self, state: &mut VcpuState, access: &Access) -> Result<Mapping, Interrupted> {
        self.services.sync_clock(state);
        self.services.tape.begin_walk();
        if let Some(mapping) = self.services.known_walk(self.vcpu, state, access) {
            self.services.accessed(self.vcpu, access.gva, &mapping);
            return Ok(mapping);
        }
        self.services.begin_walk();
        let answer = self.backend.access(self.vcpu, state, access, self.services, self.exit);
        self.services.end_walk(self.vcpu, state, access, &answer);
        let looked_at = answers::access(self.services.sound_memory(), &answer);
        if !self.services.is_right(looked_at) {
            return Err(Interrupted::Exit);
        }
        match answer.verdict {
            Verdict::NATIVE if self.services.may_map(answer.mapping.kind, answer.mapping.hpa) => {
                self.services.accessed(self.vcpu, access.gva, &answer.mapping);
                Ok(answer.mapping)
            }
            Verdict::NATIVE => Err(Interrupted::Exit),
            Verdict::FAULT => Err(Interrupted::Fault(answer.fault)),
            _ => {
                self.exit.stimulus = StimulusKind::ACCESS;
                self.exit.access = Access { delivering: state.delivering, ..*access };
                Err(Interrupted::Exit)
            }
        }
    }

    fn sensitive(&mut self, state: &mut VcpuState, insn: &Sensitive) -> Decision {
        self.services.sync_clock(state);
        self.services.tape.begin_walk();
        self.services.walks.expire();
        let mut fault = Exception::default();
        let verdict = self.backend.sensitive(self.vcpu, state, insn, self.services, self.exit, &mut fault);
        let allowed = [Verdict::NATIVE, Verdict::FAULT, Verdict::EXIT];
        if !self.services.is_right(answers::verdict("sensitive", verdict, &allowed, &fault)) {
            return Decision::Interrupted(Interrupted::Exit);
        }
        match verdict {
            Verdict::NATIVE => {
                self.apic_write_traps = false;
                Decision::Native
            }
            Verdict::FAULT => Decision::Interrupted(Interrupted::Fault(fault)),
            _ => {
                self.exit.stimulus = StimulusKind::SENSITIVE;
                self.exit.insn = *insn;
                let x2apic = Msr::X2APIC_FIRST.0..=Msr::X2APIC_LAST.0;
                let is_write = match insn.kind {
                    SensitiveKind::WRMSR => x2apic.contains(&insn.number),
                    kind => kind == SensitiveKind::APIC_WRITE,
                };
                self.apic_write_traps = self.exit.trap.is_set() && is_write;
                if self.exit.trap.is_set() {
                    Decision::TrapAfter
                } else {
                    Decision::Interrupted(Interrupted::Exit)
                }
            }
        }
    }

    fn exception(&mut self, state: &mut VcpuState, exception: &Exception) -> Option<()> {
        self.services.sync_clock(state);
        self.services.tape.begin_walk();
        self.services.walks.expire();
        let verdict = self.backend.exception(self.vcpu, state, exception, self.services, self.exit);
        if !self.services.is_right(answers::verdict(
            "exception",
            verdict,
            &[Verdict::NATIVE, Verdict::EXIT],
            exception,
        )) {
            return Some(());
        }
        match verdict {
            Verdict::EXIT => {
                self.exit.stimulus = StimulusKind::EXCEPTION;
                self.exit.exception = *exception;
                Some(())
            }
            _ => None,
        }
    }

    /// The APIC-access page; anything else goes to the devices as on bare metal.
    fn device(
        &mut self,
        state: &mut VcpuState,
        gpa: u64,
        size: u8,
        write: Option<u64>,
    ) -> Result<u64, Interrupted> {
        let now = self.services.sync_clock(state);
        let apic = self.services.devices.apic_base(self.vcpu);
        if !apic.enabled() || apic.x2apic() || gpa >> PAGE_SHIFT != apic.frame() {
            let (claimed, data) = self.bus(BusSpace::KERNEL_MMIO, gpa, size, write);
            return Ok(if claimed { data } else { self.bus(BusSpace::USER_MMIO, gpa, size, write).1 });
        }
        let register = (gpa % PAGE_SIZE) as u32;
        let devices = &mut self.services.devices;
        let Some(value) = write else {
            return Ok(devices.silicon_apic_read(self.vcpu, register, now).into());
        };
        if std::mem::take(&mut self.apic_write_traps) {
            devices.silicon_apic_store(self.vcpu, register, value as u32);
        } else {
            devices.silicon_apic_write(self.vcpu, register, value as u32, now);
        }
        if register == reg::TPR {
            devices.tpr_to_cr8(self.vcpu, state);
        }
        Ok(0)
    }

    fn port(&mut self, state: &mut VcpuState, port: u16, size: u8, write: Option<u32>) -> u32 {
        self.services.sync_clock(state);
        let value = write.map(u64::from);
        let (claimed, data) = self.bus(BusSpace::KERNEL_PIO, port.into(), size, value);
        if claimed {
            return data as u32;
        }
        self.bus(BusSpace::USER_PIO, port.into(), size, value).1 as u32
    }

    fn cpuid(&mut self, state: &mut VcpuState, function: u32, index: u32) -> [u32; 4] {
        self.services.native_cpuid(self.vcpu, state, function, index)
    }

    fn msr(&mut self, state: &mut VcpuState, index: u32, write: Option<u64>) -> Result<u64, Exception> {
        let now = self.services.sync_clock(state);
        let data = write.unwrap_or(0);
        let mut op = BusOp {
            space: BusSpace::MSR,
            write: write.is_some().into(),
            size: 8,
            pad: 0,
            address: index.into(),
            data,
        };
        if std::mem::take(&mut self.apic_write_traps) {
            let register = (index - Msr::X2APIC_FIRST.0) << 4;
            self.services.devices.silicon_apic_store(self.vcpu, register, data as u32);
            return Ok(data);
        }
        // Silicon virtualizes these registers without KVM's tracepoints.
        let claimed = self.services.devices.silicon_msr(self.vcpu, &mut op, now);
        self.services.devices.tpr_to_cr8(self.vcpu, state);
        if claimed { Ok(op.data) } else { Err(Exception::gp(0)) }
    }

    fn tsc(&mut self, state: &VcpuState) -> u64 {
        self.services.clock.tsc_at(state.icount)
    }

    fn random(&mut self) -> u64 {
        self.services.random()
    }

    fn tpr_changed(&mut self, state: &mut VcpuState) {
        self.services.devices.tpr_from_cr8(self.vcpu, state);
    }

    fn virtual_interrupt(&mut self, state: &mut VcpuState) -> Option<u8> {
        self.services.sync_clock(state);
        self.services.devices.virtual_interrupt(self.vcpu)
    }

    fn outcome(&mut self, state: &VcpuState) {
        self.services.outcomes.add(self.vcpu, state);
    }

    fn kicked(&mut self) -> bool {
        self.services.devices.is_kicked()
    }
}
