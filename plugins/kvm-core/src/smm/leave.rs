//! RSM: out of SMM.

use super::{
    Failed, changed, note, pages,
    save_state::{self, SaveState},
};
use crate::{
    cpuid::feature,
    cr, emulate, events,
    profile::Switch,
    vcpu::Vcpu,
    vm::{Ops, VendorVcpu},
};
use vmtape_abi::{Emulated, Host};
use vmtape_arch::{
    exception::Exception,
    exit::Resume,
    msr::Msr,
    note::{EmulateMode, Note, NoteKind},
    regs::{Cr4, Efer, Rflags, SegAttr},
    state::interrupt_shadow,
    vcpu::{Segment, VcpuState, seg},
};

/// What KVM emulates, wherever the instruction was found.
const RSM: [u8; 2] = [0x0f, 0xaa];
/// CR3[11:0] with CR4.PCIDE.
const PCID: u64 = 0xfff;
/// DR6 and DR7 without the upper halves, which the emulator of older releases drops.
const LOW: u64 = 0xffff_ffff;

/// `em_rsm`.
pub fn rsm<O: Ops>(ops: &mut O, v: &mut O::Vcpu, state: &mut VcpuState, host: &mut dyn Host) -> Resume {
    trace(v.core(), state, host);
    if !v.core().smm.active {
        v.core_mut().inject(state, &Exception::ud());
        return Resume::GUEST;
    }
    v.core_mut().events.clear_exceptions();
    let stepped = events::single_step(state.rflags().tf());
    let on = |ops: &O, switch| ops.kvm().options.on(switch);
    let area = read(ops, v, host);
    let shuts_down = match area {
        Ok(_) => on(ops, Switch::RSM_FAILURE_SHUTDOWN),
        Err(Failed) => on(ops, Switch::SMM_FAILURE_CHECKED),
    };
    match area.and_then(|area| leave(ops, v, state, &area, host)) {
        Ok(()) => {
            if let Some(trap) = stepped {
                v.core_mut().inject(state, &trap);
            }
            Resume::GUEST
        }
        Err(Failed) if shuts_down => {
            if v.core().guest_mode && on(ops, Switch::RSM_FAILURE_LEAVES_L2) {
                ops.leave_nested(v, state, host);
            }
            v.core_mut().events.request_triple_fault();
            Resume::GUEST
        }
        Err(Failed) => {
            let (len, mut result) = (RSM.len(), Emulated::default());
            (result.insn_len, result.fetched) = (len as u8, len as u8);
            result.insn[..len].copy_from_slice(&RSM);
            emulate::failure(v.core_mut(), state, &result, &ops.kvm().options, host)
        }
    }
}

/// `kvm_emulate_insn`, which KVM tells of RSM outside of SMM too.
fn trace(core: &Vcpu, state: &VcpuState, host: &mut dyn Host) {
    if host.wants(NoteKind::EMULATE_INSN) {
        let csbase = if state.is_64bit_code() { 0 } else { state.seg[seg::CS].base as u32 };
        let (insn, mode) = (u16::from_le_bytes(RSM).into(), EmulateMode::of(state).0);
        let note =
            Note::EmulateInsn { rip: state.rip, csbase, len: RSM.len() as u8, insn, mode, failed: false };
        core.note(note, host);
    }
}

/// `kvm_vcpu_read_guest`.
fn read<O: Ops>(ops: &O, v: &O::Vcpu, host: &mut dyn Host) -> Result<SaveState, Failed> {
    let mut bytes = [0; save_state::SIZE];
    let (gpa, mut rest) = (v.core().smm.smbase + save_state::OFFSET, &mut bytes[..]);
    for (hpa, len) in pages(&ops.kvm().mmu.slots, gpa, save_state::SIZE) {
        let (part, others) = rest.split_at_mut(len);
        if !hpa.is_some_and(|hpa| host.read(hpa, part)) {
            return Err(Failed);
        }
        rest = others;
    }
    Ok(SaveState::from_bytes(&bytes, v.core().cpuid.has(feature::LM)))
}

/// `emulator_leave_smm`.
fn leave<O: Ops>(
    ops: &mut O,
    v: &mut O::Vcpu,
    state: &mut VcpuState,
    area: &SaveState,
    host: &mut dyn Host,
) -> Result<(), Failed> {
    if !v.core().smm.inside_nmi {
        ops.set_nmi_mask(v, state, false);
    }
    // Older releases tell it when all is done.
    let noted_first = ops.kvm().options.on(Switch::SMM_TRANSITION_TRACED);
    if noted_first {
        note(ops, v.core(), false, host);
    }
    changed(ops, v, state, false, host);
    to_real_mode(ops, v, state, host);
    ops.leave_smm(v, state, area, host)?;
    load(ops, v, state, area, host)?;
    if !noted_first {
        note(ops, v.core(), false, host);
    }
    Ok(())
}

