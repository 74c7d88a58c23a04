//! KVM_GET_SREGS2 and KVM_SET_SREGS2.
//!
//! See: KVM x86.c (6.12: regs.c) __get_sregs2(), __set_sregs2(), __set_sregs_common(), kvm_is_valid_sregs()

use crate::{
    Vcpu, cr,
    msr::{self, Refused},
    vm::{Ops, VendorVcpu},
};
use vmtape_abi::{Errno, Host};
use vmtape_arch::{
    msr::Msr,
    regs::{Cr0, Cr4, Efer},
    state::Sregs2,
    vcpu::VcpuState,
};

pub fn get(core: &mut Vcpu, state: &VcpuState, host: &mut dyn Host) -> Sregs2 {
    core.refresh_apic_base(state, host);
    Sregs2::of(state, core.apic_base)
}

pub fn set<O: Ops>(
    ops: &mut O,
    v: &mut O::Vcpu,
    state: &mut VcpuState,
    sregs: &Sregs2,
    host: &mut dyn Host,
) -> Result<(), Errno> {
    let pae = Cr0::from_bits(sregs.cr0).pg()
        && Cr4::from_bits(sregs.cr4).pae()
        && !Efer::from_bits(sregs.efer).lma();
    let has_pdptrs = sregs.flags & Sregs2::PDPTRS_VALID != 0;
    let core = v.core_mut();
    if sregs.flags & !Sregs2::PDPTRS_VALID != 0 || has_pdptrs && !pae || !is_valid(core, sregs) {
        return Err(Errno::EINVAL);
    }
    set_apic_base(core, state, sregs.apic_base, host).map_err(|Refused| Errno::EINVAL)?;
    sregs.apply(state);
    core.update_cpuid_runtime(state);
    let id = core.id;
    if pae && !has_pdptrs {
        // A table that cannot be read, or is not legal, leaves the pointers as they were.
        let _ = cr::load_pdptrs(core, state, &ops.kvm().mmu.slots, sregs.cr3, host);
    }
    ops.after_reset(v);
    ops.kvm_mut().mmu.reset_context(id, state, host);
    Ok(())
}

/// `kvm_is_valid_sregs`.
fn is_valid(core: &Vcpu, sregs: &Sregs2) -> bool {
    let (cr0, cr4, efer) =
        (Cr0::from_bits(sregs.cr0), Cr4::from_bits(sregs.cr4), Efer::from_bits(sregs.efer));
    let mode = if efer.lme() && cr0.pg() {
        cr4.pae() && efer.lma() && sregs.cr3 & core.cpuid.reserved_gpa_bits() == 0
    } else {
        !efer.lma() && !sregs.cs_is_64bit()
    };
    mode && sregs.cr4 & cr::cr4_reserved(&core.cpuid) == 0
        && cr::is_valid_cr0(sregs.cr0)
        && cr::is_known_efer(sregs.efer)
}

/// The VMM may change the mode as no guest can: by way of the modes between, which are legal steps.
fn set_apic_base(
    core: &mut Vcpu,
    state: &mut VcpuState,
    base: u64,
    host: &mut dyn Host,
) -> Result<(), Refused> {
    let mut write = |base| msr::set_common(core, state, Msr::IA32_APIC_BASE.0, base, true, host);
    if write(base).is_ok() {
        return Ok(());
    }
    let off = base & !(msr::APIC_ENABLE | msr::X2APIC_ENABLE);
    write(off)?;
    if base & msr::APIC_ENABLE != 0 {
        write(off | msr::APIC_ENABLE)?;
    }
    write(base).map(|_| ())
}
