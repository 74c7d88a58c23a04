//! Into SMM.

use super::{Failed, Smi, SmiAllowed, changed, note, pages, save_state, save_state::SaveState};
use crate::{
    cpuid::feature,
    profile::Switch,
    vm::{Ops, VendorVcpu},
};
use vmtape_abi::{Errno, Host};
use vmtape_arch::{
    exit::Resume,
    msr::Msr,
    regs::{DR7_INIT, Rflags, SegAttr},
    vcpu::{Segment, TableReg, VcpuState, seg},
};

/// Where the handler begins, from SMBASE.
const HANDLER: u64 = 0x8000;

/// The part of `kvm_check_and_inject_events` that is about SMIs.
pub fn deliver<O: Ops>(
    ops: &mut O,
    v: &mut O::Vcpu,
    state: &mut VcpuState,
    host: &mut dyn Host,
) -> Result<Smi, Resume> {
    let core = v.core();
    let id = core.id;
    // Without SMM it is dropped as it comes.
    if !host.smi(id, !core.smm.supported) || !core.smm.supported {
        return Ok(Smi::None);
    }
    let allowed = if core.events.any() { SmiAllowed::Busy } else { ops.smi_allowed(v) };
    match allowed {
        SmiAllowed::Busy => Ok(Smi::Waits),
        SmiAllowed::Blocked => {
            ops.enable_smi_window(v);
            Ok(Smi::None)
        }
        SmiAllowed::Now => {
            host.smi(id, true);
            v.core_mut().smm.count += 1;
            let entered = enter(ops, v, state, host);
            if entered.is_err() && ops.kvm().options.on(Switch::SMM_FAILURE_CHECKED) {
                // `kvm_vm_dead`.
                ops.kvm_mut().bugged = true;
                return Err(Resume::errno(Errno::EIO.0));
            }
            Ok(Smi::Taken)
        }
    }
}

/// `enter_smm`. Releases that ignore a failure go on.
fn enter<O: Ops>(
    ops: &mut O,
    v: &mut O::Vcpu,
    state: &mut VcpuState,
    host: &mut dyn Host,
) -> Result<(), Failed> {
    let on = |ops: &O, switch| ops.kvm().options.on(switch);
    let fatal = on(ops, Switch::SMM_FAILURE_CHECKED);
    let noted_first = !on(ops, Switch::SMM_TRANSITION_TRACED);
    if noted_first {
        note(ops, v.core(), true, host);
    }
    let (long, smbase) = (v.core().cpuid.has(feature::LM), v.core().smm.smbase);
    let shadow = on(ops, Switch::SMM_SHADOW_SAVED);
    let mut area = SaveState::of(state, long, smbase, shadow);
    let left = ops.enter_smm(v, state, &mut area, host);
    if fatal {
        left?;
    }
    if !noted_first {
        note(ops, v.core(), true, host);
    }
    changed(ops, v, state, true, host);
    let written = write(ops, v, smbase, area.bytes(), host);
    if fatal {
        written?;
    }
    let masked = state.interruptibility.nmi();
    v.core_mut().smm.inside_nmi = masked;
    if !masked {
        ops.set_nmi_mask(v, state, true);
    }
    load_handler(state, smbase);
    if long {
        let effect = ops.set_msr(v, state, Msr::EFER.0, 0, true, host).map_err(|_| Failed)?;
        ops.apply(v, state, effect, host);
    }
    v.core_mut().update_cpuid_runtime(state);
    let id = v.core().id;
    ops.kvm_mut().mmu.reset_context(id, state, host);
    Ok(())
}

/// The registers that the handler begins with.
fn load_handler(state: &mut VcpuState, smbase: u64) {
    state.rflags = Rflags::new().with_always_one(true).into_bits();
    state.rip = HANDLER;
    state.interruptibility = state.interruptibility.with_sti(false).with_mov_ss(false);
    state.cr0 = state.cr0().with_pe(false).with_em(false).with_ts(false).with_pg(false).into_bits();
    state.efer = state.efer().with_lma(false).into_bits();
    state.cr4 = 0;
    // Not documented: the limit of IDTR is zero.
    state.idtr = TableReg::default();
    state.dr7 = DR7_INIT;
    let attr = SegAttr::new().with_typ(3).with_s(true).with_present(true).with_g(true);
    let data = Segment { base: 0, limit: u32::MAX, selector: 0, attr };
    for n in [seg::ES, seg::SS, seg::DS, seg::FS, seg::GS] {
        state.seg[n] = data;
    }
    state.seg[seg::CS] = Segment { base: smbase, selector: (smbase >> 4) as u16, ..data };
    state.cpl = 0;
}

/// `kvm_vcpu_write_guest`.
fn write<O: Ops>(
    ops: &mut O,
    v: &O::Vcpu,
    smbase: u64,
    bytes: &[u8],
    host: &mut dyn Host,
) -> Result<(), Failed> {
    let (id, mut gpa, mut rest) = (v.core().id, smbase + save_state::OFFSET, bytes);
    for (hpa, len) in pages(&ops.kvm().mmu.slots, gpa, bytes.len()) {
        let (part, others) = rest.split_at(len);
        if !hpa.is_some_and(|hpa| host.write(hpa, part)) {
            return Err(Failed);
        }
        ops.kvm_mut().mmu.mark_dirty(id, gpa >> vmtape_arch::PAGE_SHIFT, host);
        (gpa, rest) = (gpa + len as u64, others);
    }
    Ok(())
}
