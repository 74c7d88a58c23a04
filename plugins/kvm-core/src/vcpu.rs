//! What KVM keeps for a vCPU, whatever the vendor (`struct kvm_vcpu_arch`).

use crate::{
    cpuid::GuestCpuid,
    events,
    events::Events,
    msr::Msrs,
    profile::{Options, Switch},
    pv::Paravirtual,
    smm::Smm,
    tracer::Tracer,
};
use serde::{Deserialize, Serialize};
use vmtape_abi::{BusOp, BusSpace, Errno, Host};
use vmtape_arch::{
    cpuid::CpuidEntry,
    exception::Exception,
    level::{Dimension, Level, Place},
    msr::Msr,
    note::Note,
    sensitive::Sensitive,
    vcpu::{Intercepts, Interruptibility, VcpuState},
};

/// IA32_APIC_BASE after reset of the boot processor.
const APIC_BASE_RESET: u64 = 0xfee0_0900;

/// State of a vCPU that is not in `VcpuState`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vcpu {
    pub id: u32,
    pub cpuid: GuestCpuid,
    pub msrs: Msrs,
    pub events: Events,
    pub pv: Paravirtual,
    pub smm: Smm,
    /// IA32_APIC_BASE as the local APIC has it.
    pub apic_base: u64,
    /// The physical CPU of the last entry; [`NEVER`] before the first one, where KVM keeps that apart.
    pub last_vmentry_cpu: i32,
    /// The physical CPU that the vCPU was loaded on last.
    pub cpu: Option<u32>,
    /// An exit was handled since the last entry.
    pub exited: bool,
    /// `is_guest_mode`: L2 runs, or is about to.
    pub guest_mode: bool,
    /// What L1 intercepts of L2's instructions while L2 runs.
    pub l1_intercepts: Intercepts,
    /// A signal that kills has ended a wait of KVM's for memory that nothing but such a signal ends: KVM_RUN returns before the guest is
    /// entered again.
    pub killed: bool,
    /// An instruction of L2 that the emulator has not executed, since L1 may want it.
    #[serde(skip)]
    pub kept_back: Option<Sensitive>,
    /// The exit that is being handled interrupted the delivery of an event.
    #[serde(skip)]
    pub vectoring: bool,
}

/// KVM_MAX_CPUID_ENTRIES, today and before commit 3f4e3eb417b1.
const MAX_ENTRIES: usize = 256;
const MAX_ENTRIES_OF_OLD: usize = 80;
/// `last_vmentry_cpu` of a vCPU that has not run.
pub const NEVER: i32 = -1;

/// How KVM_SET_CPUID2 ended well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetCpuid {
    /// The table is in force.
    Done,
    /// ... and it is late for that: the vCPU has run.
    Late,
    /// It is the table that the vCPU has; nothing was done.
    Same,
}

impl Vcpu {
    /// KVM_CREATE_VCPU. `ucode_rev`: the microcode's revision that the vendor's module reports.
    pub fn new(id: u32, ucode_rev: u64) -> Self {
        Self {
            id,
            cpuid: GuestCpuid::default(),
            msrs: Msrs::new(ucode_rev),
            events: Events::default(),
            pv: Paravirtual::default(),
            smm: Smm::new(true),
            apic_base: APIC_BASE_RESET,
            last_vmentry_cpu: NEVER,
            cpu: None,
            exited: false,
            guest_mode: false,
            l1_intercepts: Intercepts::default(),
            killed: false,
            kept_back: None,
            vectoring: false,
        }
    }

    /// What `last_vmentry_cpu` starts with: zero, as after KVM_RUN on the first CPU, until commit 63f5a1909f9e.
    pub fn before_first_entry(options: &Options) -> i32 {
        let told_apart =
            options.on(Switch::WARN_CPUID_AFTER_RUN) || options.on(Switch::FORBID_CPUID_AFTER_RUN);
        if told_apart { NEVER } else { 0 }
    }

