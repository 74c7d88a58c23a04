//! A VM under `kvm_amd`: what its vCPUs share, and what each has.

use crate::{
    kvm::nested::Nested,
    rules::Rule,
    silicon::{
        vmcb::{Mirror, Msrpm, Vmcb},
        vmrun::Running,
    },
};
use bitfield_struct::bitfield;
use serde::{Deserialize, Serialize};
use vmtape_abi::VmConfig;
use vmtape_arch::host::Vendor;
use vmtape_kvm_core::{
    Kvm, Vcpu,
    kvm::mmu_config,
    profile::{Options, Scope, Switch},
};
use vmtape_kvm_mmu::mmu::Config;

/// One vCPU.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SvmVcpu {
    pub core: Vcpu,
    /// What L1 runs with; while L2 runs, where L1's registers are kept.
    pub vmcb01: VmcbInfo,
    /// The map that `vmcb01` points to.
    pub msrpm: Msrpm,
    pub nested: Nested,
    /// Silicon's side of the VMCB.
    pub running: Running,
    pub msrs: SvmMsrs,
    /// MOV DR runs without exits until the next exit (KVM_DEBUGREG_WONT_EXIT).
    pub debug_registers_owned: bool,
    /// KVM steps over what holds NMIs back with RFLAGS.TF. See: KVM svm/svm.c svm_enable_nmi_window()
    pub nmi_singlestep: bool,
}

/// A VMCB of KVM's (`struct kvm_vmcb_info`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmcbInfo {
    pub vmcb: Vmcb,
    /// What its save area was last written from.
    pub mirror: Mirror,
}

impl SvmVcpu {
    /// The VMCB that silicon runs, `vmcb01` or `vmcb02` (`svm->current_vmcb`).
    pub fn current(&self) -> &VmcbInfo {
        if self.core.guest_mode { &self.nested.vmcb02 } else { &self.vmcb01 }
    }

    /// The same to change, and silicon that runs it.
    pub fn current_mut(&mut self) -> (&mut VmcbInfo, &mut Running) {
        let current = if self.core.guest_mode { &mut self.nested.vmcb02 } else { &mut self.vmcb01 };
        (current, &mut self.running)
    }

    /// `svm->vmcb`.
    pub fn vmcb(&self) -> &Vmcb {
        &self.current().vmcb
    }

    /// `svm->vmcb`, to change.
    pub fn vmcb_mut(&mut self) -> &mut Vmcb {
        &mut self.current_mut().0.vmcb
    }
}

/// VM_CR. See: APM 15.30.1 VM_CR MSR (C001_0114h)
#[bitfield(u64)]
#[derive(PartialEq, Eq, Serialize, Deserialize)]
pub struct VmCr {
    pub dpd: bool,
    pub r_init: bool,
    pub dis_a20m: bool,
    pub lock: bool,
    pub svmdis: bool,
    #[bits(59)]
    __: u64,
}

impl VmCr {
    /// SVM_VM_CR_VALID_MASK.
    pub const VALID: Self =
        Self::new().with_dpd(true).with_r_init(true).with_dis_a20m(true).with_lock(true).with_svmdis(true);
}

/// MSRs that neither `VcpuState` nor the VMCB holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SvmMsrs {
    pub vm_cr: VmCr,
    /// VM_HSAVE_PA: where L1 lets VMRUN save its state.
    pub hsave_pa: u64,
    pub virt_spec_ctrl: u64,
    pub de_cfg: u64,
}

/// What all vCPUs share.
pub struct Shared {
    pub kvm: Kvm,
}

/// A VM.
pub type Vm = vmtape_kvm_core::Vm<Shared>;

/// KVM_CREATE_VM, under `npt=1` or `npt=0`.
pub fn create(config: &VmConfig, npt: bool) -> Result<Vm, String> {
    Shared::new(config, npt).map(Vm::of)
}

impl Shared {
    /// KVM_CREATE_VM on this silicon with these options, under `npt=1` or `npt=0`.
    pub fn new(config: &VmConfig, npt: bool) -> Result<Self, String> {
        let silicon = config.silicon;
        let plugin = if npt { "svm-npt" } else { "svm" };
        if silicon.vendor != Vendor::AMD {
            return Err(format!("{plugin} needs an AMD host, this one is {}", silicon.vendor));
        }
        // With memory encryption fewer bits of the host's entries are an address, and MMIO entries have a reserved bit to set
        // even where MAXPHYADDR is 52. See: KVM svm/svm.c svm_adjust_mmio_mask()
        let table_width = silicon.phys_bits.saturating_sub(silicon.encryption_bits);
        if table_width < 32 || silicon.phys_bits > 52 {
            let (bits, taken) = (silicon.phys_bits, silicon.encryption_bits);
            return Err(format!("MAXPHYADDR {bits} less {taken} for encryption is not within 32 to 52"));
        }
        let scope = if npt { Scope::NPT } else { Scope::SVM };
        let options = Options::parse(scope, plugin, &config.options).map_err(|e| e.to_string())?;
        if options.on(Switch::NPT) != npt {
            return Err(format!("{plugin} is npt={}, the options ask for the opposite", u8::from(npt)));
        }
        let base = mmu_config(&silicon, &options, table_width);
        let nested = Config {
            tdp: true,
            max_tdp_level: silicon.host_levels,
            // See: KVM svm/svm.c get_npt_level()
            forced_tdp_level: true,
            wide_gpa_faults: options.on(Switch::NPT4_WIDE_GPA_FAULT),
            accessed_before_nested_fault: options.on(Switch::AMD_ACCESSED_BEFORE_NPF),
            dirty_before_nested_fault: options.on(Switch::AMD_DIRTY_BEFORE_NPF),
            ..base
        };
        let config = if npt { nested } else { base };
        Ok(Self { kvm: Kvm::new(silicon, options, config, Rule::of) })
    }

    /// LBR virtualization is used. Silicon that has next-RIP save has it too. Before it could be nested there was no parameter.
    pub fn lbrv(&self) -> bool {
        let options = &self.kvm.options;
        self.kvm.silicon.nrips.is_set() && (options.on(Switch::LBRV) || !options.on(Switch::NESTED_LBRV))
    }

    /// Silicon executes STGI and CLGI.
    pub fn vgif(&self) -> bool {
        self.kvm.silicon.vgif.is_set() && self.kvm.options.on(Switch::VGIF)
    }

    /// Silicon executes VMLOAD and VMSAVE.
    pub fn vls(&self) -> bool {
        self.kvm.silicon.vls.is_set() && self.kvm.options.on(Switch::VLS) && self.kvm.tdp()
    }

    /// Silicon delivers NMIs and blocks them.
    pub fn vnmi(&self) -> bool {
        let options = &self.kvm.options;
        self.vgif()
            && self.kvm.silicon.vnmi.is_set()
            && options.on(Switch::VNMI)
            && options.on(Switch::NESTED_VNMI)
    }

    /// Next-RIP save is used.
    pub fn nrips(&self) -> bool {
        self.kvm.silicon.nrips.is_set() && self.kvm.options.on(Switch::NRIPS)
    }
}
