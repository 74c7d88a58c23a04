//! What KVM writes into the VMCS before VM entry.
//!
//! See: KVM arch/x86/kvm/vmx/vmx.c vmx_set_cr0(), vmx_set_cr4(), vmx_set_efer(), vmx_vcpu_run(), vmx_inject_exception()

use crate::{
    silicon::{
        capabilities::Eptp,
        entry::{self, SegmentRights},
        vmcs::{EntryControls, Vmcs, VmcsField as F},
    },
    vm::{Shared, VmxVcpu},
};
use vmtape_arch::{
    descriptor::SystemType,
    regs::{Cr0, Cr4, Efer, SegAttr},
    vcpu::{Segment, TableReg, VcpuState, seg},
};
use vmtape_kvm_core::profile::Switch;

/// Brings the VMCS up to date with the registers.
pub fn write_state(shared: &Shared, vcpu: &mut VmxVcpu, state: &VcpuState) {
    let mmu = shared.kvm.mmu.context(vcpu.core.id);
    let root = mmu.root.map_or(0, |root| root.hpa);
    let vmcs = &mut vcpu.vmcs01;
    entry::store(vmcs, state);
    // Without unrestricted guests KVM emulates the delivery in real mode (`kvm_inject_realmode_interrupt`).
    let emulated = !state.cr0().pe() && !shared.kvm.options.on(Switch::UNRESTRICTED_GUEST);
    if emulated {
        let flags = state.rflags().with_vm(true).with_iopl(3);
        vmcs.write(F::GUEST_RFLAGS, flags.into_bits());
    }
    let registers = RegisterCache::of(state, root, mmu.root_role.level());
    if vcpu.written.registers != registers {
        vcpu.written.registers = registers;
        write_registers(shared, vmcs, state, root, mmu.root_role.level());
    }
    if vcpu.written.segments.update(state, emulated) {
        write_segments(vmcs, state, emulated);
    }
    let info = if emulated { 0 } else { state.inject.vmx_info() };
    vmcs.write(F::VM_ENTRY_INTR_INFO_FIELD, info);
    vmcs.write(F::VM_ENTRY_EXCEPTION_ERROR_CODE, state.inject.error_code);
    vmcs.write(F::VM_ENTRY_INSTRUCTION_LEN, state.inject.insn_len);
}

/// What was last written to the VMCS, so that it is written only if that changes. It is no part of the vCPU's state: all are equal.
#[derive(Clone, Debug, Default)]
pub struct Written {
    registers: RegisterCache,
    segments: SegmentCache,
}

