//! The state-save area, which KVM writes to the end of the handler's 64 KiB and reads again at RSM: as AMD64 has it for a guest
//! with long mode, and as the P6 has it for others.
//!
//! See: KVM arch/x86/kvm/smm.h struct kvm_smram_state_64, struct kvm_smram_state_32 (6.12); before, by offsets, x86.c
//! enter_smm_save_state_64(), enter_smm_save_state_32()

use vmtape_arch::{
    regs::SegAttr,
    state::interrupt_shadow,
    vcpu::{Segment, TableReg, VcpuState, seg},
};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes};

/// From SMBASE.
pub const OFFSET: u64 = 0xfe00;
pub const SIZE: usize = 512;
const REVISION_64: u32 = 0x0002_0064;
const REVISION_32: u32 = 0x0002_0000;

/// `union kvm_smram`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SaveState {
    Long(Box<SaveState64>),
    Legacy(Box<SaveState32>),
}

/// A segment register, or a descriptor table of which only limit and base count (`struct kvm_smm_seg_state_64`).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
pub struct Segment64 {
    selector: u16,
    /// [`SegAttr`].
    attributes: u16,
    limit: u32,
    base: u64,
}

/// `struct kvm_smram_state_64`.
#[repr(C)]
#[derive(Clone, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
pub struct SaveState64 {
    /// In the order of their encoding numbers.
    segments: [Segment64; 6],
    gdtr: Segment64,
    ldtr: Segment64,
    idtr: Segment64,
    tr: Segment64,
    io_restart: [u64; 5],
    io_inst_restart: u8,
    auto_hlt_restart: u8,
    nmi_mask: u8,
    /// Bits of [`interrupt_shadow`]: an extension of KVM's.
    interrupt_shadow: u8,
    reserved: u32,
    pub efer: u64,
    /// Not zero where L2 ran.
    pub svm_guest: u64,
    /// Its VMCB.
    pub svm_guest_vmcb: u64,
    reserved_before_revision: [u32; 5],
    revision: u32,
    smbase: u32,
    reserved_behind_smbase: [u32; 5],
    not_implemented: [u64; 6],
    cr4: u64,
    cr3: u64,
    cr0: u64,
    dr7: u64,
    dr6: u64,
    rflags: u64,
    rip: u64,
    /// From R15 down to RAX.
    gprs: [u64; 16],
}

/// `struct kvm_smm_seg_state_32`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
pub struct Segment32 {
    /// [`SegAttr`] from bit 8 on.
    flags: u32,
    limit: u32,
    base: u32,
}

/// `struct kvm_smram_state_32`.
#[repr(C)]
#[derive(Clone, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
pub struct SaveState32 {
    reserved: [u32; 62],
    smbase: u32,
    revision: u32,
    io_restart: [u32; 5],
    cr4: u32,
    reserved_before_shadow: u16,
    interrupt_shadow: u8,
    reserved_behind_shadow: [u8; 17],
    data: [Segment32; 3],
    idtr: Segment32,
    tr: Segment32,
    reserved_behind_tr: u32,
    gdtr: Segment32,
    ldtr: Segment32,
    es_cs_ss: [Segment32; 3],
    /// ES, CS, SS, DS, FS, GS, LDTR, TR.
    selectors: [u32; 8],
    dr7: u32,
    dr6: u32,
    gprs: [u32; 8],
    eip: u32,
    eflags: u32,
    cr3: u32,
    cr0: u32,
}

const _: () = assert!(size_of::<SaveState64>() == SIZE && size_of::<SaveState32>() == SIZE);

/// What RSM loads by steps that may fail; all other registers are loaded by [`SaveState::load_rest`] and
/// [`SaveState::load_tables`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Control {
    pub cr0: u64,
    pub cr3: u64,
    pub cr4: u64,
    /// `None`: the format has none.
    pub efer: Option<u64>,
    pub dr6: u64,
    pub dr7: u64,
    pub smbase: u64,
}

