//! Clean bits: what silicon may keep from the last VMRUN, and what it loads anew.
//!
//! Manual: AMD APM volume 2, 24593 rev. 3.42, 15.15 VMCB State Caching.

use super::Vmcb;
use bitfield_struct::bitfield;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// VMCB Clean (offset 0C0h). A set bit: software has not changed these fields since the last VMRUN of the VMCB.
/// See: APM 15.15.3 VMCB Clean Field
#[bitfield(u32)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Clean {
    /// Intercept vectors, TSC offset, pause filter.
    pub intercepts: bool,
    /// IOPM and MSRPM base.
    pub iopm: bool,
    pub asid: bool,
    /// V_TPR, V_IRQ, V_INTR_PRIO, V_IGN_TPR, V_INTR_MASKING, V_INTR_VECTOR.
    pub tpr: bool,
    /// nCR3, G_PAT.
    pub np: bool,
    /// CR0, CR3, CR4, EFER.
    pub crx: bool,
    /// DR6, DR7.
    pub drx: bool,
    /// GDT and IDT base and limit.
    pub dt: bool,
    /// ES, CS, SS, DS and CPL.
    pub seg: bool,
    pub cr2: bool,
    /// DBGCTL, BR_FROM, BR_TO, LASTEXCP_FROM, LASTEXCP_TO.
    pub lbr: bool,
    /// AVIC's pointers.
    pub avic: bool,
    /// S_CET, SSP, ISST_ADDR.
    pub cet: bool,
    #[bits(18)]
    __: u32,
    /// Kept for the hypervisor below a hypervisor. See: APM 15.15.3
    pub software: bool,
}

impl Clean {
    /// Everything that a clean bit covers.
    pub const ALL: Self = Self::from_bits(u32::MAX);
}

impl Vmcb {
    /// Loads from memory what the clean bits do not allow to keep; what no clean bit covers is always loaded.
    pub fn load(&mut self, memory: &Self, clean: Clean) {
        let (to, from) = (&mut self.control, &memory.control);
        (to.tlb_ctl, to.nested_ctl, to.virt_ext) = (from.tlb_ctl, from.nested_ctl, from.virt_ext);
        (to.int_state, to.event_inj, to.event_inj_err) = (from.int_state, from.event_inj, from.event_inj_err);
        if !clean.intercepts() {
            (to.intercepts, to.tsc_offset) = (from.intercepts, from.tsc_offset);
            (to.pause_filter_count, to.pause_filter_thresh) =
                (from.pause_filter_count, from.pause_filter_thresh);
        }
        if !clean.iopm() {
            (to.iopm_base_pa, to.msrpm_base_pa) = (from.iopm_base_pa, from.msrpm_base_pa);
        }
        if !clean.asid() {
            to.asid = from.asid;
        }
        if !clean.tpr() {
            (to.int_ctl, to.int_vector) = (from.int_ctl, from.int_vector);
        }
        if !clean.np() {
            to.nested_cr3 = from.nested_cr3;
        }
        if !clean.avic() {
            (to.avic_apic_bar, to.avic_backing_page) = (from.avic_apic_bar, from.avic_backing_page);
            (to.avic_logical_id, to.avic_physical_id) = (from.avic_logical_id, from.avic_physical_id);
        }
        self.load_save(memory, clean);
    }

    fn load_save(&mut self, memory: &Self, clean: Clean) {
        let (to, from) = (&mut self.save, &memory.save);
        (to.rflags, to.rip, to.rsp, to.rax) = (from.rflags, from.rip, from.rsp, from.rax);
        if !clean.np() {
            to.g_pat = from.g_pat;
        }
        if !clean.crx() {
            (to.cr0, to.cr3, to.cr4, to.efer) = (from.cr0, from.cr3, from.cr4, from.efer);
        }
        if !clean.drx() {
            (to.dr6, to.dr7) = (from.dr6, from.dr7);
        }
        if !clean.dt() {
            (to.gdtr, to.idtr) = (from.gdtr, from.idtr);
        }
        if !clean.seg() {
            (to.es, to.cs, to.ss, to.ds, to.cpl) = (from.es, from.cs, from.ss, from.ds, from.cpl);
        }
        if !clean.cr2() {
            to.cr2 = from.cr2;
        }
        if !clean.lbr() {
            (to.dbgctl, to.br_from, to.br_to) = (from.dbgctl, from.br_from, from.br_to);
            (to.last_excp_from, to.last_excp_to) = (from.last_excp_from, from.last_excp_to);
        }
        if !clean.cet() {
            (to.s_cet, to.ssp, to.isst_addr) = (from.s_cet, from.ssp, from.isst_addr);
        }
    }
}
