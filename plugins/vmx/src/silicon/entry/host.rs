//! Checks on the host-state area.
//!
//! Manual: Intel SDM volume 3C, doc 325384-087, 27.2.2 Checks on Host Control Registers, MSRs, and SSP, 27.2.3 Checks on Host
//! Segment and Descriptor-Table Registers, 27.2.4 Checks Related to Address-Space Size.

use super::{is_canonical, require};
use crate::silicon::vmcs::{ExitControls, Vmcs, VmcsField as F};
use vmtape_arch::{
    descriptor::Selector,
    host::Silicon,
    paging::bits,
    regs::{Cr0, Cr4, Efer},
};
use vmtape_kvm_core::msr::is_valid_pat;

/// Checks on the host-state area that can fail, in the manual's order. The hosts here run in IA-32e mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostState {
    Cr0Fixed,
    Cr4Fixed,
    Cr3Reserved,
    SysenterEsp,
    SysenterEip,
    Pat,
    EferReserved,
    EferLma,
    /// RPL or TI of a selector is set.
    Selector,
    CsNull,
    TrNull,
    Base,
    /// "Host address-space size" is clear.
    AddressSpaceSize,
    Cr4Pae,
    Rip,
}

pub fn check(vmcs: &Vmcs, silicon: &Silicon) -> Result<(), HostState> {
    let exit = ExitControls::from_bits(vmcs.read32(F::VM_EXIT_CONTROLS));
    let cr0 = Cr0::from_bits(vmcs.read(F::HOST_CR0));
    let cr4 = Cr4::from_bits(vmcs.read(F::HOST_CR4));
    let canonical = |field| is_canonical(vmcs, silicon, field);
    require(cr0.pe() && cr0.ne() && cr0.pg() && cr0.into_bits() >> 32 == 0, HostState::Cr0Fixed)?;
    require(cr4.vmxe() && cr4.into_bits() >> 32 == 0, HostState::Cr4Fixed)?;
    let beyond = bits(u32::from(silicon.phys_bits), 63);
    require(vmcs.read(F::HOST_CR3) & beyond == 0, HostState::Cr3Reserved)?;
    require(canonical(F::HOST_IA32_SYSENTER_ESP), HostState::SysenterEsp)?;
    require(canonical(F::HOST_IA32_SYSENTER_EIP), HostState::SysenterEip)?;
    require(!exit.load_pat() || is_valid_pat(vmcs.read(F::HOST_IA32_PAT)), HostState::Pat)?;
    if exit.load_efer() {
        let efer = Efer::from_bits(vmcs.read(F::HOST_IA32_EFER));
        let defined = Efer::new().with_sce(true).with_lme(true).with_lma(true).with_nxe(true);
        require(efer.into_bits() & !defined.into_bits() == 0, HostState::EferReserved)?;
        let long = exit.host_address_space_size();
        require(efer.lma() == long && efer.lme() == long, HostState::EferLma)?;
    }
    check_segments(vmcs, canonical)?;
    require(exit.host_address_space_size(), HostState::AddressSpaceSize)?;
    require(cr4.pae(), HostState::Cr4Pae)?;
    require(canonical(F::HOST_RIP), HostState::Rip)
}

/// See: 27.2.3
fn check_segments(vmcs: &Vmcs, canonical: impl Fn(F) -> bool) -> Result<(), HostState> {
    let plain = |field: &F| {
        let selector = Selector::from_bits(vmcs.read(*field) as u16);
        selector.rpl() == 0 && !selector.ti()
    };
    let selectors = [
        F::HOST_CS_SELECTOR,
        F::HOST_SS_SELECTOR,
        F::HOST_DS_SELECTOR,
        F::HOST_ES_SELECTOR,
        F::HOST_FS_SELECTOR,
        F::HOST_GS_SELECTOR,
        F::HOST_TR_SELECTOR,
    ];
    require(selectors.iter().all(plain), HostState::Selector)?;
    require(vmcs.read(F::HOST_CS_SELECTOR) != 0, HostState::CsNull)?;
    require(vmcs.read(F::HOST_TR_SELECTOR) != 0, HostState::TrNull)?;
    let bases = [F::HOST_FS_BASE, F::HOST_GS_BASE, F::HOST_GDTR_BASE, F::HOST_IDTR_BASE, F::HOST_TR_BASE];
    require(bases.into_iter().all(canonical), HostState::Base)
}
