//! A VM under `kvm_amd`: what its vCPUs share, and what each has.

use crate::{rules::Rule, silicon::vmcb::Vmcb};
use serde::{Deserialize, Serialize};
use vmtape_abi::{EmulateRequest, Host, VmConfig, emultype};
use vmtape_arch::{
    exit::Resume,
    host::{Silicon, Vendor},
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
    spte::Format,
};

/// One vCPU.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SvmVcpu {
    pub core: Vcpu,
    pub vmcb: Vmcb,
    /// MOV DR runs without exits until the next exit (KVM_DEBUGREG_WONT_EXIT).
    pub debug_registers_owned: bool,
}

/// What all vCPUs share.
pub struct Shared {
    pub npt: bool,
    pub silicon: Silicon,
    pub options: Options,
    pub mmu: Mmu,
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
        let mmu = Mmu::new(Config {
            tdp: npt,
            tdp_mmu: options.on(Switch::TDP_MMU),
            format: Format::X86 { width: table_width },
            host_width: silicon.phys_bits,
            gbpages: silicon.gbpages,
            backing_shift: silicon.backing_shift,
            max_tdp_level: silicon.host_levels,
            // See: KVM svm/svm.c get_npt_level()
            forced_tdp_level: true,
            mmio_caching: options.on(Switch::MMIO_CACHING),
            amd: true,
            wide_gpa_faults: options.on(Switch::NPT4_WIDE_GPA_FAULT),
            accessed_before_nested_fault: options.on(Switch::AMD_ACCESSED_BEFORE_NPF),
            dirty_before_nested_fault: options.on(Switch::AMD_DIRTY_BEFORE_NPF),
            role_has_cpuid: options.on(Switch::ROLE_HAS_CPUID),
            gfn_track_on_demand: options.on(Switch::GFN_TRACK_ON_DEMAND),
            translate_gpa_check: options.translate_gpa_check(),
            unmappable: options.unmappable(),
        });
        Ok(Self { npt, silicon, options, mmu })
    }
}

impl Shared {
    /// Next-RIP save is used.
    pub fn nrips(&self) -> bool {
        self.silicon.nrips && self.options.on(Switch::NRIPS)
    }

    /// Without nested paging the guest's width is exact. See: KVM svm/svm.c svm_hardware_setup()
    pub fn allow_smaller_maxphyaddr(&self) -> bool {
        self.options.allow_smaller_maxphyaddr(self.npt)
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
        if self.mmu.take_alias().is_some() {
            host.note(vcpu.id, Rule::NPT4_ALIAS.note());
        }
        match handled {
            Handled::Resume => Resume::GUEST,
            Handled::Inject(exception) => {
                host.note(vcpu.id, Rule::RESERVED_BY_GUEST_WIDTH.note());
                vcpu.inject(state, &exception);
                Resume::GUEST
            }
            Handled::Errno(errno) => Resume::errno(errno),
            Handled::Unmappable(how) => {
                host.note(vcpu.id, Rule::UNMAPPABLE_EXIT.note());
                emulate::unmappable(vcpu.id, address, how, host)
            }
            Handled::EmulateOrRetry if self.retry_instead(vcpu, state, address, host) => Resume::GUEST,
            Handled::Emulate | Handled::EmulateOrRetry => {
                host.note(vcpu.id, Rule::MMIO.note());
                self.emulate_at(vcpu, state, address, code, host)
            }
        }
    }

    /// EMULTYPE_ALLOW_RETRY_PF: an instruction that does not look like an edit of page tables is not emulated, if the page
    /// can be unprotected instead. See: KVM x86.c x86_emulate_instruction()
    fn retry_instead(&mut self, vcpu: &Vcpu, state: &VcpuState, address: u64, host: &mut dyn Host) -> bool {
        let insn = self.mmu.peek_instruction(vcpu.id, state, host);
        if writes_page_tables(&insn) || !self.mmu.unprotect_and_retry(vcpu.id, state, address, host) {
            return false;
        }
        host.note(vcpu.id, Rule::UNPROTECTED.note());
        true
    }

    /// `x86_emulate_instruction` with EMULTYPE_PF.
    fn emulate_at(
        &mut self,
        vcpu: &mut Vcpu,
        state: &mut VcpuState,
        address: u64,
        code: FaultCode,
        host: &mut dyn Host,
    ) -> Resume {
        let (gva, gpa) = if self.npt { (0, address) } else { (address, 0) };
        let mut request = EmulateRequest { flags: emultype::PF, gva, gpa, ..Default::default() };
        if self.silicon.decode_assists && !code.fetch() {
            self.give_bytes(vcpu.id, state, &mut request, host);
        }
        let exit_gpa = self.npt.then_some(address);
        let mut emulator = self.mmu.emulator(vcpu.id, exit_gpa);
        emulate::x86_emulate(vcpu, state, &request, &self.options, &mut emulator, host)
    }

    /// The instruction bytes that silicon with decode assists puts in the VMCB.
    /// See: APM 15.8.4 Decode Assists; nested and intercepted page faults
    fn give_bytes(
        &mut self,
        vcpu: u32,
        state: &VcpuState,
        request: &mut EmulateRequest,
        host: &mut dyn Host,
    ) {
        let bytes = self.mmu.peek_instruction(vcpu, state, host);
        if bytes.is_empty() {
            return;
        }
        request.flags |= emultype::HAS_BYTES;
        request.insn_len = bytes.len() as u8;
        request.insn[..bytes.len()].copy_from_slice(&bytes);
    }

    /// `kvm_emulate_instruction(vcpu, flags)`.
    pub fn emulate(
        &mut self,
        vcpu: &mut Vcpu,
        state: &mut VcpuState,
        flags: u32,
        host: &mut dyn Host,
    ) -> Resume {
        let emulator = self.mmu.emulator(vcpu.id, None);
        let mut emulator = if flags & emultype::SKIP != 0 { emulator.skipping() } else { emulator };
        emulate::emulate_instruction(vcpu, state, flags, &self.options, &mut emulator, host)
    }
}
