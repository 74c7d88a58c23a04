//! The state-save area of a VMCB.
//!
//! Manual: AMD APM volume 2, 24593 rev. 3.42, Table B-2 VMCB Layout, State Save Area.

use super::control::offsets;
use serde::{Deserialize, Serialize};
use vmtape_arch::{
    regs::{Cr0, SegAttr},
    vcpu::{Segment, TableReg, VcpuState, gpr, seg},
};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Offsets 400h to FFFh of the VMCB.
#[repr(C)]
#[derive(Clone, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct SaveArea {
    pub es: VmcbSegment,
    pub cs: VmcbSegment,
    pub ss: VmcbSegment,
    pub ds: VmcbSegment,
    pub fs: VmcbSegment,
    pub gs: VmcbSegment,
    /// Base and limit only.
    pub gdtr: VmcbSegment,
    pub ldtr: VmcbSegment,
    /// Base and limit only.
    pub idtr: VmcbSegment,
    pub tr: VmcbSegment,
    reserved_0a0: [u8; 0x2a],
    pub vmpl: u8,
    pub cpl: u8,
    reserved_0cc: [u8; 4],
    pub efer: u64,
    reserved_0d8: [u8; 0x70],
    pub cr4: u64,
    pub cr3: u64,
    pub cr0: u64,
    pub dr7: u64,
    pub dr6: u64,
    pub rflags: u64,
    pub rip: u64,
    reserved_180: [u8; 0x58],
    pub rsp: u64,
    pub s_cet: u64,
    pub ssp: u64,
    pub isst_addr: u64,
    pub rax: u64,
    pub star: u64,
    pub lstar: u64,
    pub cstar: u64,
    pub sfmask: u64,
    pub kernel_gs_base: u64,
    pub sysenter_cs: u64,
    pub sysenter_esp: u64,
    pub sysenter_eip: u64,
    pub cr2: u64,
    reserved_248: [u8; 0x20],
    pub g_pat: u64,
    pub dbgctl: u64,
    pub br_from: u64,
    pub br_to: u64,
    pub last_excp_from: u64,
    pub last_excp_to: u64,
    reserved_298: [u8; 0x48],
    pub spec_ctrl: u64,
    reserved_2e8: [u8; 0x918],
}

offsets! { SaveArea:
    es @ 0x000, cs @ 0x010, ss @ 0x020, ds @ 0x030, fs @ 0x040, gs @ 0x050, gdtr @ 0x060, ldtr @ 0x070, idtr @ 0x080,
    tr @ 0x090, vmpl @ 0x0ca, cpl @ 0x0cb, efer @ 0x0d0, cr4 @ 0x148, cr3 @ 0x150, cr0 @ 0x158, dr7 @ 0x160,
    dr6 @ 0x168, rflags @ 0x170, rip @ 0x178, rsp @ 0x1d8, s_cet @ 0x1e0, ssp @ 0x1e8, isst_addr @ 0x1f0, rax @ 0x1f8,
    star @ 0x200, lstar @ 0x208, cstar @ 0x210, sfmask @ 0x218, kernel_gs_base @ 0x220, sysenter_cs @ 0x228,
    sysenter_esp @ 0x230, sysenter_eip @ 0x238, cr2 @ 0x240, g_pat @ 0x268, dbgctl @ 0x270, br_from @ 0x278,
    br_to @ 0x280, last_excp_from @ 0x288, last_excp_to @ 0x290, spec_ctrl @ 0x2e0,
}
const _: () = assert!(size_of::<SaveArea>() == 0xc00);

/// A segment register in the VMCB.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct VmcbSegment {
    pub selector: u16,
    /// Descriptor bits 55:52 and 47:40 packed.
    pub attrib: u16,
    pub limit: u32,
    pub base: u64,
}

const _: () = assert!(size_of::<VmcbSegment>() == 0x10);

/// Attributes that a `SegAttr` has in its low byte too, and how far down the others move.
const LOW_ATTRIB: u16 = 0xff;
const HIGH_ATTRIB: u16 = 0xf00;
const GAP: u32 = 4;

impl From<&Segment> for VmcbSegment {
    fn from(segment: &Segment) -> Self {
        let attr = segment.attr.into_bits();
        let attrib = attr & LOW_ATTRIB | attr >> GAP & HIGH_ATTRIB;
        Self { selector: segment.selector, attrib, limit: segment.limit, base: segment.base }
    }
}

