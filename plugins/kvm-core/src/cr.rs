//! Control registers, EFER and XCR0: what KVM checks against the guest's CPUID, and what a change asks of the MMU.
//!
//! See: KVM arch/x86/kvm/x86.c kvm_set_cr0(), kvm_set_cr3(), kvm_set_cr4(), set_efer(), __kvm_set_xcr()

use crate::{
    cpuid::{Feature, GuestCpuid, feature},
    vcpu::Vcpu,
};
use vmtape_abi::Host;
use vmtape_arch::{
    exception::Exception,
    paging::{Pte, bits},
    regs::{Cr0, Cr4, DR7_INIT, Dr6, Efer},
    vcpu::{VcpuState, seg},
};
use vmtape_kvm_mmu::slots::Slots;

/// CR3[11:0] with CR4.PCIDE.
const PCID_MASK: u64 = 0xfff;
/// CR3[63] as an operand: keep the TLB.
const PCID_NOFLUSH: u64 = 1 << 63;

/// What a change of a control register asks of the MMU, in the order in which KVM does it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MmuEffect {
    /// `kvm_mmu_reset_context`.
    pub reset: bool,
    /// `kvm_mmu_unload`.
    pub unload: bool,
    /// `kvm_mmu_new_pgd`: CR3 changed.
    pub new_pgd: bool,
    /// KVM_REQ_TLB_FLUSH_GUEST: all of the guest's TLB, global entries too.
    pub flush_guest: bool,
    /// KVM_REQ_TLB_FLUSH_CURRENT, or `kvm_invalidate_pcid`: without global entries.
    pub flush_current: bool,
    /// An MTRR changed.
    pub mtrrs: bool,
}

/// The outcome of a write: what to do, or the guest's #GP.
pub type Outcome = Result<MmuEffect, Exception>;

fn gp<T>() -> Result<T, Exception> {
    Err(Exception::gp(0))
}

/// `kvm_set_cr0`.
pub fn set_cr0(
    vcpu: &Vcpu,
    state: &mut VcpuState,
    slots: &Slots,
    value: u64,
    tdp: bool,
    host: &mut dyn Host,
) -> Outcome {
    let old = state.cr0();
    if !is_valid_cr0(value) {
        return gp();
    }
    let new = Cr0::from_bits(value & cr0_defined()).with_et(true);
    let (efer, cr4) = (state.efer(), state.cr4());
    if efer.lme() && !old.pg() && new.pg() && (!cr4.pae() || state.seg[seg::CS].attr.l()) {
        return gp();
    }
    let changed = Cr0::from_bits(old.into_bits() ^ new.into_bits());
    let reloads = changed.cd() || changed.nw() || changed.pg();
    if !efer.lme() && new.pg() && cr4.pae() && reloads {
        load_pdptrs(vcpu, state, slots, state.cr3, host)?;
    }
    if !new.pg() && (state.is_64bit_code() || cr4.pcide()) {
        return gp();
    }
    state.cr0 = new.into_bits();
    if efer.lme() && changed.pg() {
        state.efer = efer.with_lma(new.pg()).into_bits();
    }
    let only_wp = changed == Cr0::new().with_wp(true);
    Ok(MmuEffect {
        reset: (changed.pg() || changed.wp()) && !(only_wp && (tdp || !new.pg())),
        flush_guest: changed.pg() && !new.pg(),
        flush_current: only_wp,
        ..Default::default()
    })
}

/// `kvm_is_valid_cr0`.
pub fn is_valid_cr0(value: u64) -> bool {
    let cr0 = Cr0::from_bits(value);
    value >> 32 == 0 && (cr0.cd() || !cr0.nw()) && (cr0.pe() || !cr0.pg())
}

fn cr0_defined() -> u64 {
    let all = Cr0::new().with_pe(true).with_mp(true).with_em(true).with_ts(true).with_et(true).with_ne(true);
    all.with_wp(true).with_am(true).with_nw(true).with_cd(true).with_pg(true).into_bits()
}

