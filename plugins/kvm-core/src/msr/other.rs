//! MSRs that only store a value, or always give the same: the long tail of KVM's switch statements.
//!
//! See: KVM arch/x86/kvm/x86.c kvm_get_msr_common(), kvm_set_msr_common(); mtrr.c

use super::{PLATFORM_INFO_CPUID_FAULT, Refused, Written, is_valid_mtrr_type};
use crate::{cpuid::feature, cr::MmuEffect, vcpu::Vcpu};
use vmtape_arch::msr::Msr;
use vmtape_kvm_mmu::mtrr::Mtrrs;

const PLATFORM_ID: u32 = 0x17;
const EBL_CR_POWERON: u32 = 0x2a;
const EBC_FREQUENCY_ID: u32 = 0x2c;
const SMI_COUNT: u32 = 0x34;
const UCODE_WRITE: u32 = 0x79;
const SMBASE: u32 = 0x9e;
const P6_PERFCTR: [u32; 2] = [0xc1, 0xc2];
const FSB_FREQ: u32 = 0xcd;
const PLATFORM_INFO: u32 = 0xce;
const BBL_CR_CTL3: u32 = 0x11e;
const MISC_FEATURES_ENABLES: u32 = 0x140;
const MCG_CTL: u32 = 0x17b;
const P6_EVNTSEL: [u32; 2] = [0x186, 0x187];
const PERF_STATUS: u32 = 0x198;
const PERF_CTL: u32 = 0x199;
const LAST_BRANCH: std::ops::RangeInclusive<u32> = 0x1db..=0x1de;
const POWER_CTL: u32 = 0x1fc;
const MTRR_FIXED: [u32; 11] = [0x250, 0x258, 0x259, 0x268, 0x269, 0x26a, 0x26b, 0x26c, 0x26d, 0x26e, 0x26f];
/// KVM_NR_VAR_MTRR pairs.
const MTRR_VARIABLE: std::ops::Range<u32> = 0x200..0x210;
const MC_BANKS: std::ops::Range<u32> = 0x400..0x480;
const RAPL: [u32; 5] = [0x606, 0x639, 0x641, 0x611, 0x619];
const XFD: u32 = 0x1c4;
const XFD_ERR: u32 = 0x1c5;
const K7_EVNTSEL_PERFCTR: std::ops::RangeInclusive<u32> = 0xc001_0000..=0xc001_0007;
const SYSCFG: u32 = 0xc001_0010;
const K7_HWCR: u32 = 0xc001_0015;
const K7_CLK_CTL: u32 = 0xc001_001b;
const NB_CFG: u32 = 0xc001_001f;
const PATCH_LOADER: u32 = 0xc001_0020;
const INT_PENDING_MSG: u32 = 0xc001_0055;
const MMIO_CONF_BASE: u32 = 0xc001_0058;
const TSEG: [u32; 2] = [0xc001_0112, 0xc001_0113];
const OSVW: [u32; 2] = [0xc001_0140, 0xc001_0141];
const DC_CFG: u32 = 0xc001_1022;
const TW_CFG: u32 = 0xc001_1023;
pub(super) const DE_CFG: u32 = 0xc001_1029;
const BU_CFG2: u32 = 0xc001_102a;
const EX_CFG: u32 = 0xc001_102c;

const P6_PERFCTR_0: u32 = P6_PERFCTR[0];
const P6_PERFCTR_1: u32 = P6_PERFCTR[1];
const P6_EVNTSEL_0: u32 = P6_EVNTSEL[0];
const P6_EVNTSEL_1: u32 = P6_EVNTSEL[1];
const P5_MC_ADDR: u32 = 0;
const P5_MC_TYPE: u32 = 1;
const VM_HSAVE_PA_ON_INTEL: u32 = 0xc001_0117;

