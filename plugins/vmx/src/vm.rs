//! A VM under `kvm_intel`: what its vCPUs share, and what each has.

use crate::{
    kvm::{cpus::LoadedVmcs, vmcs::Written},
    rules::Rule,
    silicon::{controls::Controls, entry::segments_are_legal, vmcs::Vmcs},
};
use serde::{Deserialize, Serialize};
use vmtape_abi::VmConfig;
use vmtape_arch::{
    host::{Silicon, Vendor},
    paging::bits,
};
use vmtape_kvm_core::{
    Kvm, Vcpu,
    kvm::mmu_config,
    profile::{Options, Scope, Switch},
};
use vmtape_kvm_mmu::{
    mmu::Config,
    spte::Format,
    tdp::silicon::{NestedFault, NestedStop},
};

/// APIC_ACCESS_PAGE_PRIVATE_MEMSLOT and where it is.
const APIC_ACCESS_SLOT: u32 = 0;
pub const APIC_DEFAULT_BASE: u64 = 0xfee0_0000;

/// One vCPU.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmxVcpu {
    pub core: Vcpu,
    pub vmcs01: Vmcs,
    /// What silicon loaded from it at the last VM entry.
    pub controls: Controls,
    pub msrs: VmxMsrs,
    /// MOV DR runs without exits until the next exit (KVM_DEBUGREG_WONT_EXIT).
    pub debug_registers_owned: bool,
    /// IA32_SPEC_CTRL is read and written without exits, as the MSR bitmap has it.
    pub owns_spec_ctrl: bool,
    /// Where its VMCS is active, and how it is entered.
    pub vmcs: LoadedVmcs,
    #[serde(skip)]
    pub written: Written,
}

/// MSRs that neither `VcpuState` nor the VMCS holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmxMsrs {
    pub feature_control: u64,
    pub umwait_control: u64,
}

/// What all vCPUs share.
pub struct Shared {
    pub kvm: Kvm,
}

/// A VM.
pub type Vm = vmtape_kvm_core::Vm<Shared>;

impl Shared {
    /// KVM_CREATE_VM on this silicon with these options.
    pub fn new(config: &VmConfig) -> Result<Self, String> {
        let silicon = config.silicon;
        if silicon.vendor != Vendor::INTEL {
            return Err(format!("vmx needs an Intel host, this one is {}", silicon.vendor));
        }
        if !(32..=52).contains(&silicon.phys_bits) {
            return Err(format!("MAXPHYADDR {} is not within 32 to 52", silicon.phys_bits));
        }
        let mut options = Options::parse(Scope::VMX, "vmx", &config.options).map_err(|e| e.to_string())?;
        hardware_setup(&silicon, &mut options);
        let page_needs_apicv = options.on(Switch::APIC_PAGE_NEEDS_APICV);
        let base = Config {
            emulates_apic_page: page_needs_apicv && !options.on(Switch::ENABLE_APICV),
            ..mmu_config(&silicon, &options, silicon.phys_bits)
        };
        let ept = Config {
            tdp: true,
            format: Format::Ept { ad: options.on(Switch::EPTAD) },
            max_tdp_level: silicon.ept_levels,
            pml: options.on(Switch::PML),
            wide_gpa_faults: options.on(Switch::EPT4_WIDE_GPA_VIOLATION),
            ..base
        };
        let config = if options.on(Switch::EPT) { ept } else { base };
        let mut kvm = Kvm::new(silicon, options, config, Rule::of);
        if kvm.options.on(Switch::FLEXPRIORITY) {
            kvm.mmu.set_private_slot(APIC_ACCESS_SLOT, APIC_DEFAULT_BASE, 0x1000, apic_access_hpa(&silicon));
        }
        Ok(Self { kvm })
    }
}

/// The APIC-access page lies at the top of the host's physical address space, where no guest memory is.
pub fn apic_access_hpa(silicon: &Silicon) -> u64 {
    (1 << silicon.phys_bits) - 0x1000
}

/// Parameters as they are once the silicon is known. See: KVM vmx/vmx.c vmx_hardware_setup()
fn hardware_setup(silicon: &Silicon, options: &mut Options) {
    let ept = options.on(Switch::EPT);
    if !ept {
        options.set(Switch::UNRESTRICTED_GUEST, false);
        options.set(Switch::TDP_MMU, false);
        // Shadow paging walks with the guest's width anyway.
        options.set(Switch::ALLOW_SMALLER_MAXPHYADDR, options.allow_smaller_maxphyaddr(false));
    }
    if !ept || !silicon.ept_ad {
        options.set(Switch::EPTAD, false);
    }
    // Silicon that has the dirty bits has the log too, but for the first that had them (Haswell).
    if !options.on(Switch::EPTAD) {
        options.set(Switch::PML, false);
    }
    if !silicon.apicv || !options.on(Switch::FLEXPRIORITY) {
        options.set(Switch::ENABLE_APICV, false);
    }
}

impl Shared {
    /// `vmx->emulation_required`: without unrestricted guests, a guest on its way between modes may be in a state that no VM entry
    /// takes. See: KVM vmx/vmx.c vmx_guest_state_valid()
    pub fn emulation_required(&self, vcpu: &VmxVcpu) -> bool {
        !self.kvm.options.on(Switch::UNRESTRICTED_GUEST)
            && !segments_are_legal(&vcpu.vmcs01, &self.kvm.silicon)
    }

    /// The rule by which EPT refused an access.
    pub fn ept_rule(&mut self, vcpu: u32, stop: &NestedStop) -> Rule {
        let wide = stop.gpa & bits(48, 51) != 0 && self.kvm.mmu.tdp_level(vcpu) == 4;
        match stop.fault {
            NestedFault::Misconfiguration => Rule::EPT_MISCONFIG,
            NestedFault::LogFull => Rule::PML_FULL,
            _ if wide && self.kvm.mmu.config.wide_gpa_faults => Rule::EPT4_WIDE_GPA,
            _ => Rule::EPT_VIOLATION,
        }
    }
}
