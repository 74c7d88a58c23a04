//! The MSRs that KVM emulates for both vendors: which exist, which values they take, and what a guest reads. A vendor's
//! module is asked first, and comes here for what it does not know ([`Ops::get_msr`], [`Ops::set_msr`]).
//!
//! The registers that a world switch carries (SYSENTER, SYSCALL, FS and GS bases, TSC_AUX, SPEC_CTRL) are in the code of each
//! vendor in KVM; both treat them alike, so they are here.
//!
//! See: KVM arch/x86/kvm/x86.c kvm_get_msr_common(), kvm_set_msr_common(); mtrr.c

pub mod list;
mod other;

use crate::{
    cpuid::feature,
    cr::{self, MmuEffect},
    vcpu::Vcpu,
    vm::{Ops, VendorVcpu},
};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, ops::RangeInclusive};
use vmtape_abi::{BusOp, BusSpace, Host};
use vmtape_arch::{
    exception::Exception,
    level::Level,
    msr::{Msr, ReachedPat},
    note::{Note, NoteKind},
    sensitive::{Sensitive, SensitiveKind},
    vcpu::{VcpuState, gpr, seg},
};
use vmtape_kvm_mmu::{fault_points::FaultPoint, mtrr::Mtrrs};

/// KVM_MAX_MCE_BANKS, and IA32_MCG_CAP of a vCPU without KVM_X86_SETUP_MCE.
const MCE_BANKS: u64 = 32;
/// IA32_MISC_ENABLE: branch-trace storage and precise-event sampling are unavailable; writes may not change them.
const MISC_ENABLE_READ_ONLY: u64 = 0x1800;
/// IA32_MISC_ENABLE.EMON: writes are ignored.
const MISC_ENABLE_EMON: u64 = 1 << 7;
/// MSR_PLATFORM_INFO: CPUID faulting is available.
const PLATFORM_INFO_CPUID_FAULT: u64 = 1 << 31;
/// IA32_APIC_BASE bits.
pub(crate) const X2APIC_ENABLE: u64 = 1 << 10;
pub(crate) const APIC_ENABLE: u64 = 1 << 11;

/// IA32_VMX_BASIC to IA32_VMX_VMFUNC (KVM_FIRST_EMULATED_VMX_MSR, KVM_LAST_EMULATED_VMX_MSR).
const VMX_CAPABILITIES: RangeInclusive<u32> = 0x480..=0x491;

/// MSRs that `VcpuState` does not hold.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Msrs {
    /// Registers that only store what is written: MTRRs, machine-check banks, KVM's own.
    stored: BTreeMap<u32, u64>,
    pub misc_enable: u64,
    pub ucode_rev: u64,
    pub arch_capabilities: u64,
    pub platform_info: u64,
}

/// #GP, or -EINVAL for the VMM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused;

/// What a write asks of the MMU.
pub type Written = Result<MmuEffect, Refused>;

impl Msrs {
    /// After reset, with the microcode's revision that the vendor's module reports.
    pub fn new(ucode_rev: u64) -> Self {
        Self {
            stored: BTreeMap::new(),
            misc_enable: MISC_ENABLE_READ_ONLY,
            ucode_rev,
            arch_capabilities: 0,
            platform_info: PLATFORM_INFO_CPUID_FAULT,
        }
    }

    fn stored(&self, index: u32) -> u64 {
        self.stored.get(&index).copied().unwrap_or(0)
    }

    fn store(&mut self, index: u32, data: u64) -> Written {
        self.stored.insert(index, data);
        Ok(MmuEffect::default())
    }
}

/// The note of a guest's access. `passed`: it did not come to KVM.
fn accessed<O: Ops>(
    ops: &O,
    v: &O::Vcpu,
    (write, index, data): (bool, u32, u64),
    exception: bool,
    passed: bool,
) -> Note {
    let is_pat = Msr(index) == Msr::IA32_PAT;
    let pat = if is_pat { ops.reached_pat(v, false) } else { ReachedPat::ONLY };
    Note::Msr { write, index, data, exception, host_initiated: false, passed, pat }
}

/// Tells an access of L2's that silicon is about to execute, where somebody listens. x2APIC registers are the local APIC's.
pub fn note_passed<O: Ops>(
    ops: &O,
    v: &mut O::Vcpu,
    state: &VcpuState,
    insn: &Sensitive,
    host: &mut dyn Host,
) {
    let x2apic = Msr::X2APIC_FIRST.0..=Msr::X2APIC_LAST.0;
    let write = insn.kind == SensitiveKind::WRMSR;
    let nested = v.core().level() != Level::L1;
    let is_access = write || insn.kind == SensitiveKind::RDMSR;
    if !nested || !is_access || x2apic.contains(&insn.number) || !host.wants(NoteKind::MSR) {
        return;
    }
    let index = insn.number;
    let read = |v: &mut O::Vcpu, host: &mut dyn Host| ops.get_msr(v, state, index, false, host).unwrap_or(0);
    let data = if write { insn.value } else { read(v, host) };
    let note = accessed(ops, v, (write, index, data), false, true);
    v.core().note(note, host);
}