/// `__cr4_reserved_bits`: bits that this guest may not set.
pub fn cr4_reserved(cpuid: &GuestCpuid) -> u64 {
    let has = |f: Feature| cpuid.has(f);
    let always =
        Cr4::new().with_vme(true).with_pvi(true).with_tsd(true).with_de(true).with_pse(true).with_pae(true);
    let always = always.with_mce(true).with_pge(true).with_pce(true).with_osfxsr(true).with_osxmmexcpt(true);
    let allowed = always
        .with_umip(has(feature::UMIP))
        .with_la57(has(feature::LA57))
        .with_vmxe(has(feature::VMX))
        .with_fsgsbase(has(feature::FSGSBASE))
        .with_pcide(has(feature::PCID))
        .with_osxsave(has(feature::XSAVE))
        .with_smep(has(feature::SMEP))
        .with_smap(has(feature::SMAP))
        .with_pke(has(feature::PKU));
    !allowed.into_bits()
}

/// `kvm_set_cr4`.
pub fn set_cr4(
    vcpu: &mut Vcpu,
    state: &mut VcpuState,
    slots: &Slots,
    value: u64,
    tdp: bool,
    host: &mut dyn Host,
) -> Outcome {
    let (old, new) = (state.cr4(), Cr4::from_bits(value));
    if value & cr4_reserved(&vcpu.cpuid) != 0 {
        return gp();
    }
    let changed = Cr4::from_bits(old.into_bits() ^ value);
    let long_mode = state.efer().lma();
    if long_mode {
        if !new.pae() || changed.la57() {
            return gp();
        }
    } else if state.cr0().pg()
        && new.pae()
        && (changed.pge() || changed.pse() || changed.pae() || changed.smep())
    {
        load_pdptrs(vcpu, state, slots, state.cr3, host)?;
    }
    if new.pcide() && !old.pcide() && (state.cr3 & PCID_MASK != 0 || !long_mode) {
        return gp();
    }
    state.cr4 = value;
    if changed.osxsave() || changed.pke() {
        vcpu.update_cpuid_runtime(state);
    }
    let roles =
        changed.pse() || changed.pae() || changed.la57() || changed.smep() || changed.smap() || changed.pke();
    let flush_guest = changed.pge() || !new.pcide() && old.pcide();
    Ok(MmuEffect {
        reset: roles,
        unload: !tdp && new.pcide() && !old.pcide(),
        flush_guest,
        flush_current: !flush_guest && (changed.pae() || new.smep() && !old.smep()),
        new_pgd: false,
        mtrrs: false,
    })
}

/// `kvm_set_cr3`.
pub fn set_cr3(
    vcpu: &Vcpu,
    state: &mut VcpuState,
    slots: &Slots,
    value: u64,
    host: &mut dyn Host,
) -> Outcome {
    let pcide = state.cr4().pcide();
    let keep_tlb = pcide && value & PCID_NOFLUSH != 0;
    let value = if pcide { value & !PCID_NOFLUSH } else { value };
    let pae_paging = !state.efer().lma() && state.cr4().pae() && state.cr0().pg();
    let mut effect = MmuEffect { flush_current: !keep_tlb, ..Default::default() };
    if value == state.cr3 && !pae_paging {
        return Ok(effect);
    }
    if value & vcpu.cpuid.reserved_gpa_bits() != 0 {
        return gp();
    }
    if pae_paging {
        load_pdptrs(vcpu, state, slots, value, host)?;
    }
    effect.new_pgd = value != state.cr3;
    state.cr3 = value;
    Ok(effect)
}

/// `load_pdptrs`: reads and checks the four PAE page-directory pointers with the guest's width.
pub fn load_pdptrs(
    vcpu: &Vcpu,
    state: &mut VcpuState,
    slots: &Slots,
    cr3: u64,
    host: &mut dyn Host,
) -> Result<(), Exception> {
    // See: SDM vol. 3A 4.4.1 PDPTE Registers
    let reserved = bits(vcpu.cpuid.maxphyaddr().into(), 63) | bits(5, 8) | bits(1, 2);
    let table = cr3 & bits(5, 31);
    let mut pdptr = [0; 4];
    for (index, entry) in pdptr.iter_mut().enumerate() {
        let hpa = slots.hpa(table + 8 * index as u64).ok_or(Exception::gp(0))?;
        *entry = host.read_u64(hpa).ok_or(Exception::gp(0))?;
        if Pte::from_bits(*entry).p() && *entry & reserved != 0 {
            return gp();
        }
    }
    state.pdptr = pdptr;
    Ok(())
}

