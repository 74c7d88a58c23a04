//! Selectors, segment and system descriptors, gates, and the task-state segments.
//!
//! See: SDM vol. 3A 3.4.2 Segment Selectors, 3.4.5 Segment Descriptors, 6.11 IDT Descriptors, 8.2.1 Task-State Segment

use crate::{
    open_enum,
    regs::SegAttr,
    vcpu::{Segment, seg},
};
use bitfield_struct::bitfield;
use serde::{Deserialize, Serialize};

/// A segment selector.
#[bitfield(u16)]
#[derive(PartialEq, Eq, Serialize, Deserialize)]
pub struct Selector {
    #[bits(2)]
    pub rpl: u8,
    /// The descriptor is in the LDT.
    pub ti: bool,
    #[bits(13)]
    pub index: u16,
}

impl Selector {
    /// Whether this is one of the four null selectors.
    pub const fn is_null(self) -> bool {
        self.index() == 0 && !self.ti()
    }

    /// Offset of the descriptor in its table.
    pub const fn offset(self) -> u32 {
        self.index() as u32 * 8
    }

    /// The error code of an exception caused by this selector.
    pub const fn error(self) -> SelectorError {
        SelectorError::new().with_ti(self.ti()).with_index(self.index())
    }
}

/// An error code that names a selector or a gate. See: SDM vol. 3A 6.13 Error Code
#[bitfield(u32)]
#[derive(PartialEq, Eq, Serialize, Deserialize)]
pub struct SelectorError {
    /// An event external to the program was being delivered.
    pub ext: bool,
    /// The index is a vector.
    pub idt: bool,
    pub ti: bool,
    #[bits(13)]
    pub index: u16,
    __: u16,
}

impl SelectorError {
    /// The error code that names the IDT entry of a vector.
    pub const fn vector(vector: u8) -> Self {
        Self::new().with_idt(true).with_index(vector as u16)
    }
}

open_enum! {
    /// Type of a system descriptor (S=0). See: SDM vol. 3A Table 3-2. System-Segment and Gate-Descriptor Types
    pub struct SystemType(u8) {
        TSS16_AVAILABLE = 1 => "16-bit TSS (available)",
        LDT = 2 => "LDT",
        TSS16_BUSY = 3 => "16-bit TSS (busy)",
        CALL_GATE16 = 4 => "16-bit call gate",
        TASK_GATE = 5 => "task gate",
        INTERRUPT_GATE16 = 6 => "16-bit interrupt gate",
        TRAP_GATE16 = 7 => "16-bit trap gate",
        TSS_AVAILABLE = 9 => "TSS (available)",
        TSS_BUSY = 11 => "TSS (busy)",
        CALL_GATE = 12 => "call gate",
        INTERRUPT_GATE = 14 => "interrupt gate",
        TRAP_GATE = 15 => "trap gate",
    }
}

/// Type of a code or data descriptor (S=1). See: SDM vol. 3A Table 3-1. Code- and Data-Segment Types
#[bitfield(u8)]
#[derive(PartialEq, Eq, Serialize, Deserialize)]
pub struct SegType {
    pub accessed: bool,
    /// Data: writable. Code: readable.
    pub write_read: bool,
    /// Data: expand-down. Code: conforming.
    pub down_conforming: bool,
    pub code: bool,
    #[bits(4)]
    __: u8,
}

impl SegType {
    pub const fn is_conforming_code(self) -> bool {
        self.code() && self.down_conforming()
    }

    pub const fn is_readable(self) -> bool {
        !self.code() || self.write_read()
    }

    pub const fn is_writable(self) -> bool {
        !self.code() && self.write_read()
    }

    pub const fn is_expand_down(self) -> bool {
        !self.code() && self.down_conforming()
    }
}

/// A segment descriptor, or the low half of a 16-byte system descriptor.
#[bitfield(u64)]
#[derive(PartialEq, Eq, Serialize, Deserialize)]
pub struct Descriptor {
    pub limit_low: u16,
    #[bits(24)]
    pub base_low: u32,
    #[bits(4)]
    pub typ: u8,
    /// Code or data rather than system.
    pub s: bool,
    #[bits(2)]
    pub dpl: u8,
    pub present: bool,
    #[bits(4)]
    pub limit_high: u8,
    pub avl: bool,
    pub l: bool,
    pub db: bool,
    pub g: bool,
    pub base_high: u8,
}

impl Descriptor {
    /// The 32-bit base address.
    pub const fn base(self) -> u64 {
        (self.base_low() | (self.base_high() as u32) << 24) as u64
    }

    /// The limit in bytes.
    pub const fn limit(self) -> u32 {
        let raw = self.limit_low() as u32 | (self.limit_high() as u32) << 16;
        if self.g() { raw << 12 | 0xfff } else { raw }
    }

    pub const fn seg_type(self) -> SegType {
        SegType::from_bits(self.typ())
    }

    pub const fn system_type(self) -> SystemType {
        SystemType(self.typ())
    }

    pub const fn is_code(self) -> bool {
        self.s() && self.seg_type().code()
    }

    pub const fn is_data(self) -> bool {
        self.s() && !self.seg_type().code()
    }

    /// Whether this is a system descriptor of the given type.
    pub const fn is_system(self, typ: SystemType) -> bool {
        !self.s() && self.typ() == typ.0
    }

