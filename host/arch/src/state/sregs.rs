//! `struct kvm_sregs2`: segments, tables, control registers, and PAE's page-directory pointers.

use crate::{
    paging::PagingMode,
    regs::SegAttr,
    vcpu::{Segment, TableReg, VcpuState, seg},
};
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// `struct kvm_segment`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
pub struct KernelSegment {
    pub base: u64,
    pub limit: u32,
    pub selector: u16,
    pub typ: u8,
    pub present: u8,
    pub dpl: u8,
    pub db: u8,
    pub s: u8,
    pub l: u8,
    pub g: u8,
    pub avl: u8,
    pub unusable: u8,
    pub padding: u8,
}

/// `struct kvm_dtable`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
pub struct KernelTable {
    pub base: u64,
    pub limit: u16,
    pub padding: [u16; 3],
}

/// `struct kvm_sregs2`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
pub struct Sregs2 {
    /// CS, DS, ES, FS, GS, SS, TR, LDTR.
    pub segments: [KernelSegment; 8],
    pub gdt: KernelTable,
    pub idt: KernelTable,
    pub cr0: u64,
    pub cr2: u64,
    pub cr3: u64,
    pub cr4: u64,
    pub cr8: u64,
    pub efer: u64,
    pub apic_base: u64,
    pub flags: u64,
    pub pdptrs: [u64; 4],
}

const _: () = assert!(size_of::<Sregs2>() == 320);

/// Segments by their encoding number, in the kernel's order.
const ORDER: [usize; 8] = [seg::CS, seg::DS, seg::ES, seg::FS, seg::GS, seg::SS, seg::TR, seg::LDTR];
const CS: usize = 0;
const SS: usize = 5;

impl Sregs2 {
    /// KVM_SREGS2_FLAGS_PDPTRS_VALID.
    pub const PDPTRS_VALID: u64 = 1;

    pub fn of(state: &VcpuState, apic_base: u64) -> Self {
        let mut segments = ORDER.map(|number| KernelSegment::of(&state.seg[number]));
        // Where silicon keeps CPL, under both vendors. See: KVM svm/svm.c svm_get_segment(), vmx/vmx.c vmx_get_cpl()
        segments[SS].dpl = state.cpl as u8;
        let valid = is_pae_paging(state);
        Self {
            segments,
            gdt: KernelTable::of(&state.gdtr),
            idt: KernelTable::of(&state.idtr),
            cr0: state.cr0,
            cr2: state.cr2,
            cr3: state.cr3,
            cr4: state.cr4,
            cr8: state.cr8,
            efer: state.efer,
            apic_base,
            flags: if valid { Self::PDPTRS_VALID } else { 0 },
            pdptrs: if valid { state.pdptr } else { [0; 4] },
        }
    }

    /// CS.L: a 64-bit code segment.
    pub fn cs_is_64bit(&self) -> bool {
        self.segments[CS].l != 0
    }

    /// Everything but APIC_BASE, which is the local APIC's; page-directory pointers if they are valid.
    pub fn apply(&self, state: &mut VcpuState) {
        for (number, segment) in ORDER.into_iter().zip(&self.segments) {
            state.seg[number] = segment.segment();
        }
        state.gdtr = self.gdt.register();
        state.idtr = self.idt.register();
        (state.cr0, state.cr2, state.cr3, state.cr4) = (self.cr0, self.cr2, self.cr3, self.cr4);
        state.efer = self.efer;
        // `kvm_set_cr8` ignores what it does not take.
        if self.cr8 <= 0xf {
            state.cr8 = self.cr8;
        }
        state.cpl = u32::from(self.segments[SS].dpl & 3);
        if self.flags & Self::PDPTRS_VALID != 0 {
            state.pdptr = self.pdptrs;
        }
    }
}

/// `is_pae_paging`.
pub fn is_pae_paging(state: &VcpuState) -> bool {
    state.paging_mode() == PagingMode::Pae
}

impl KernelSegment {
    fn of(segment: &Segment) -> Self {
        let attr = segment.attr;
        Self {
            base: segment.base,
            limit: segment.limit,
            selector: segment.selector,
            typ: attr.typ(),
            present: attr.present().into(),
            dpl: attr.dpl(),
            db: attr.db().into(),
            s: attr.s().into(),
            l: attr.l().into(),
            g: attr.g().into(),
            avl: attr.avl().into(),
            unusable: (!attr.present()).into(),
            padding: 0,
        }
    }

    fn segment(&self) -> Segment {
        let attr = SegAttr::new()
            .with_typ(self.typ & 0xf)
            .with_s(self.s != 0)
            .with_dpl(self.dpl & 3)
            .with_present(self.present != 0 && self.unusable == 0)
            .with_avl(self.avl != 0)
            .with_l(self.l != 0)
            .with_db(self.db != 0)
            .with_g(self.g != 0);
        Segment { base: self.base, limit: self.limit, selector: self.selector, attr }
    }
}

impl KernelTable {
    fn of(register: &TableReg) -> Self {
        Self { base: register.base, limit: register.limit, padding: [0; 3] }
    }

    fn register(&self) -> TableReg {
        TableReg { base: self.base, limit: self.limit, pad: [0; 3] }
    }
}