    /// KVM_SET_CPUID2. See: KVM cpuid.c kvm_vcpu_ioctl_set_cpuid2(), kvm_set_cpuid()
    pub fn set_cpuid(
        &mut self,
        options: &Options,
        state: &VcpuState,
        entries: &[CpuidEntry],
    ) -> Result<SetCpuid, Errno> {
        let late = self.has_run();
        let frozen = self.is_frozen(options, Switch::FORBID_CPUID_AFTER_RUN);
        // See: KVM x86.c kvm_arch_vcpu_ioctl(), commit feb627e8d6f6: refused before the table is looked at.
        if frozen && !options.on(Switch::ALLOW_SAME_CPUID) {
            return Err(Errno::EINVAL);
        }
        let most = if options.on(Switch::CPUID_256_ENTRIES) { MAX_ENTRIES } else { MAX_ENTRIES_OF_OLD };
        if entries.len() > most {
            return Err(Errno::E2BIG);
        }
        if frozen {
            let mut new = GuestCpuid::unchecked(entries);
            new.update_runtime(state, self.apic_base);
            let same = crate::cpuid::equal(new.entries(), self.cpuid.entries());
            return if same { Ok(SetCpuid::Same) } else { Err(Errno::EINVAL) };
        }
        let mut new =
            GuestCpuid::new(entries).inspect_err(|_| self.refused_cpuid(options, state, entries))?;
        new.update_runtime(state, self.apic_base);
        self.cpuid = new;
        let warns = late && options.on(Switch::WARN_CPUID_AFTER_RUN);
        Ok(if warns { SetCpuid::Late } else { SetCpuid::Done })
    }

    /// `!kvm_can_set_cpuid_and_feature_msrs`: what the vCPU is may no longer change, by the rule of `after_run` or because L2 is active.
    pub fn is_frozen(&self, options: &Options, after_run: Switch) -> bool {
        let in_l2 = self.guest_mode && options.on(Switch::FORBID_CPUID_IN_GUEST_MODE);
        in_l2 || self.has_run() && options.on(after_run)
    }

    /// What KVM_SET_CPUID2 leaves behind when the table is refused.
    fn refused_cpuid(&mut self, options: &Options, state: &VcpuState, entries: &[CpuidEntry]) {
        if options.on(Switch::KEEP_CPUID_ON_ERROR) {
            return;
        }
        let left = if options.on(Switch::DROP_REFUSED_CPUID) { &[] } else { entries };
        self.cpuid.overwrite(left);
        self.update_cpuid_runtime(state);
    }

    /// `kvm_vcpu_has_run`: always, in releases that keep nothing to tell it by.
    pub fn has_run(&self) -> bool {
        self.last_vmentry_cpu != NEVER
    }

    /// `kvm_update_cpuid_runtime`.
    pub fn update_cpuid_runtime(&mut self, state: &VcpuState) {
        self.cpuid.update_runtime(state, self.apic_base);
    }

    /// Reads IA32_APIC_BASE from the local APIC, after the host changed it from outside (reset, restored state).
    pub fn refresh_apic_base(&mut self, state: &VcpuState, host: &mut dyn Host) {
        let mut op = BusOp {
            space: BusSpace::MSR,
            size: 8,
            address: Msr::IA32_APIC_BASE.0.into(),
            ..Default::default()
        };
        if host.bus(self.id, &mut op) && op.data != self.apic_base {
            self.apic_base = op.data;
            self.update_cpuid_runtime(state);
        }
    }

    /// The level that runs: the one place that knows.
    pub fn level(&self) -> Level {
        if self.guest_mode { Level::L2 } else { Level::L1 }
    }

    /// Whoever writes notes of what happens now.
    pub fn tracer(&self) -> Tracer {
        Tracer { vcpu: self.id, place: Place { level: self.level(), dimension: Dimension::GUEST } }
    }

    /// Puts a note on the tape.
    pub fn note(&self, note: Note, host: &mut dyn Host) {
        self.tracer().note(note, host);
    }

    /// Queues an exception for the next entry.
    pub fn inject(&mut self, state: &mut VcpuState, exception: &Exception) {
        self.events.queue(state, exception);
    }

    /// `kvm_skip_emulated_instruction`: past the instruction, out of its shadow, and into a single-step trap if TF is set.
    pub fn skip(&mut self, state: &mut VcpuState, len: u8) {
        let stepped = events::single_step(state.rflags().tf());
        let next = state.rip.wrapping_add(len.into());
        // A 32-bit instruction pointer wraps at 4 GiB. See: KVM vmx/vmx.c skip_emulated_instruction()
        state.rip = if state.is_64bit_code() { next } else { next & 0xffff_ffff };
        clear_shadow(state);
        if let Some(trap) = stepped {
            self.inject(state, &trap);
        }
    }
}

/// The interrupt shadow of STI and MOV SS ends.
pub fn clear_shadow(state: &mut VcpuState) {
    let shadow: Interruptibility = state.interruptibility;
    state.interruptibility = shadow.with_sti(false).with_mov_ss(false);
}