    /// The attributes as a segment register holds them.
    pub const fn attr(self) -> SegAttr {
        SegAttr::new()
            .with_typ(self.typ())
            .with_s(self.s())
            .with_dpl(self.dpl())
            .with_present(self.present())
            .with_avl(self.avl())
            .with_l(self.l())
            .with_db(self.db())
            .with_g(self.g())
    }

    /// The segment register that a load of this descriptor gives.
    pub const fn segment(self, selector: u16) -> Segment {
        Segment { base: self.base(), limit: self.limit(), selector, attr: self.attr() }
    }
}

/// A call, interrupt, trap or task gate; in IA-32e mode the low half of one.
#[bitfield(u64)]
#[derive(PartialEq, Eq, Serialize, Deserialize)]
pub struct Gate {
    pub offset_low: u16,
    pub selector: u16,
    /// 32-bit call gate: parameters to copy. IA-32e interrupt gate: index into the interrupt stack table.
    #[bits(5)]
    pub count_or_ist: u8,
    #[bits(3)]
    __: u8,
    #[bits(4)]
    pub typ: u8,
    pub s: bool,
    #[bits(2)]
    pub dpl: u8,
    pub present: bool,
    pub offset_high: u16,
}

impl Gate {
    /// The entry point's low 32 bits.
    pub const fn offset(self) -> u32 {
        self.offset_low() as u32 | (self.offset_high() as u32) << 16
    }

    /// Index into the interrupt stack table; zero: none.
    pub const fn ist(self) -> u8 {
        self.count_or_ist() & 7
    }

    pub const fn system_type(self) -> SystemType {
        SystemType(self.typ())
    }
}

/// Offsets in the 64-bit TSS. See: SDM vol. 3A Figure 8-11. 64-Bit TSS Format
pub mod tss64 {
    /// RSP for a privilege level.
    pub const fn rsp(level: u8) -> u32 {
        4 + 8 * level as u32
    }

    /// Entry 1 to 7 of the interrupt stack table.
    pub const fn ist(index: u8) -> u32 {
        0x24 + 8 * (index as u32 - 1)
    }
}

/// Offsets in the 32-bit TSS. See: SDM vol. 3A Figure 8-2. 32-Bit Task-State Segment (TSS)
pub mod tss32 {
    /// ESP for a privilege level.
    pub const fn esp(level: u8) -> u32 {
        4 + 8 * level as u32
    }

    /// SS for a privilege level.
    pub const fn ss(level: u8) -> u32 {
        8 + 8 * level as u32
    }

    pub const CR3: u32 = 0x1c;
    pub const EIP: u32 = 0x20;
    pub const EFLAGS: u32 = 0x24;
    /// EAX, ECX, EDX, EBX, ESP, EBP, ESI, EDI.
    pub const GPR: u32 = 0x28;
    /// ES, CS, SS, DS, FS, GS.
    pub const SEG: u32 = 0x48;
    pub const LDTR: u32 = 0x60;
    /// Bit 0 raises #DB on a switch to the task.
    pub const TRAP: u32 = 0x64;
    /// Offset of the I/O permission bitmap, at the same place in the 64-bit TSS.
    pub const IO_MAP_BASE: u32 = 0x66;
}

/// Offsets in the 16-bit TSS. See: SDM vol. 3A Figure 8-10. 16-Bit TSS Format
pub mod tss16 {
    /// SP for a privilege level.
    pub const fn sp(level: u8) -> u32 {
        2 + 4 * level as u32
    }

    /// SS for a privilege level.
    pub const fn ss(level: u8) -> u32 {
        4 + 4 * level as u32
    }
}

impl Segment {
    /// A segment register after a null selector was loaded: unusable.
    pub const fn null(selector: u16) -> Self {
        Self { base: 0, limit: 0, selector, attr: SegAttr::new() }
    }

    /// A segment register as real and virtual-8086 mode load it: only base and selector matter.
    pub const fn real(selector: u16, dpl: u8) -> Self {
        let attr = SegAttr::new().with_typ(3).with_s(true).with_dpl(dpl).with_present(true);
        Self { base: (selector as u64) << 4, limit: 0xffff, selector, attr }
    }

    /// The type as a code or data segment.
    pub const fn seg_type(&self) -> SegType {
        SegType::from_bits(self.attr.typ())
    }
}

/// The segment registers' names by their encoding number.
pub const SEG_NAMES: [&str; 8] = ["ES", "CS", "SS", "DS", "FS", "GS", "LDTR", "TR"];

const _: () = assert!(seg::TR == 7);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flat_code_descriptor() {
        let d = Descriptor::from_bits(0x00af_9b00_0000_ffff);
        assert!(d.is_code() && d.present() && d.l() && !d.db() && d.g());
        assert_eq!((d.base(), d.limit(), d.dpl()), (0, 0xffff_ffff, 0));
        assert!(d.seg_type().accessed() && d.seg_type().is_readable());
    }

    #[test]
    fn bases_and_limits() {
        let d = Descriptor::from_bits(0x1200_8934_5678_0067);
        assert_eq!((d.base(), d.limit()), (0x1234_5678, 0x67));
        assert!(d.is_system(SystemType::TSS_AVAILABLE));
    }

    #[test]
    fn errors_name_the_selector() {
        assert_eq!(Selector::from_bits(0x2b).error().into_bits(), 0x28);
        assert_eq!(Selector::from_bits(0x2f).error().into_bits(), 0x2c);
        assert_eq!(SelectorError::vector(14).into_bits(), 14 << 3 | 2);
    }
}
