//! Physical CPUs: which of them the VM may use, and which vCPU runs where.
//!
//! A vCPU is a thread of the host's. Threads take turns; with several CPUs each turn is on the next one, so that vCPUs move.
//! Only with several is there anything to tell: then the tape has each CPU that begins or ceases, and each move.

use super::Machine;
use crate::crash::Aftermath;
use vmtape_abi::Errno;
use vmtape_arch::exit::Resume;
use vmtape_traces::event::{End, Event, NO_VCPU, PcpuEvent, PcpuKind};

impl Machine {
    fn has_several_cpus(&self) -> bool {
        self.spec.pcpus > 1
    }

    /// Turns end even if there is nobody else to run.
    pub(super) fn takes_turns(&self) -> bool {
        self.vcpus.len() > 1 || self.has_several_cpus()
    }

    /// As KVM_CREATE_VM of the first VM, which fails if the first CPU does; one that comes later just stays offline.
    /// See: KVM virt/kvm/kvm_main.c kvm_enable_virtualization_cpu(), kvm_online_cpu()
    pub(super) fn enable_cpus(&mut self) -> Result<(), Errno> {
        for cpu in 0..self.spec.pcpus.max(1) {
            let enabled = self.backend.enable_cpu(cpu, &mut self.services);
            self.tell(PcpuKind::ENABLE, cpu, NO_VCPU, enabled);
            match enabled {
                Ok(()) => self.placement.enable(cpu),
                Err(errno) if cpu == 0 => return Err(errno),
                Err(_) => {}
            }
        }
        Ok(())
    }

    /// The VM is gone, and with it the reason to have virtualization enabled.
    pub(super) fn disable_cpus(&mut self) {
        self.put();
        for cpu in self.placement.take_enabled() {
            let disabled = self.backend.disable_cpu(cpu, &mut self.services);
            self.tell(PcpuKind::DISABLE, cpu, NO_VCPU, disabled);
        }
    }

    /// The vCPU's thread has its turn.
    pub(super) fn load(&mut self, vcpu: u32) -> Result<(), End> {
        match self.placement.cpu_of_turn() {
            Some(cpu) if !self.placement.is_loaded_on(vcpu, cpu) => self.load_on(vcpu, cpu),
            _ => Ok(()),
        }
    }

    /// The thread runs on this CPU. A thread that cannot has nothing to go on with: the host has crashed.
    pub(super) fn load_on(&mut self, vcpu: u32, cpu: u32) -> Result<(), End> {
        self.put();
        let moved = self.placement.place(vcpu, cpu);
        let loaded = self.backend.vcpu_load(vcpu, cpu, &mut self.services);
        if moved {
            self.tell(PcpuKind::LOAD, cpu, vcpu, loaded);
        }
        loaded.map_err(|errno| self.crashed(vcpu, errno))
    }

    /// Whether the host has crashed in an entry: then nothing runs where the vCPU is.
    pub(super) fn has_crashed(&mut self, vcpu: u32, resume: &Resume) -> bool {
        let cpu = self.placement.last_cpu(vcpu);
        *resume == Resume::errno(Errno::EIO.0)
            && self.backend.vcpu_load(vcpu, cpu, &mut self.services) == Err(Errno::EIO)
    }

    /// The NMI comes to all other CPUs as well. What is active after that is the next kernel's trouble.
    /// See: KVM arch/x86/kernel/crash.c kdump_nmi_callback()
    pub(super) fn crashed(&mut self, vcpu: u32, errno: Errno) -> End {
        self.placement.take_loaded();
        let cpus = self.placement.take_enabled();
        for cpu in &cpus {
            let crashed = self.backend.crash(*cpu, &mut self.services);
            self.tell(PcpuKind::CRASH, *cpu, NO_VCPU, crashed);
        }
        let aftermath = Aftermath::of(&mut *self.backend, self.vcpus.len() as u32, &cpus);
        let reason = format!("the host has crashed{aftermath}");
        End::Fatal { vcpu, resume: Resume::errno(errno.0), reason }
    }

    /// A vCPU whose exits come from a tape: where it was last.
    pub(super) fn load_fed(&mut self, vcpu: u32) -> Result<(), End> {
        if self.placement.is_loaded(vcpu) {
            return Ok(());
        }
        self.load_on(vcpu, self.placement.last_cpu(vcpu))
    }

    fn put(&mut self) {
        if let Some(vcpu) = self.placement.take_loaded() {
            // There is no error that anybody could act on.
            let _ = self.backend.vcpu_put(vcpu, &mut self.services);
        }
    }

    fn tell(&mut self, kind: PcpuKind, cpu: u32, vcpu: u32, result: Result<(), Errno>) {
        if self.has_several_cpus() {
            let icount = self.services.clock.icount;
            let result = result.err().map_or(0, |errno| errno.0);
            self.services.tape.event(Event::Pcpu(PcpuEvent { icount, kind, cpu, vcpu, result }));
        }
    }
}