impl From<&VmcbSegment> for Segment {
    fn from(segment: &VmcbSegment) -> Self {
        let attr = SegAttr::from_bits(segment.attrib & LOW_ATTRIB | (segment.attrib & HIGH_ATTRIB) << GAP);
        Self { base: segment.base, limit: segment.limit, selector: segment.selector, attr }
    }
}

impl From<&TableReg> for VmcbSegment {
    fn from(table: &TableReg) -> Self {
        Self { base: table.base, limit: table.limit.into(), ..Default::default() }
    }
}

impl From<&VmcbSegment> for TableReg {
    fn from(table: &VmcbSegment) -> Self {
        Self { base: table.base, limit: table.limit as u16, ..Default::default() }
    }
}

impl VmcbSegment {
    /// The attributes as a segment register holds them.
    pub fn attr(&self) -> SegAttr {
        Segment::from(self).attr
    }
}

impl SaveArea {
    /// What #VMEXIT stores. Of CR0, CR3, CR4 and EFER silicon holds values of its own, and only what a guest can change without
    /// an exit differs from what VMRUN loaded: TS and MP, and with nested paging (`np`) CR3.
    pub fn store(&mut self, state: &VcpuState, np: bool) {
        (self.rax, self.rsp) = (state.gpr[gpr::RAX], state.gpr[gpr::RSP]);
        (self.rip, self.rflags, self.cr2) = (state.rip, state.rflags, state.cr2);
        (self.dr6, self.dr7) = (state.dr6, state.dr7);
        let guest = state.cr0();
        self.cr0 = Cr0::from_bits(self.cr0).with_ts(guest.ts()).with_mp(guest.mp()).into_bits();
        if np {
            self.cr3 = state.cr3;
        }
    }

    /// Writes GDTR and IDTR.
    pub fn store_tables(&mut self, mirror: &Mirror) {
        (self.gdtr, self.idtr) = ((&mirror.gdtr).into(), (&mirror.idtr).into());
    }

    /// Loads ES, CS, SS, DS, CPL, GDTR and IDTR. Real mode has CPL 0, virtual-8086 mode CPL 3.
    /// See: APM 15.5.1 Basic Operation, Loading Guest State
    pub fn load_segments(&self, state: &mut VcpuState) {
        for (to, from) in
            state.seg[seg::ES..=seg::DS].iter_mut().zip([&self.es, &self.cs, &self.ss, &self.ds])
        {
            *to = from.into();
        }
        (state.gdtr, state.idtr) = ((&self.gdtr).into(), (&self.idtr).into());
        state.cpl = match (state.cr0().pe(), state.rflags().vm()) {
            (false, _) => 0,
            (true, true) => 3,
            (true, false) => u32::from(self.cpl) & 3,
        };
    }

    /// Writes ES, CS, SS, DS and CPL.
    pub fn store_segments(&mut self, mirror: &Mirror) {
        let [es, cs, ss, ds] = mirror.seg.each_ref().map(VmcbSegment::from);
        (self.es, self.cs, self.ss, self.ds, self.cpl) = (es, cs, ss, ds, mirror.cpl);
    }
}

/// The registers behind ES, CS, SS, DS, CPL, GDTR and IDTR of a save area, as they were when those were last written:
/// registers that are still the same need no conversion.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mirror {
    seg: [Segment; 4],
    gdtr: TableReg,
    idtr: TableReg,
    cpl: u8,
}

impl Mirror {
    /// Takes the registers. Whether segments, and whether tables, differ from what was there.
    pub fn update(&mut self, state: &VcpuState) -> (bool, bool) {
        let segments = self.seg[..] != state.seg[seg::ES..=seg::DS] || u32::from(self.cpl) != state.cpl;
        if segments {
            self.seg.copy_from_slice(&state.seg[seg::ES..=seg::DS]);
            self.cpl = state.cpl as u8;
        }
        let tables = self.gdtr != state.gdtr || self.idtr != state.idtr;
        if tables {
            (self.gdtr, self.idtr) = (state.gdtr, state.idtr);
        }
        (segments, tables)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A flat 64-bit code segment: descriptor 00af9b00_0000ffff has attributes 0xa9b.
    #[test]
    fn segment_attributes() {
        let code = vmtape_arch::descriptor::Descriptor::from_bits(0x00af_9b00_0000_ffff).segment(8);
        let vmcb = VmcbSegment::from(&code);
        assert_eq!((vmcb.selector, vmcb.attrib, vmcb.limit, vmcb.base), (8, 0xa9b, u32::MAX, 0));
        assert_eq!(Segment::from(&vmcb), code);
    }
}