/// `kvm_emulate_rdmsr` without the skip.
pub fn emulate_rdmsr<O: Ops>(
    ops: &O,
    vcpu: &mut O::Vcpu,
    state: &mut VcpuState,
    host: &mut dyn Host,
) -> Result<(), Exception> {
    let index = state.gpr[gpr::RCX] as u32;
    let refused = FaultPoint::RDMSR_REFUSED.poll(vcpu.core().id, index.into(), 0, host).is_some();
    let result = if refused { Err(Refused) } else { ops.get_msr(vcpu, state, index, false, host) };
    let data = result.unwrap_or(0);
    let note = accessed(ops, vcpu, (false, index, data), result.is_err(), false);
    vcpu.core().note(note, host);
    result.map_err(|Refused| Exception::gp(0))?;
    state.gpr[gpr::RAX] = data & 0xffff_ffff;
    state.gpr[gpr::RDX] = data >> 32;
    Ok(())
}

/// `kvm_emulate_wrmsr` without the skip.
pub fn emulate_wrmsr<O: Ops>(
    ops: &O,
    vcpu: &mut O::Vcpu,
    state: &mut VcpuState,
    host: &mut dyn Host,
) -> cr::Outcome {
    let index = state.gpr[gpr::RCX] as u32;
    let data = state.gpr[gpr::RAX] & 0xffff_ffff | state.gpr[gpr::RDX] << 32;
    let refused = FaultPoint::WRMSR_REFUSED.poll(vcpu.core().id, index.into(), data, host).is_some();
    let result = if refused { Err(Refused) } else { ops.set_msr(vcpu, state, index, data, false, host) };
    let note = accessed(ops, vcpu, (true, index, data), result.is_err(), false);
    vcpu.core().note(note, host);
    result.map_err(|Refused| Exception::gp(0))
}

/// `kvm_get_msr_common`. `host_initiated`: KVM_GET_MSRS rather than the guest.
pub fn get_common(
    vcpu: &mut Vcpu,
    state: &VcpuState,
    index: u32,
    host_initiated: bool,
    host: &mut dyn Host,
) -> Result<u64, Refused> {
    let msrs = &vcpu.msrs;
    let cpuid = &vcpu.cpuid;
    let need = |has: bool| if has || host_initiated { Ok(()) } else { Err(Refused) };
    Ok(match Msr(index) {
        // A VMM saves and restores L1's. See: KVM x86.c kvm_get_msr_common()
        Msr::IA32_TSC if host_initiated => state.tsc.wrapping_add(state.tsc_offset),
        Msr::IA32_TSC => state.guest_tsc(state.tsc),
        Msr::IA32_APIC_BASE => vcpu.apic_base,
        Msr::IA32_TSC_DEADLINE | Msr(0x800..=0x8ff) => bus_read(vcpu.id, index, host)?,
        Msr::IA32_TSC_ADJUST => {
            need(cpuid.has(feature::TSC_ADJUST))?;
            state.tsc_adjust
        }
        Msr::IA32_UCODE_REV => msrs.ucode_rev,
        Msr::IA32_MISC_ENABLE => msrs.misc_enable,
        Msr::IA32_ARCH_CAPABILITIES => {
            need(cpuid.has(feature::ARCH_CAPABILITIES))?;
            msrs.arch_capabilities
        }
        Msr::IA32_PERF_CAPABILITIES => {
            need(cpuid.has(feature::PDCM))?;
            0
        }
        Msr::IA32_PAT => state.pat,
        Msr::MTRRCAP => 0x508,
        Msr::MTRR_DEF_TYPE => msrs.stored(index),
        Msr::IA32_MCG_CAP => MCE_BANKS,
        Msr::IA32_MCG_STATUS => msrs.stored(index),
        Msr::EFER => state.efer,
        Msr::IA32_XSS => {
            need(cpuid.has(feature::XSAVES))?;
            state.xss
        }
        Msr::IA32_SPEC_CTRL => {
            need(has_spec_ctrl(vcpu))?;
            state.spec_ctrl
        }
        Msr::TSC_AUX => {
            need(cpuid.has(feature::RDTSCP) || cpuid.has(feature::RDPID))?;
            state.tsc_aux
        }
        Msr::FS_BASE => state.seg[seg::FS].base,
        Msr::GS_BASE => state.seg[seg::GS].base,
        Msr::KERNEL_GS_BASE => state.kernel_gs_base,
        Msr::STAR => state.star,
        Msr::LSTAR => state.lstar,
        Msr::CSTAR => state.cstar,
        Msr::SYSCALL_MASK => state.sfmask,
        Msr::IA32_SYSENTER_CS => state.sysenter_cs,
        Msr::IA32_SYSENTER_ESP => state.sysenter_esp,
        Msr::IA32_SYSENTER_EIP => state.sysenter_eip,
        _ => other::get(vcpu, index, host_initiated)?,
    })
}