/// Reads one of them.
pub(super) fn get(vcpu: &Vcpu, index: u32, host_initiated: bool) -> Result<u64, Refused> {
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
        SMBASE if host_initiated && vcpu.smm.supported => vcpu.smm.smbase,
        SMI_COUNT => vcpu.smm.count,
        POWER_CTL | MISC_FEATURES_ENABLES => msrs.stored(index),
        XFD | XFD_ERR if xfd => msrs.stored(index),
        VM_HSAVE_PA_ON_INTEL | SYSCFG | INT_PENDING_MSG | NB_CFG | MMIO_CONF_BASE | BU_CFG2 | DC_CFG
        | TW_CFG | EX_CFG => 0,
        _ if TSEG.contains(&index) => 0,
        K7_HWCR => msrs.stored(index),
        K7_CLK_CTL => 0x2000_0000,
        _ if OSVW.contains(&index) && vcpu.cpuid.has(feature::OSVW) => msrs.stored(index),
        _ => return vcpu.pv.get(index).ok_or(Refused),
    })
}

/// Writes one of them.
pub(super) fn set(vcpu: &mut Vcpu, index: u32, data: u64, host_initiated: bool) -> Written {
    let mut effect = MmuEffect::default();
    let done = Ok(effect);
    let reserved_gpa = vcpu.cpuid.reserved_gpa_bits();
    let check = |legal: bool| if legal { Ok(()) } else { Err(Refused) };
    match index {
        NB_CFG | UCODE_WRITE | VM_HSAVE_PA_ON_INTEL | PATCH_LOADER | BU_CFG2 | DC_CFG | TW_CFG | EX_CFG => {
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
            effect.mtrrs = true;
            check(data.to_le_bytes().iter().all(|t| is_valid_mtrr_type(*t)))?;
        }
        _ if MTRR_VARIABLE.contains(&index) => {
            effect.mtrrs = true;
            let mask = index & 1 != 0;
            let reserved = reserved_gpa | if mask { 0x7ff } else { 0xf00 };
            check(data & reserved == 0 && (mask || is_valid_mtrr_type(data as u8)))?;
        }
        _ if MC_BANKS.contains(&index) => {
            let all_ones = data | 1 << 10 | 1 == u64::MAX;
            match index & 3 {
                0 => check(data == 0 || all_ones)?,
                1 => {
                    let status_writable =
                        vcpu.cpuid.amd_compatible() && vcpu.msrs.stored(K7_HWCR) >> 18 & 1 != 0;
                    check(host_initiated || data == 0 || status_writable)?;
                }
                _ => {}
            }
        }
        P6_PERFCTR_0..=P6_PERFCTR_1 | P6_EVNTSEL_0..=P6_EVNTSEL_1 => return done,
        _ if K7_EVNTSEL_PERFCTR.contains(&index) => return done,
        SMBASE => {
            check(host_initiated && vcpu.smm.supported)?;
            vcpu.smm.smbase = data;
            return done;
        }
        SMI_COUNT => {
            check(host_initiated)?;
            vcpu.smm.count = data;
            return done;
        }
        PLATFORM_INFO => {
            check(host_initiated)?;
            vcpu.msrs.platform_info = data;
            return done;
        }
        MISC_FEATURES_ENABLES => {
            check(data & !1 == 0 && (data == 0 || vcpu.msrs.platform_info & PLATFORM_INFO_CPUID_FAULT != 0))?;
        }
        POWER_CTL => {}
        XFD | XFD_ERR => {
            check(host_initiated || vcpu.cpuid.has(feature::XFD))?;
            check(data & !vcpu.cpuid.supported_xcr0() == 0)?;
        }
        _ if OSVW.contains(&index) => check(vcpu.cpuid.has(feature::OSVW))?,
        _ => return check(vcpu.pv.set(index, data) == Some(true)).and(done),
    }
    vcpu.msrs.store(index, data).and(Ok(effect))
}

/// The MTRRs as the MMU looks at them.
pub(super) fn mtrrs(vcpu: &Vcpu) -> Mtrrs {
    let stored = |index| vcpu.msrs.stored(index);
    Mtrrs {
        present: vcpu.cpuid.has(feature::MTRR),
        def_type: stored(Msr::MTRR_DEF_TYPE.0),
        fixed: MTRR_FIXED.map(stored),
        variable: std::array::from_fn(|n| {
            let base = MTRR_VARIABLE.start + 2 * n as u32;
            (stored(base), stored(base + 1))
        }),
        maxphyaddr: vcpu.cpuid.maxphyaddr(),
    }
}