impl SaveState {
    /// What KVM saves of a guest with long mode, or without. `shadow`: the interrupt shadow too.
    pub fn of(state: &VcpuState, long: bool, smbase: u64, shadow: bool) -> Self {
        let shadow = if shadow { shadow_of(state) } else { 0 };
        match long {
            true => Self::Long(Box::new(SaveState64::of(state, smbase, shadow))),
            false => Self::Legacy(Box::new(SaveState32::of(state, smbase, shadow))),
        }
    }

    pub fn bytes(&self) -> &[u8] {
        match self {
            Self::Long(area) => area.as_bytes(),
            Self::Legacy(area) => area.as_bytes(),
        }
    }

    pub fn from_bytes(bytes: &[u8; SIZE], long: bool) -> Self {
        match long {
            true => Self::Long(Box::new(zerocopy::transmute!(*bytes))),
            false => Self::Legacy(Box::new(zerocopy::transmute!(*bytes))),
        }
    }

    pub fn control(&self) -> Control {
        match self {
            Self::Long(area) => Control {
                cr0: area.cr0,
                cr3: area.cr3,
                cr4: area.cr4,
                efer: Some(area.efer),
                dr6: area.dr6,
                dr7: area.dr7,
                smbase: area.smbase.into(),
            },
            Self::Legacy(area) => Control {
                cr0: area.cr0.into(),
                cr3: area.cr3.into(),
                cr4: area.cr4.into(),
                efer: None,
                dr6: area.dr6.into(),
                dr7: area.dr7.into(),
                smbase: area.smbase.into(),
            },
        }
    }

    /// TR, LDTR, GDTR and IDTR.
    pub fn load_tables(&self, state: &mut VcpuState) {
        match self {
            Self::Long(area) => {
                (state.gdtr, state.idtr) = (area.gdtr.table(), area.idtr.table());
                (state.seg[seg::LDTR], state.seg[seg::TR]) = (area.ldtr.segment(), area.tr.segment());
            }
            Self::Legacy(area) => {
                (state.gdtr, state.idtr) = (area.gdtr.table(), area.idtr.table());
                state.seg[seg::LDTR] = area.ldtr.segment(area.selectors[seg::LDTR]);
                state.seg[seg::TR] = area.tr.segment(area.selectors[seg::TR]);
            }
        }
    }

    /// The segments that code uses.
    pub fn load_segments(&self, state: &mut VcpuState) {
        match self {
            Self::Long(area) => {
                for (to, from) in state.seg.iter_mut().zip(&area.segments) {
                    *to = from.segment();
                }
            }
            Self::Legacy(area) => {
                let from = area.es_cs_ss.iter().chain(&area.data).zip(area.selectors);
                for (to, (from, selector)) in state.seg.iter_mut().zip(from) {
                    *to = from.segment(selector);
                }
            }
        }
    }

    /// General registers, RFLAGS and RIP, without the bit of RFLAGS that is always one.
    pub fn load_rest(&self, state: &mut VcpuState) {
        match self {
            Self::Long(area) => {
                for (to, from) in state.gpr.iter_mut().zip(area.gprs.iter().rev()) {
                    *to = *from;
                }
                (state.rip, state.rflags) = (area.rip, area.rflags);
            }
            Self::Legacy(area) => {
                for (to, from) in state.gpr.iter_mut().zip(area.gprs) {
                    *to = from.into();
                }
                (state.rip, state.rflags) = (area.eip.into(), area.eflags.into());
            }
        }
    }

    /// Bits of [`interrupt_shadow`].
    pub fn interrupt_shadow(&self) -> u8 {
        match self {
            Self::Long(area) => area.interrupt_shadow,
            Self::Legacy(area) => area.interrupt_shadow,
        }
    }
}