impl PartialEq for Written {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Written {}

/// What [`write_registers`] goes by. All zero: nothing was written yet, since no CR0 is zero.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct RegisterCache([u64; 8]);

impl RegisterCache {
    fn of(state: &VcpuState, root: u64, levels: u8) -> Self {
        let VcpuState { cr0, cr3, cr4, efer, pat, tsc_offset, .. } = *state;
        Self([cr0, cr3, cr4, efer, pat, tsc_offset, root, levels.into()])
    }
}

/// Control registers, the MSRs that VM entry loads, and where the tables begin.
fn write_registers(shared: &Shared, vmcs: &mut Vmcs, state: &VcpuState, root: u64, levels: u8) {
    let ept = shared.kvm.tdp();
    let unrestricted = shared.kvm.options.on(Switch::UNRESTRICTED_GUEST);
    let (cr0, cr4) = (silicon_cr0(state.cr0(), ept, unrestricted), silicon_cr4(state, ept, unrestricted));
    let cr3 = match (ept, unrestricted || state.cr0().pg()) {
        (true, true) => state.cr3,
        // KVM's own identity map, for real mode without unrestricted guests.
        (true, false) => 0,
        (false, _) => root,
    };
    vmcs.write(F::GUEST_CR0, cr0.into_bits());
    vmcs.write(F::CR0_READ_SHADOW, state.cr0);
    vmcs.write(F::GUEST_CR3, cr3);
    vmcs.write(F::GUEST_CR4, cr4.into_bits());
    vmcs.write(F::CR4_READ_SHADOW, state.cr4);
    vmcs.write(F::GUEST_IA32_PAT, state.pat);
    vmcs.write(F::GUEST_IA32_EFER, silicon_efer(state.efer()).into_bits());
    vmcs.write(F::TSC_OFFSET, state.tsc_offset);
    let controls = EntryControls::new()
        .with_load_debug_controls(true)
        .with_ia32e_mode_guest(state.efer().lma())
        .with_load_pat(true)
        .with_load_efer(ept);
    vmcs.write(F::VM_ENTRY_CONTROLS, controls.into_bits());
    if ept {
        vmcs.write(F::EPT_POINTER, Eptp::of(root, levels, &shared.kvm.mmu.config).into_bits());
    }
}

/// What [`write_segments`] goes by.
#[derive(Clone, Debug, Default)]
struct SegmentCache(Option<Box<Segments>>);

#[derive(Clone, Debug)]
struct Segments {
    segments: [Segment; 8],
    tables: [TableReg; 2],
    sysenter: [u64; 2],
    pdptr: [u64; 4],
    cpl: u32,
    lma: bool,
    rmode: bool,
}

impl Segments {
    fn of(state: &VcpuState, rmode: bool) -> Self {
        Self {
            segments: state.seg,
            tables: [state.gdtr, state.idtr],
            sysenter: [state.sysenter_esp, state.sysenter_eip],
            pdptr: state.pdptr,
            cpl: state.cpl,
            lma: state.efer().lma(),
            rmode,
        }
    }

