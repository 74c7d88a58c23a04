//! The last branches of L1 and of L2. The registers are the vCPU's, and those that do not run are in a VMCB: L1's in `vmcb01`, and
//! L2's in `vmcb12`, if L1 virtualizes them. Otherwise L2 has L1's, and leaves its own there.
//!
//! See: KVM arch/x86/kvm/svm/svm.c svm_copy_lbrs(), svm_update_lbrv(); nested.c nested_vmcb02_prepare_save(), nested_svm_vmexit()

use super::{patches::L1, vmcb12::Vmcb12};
use crate::{
    kvm::handlers::Cx,
    silicon::vmcb::{Msrpm, SaveArea, Vmcb},
};
use bitfield_struct::bitfield;
use vmtape_arch::{msr::Msr, vcpu::VcpuState};
use vmtape_kvm_core::{msr::Refused, profile::Switch};

/// The MSRs that a guest has to itself while branches are recorded.
const RECORDED: [Msr; 4] = [Msr::LASTBRANCHFROMIP, Msr::LASTBRANCHTOIP, Msr::LASTINTFROMIP, Msr::LASTINTTOIP];

/// IA32_DEBUGCTL. See: APM 13.1.1.3 Debug-Control MSR (DebugCtl)
#[bitfield(u64)]
struct DebugCtl {
    lbr: bool,
    btf: bool,
    /// What pins report on older processors.
    #[bits(4)]
    pins: u8,
    #[bits(58)]
    reserved: u64,
}

/// What KVM makes of a guest's write of IA32_DEBUGCTL (`svm_set_msr`).
pub fn debugctl(l1: &L1<'_>, data: u64) -> Result<u64, Refused> {
    let mut wanted = DebugCtl::from_bits(data);
    if l1.on(Switch::NESTED_LBRV) && !l1.on(Switch::DEBUGCTL_RESERVED_GP) {
        wanted.set_pins(0);
    }
    if l1.on(Switch::LBR_MSRS_VIRTUAL) {
        wanted.set_btf(false);
    }
    let pins = l1.on(Switch::DEBUGCTL_RESERVED_GP) && wanted.pins() != 0;
    if pins || wanted.reserved() != 0 { Err(Refused) } else { Ok(wanted.into_bits()) }
}

/// Lets the guest read and write them by itself while it records branches, or not.
pub fn recalc_intercepts(map: &mut Msrpm, state: &VcpuState) {
    let exits = !state.records_branches();
    RECORDED.iter().for_each(|msr| map.set_exits(msr.0, exits, exits));
}

impl SaveArea {
    fn store_lbrs(&mut self, state: &VcpuState) {
        self.dbgctl = state.debugctl;
        [self.br_from, self.br_to] = state.last_branch;
        [self.last_excp_from, self.last_excp_to] = state.last_exception;
    }

    fn load_last_branches(&self, state: &mut VcpuState) {
        state.last_branch = [self.br_from, self.br_to];
        state.last_exception = [self.last_excp_from, self.last_excp_to];
    }
}

/// Whether L1 keeps L2's apart from its own.
fn is_virtual(l1: &L1<'_>, cached: &Vmcb12) -> bool {
    l1.lbrv() && cached.control.virt_ext.lbr_virtualization()
}

/// VMRUN.
pub fn enter(cx: &mut Cx<'_>, vmcb12: &Vmcb) {
    if !cx.shared.lbrv() {
        return;
    }
    let vmcb01 = &mut cx.vcpu.vmcb01.vmcb;
    vmcb01.save.store_lbrs(cx.state);
    vmcb01.control.virt_ext.set_lbr_virtualization(cx.state.records_branches());
    let l1 = L1::new(cx.shared, &cx.vcpu.core.cpuid);
    if is_virtual(&l1, &cx.vcpu.nested.vmcb12) {
        let wanted = DebugCtl::from_bits(vmcb12.save.dbgctl);
        let btf = wanted.btf() && !l1.on(Switch::LBR_MSRS_VIRTUAL);
        cx.state.debugctl = DebugCtl::new().with_lbr(wanted.lbr()).with_btf(btf).into_bits();
        vmcb12.save.load_last_branches(cx.state);
    }
    recalc_intercepts(&mut cx.vcpu.msrpm, cx.state);
}

/// #VMEXIT: what L1 finds in `vmcb12`.
pub fn store(l1: &L1<'_>, vmcb12: &mut Vmcb, cached: &Vmcb12, state: &VcpuState) {
    if is_virtual(l1, cached) {
        vmcb12.save.store_lbrs(state);
        if !l1.on(Switch::VMCB12_LBR_CLEAN_KEPT) {
            vmcb12.control.clean.set_lbr(false);
        }
    }
}

/// And what L1 goes on with.
pub fn leave(cx: &mut Cx<'_>) {
    if !cx.shared.lbrv() {
        return;
    }
    let Vmcb { control, save } = &cx.vcpu.vmcb01.vmcb;
    let l1 = L1::new(cx.shared, &cx.vcpu.core.cpuid);
    let shared_vmcb = !l1.on(Switch::NESTED_VMCB02);
    if is_virtual(&l1, &cx.vcpu.nested.vmcb12) {
        cx.state.debugctl = save.dbgctl;
        save.load_last_branches(cx.state);
    } else if !shared_vmcb && !l1.on(Switch::NESTED_LBR_SIMPLIFIED) && !control.virt_ext.lbr_virtualization()
    {
        // Where L1 did not record branches, those of L2 stay in vmcb02, though DEBUGCTL is one for both.
        save.load_last_branches(cx.state);
    }
    recalc_intercepts(&mut cx.vcpu.msrpm, cx.state);
}