/// `get_interrupt_shadow`.
fn shadow_of(state: &VcpuState) -> u8 {
    let of = |on: bool, bit: u8| if on { bit } else { 0 };
    let shadow = state.interruptibility;
    of(shadow.sti(), interrupt_shadow::STI) | of(shadow.mov_ss(), interrupt_shadow::MOV_SS)
}

impl SaveState64 {
    fn of(state: &VcpuState, smbase: u64, interrupt_shadow: u8) -> Self {
        let mut gprs = state.gpr;
        gprs.reverse();
        Self {
            segments: std::array::from_fn(|n| Segment64::of(&state.seg[n])),
            gdtr: Segment64::of_table(&state.gdtr),
            ldtr: Segment64::of(&state.seg[seg::LDTR]),
            idtr: Segment64::of_table(&state.idtr),
            tr: Segment64::of(&state.seg[seg::TR]),
            interrupt_shadow,
            efer: state.efer,
            revision: REVISION_64,
            smbase: smbase as u32,
            cr4: state.cr4,
            cr3: state.cr3,
            cr0: state.cr0,
            dr7: state.dr7,
            dr6: state.dr6,
            rflags: state.rflags,
            rip: state.rip,
            gprs,
            ..Self::new_zeroed()
        }
    }
}

impl SaveState32 {
    fn of(state: &VcpuState, smbase: u64, interrupt_shadow: u8) -> Self {
        let segment = |n: usize| Segment32::of(&state.seg[n]);
        Self {
            smbase: smbase as u32,
            revision: REVISION_32,
            cr4: state.cr4 as u32,
            interrupt_shadow,
            data: [seg::DS, seg::FS, seg::GS].map(segment),
            idtr: Segment32::of_table(&state.idtr),
            tr: segment(seg::TR),
            gdtr: Segment32::of_table(&state.gdtr),
            ldtr: segment(seg::LDTR),
            es_cs_ss: [seg::ES, seg::CS, seg::SS].map(segment),
            selectors: std::array::from_fn(|n| state.seg[n].selector.into()),
            dr7: state.dr7 as u32,
            dr6: state.dr6 as u32,
            gprs: std::array::from_fn(|n| state.gpr[n] as u32),
            eip: state.rip as u32,
            eflags: state.rflags as u32,
            cr3: state.cr3 as u32,
            cr0: state.cr0 as u32,
            ..Self::new_zeroed()
        }
    }
}

impl Segment64 {
    fn of(from: &Segment) -> Self {
        let attributes = from.attr.into_bits();
        Self { selector: from.selector, attributes, limit: from.limit, base: from.base }
    }

    fn of_table(from: &TableReg) -> Self {
        Self { limit: from.limit.into(), base: from.base, ..Self::default() }
    }

    fn segment(&self) -> Segment {
        let attr = SegAttr::from_bits(self.attributes);
        Segment { selector: self.selector, attr, limit: self.limit, base: self.base }
    }

    fn table(&self) -> TableReg {
        TableReg { base: self.base, limit: self.limit as u16, ..Default::default() }
    }
}

impl Segment32 {
    fn of(from: &Segment) -> Self {
        let flags = u32::from(from.attr.into_bits()) << 8;
        Self { flags, limit: from.limit, base: from.base as u32 }
    }

    fn of_table(from: &TableReg) -> Self {
        Self { limit: from.limit.into(), base: from.base as u32, ..Self::default() }
    }

    fn segment(&self, selector: u32) -> Segment {
        Segment {
            selector: selector as u16,
            attr: SegAttr::from_bits((self.flags >> 8) as u16),
            limit: self.limit,
            base: self.base.into(),
        }
    }