/// `kvm_is_immutable_feature_msr`: what defines the vCPU's model; the microcode's revision may change.
pub fn is_immutable_feature(index: u32) -> bool {
    VMX_CAPABILITIES.contains(&index)
        || index == other::DE_CFG
        || matches!(Msr(index), Msr::IA32_ARCH_CAPABILITIES | Msr::IA32_PERF_CAPABILITIES)
}

fn has_spec_ctrl(vcpu: &Vcpu) -> bool {
    use feature::*;
    [SPEC_CTRL, AMD_STIBP, AMD_IBRS, AMD_SSBD].iter().any(|f| vcpu.cpuid.has(*f))
}

fn has_pred_cmd(vcpu: &Vcpu) -> bool {
    use feature::*;
    [SPEC_CTRL, AMD_IBPB, SBPB].iter().any(|f| vcpu.cpuid.has(*f))
}

/// A vCPU's MTRRs.
pub fn mtrrs(vcpu: &Vcpu) -> Mtrrs {
    other::mtrrs(vcpu)
}

/// `kvm_set_msr_common`.
pub fn set_common(
    vcpu: &mut Vcpu,
    state: &mut VcpuState,
    index: u32,
    data: u64,
    host_initiated: bool,
    host: &mut dyn Host,
) -> Written {
    let done = Ok(MmuEffect::default());
    let allow = |has: bool| if has { Ok(()) } else { Err(Refused) };
    let virt_bits = vcpu.cpuid.virt_addr_bits(state.cr4().la57());
    let canonical = allow(is_canonical(data, virt_bits));
    match Msr(index) {
        Msr::IA32_TSC => set_tsc(state, data, host_initiated),
        Msr::IA32_TSC_ADJUST => {
            allow(host_initiated || vcpu.cpuid.has(feature::TSC_ADJUST))?;
            if !host_initiated {
                state.tsc_offset = state.tsc_offset.wrapping_add(data.wrapping_sub(state.tsc_adjust));
            }
            state.tsc_adjust = data;
        }
        Msr::IA32_APIC_BASE => set_apic_base(vcpu, state, data, host_initiated, host)?,
        Msr::IA32_TSC_DEADLINE | Msr(0x800..=0x8ff) => bus_write(vcpu.id, index, data, host)?,
        Msr::EFER => return cr::set_efer(vcpu, state, data, host_initiated).map_err(|_| Refused),
        Msr::FS_BASE => (canonical?, state.seg[seg::FS].base = data).1,
        Msr::GS_BASE => (canonical?, state.seg[seg::GS].base = data).1,
        Msr::KERNEL_GS_BASE => (canonical?, state.kernel_gs_base = data).1,
        Msr::LSTAR => (canonical?, state.lstar = data).1,
        Msr::CSTAR => (canonical?, state.cstar = data).1,
        Msr::STAR => state.star = data,
        Msr::SYSCALL_MASK => state.sfmask = data,
        Msr::IA32_SYSENTER_CS => state.sysenter_cs = data & 0xffff_ffff,
        // KVM makes the value canonical instead of a #GP, so that Intel and AMD do the same.
        Msr::IA32_SYSENTER_ESP => state.sysenter_esp = sign_extend(data, virt_bits),
        Msr::IA32_SYSENTER_EIP => state.sysenter_eip = sign_extend(data, virt_bits),
        Msr::TSC_AUX => {
            allow(host_initiated || vcpu.cpuid.has(feature::RDTSCP) || vcpu.cpuid.has(feature::RDPID))?;
            allow(data >> 32 == 0 || vcpu.cpuid.amd_compatible())?;
            state.tsc_aux = data & 0xffff_ffff;
        }
        Msr::IA32_PAT => (allow(is_valid_pat(data))?, state.pat = data).1,
        Msr::IA32_XSS => {
            allow(host_initiated || vcpu.cpuid.has(feature::XSAVES))?;
            allow(data == 0)?;
            state.xss = data;
            vcpu.update_cpuid_runtime(state);
        }
        Msr::IA32_SPEC_CTRL => {
            allow(host_initiated || has_spec_ctrl(vcpu))?;
            allow(data & !7 == 0)?;
            state.spec_ctrl = data;
        }
        Msr::IA32_PRED_CMD => {
            allow(has_pred_cmd(vcpu) && data & !0x81 == 0 || host_initiated)?;
        }
        Msr::IA32_FLUSH_CMD => allow(vcpu.cpuid.has(feature::FLUSH_L1D) && data & !1 == 0 || host_initiated)?,
        _ => return set_model(vcpu, index, data, host_initiated),
    }
    done
}