    /// Whether it would come out the same. All is looked at, which is faster than to stop.
    fn are_of(&self, state: &VcpuState, rmode: bool) -> bool {
        let segments = self.segments.iter().zip(&state.seg).fold(0, |differ, (a, b)| {
            differ
                | (a.base ^ b.base)
                | u64::from(a.limit ^ b.limit)
                | u64::from(a.selector ^ b.selector)
                | u64::from(a.attr.into_bits() ^ b.attr.into_bits())
        });
        let [gdtr, idtr] = self.tables;
        let [esp, eip] = self.sysenter;
        let tables = (gdtr.base ^ state.gdtr.base)
            | (idtr.base ^ state.idtr.base)
            | u64::from(gdtr.limit ^ state.gdtr.limit)
            | u64::from(idtr.limit ^ state.idtr.limit);
        let others =
            (esp ^ state.sysenter_esp) | (eip ^ state.sysenter_eip) | u64::from(self.cpl ^ state.cpl);
        let pdptr = self.pdptr.iter().zip(&state.pdptr).fold(0, |differ, (a, b)| differ | (a ^ b));
        segments | tables | others | pdptr == 0 && (self.lma, self.rmode) == (state.efer().lma(), rmode)
    }
}

impl SegmentCache {
    /// Whether they are to be written.
    fn update(&mut self, state: &VcpuState, rmode: bool) -> bool {
        if self.0.as_ref().is_some_and(|last| last.are_of(state, rmode)) {
            return false;
        }
        self.0 = Some(Box::new(Segments::of(state, rmode)));
        true
    }
}

/// Segment and descriptor-table registers, and the MSRs beside them. `rmode`: a real-mode guest without unrestricted guests,
/// which KVM runs in virtual-8086 mode.
/// See: vmx_set_segment(), vmx_segment_access_rights(), enter_rmode(), fix_rmode_seg(), enter_lmode()
fn write_segments(vmcs: &mut Vmcs, state: &VcpuState, rmode: bool) {
    let lma = state.efer().lma();
    for (register, segment) in state.seg.iter().enumerate() {
        let (segment, rights) = match register {
            seg::LDTR => (*segment, rights(segment.attr)),
            seg::TR if rmode => (RMODE_TSS, rights(RMODE_TSS.attr)),
            seg::TR if lma => (*segment, rights(segment.attr.with_typ(SystemType::TSS_BUSY.0))),
            seg::TR => (*segment, rights(segment.attr)),
            _ if rmode => {
                let segment = Segment::real((segment.base >> 4) as u16, 3);
                (segment, rights(segment.attr))
            }
            seg::SS => (*segment, accessed(segment.attr).with_dpl(state.cpl as u8)),
            _ => (*segment, accessed(segment.attr)),
        };
        vmcs.write(F::GUEST_ES_SELECTOR.of_segment(register), segment.selector);
        vmcs.write(F::GUEST_ES_BASE.of_segment(register), segment.base);
        vmcs.write(F::GUEST_ES_LIMIT.of_segment(register), segment.limit);
        vmcs.write(F::GUEST_ES_AR_BYTES.of_segment(register), rights.into_bits());
    }
    vmcs.write(F::GUEST_GDTR_BASE, state.gdtr.base);
    vmcs.write(F::GUEST_GDTR_LIMIT, state.gdtr.limit);
    vmcs.write(F::GUEST_IDTR_BASE, state.idtr.base);
    vmcs.write(F::GUEST_IDTR_LIMIT, state.idtr.limit);
    vmcs.write(F::GUEST_SYSENTER_ESP, state.sysenter_esp);
    vmcs.write(F::GUEST_SYSENTER_EIP, state.sysenter_eip);
    // `ept_load_pdptrs`.
    let pdptes = [F::GUEST_PDPTR0, F::GUEST_PDPTR1, F::GUEST_PDPTR2, F::GUEST_PDPTR3];
    pdptes.into_iter().zip(state.pdptr).for_each(|(field, pdpte)| vmcs.write(field, pdpte));
}

/// KVM's own TSS for virtual-8086 mode. See: init_rmode_tss()
const RMODE_TSS: Segment = Segment {
    base: 0xfeff_d000,
    limit: 0x2068 - 1,
    selector: 0,
    attr: SegAttr::new().with_typ(SystemType::TSS_BUSY.0).with_present(true),
};

fn rights(attr: SegAttr) -> SegmentRights {
    SegmentRights::from_bits(attr.into_bits().into()).with_unusable(!attr.present())
}

/// Software that restores a segment from its descriptor alone may have left the bit out.
fn accessed(attr: SegAttr) -> SegmentRights {
    rights(attr.with_typ(attr.typ() | 1))
}

/// CR0 that silicon runs with.
fn silicon_cr0(guest: Cr0, ept: bool, unrestricted: bool) -> Cr0 {
    let cr0 = guest.with_cd(false).with_nw(false).with_ne(true);
    if unrestricted {
        return cr0;
    }
    let cr0 = cr0.with_pe(true).with_pg(true);
    if ept { cr0 } else { cr0.with_wp(true) }
}

/// CR4 that silicon runs with.
fn silicon_cr4(state: &VcpuState, ept: bool, unrestricted: bool) -> Cr4 {
    let cr4 = state.cr4().with_vmxe(true).with_mce(true);
    if unrestricted {
        return cr4;
    }
    let paged = state.cr0().pg();
    let cr4 = match (ept, paged) {
        (true, true) => cr4,
        (true, false) => cr4.with_pae(false).with_pse(true),
        (false, _) => cr4.with_pae(true),
    };
    if paged { cr4 } else { cr4.with_smep(false).with_smap(false).with_pke(false) }
}

/// EFER that silicon runs with: what only AMD's has does not reach it, and LME not before LMA, because silicon may page where the
/// guest does not. See: update_transition_efer()
fn silicon_efer(guest: Efer) -> Efer {
    let efer = guest.with_svme(false).with_lmsle(false).with_ffxsr(false).with_tce(false);
    efer.with_lme(guest.lme() && guest.lma())
}