/// Without `efer_reserved_bits`.
pub fn is_known_efer(value: u64) -> bool {
    let known = Efer::new().with_sce(true).with_lme(true).with_lma(true).with_nxe(true);
    value & !known.with_ffxsr(true).with_svme(true).into_bits() == 0
}

/// `set_efer`.
pub fn set_efer(vcpu: &Vcpu, state: &mut VcpuState, value: u64, host_initiated: bool) -> Outcome {
    let (old, new) = (state.efer(), Efer::from_bits(value));
    let cpuid = &vcpu.cpuid;
    if !is_known_efer(value) {
        return gp();
    }
    if !host_initiated {
        let valid = (!new.ffxsr() || cpuid.has(feature::FXSR_OPT))
            && (!new.svme() || cpuid.has(feature::SVM))
            && (!(new.lme() || new.lma()) || cpuid.has(feature::LM))
            && (!new.nxe() || cpuid.has(feature::NX));
        if !valid || state.cr0().pg() && old.lme() != new.lme() {
            return gp();
        }
    }
    let new = new.with_lma(old.lma());
    state.efer = new.into_bits();
    Ok(MmuEffect { reset: old.lme() != new.lme() || old.nxe() != new.nxe(), ..Default::default() })
}

/// XCR0 components. See: SDM vol. 1 13.1 XSAVE-Supported Features and State-Component Bitmaps
mod xfeature {
    pub const FP: u64 = 1;
    pub const SSE: u64 = 1 << 1;
    pub const YMM: u64 = 1 << 2;
    pub const BNDREGS: u64 = 1 << 3;
    pub const BNDCSR: u64 = 1 << 4;
    pub const AVX512: u64 = 7 << 5;
    pub const XTILE: u64 = 3 << 17;
}

/// `kvm_emulate_xsetbv` without the skip.
pub fn xsetbv(vcpu: &mut Vcpu, state: &mut VcpuState, index: u32, value: u64) -> Result<(), Exception> {
    if state.cpl != 0 || index != 0 {
        return gp();
    }
    set_xcr0(vcpu, state, value)
}

/// `__kvm_set_xcr` of XCR0.
pub fn set_xcr0(vcpu: &mut Vcpu, state: &mut VcpuState, value: u64) -> Result<(), Exception> {
    use xfeature::*;
    let all_or_none = |mask: u64| value & mask == 0 || value & mask == mask;
    let legal = value & FP != 0
        && (value & YMM == 0 || value & SSE != 0)
        && value & !(vcpu.cpuid.supported_xcr0() | FP) == 0
        && all_or_none(BNDREGS | BNDCSR)
        && all_or_none(AVX512)
        && (value & AVX512 == 0 || value & YMM != 0)
        && all_or_none(XTILE);
    if !legal {
        return gp();
    }
    state.xcr0 = value;
    vcpu.update_cpuid_runtime(state);
    Ok(())
}

/// LMSW, as KVM does it: PE can be set but not cleared. See: KVM x86.c kvm_lmsw()
pub fn lmsw(cr0: u64, operand: u64) -> u64 {
    (cr0 & !0xe) | (operand & 0xf)
}

/// DR6 bits that can be written, and those that always read as one. See: arch/x86/include/asm/kvm_host.h
const DR6_VOLATILE: u64 = 0x0001_e80f;
const DR6_FIXED_1: u64 = 0xfffe_07f0;
/// Likewise for DR7.
const DR7_VOLATILE: u64 = 0xffff_2bff;

/// `kvm_set_dr`: DR4 and DR5 are aliases of DR6 and DR7 here; the upper half of both must be zero.
pub fn set_dr(cpuid: &GuestCpuid, state: &mut VcpuState, number: u32, value: u64) -> Result<(), Exception> {
    match number {
        0..=3 => state.dr[number as usize] = value,
        4 | 6 if value >> 32 == 0 => {
            let absent = |f: Feature, bit: Dr6| if cpuid.has(f) { 0 } else { bit.into_bits() };
            let fixed = DR6_FIXED_1
                | absent(feature::RTM, Dr6::new().with_rtm(true))
                | absent(feature::BUS_LOCK_DETECT, Dr6::new().with_bld(true));
            state.dr6 = value & DR6_VOLATILE | fixed;
        }
        5 | 7 if value >> 32 == 0 => state.dr7 = value & DR7_VOLATILE | DR7_INIT,
        _ => return gp(),
    }
    Ok(())
}