/// What the vCPU's model and its machine-wide registers are made of.
fn set_model(vcpu: &mut Vcpu, index: u32, data: u64, host_initiated: bool) -> Written {
    let allow = |has: bool| if has { Ok(()) } else { Err(Refused) };
    match Msr(index) {
        Msr::IA32_UCODE_REV if host_initiated => vcpu.msrs.ucode_rev = data,
        Msr::IA32_UCODE_REV => {}
        Msr::IA32_ARCH_CAPABILITIES => (allow(host_initiated)?, vcpu.msrs.arch_capabilities = data).1,
        Msr::IA32_PERF_CAPABILITIES => allow(host_initiated && data == 0)?,
        Msr::IA32_MISC_ENABLE => {
            let old = vcpu.msrs.misc_enable;
            allow(host_initiated || (old ^ data) & MISC_ENABLE_READ_ONLY == 0)?;
            let kept = if host_initiated { 0 } else { MISC_ENABLE_EMON };
            vcpu.msrs.misc_enable = data & !kept | old & kept;
        }
        Msr::MTRR_DEF_TYPE => {
            allow(data & !0xcff == 0 && is_valid_mtrr_type(data as u8))?;
            let effect = MmuEffect { mtrrs: true, ..Default::default() };
            return vcpu.msrs.store(index, data).and(Ok(effect));
        }
        Msr::IA32_MCG_STATUS => return vcpu.msrs.store(index, data),
        _ => return other::set(vcpu, index, data, host_initiated),
    }
    Ok(MmuEffect::default())
}

/// `kvm_compute_l1_tsc_offset`: a guest that writes its TSC moves IA32_TSC_ADJUST along.
fn set_tsc(state: &mut VcpuState, data: u64, host_initiated: bool) {
    let offset = data.wrapping_sub(state.tsc);
    if !host_initiated {
        let moved = offset.wrapping_sub(state.tsc_offset);
        state.tsc_adjust = state.tsc_adjust.wrapping_add(moved);
    }
    state.tsc_offset = offset;
}

/// `kvm_apic_set_base`.
fn set_apic_base(
    vcpu: &mut Vcpu,
    state: &VcpuState,
    data: u64,
    host_initiated: bool,
    host: &mut dyn Host,
) -> Result<(), Refused> {
    let mode = |base: u64| (base & APIC_ENABLE != 0, base & X2APIC_ENABLE != 0);
    let x2apic_bit = if vcpu.cpuid.has(feature::X2APIC) { 0 } else { X2APIC_ENABLE };
    let reserved = vcpu.cpuid.reserved_gpa_bits() | 0x2ff | x2apic_bit;
    let legal = match (mode(vcpu.apic_base), mode(data)) {
        (_, (false, true)) => false,
        _ if host_initiated => true,
        ((true, true), (true, false)) | ((false, false), (true, true)) => false,
        _ => true,
    };
    if data & reserved != 0 || !legal {
        return Err(Refused);
    }
    bus_write(vcpu.id, Msr::IA32_APIC_BASE.0, data, host)?;
    vcpu.apic_base = data;
    vcpu.update_cpuid_runtime(state);
    Ok(())
}

fn bus_read(vcpu: u32, index: u32, host: &mut dyn Host) -> Result<u64, Refused> {
    let mut op = BusOp { space: BusSpace::MSR, size: 8, address: index.into(), ..Default::default() };
    if host.bus(vcpu, &mut op) { Ok(op.data) } else { Err(Refused) }
}

fn bus_write(vcpu: u32, index: u32, data: u64, host: &mut dyn Host) -> Result<(), Refused> {
    let mut op = BusOp {
        space: BusSpace::MSR,
        write: true.into(),
        size: 8,
        address: index.into(),
        data,
        ..Default::default()
    };
    if host.bus(vcpu, &mut op) { Ok(()) } else { Err(Refused) }
}

/// Whether an address is canonical for this many virtual-address bits.
pub fn is_canonical(address: u64, virt_bits: u32) -> bool {
    sign_extend(address, virt_bits) == address
}

fn sign_extend(address: u64, virt_bits: u32) -> u64 {
    let unused = 64 - virt_bits;
    ((address << unused) as i64 >> unused) as u64
}

/// `kvm_pat_valid`.
pub fn is_valid_pat(data: u64) -> bool {
    data.to_le_bytes().iter().all(|t| matches!(t, 0 | 1 | 4..=7))
}

fn is_valid_mtrr_type(memtype: u8) -> bool {
    matches!(memtype, 0 | 1 | 4..=6)
}
