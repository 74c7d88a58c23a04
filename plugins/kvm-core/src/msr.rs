//! The MSRs that KVM emulates: which exist, which values they take, and what a guest reads.
//!
//! See: KVM arch/x86/kvm/x86.c kvm_get_msr_common(), kvm_set_msr_common(); mtrr.c; vmx/vmx.c vmx_get_msr(),
//! vmx_set_msr(); svm/svm.c svm_get_msr(), svm_set_msr()

use crate::{
    cpuid::feature,
    cr::{self, MmuEffect},
    vcpu::Vcpu,
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use vmtape_abi::{BusOp, BusSpace, Host};
use vmtape_arch::{
    exception::Exception,
    host::Vendor,
    msr::Msr,
    note::Note,
    paging::bits,
    vcpu::{VcpuState, gpr, seg},
};

/// KVM_MAX_MCE_BANKS, and IA32_MCG_CAP of a vCPU without KVM_X86_SETUP_MCE.
const MCE_BANKS: u64 = 32;
/// IA32_MISC_ENABLE: branch-trace storage and precise-event sampling are unavailable; writes may not change them.
const MISC_ENABLE_READ_ONLY: u64 = 0x1800;
/// IA32_MISC_ENABLE.EMON: writes are ignored.
const MISC_ENABLE_EMON: u64 = 1 << 7;
/// MSR_PLATFORM_INFO: CPUID faulting is available.
const PLATFORM_INFO_CPUID_FAULT: u64 = 1 << 31;
/// IA32_APIC_BASE bits.
const X2APIC_ENABLE: u64 = 1 << 10;
const APIC_ENABLE: u64 = 1 << 11;

/// MSRs without a name in the architecture crate.
mod other {
    pub const KVM_WALL_CLOCK: u32 = 0x11;
    pub const KVM_SYSTEM_TIME: u32 = 0x12;
    pub const PLATFORM_ID: u32 = 0x17;
    pub const EBL_CR_POWERON: u32 = 0x2a;
    pub const EBC_FREQUENCY_ID: u32 = 0x2c;
    pub const SMI_COUNT: u32 = 0x34;
    pub const UCODE_WRITE: u32 = 0x79;
    pub const SMBASE: u32 = 0x9e;
    pub const P6_PERFCTR: [u32; 2] = [0xc1, 0xc2];
    pub const FSB_FREQ: u32 = 0xcd;
    pub const PLATFORM_INFO: u32 = 0xce;
    pub const UMWAIT_CONTROL: u32 = 0xe1;
    pub const BBL_CR_CTL3: u32 = 0x11e;
    pub const MISC_FEATURES_ENABLES: u32 = 0x140;
    pub const MCG_CTL: u32 = 0x17b;
    pub const P6_EVNTSEL: [u32; 2] = [0x186, 0x187];
    pub const PERF_STATUS: u32 = 0x198;
    pub const PERF_CTL: u32 = 0x199;
    pub const LAST_BRANCH: std::ops::RangeInclusive<u32> = 0x1db..=0x1de;
    pub const POWER_CTL: u32 = 0x1fc;
    pub const MTRR_FIXED: [u32; 11] =
        [0x250, 0x258, 0x259, 0x268, 0x269, 0x26a, 0x26b, 0x26c, 0x26d, 0x26e, 0x26f];
    /// KVM_NR_VAR_MTRR pairs.
    pub const MTRR_VARIABLE: std::ops::Range<u32> = 0x200..0x210;
    pub const MC_BANKS: std::ops::Range<u32> = 0x400..0x480;
    pub const RAPL: [u32; 5] = [0x606, 0x639, 0x641, 0x611, 0x619];
    pub const XFD: u32 = 0x1c4;
    pub const XFD_ERR: u32 = 0x1c5;
    pub const KVM_PV: std::ops::RangeInclusive<u32> = 0x4b56_4d00..=0x4b56_4d08;
    pub const K7_EVNTSEL_PERFCTR: std::ops::RangeInclusive<u32> = 0xc001_0000..=0xc001_0007;
    pub const SYSCFG: u32 = 0xc001_0010;
    pub const K7_HWCR: u32 = 0xc001_0015;
    pub const K7_CLK_CTL: u32 = 0xc001_001b;
    pub const NB_CFG: u32 = 0xc001_001f;
    pub const PATCH_LOADER: u32 = 0xc001_0020;
    pub const INT_PENDING_MSG: u32 = 0xc001_0055;
    pub const MMIO_CONF_BASE: u32 = 0xc001_0058;
    pub const TSEG: [u32; 2] = [0xc001_0112, 0xc001_0113];
    pub const VIRT_SPEC_CTRL: u32 = 0xc001_011f;
    pub const OSVW: [u32; 2] = [0xc001_0140, 0xc001_0141];
    pub const IC_CFG: u32 = 0xc001_1021;
    pub const DC_CFG: u32 = 0xc001_1022;
    pub const TW_CFG: u32 = 0xc001_1023;
    pub const DE_CFG: u32 = 0xc001_1029;
    pub const BU_CFG2: u32 = 0xc001_102a;
    pub const EX_CFG: u32 = 0xc001_102c;
}

/// MSRs that `VcpuState` does not hold.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Msrs {
    amd_host: bool,
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

type Written = Result<MmuEffect, Refused>;

impl Msrs {
    /// After reset.
    pub fn new(vendor: Vendor) -> Self {
        let amd_host = vendor == Vendor::AMD;
        Self {
            amd_host,
            stored: BTreeMap::new(),
            misc_enable: MISC_ENABLE_READ_ONLY,
            // See: KVM vmx/vmx.c vmx_vcpu_create(), svm/svm.c svm_vcpu_create()
            ucode_rev: if amd_host { 0x0100_0065 } else { 0x1_0000_0000 },
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

/// `kvm_emulate_rdmsr` without the skip.
pub fn emulate_rdmsr(vcpu: &mut Vcpu, state: &mut VcpuState, host: &mut dyn Host) -> Result<(), Exception> {
    let index = state.gpr[gpr::RCX] as u32;
    let result = get(vcpu, state, index, false, host);
    let data = result.unwrap_or(0);
    host.note(vcpu.id, Note::Msr { write: false, index, data, exception: result.is_err() });
    result.map_err(|Refused| Exception::gp(0))?;
    state.gpr[gpr::RAX] = data & 0xffff_ffff;
    state.gpr[gpr::RDX] = data >> 32;
    Ok(())
}

/// `kvm_emulate_wrmsr` without the skip.
pub fn emulate_wrmsr(vcpu: &mut Vcpu, state: &mut VcpuState, host: &mut dyn Host) -> cr::Outcome {
    let index = state.gpr[gpr::RCX] as u32;
    let data = state.gpr[gpr::RAX] & 0xffff_ffff | state.gpr[gpr::RDX] << 32;
    let result = set(vcpu, state, index, data, false, host);
    host.note(vcpu.id, Note::Msr { write: true, index, data, exception: result.is_err() });
    result.map_err(|Refused| Exception::gp(0))
}

/// `__kvm_get_msr`. `host_initiated`: KVM_GET_MSRS rather than the guest.
pub fn get(
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
        Msr::IA32_TSC => state.tsc.wrapping_add(state.tsc_offset),
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
        Msr::IA32_DEBUGCTL => state.debugctl,
        Msr::IA32_FEAT_CTL if !msrs.amd_host => msrs.stored(index),
        Msr::VM_CR | Msr::VM_HSAVE_PA if msrs.amd_host => msrs.stored(index),
        _ => get_other(vcpu, index, host_initiated)?,
    })
}

fn get_other(vcpu: &Vcpu, index: u32, host_initiated: bool) -> Result<u64, Refused> {
    use other::*;
    let msrs = &vcpu.msrs;
    let xfd = host_initiated || vcpu.cpuid.has(feature::XFD);
    Ok(match index {
        PLATFORM_ID | EBL_CR_POWERON | PERF_CTL => 0,
        EBC_FREQUENCY_ID => 1 << 24,
        FSB_FREQ => 3,
        PERF_STATUS => 1000 | 4 << 40,
        PLATFORM_INFO => msrs.platform_info,
        BBL_CR_CTL3 => 0xbe70_2111,
        P6_PERFCTR_0..=P6_PERFCTR_1 | P6_EVNTSEL_0..=P6_EVNTSEL_1 => 0,
        _ if LAST_BRANCH.contains(&index) || RAPL.contains(&index) || K7_EVNTSEL_PERFCTR.contains(&index) => {
            0
        }
        _ if MTRR_FIXED.contains(&index) || MTRR_VARIABLE.contains(&index) => msrs.stored(index),
        _ if MC_BANKS.contains(&index) => msrs.stored(index),
        // IA32_MCG_CTL exists only with MCG_CTL_P, which IA32_MCG_CAP does not have.
        MCG_CTL if host_initiated => 0,
        P5_MC_ADDR | P5_MC_TYPE => 0,
        SMBASE if host_initiated => 0x30000,
        SMI_COUNT => 0,
        POWER_CTL | MISC_FEATURES_ENABLES | KVM_WALL_CLOCK | KVM_SYSTEM_TIME => msrs.stored(index),
        XFD | XFD_ERR if xfd => msrs.stored(index),
        UMWAIT_CONTROL if vcpu.cpuid.has(feature::WAITPKG) => msrs.stored(index),
        _ if KVM_PV.contains(&index) => msrs.stored(index),
        VM_HSAVE_PA_ON_INTEL | SYSCFG | INT_PENDING_MSG | NB_CFG | MMIO_CONF_BASE | BU_CFG2 | DC_CFG
        | TW_CFG | EX_CFG => 0,
        _ if TSEG.contains(&index) => 0,
        K7_HWCR => msrs.stored(index),
        K7_CLK_CTL => 0x2000_0000,
        VIRT_SPEC_CTRL if msrs.amd_host && vcpu.cpuid.has(feature::VIRT_SSBD) => msrs.stored(index),
        IC_CFG | DE_CFG if msrs.amd_host => msrs.stored(index),
        _ if OSVW.contains(&index) && msrs.amd_host => msrs.stored(index),
        _ => return Err(Refused),
    })
}

const P6_PERFCTR_0: u32 = other::P6_PERFCTR[0];
const P6_PERFCTR_1: u32 = other::P6_PERFCTR[1];
const P6_EVNTSEL_0: u32 = other::P6_EVNTSEL[0];
const P6_EVNTSEL_1: u32 = other::P6_EVNTSEL[1];
const P5_MC_ADDR: u32 = 0;
const P5_MC_TYPE: u32 = 1;
const VM_HSAVE_PA_ON_INTEL: u32 = 0xc001_0117;

fn has_spec_ctrl(vcpu: &Vcpu) -> bool {
    use feature::*;
    [SPEC_CTRL, AMD_STIBP, AMD_IBRS, AMD_SSBD].iter().any(|f| vcpu.cpuid.has(*f))
}

fn has_pred_cmd(vcpu: &Vcpu) -> bool {
    use feature::*;
    [SPEC_CTRL, AMD_IBPB, SBPB].iter().any(|f| vcpu.cpuid.has(*f))
}

/// `__kvm_set_msr`.
pub fn set(
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
    let reserved_gpa = vcpu.cpuid.reserved_gpa_bits();
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
        Msr::IA32_DEBUGCTL => set_debugctl(vcpu, state, data)?,
        Msr::MTRR_DEF_TYPE => {
            allow(data & !0xcff == 0 && is_valid_mtrr_type(data as u8))?;
            return vcpu.msrs.store(index, data);
        }
        Msr::IA32_MCG_STATUS => return vcpu.msrs.store(index, data),
        Msr::IA32_FEAT_CTL if !vcpu.msrs.amd_host => {
            // Nested VMX and SGX are off: only the lock bit is valid.
            allow(data & !1 == 0 && (vcpu.msrs.stored(index) & 1 == 0 || host_initiated))?;
            return vcpu.msrs.store(index, data);
        }
        Msr::VM_HSAVE_PA if vcpu.msrs.amd_host => {
            allow(data & (bits(0, 11) | reserved_gpa) == 0)?;
            return vcpu.msrs.store(index, data);
        }
        Msr::VM_CR if vcpu.msrs.amd_host => {
            allow(data & !0x1f == 0)?;
            return vcpu.msrs.store(index, data);
        }
        _ => return set_other(vcpu, index, data, host_initiated),
    }
    done
}

fn set_other(vcpu: &mut Vcpu, index: u32, data: u64, host_initiated: bool) -> Written {
    use other::*;
    let done = Ok(MmuEffect::default());
    let reserved_gpa = vcpu.cpuid.reserved_gpa_bits();
    let amd_host = vcpu.msrs.amd_host;
    let check = |legal: bool| if legal { Ok(()) } else { Err(Refused) };
    match index {
        NB_CFG | UCODE_WRITE | VM_HSAVE_PA_ON_INTEL | PATCH_LOADER | BU_CFG2 | DC_CFG | EX_CFG => {
            return done;
        }
        BBL_CR_CTL3 => return done,
        MMIO_CONF_BASE => return check(data == 0).and(done),
        K7_HWCR => {
            // TscFreqSel and the bits that KVM ignores; McStatusWrEn is the only other one.
            let data = data & !0x148;
            check(data & !(1 << 18 | 1 << 24) == 0)?;
        }
        _ if MTRR_FIXED.contains(&index) => {
            check(data.to_le_bytes().iter().all(|t| is_valid_mtrr_type(*t)))?;
        }
        _ if MTRR_VARIABLE.contains(&index) => {
            let mask = index & 1 != 0;
            let reserved = reserved_gpa | if mask { 0x7ff } else { 0xf00 };
            check(data & reserved == 0 && (mask || is_valid_mtrr_type(data as u8)))?;
        }
        _ if MC_BANKS.contains(&index) => {
            let all_ones = data | 1 << 10 | 1 == u64::MAX;
            match index & 3 {
                0 => check(data == 0 || all_ones)?,
                1 => {
                    let status_writable = amd_host && vcpu.msrs.stored(K7_HWCR) >> 18 & 1 != 0;
                    check(host_initiated || data == 0 || status_writable)?;
                }
                _ => {}
            }
        }
        P6_PERFCTR_0..=P6_PERFCTR_1 | P6_EVNTSEL_0..=P6_EVNTSEL_1 => return done,
        _ if K7_EVNTSEL_PERFCTR.contains(&index) => return done,
        SMBASE | SMI_COUNT => return check(host_initiated).and(done),
        PLATFORM_INFO => {
            check(host_initiated)?;
            vcpu.msrs.platform_info = data;
            return done;
        }
        MISC_FEATURES_ENABLES => {
            check(data & !1 == 0 && (data == 0 || vcpu.msrs.platform_info & PLATFORM_INFO_CPUID_FAULT != 0))?;
        }
        POWER_CTL | KVM_WALL_CLOCK | KVM_SYSTEM_TIME => {}
        _ if KVM_PV.contains(&index) => {}
        XFD | XFD_ERR => {
            check(host_initiated || vcpu.cpuid.has(feature::XFD))?;
            check(data & !vcpu.cpuid.supported_xcr0() == 0)?;
        }
        UMWAIT_CONTROL => check(vcpu.cpuid.has(feature::WAITPKG) && data & (bits(32, 63) | 2) == 0)?,
        VIRT_SPEC_CTRL => check(amd_host && vcpu.cpuid.has(feature::VIRT_SSBD) && data & !4 == 0)?,
        IC_CFG => check(amd_host)?,
        DE_CFG => check(amd_host && data == vcpu.msrs.stored(index))?,
        _ if OSVW.contains(&index) => check(amd_host)?,
        _ => return Err(Refused),
    }
    vcpu.msrs.store(index, data)
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

/// DEBUGCTL.BTF and LBR are dropped where KVM does not virtualize them; other bits are refused.
fn set_debugctl(vcpu: &Vcpu, state: &mut VcpuState, data: u64) -> Result<(), Refused> {
    const LBR_BTF: u64 = 3;
    const BUS_LOCK: u64 = 1 << 2;
    if vcpu.msrs.amd_host {
        // Without LBR virtualization the write is ignored.
        return Ok(());
    }
    let bus_lock = if vcpu.cpuid.has(feature::BUS_LOCK_DETECT) { BUS_LOCK } else { 0 };
    let data = data & !LBR_BTF;
    if data & !bus_lock != 0 {
        return Err(Refused);
    }
    state.debugctl = data;
    Ok(())
}

fn bus_read(vcpu: u32, index: u32, host: &mut dyn Host) -> Result<u64, Refused> {
    let mut op = BusOp { space: BusSpace::MSR, size: 8, address: index.into(), ..Default::default() };
    if host.bus(vcpu, &mut op) { Ok(op.data) } else { Err(Refused) }
}

fn bus_write(vcpu: u32, index: u32, data: u64, host: &mut dyn Host) -> Result<(), Refused> {
    let mut op = BusOp {
        space: BusSpace::MSR,
        write: true,
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
