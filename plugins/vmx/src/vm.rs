//! A VM under `kvm_intel`: what its vCPUs share, and what each has.

use crate::{rules::Rule, silicon::controls::Controls};
use serde::{Deserialize, Serialize};
use vmtape_abi::{EmulateRequest, Host, VmConfig, emultype};
use vmtape_arch::{
    exit::Resume,
    host::{Silicon, Vendor},
    note::NoteKind,
    paging::bits,
    vcpu::VcpuState,
};
use vmtape_kvm_core::{
    Vcpu, emulate,
    profile::{Options, Scope, Switch},
};
use vmtape_kvm_mmu::{
    fault::{FaultCode, Handled},
    insn::writes_page_tables,
    mmu::{Config, Mmu},
    slots::Slots,
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
    pub controls: Controls,
    /// MOV DR runs without exits until the next exit (KVM_DEBUGREG_WONT_EXIT).
    pub debug_registers_owned: bool,
}

/// What all vCPUs share.
pub struct Shared {
    pub silicon: Silicon,
    pub options: Options,
    pub mmu: Mmu,
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
        let ept = options.on(Switch::EPT);
        let mut mmu = Mmu::new(Config {
            tdp: ept,
            tdp_mmu: options.on(Switch::TDP_MMU),
            format: if ept {
                Format::Ept { ad: options.on(Switch::EPTAD) }
            } else {
                Format::X86 { width: silicon.phys_bits }
            },
            host_width: silicon.phys_bits,
            gbpages: silicon.gbpages,
            backing_shift: silicon.backing_shift,
            max_tdp_level: silicon.ept_levels,
            forced_tdp_level: false,
            mmio_caching: options.on(Switch::MMIO_CACHING),
            amd: false,
            wide_gpa_faults: options.on(Switch::EPT4_WIDE_GPA_VIOLATION),
            accessed_before_nested_fault: false,
            dirty_before_nested_fault: false,
            role_has_cpuid: options.on(Switch::ROLE_HAS_CPUID),
            gfn_track_on_demand: options.on(Switch::GFN_TRACK_ON_DEMAND),
            translate_gpa_check: options.translate_gpa_check(),
            unmappable: options.unmappable(),
        });
        let shared_page = apic_access_hpa(&silicon);
        if options.on(Switch::FLEXPRIORITY) {
            mmu.set_private_slot(APIC_ACCESS_SLOT, APIC_DEFAULT_BASE, 0x1000, shared_page);
        }
        Ok(Self { silicon, options, mmu })
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
    if !silicon.apicv || !options.on(Switch::FLEXPRIORITY) {
        options.set(Switch::ENABLE_APICV, false);
    }
}

impl Shared {
    /// EPT is in use.
    pub fn ept(&self) -> bool {
        self.options.on(Switch::EPT)
    }

    /// `allow_smaller_maxphyaddr`.
    pub fn allow_smaller_maxphyaddr(&self) -> bool {
        self.options.allow_smaller_maxphyaddr(self.ept())
    }

    /// `fasteoi`.
    pub fn fasteoi(&self) -> bool {
        self.options.on(Switch::FASTEOI)
    }

    /// The memory slots.
    pub fn slots(&self) -> &Slots {
        &self.mmu.slots
    }

    /// The rule by which EPT refused an access.
    pub fn ept_rule(&mut self, vcpu: u32, stop: &NestedStop) -> Rule {
        let wide = stop.gpa & bits(48, 51) != 0 && self.mmu.tdp_level(vcpu) == 4;
        match stop.fault {
            NestedFault::Misconfiguration => Rule::EPT_MISCONFIG,
            _ if wide && self.mmu.config.wide_gpa_faults => Rule::EPT4_WIDE_GPA,
            _ => Rule::EPT_VIOLATION,
        }
    }

    /// `kvm_mmu_page_fault`, with the emulation that it asks for.
    pub fn mmu_page_fault(
        &mut self,
        vcpu: &mut Vcpu,
        state: &mut VcpuState,
        address: u64,
        code: FaultCode,
        host: &mut dyn Host,
    ) -> Resume {
        let handled = self.mmu.page_fault(vcpu.id, state, address, code, host);
        if self.mmu.take_alias().is_some() && host.wants(NoteKind::RULE) {
            host.note(vcpu.id, Rule::EPT4_ALIAS.note());
        }
        match handled {
            Handled::Resume => Resume::GUEST,
            Handled::Inject(exception) => {
                vcpu.inject(state, &exception);
                Resume::GUEST
            }
            Handled::Errno(errno) => Resume::errno(errno),
            Handled::Unmappable(how) => {
                host.note(vcpu.id, Rule::UNMAPPABLE_EXIT.note());
                emulate::unmappable(vcpu.id, address, how, host)
            }
            Handled::EmulateOrRetry if self.retries(vcpu.id, state, address, host) => Resume::GUEST,
            Handled::Emulate | Handled::EmulateOrRetry => {
                if self.ept() && host.wants(NoteKind::RULE) && self.slots().find(address).is_none() {
                    host.note(vcpu.id, Rule::MMIO.note());
                }
                self.emulate(vcpu, state, emultype::PF, Some(address), host)
            }
        }
    }

    /// `retry_instruction`: an instruction that is not made for page tables writes a shadowed page, which is no longer a
    /// page table then.
    fn retries(&mut self, id: u32, state: &VcpuState, address: u64, host: &mut dyn Host) -> bool {
        let insn = self.mmu.peek_instruction(id, state, host);
        !writes_page_tables(&insn) && self.mmu.unprotect_and_retry(id, state, address, host)
    }

    /// `x86_emulate_instruction`. `address`: what an exit with EMULTYPE_PF reported.
    pub fn emulate(
        &mut self,
        vcpu: &mut Vcpu,
        state: &mut VcpuState,
        flags: u32,
        address: Option<u64>,
        host: &mut dyn Host,
    ) -> Resume {
        let tdp = self.ept();
        let request = EmulateRequest {
            flags,
            gva: address.filter(|_| !tdp).unwrap_or(0),
            gpa: address.filter(|_| tdp).unwrap_or(0),
            ..Default::default()
        };
        let exit_gpa = address.filter(|_| self.mmu.vcpu(vcpu.id).root_role.direct());
        let mut emulator = self.mmu.emulator(vcpu.id, exit_gpa);
        emulate::x86_emulate(vcpu, state, &request, &self.options, &mut emulator, host)
    }
}