/// A state in which the control registers can be loaded. What the handler has left is legal, so that no step fails.
fn to_real_mode<O: Ops>(ops: &mut O, v: &mut O::Vcpu, state: &mut VcpuState, host: &mut dyn Host) {
    let long = v.core().cpuid.has(feature::LM);
    if long {
        if state.cr4().pcide() {
            let _ = set_cr(ops, v, state, 4, state.cr4().with_pcide(false).into_bits(), host);
        }
        // EFER.LMA is cleared in 32-bit code.
        let attr = SegAttr::new().with_typ(0xb).with_s(true).with_g(true).with_present(true);
        state.seg[seg::CS] = Segment { attr, ..Segment::default() };
    }
    if state.cr0().pe() {
        let _ = set_cr(ops, v, state, 0, state.cr0().with_pg(false).with_pe(false).into_bits(), host);
    }
    if long {
        if state.cr4().pae() {
            let _ = set_cr(ops, v, state, 4, state.cr4().with_pae(false).into_bits(), host);
        }
        let _ = set_efer(ops, v, state, 0, host);
    }
}

/// `rsm_load_state_64`, `rsm_load_state_32`.
fn load<O: Ops>(
    ops: &mut O,
    v: &mut O::Vcpu,
    state: &mut VcpuState,
    area: &SaveState,
    host: &mut dyn Host,
) -> Result<(), Failed> {
    let control = area.control();
    let masked = !ops.kvm().options.on(Switch::RSM_FAILURE_SHUTDOWN);
    for (number, value) in [(6, control.dr6), (7, control.dr7)] {
        let value = if masked { value & LOW } else { value };
        cr::set_dr(&v.core().cpuid, state, number, value).map_err(|_| Failed)?;
    }
    v.core_mut().smm.smbase = control.smbase;
    if let Some(efer) = control.efer {
        set_efer(ops, v, state, Efer::from_bits(efer).with_lma(false).into_bits(), host)?;
    }
    area.load_tables(state);
    enter_protected_mode(ops, v, state, (control.cr0, control.cr3, control.cr4), host)?;
    area.load_segments(state);
    area.load_rest(state);
    state.rflags |= Rflags::new().with_always_one(true).into_bits();
    state.cpl = match () {
        () if !state.cr0().pe() => 0,
        () if state.rflags().vm() => 3,
        () => state.seg[seg::SS].attr.dpl().into(),
    };
    let saved = ops.kvm().options.on(Switch::SMM_SHADOW_SAVED);
    let shadow = if saved { area.interrupt_shadow() } else { 0 };
    state.interruptibility = state
        .interruptibility
        .with_sti(shadow & interrupt_shadow::STI != 0)
        .with_mov_ss(shadow & interrupt_shadow::MOV_SS != 0);
    Ok(())
}

/// `rsm_enter_protected_mode`: PAE before paging, which long mode wants, and PCIDs when there is long mode.
fn enter_protected_mode<O: Ops>(
    ops: &mut O,
    v: &mut O::Vcpu,
    state: &mut VcpuState,
    (cr0, cr3, cr4): (u64, u64, u64),
    host: &mut dyn Host,
) -> Result<(), Failed> {
    let pcide = Cr4::from_bits(cr4).pcide();
    let pcid = if pcide { cr3 & PCID } else { 0 };
    set_cr(ops, v, state, 3, cr3 & !pcid, host)?;
    set_cr(ops, v, state, 4, Cr4::from_bits(cr4).with_pcide(false).into_bits(), host)?;
    set_cr(ops, v, state, 0, cr0, host)?;
    if pcide {
        set_cr(ops, v, state, 4, cr4, host)?;
        if pcid != 0 {
            set_cr(ops, v, state, 3, cr3, host)?;
        }
    }
    Ok(())
}

fn set_cr<O: Ops>(
    ops: &mut O,
    v: &mut O::Vcpu,
    state: &mut VcpuState,
    number: u32,
    value: u64,
    host: &mut dyn Host,
) -> Result<(), Failed> {
    let effect = ops.kvm().set_cr(v.core_mut(), state, number, value, host).map_err(|_| Failed)?;
    ops.apply(v, state, effect, host);
    Ok(())
}

/// `kvm_set_msr` of EFER, as the guest's own write.
fn set_efer<O: Ops>(
    ops: &mut O,
    v: &mut O::Vcpu,
    state: &mut VcpuState,
    value: u64,
    host: &mut dyn Host,
) -> Result<(), Failed> {
    let effect = ops.set_msr(v, state, Msr::EFER.0, value, false, host).map_err(|_| Failed)?;
    ops.apply(v, state, effect, host);
    Ok(())
}