    fn table(&self) -> TableReg {
        TableReg { base: self.base.into(), limit: self.limit as u16, ..Default::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::mem::offset_of;

    /// Where KVM's own build asserts its fields to be, from SMBASE. See: KVM smm.c check_smram_offsets() (6.12)
    #[test]
    fn fields_lie_where_kvm_has_them() {
        let base = OFFSET as usize;
        for (field, expected) in [
            (offset_of!(SaveState32, smbase), 0xfef8),
            (offset_of!(SaveState32, revision), 0xfefc),
            (offset_of!(SaveState32, cr4), 0xff14),
            (offset_of!(SaveState32, interrupt_shadow), 0xff1a),
            (offset_of!(SaveState32, data), 0xff2c),
            (offset_of!(SaveState32, idtr), 0xff50),
            (offset_of!(SaveState32, tr), 0xff5c),
            (offset_of!(SaveState32, gdtr), 0xff6c),
            (offset_of!(SaveState32, ldtr), 0xff78),
            (offset_of!(SaveState32, es_cs_ss), 0xff84),
            (offset_of!(SaveState32, selectors), 0xffa8),
            (offset_of!(SaveState32, dr7), 0xffc8),
            (offset_of!(SaveState32, gprs), 0xffd0),
            (offset_of!(SaveState32, eip), 0xfff0),
            (offset_of!(SaveState32, cr0), 0xfffc),
            (offset_of!(SaveState64, segments), 0xfe00),
            (offset_of!(SaveState64, gdtr), 0xfe60),
            (offset_of!(SaveState64, ldtr), 0xfe70),
            (offset_of!(SaveState64, idtr), 0xfe80),
            (offset_of!(SaveState64, tr), 0xfe90),
            (offset_of!(SaveState64, io_restart), 0xfea0),
            (offset_of!(SaveState64, io_inst_restart), 0xfec8),
            (offset_of!(SaveState64, interrupt_shadow), 0xfecb),
            (offset_of!(SaveState64, efer), 0xfed0),
            (offset_of!(SaveState64, svm_guest), 0xfed8),
            (offset_of!(SaveState64, svm_guest_vmcb), 0xfee0),
            (offset_of!(SaveState64, revision), 0xfefc),
            (offset_of!(SaveState64, smbase), 0xff00),
            (offset_of!(SaveState64, cr4), 0xff48),
            (offset_of!(SaveState64, cr0), 0xff58),
            (offset_of!(SaveState64, dr6), 0xff68),
            (offset_of!(SaveState64, rip), 0xff78),
            (offset_of!(SaveState64, gprs), 0xff80),
        ] {
            assert_eq!(base + field, expected);
        }
    }

    /// What is saved is what is loaded, in both formats.
    #[test]
    fn registers_come_back() {
        let mut state = VcpuState::reset();
        for n in 0..16 {
            state.gpr[n] = 0x1000 + n as u64;
        }
        for n in 0..8 {
            state.seg[n] = Segment { selector: n as u16, base: 0x10 * n as u64, ..state.seg[n] };
        }
        (state.rip, state.rflags) = (0x1234, 0x246);
        state.gdtr = TableReg { base: 0x5000, limit: 0x3f, ..Default::default() };
        state.interruptibility = state.interruptibility.with_sti(true);
        for long in [true, false] {
            let saved = SaveState::of(&state, long, 0x3_0000, true);
            let bytes: [u8; SIZE] = saved.bytes().try_into().unwrap();
            let read = SaveState::from_bytes(&bytes, long);
            let mut loaded = VcpuState::reset();
            read.load_tables(&mut loaded);
            read.load_segments(&mut loaded);
            read.load_rest(&mut loaded);
            let general = if long { 16 } else { 8 };
            assert_eq!((loaded.seg, loaded.gdtr), (state.seg, state.gdtr), "{long}");
            assert_eq!(loaded.gpr[..general], state.gpr[..general], "{long}");
            assert_eq!((loaded.rip, loaded.rflags), (state.rip, state.rflags), "{long}");
            assert_eq!(read.control().smbase, 0x3_0000);
            assert_eq!(read.interrupt_shadow(), interrupt_shadow::STI);
        }
    }
}
