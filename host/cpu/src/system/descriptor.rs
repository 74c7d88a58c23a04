//! Reading descriptors, and loading segment registers from them.
//!
//! See: SDM vol. 3A 5.5 Privilege Levels, 5.6 Privilege Level Checking When Accessing Data Segments

use crate::{core::Core, env::Interrupted};
use vmtape_arch::{
    descriptor::{Descriptor, Selector, SelectorError},
    event::EventKind,
    exception::{Exception, Vector},
    vcpu::{Segment, seg},
};

/// How the processor loads segments and takes events now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    Real,
    Virtual8086,
    /// Protected mode outside IA-32e mode.
    Protected,
    /// 64-bit and compatibility mode.
    Long,
}

/// Whether the type field in the upper half of a 16-byte descriptor is zero, as it must be.
/// See: SDM vol. 3A 3.5.2 Segment Descriptor Tables in IA-32e Mode
pub(super) fn is_upper_half_valid(high: u64) -> bool {
    let descriptor = Descriptor::from_bits(high);
    descriptor.typ() == 0 && !descriptor.s()
}

impl Core<'_> {
    pub(super) fn mode(&self) -> Mode {
        if self.state.efer().lma() {
            Mode::Long
        } else if !self.state.cr0().pe() {
            Mode::Real
        } else if self.flags().vm() {
            Mode::Virtual8086
        } else {
            Mode::Protected
        }
    }

    /// Whether segment registers hold paragraph numbers.
    pub(super) fn is_real_or_v86(&self) -> bool {
        matches!(self.mode(), Mode::Real | Mode::Virtual8086)
    }

    pub(super) fn cpl(&self) -> u8 {
        self.state.cpl as u8
    }

    /// Whether a fault now would be caused by an event from outside the program. See: SDM vol. 3A 6.13 Error Code
    fn is_external(&self) -> bool {
        let event = &self.state.delivering;
        event.valid.is_set()
            && !matches!(event.kind, EventKind::SOFTWARE_INTERRUPT | EventKind::SOFTWARE_EXCEPTION)
    }

    /// An exception whose error code names a selector or IDT entry, or nothing.
    pub(super) fn selector_fault(&self, vector: Vector, error: SelectorError) -> Interrupted {
        let error = error.with_ext(self.is_external());
        Interrupted::Fault(Exception::with_code(vector, error.into_bits()))
    }

    /// `Err` of [`Core::selector_fault`] for a selector.
    pub(super) fn bad<T>(&self, vector: Vector, selector: Selector) -> Result<T, Interrupted> {
        Err(self.selector_fault(vector, selector.error()))
    }

    /// As [`Core::bad`] unless `fine`.
    pub(super) fn require(&self, fine: bool, vector: Vector, selector: Selector) -> Result<(), Interrupted> {
        if fine { Ok(()) } else { self.bad(vector, selector) }
    }

    /// #GP(0), or #GP(EXT) in delivery, unless `fine`.
    pub(super) fn require_gp0(&self, fine: bool) -> Result<(), Interrupted> {
        if fine { Ok(()) } else { Err(self.selector_fault(Vector::GP, SelectorError::new())) }
    }

    /// #GP(0) unless CPL is zero.
    pub(super) fn require_cpl0(&self) -> Result<(), Interrupted> {
        self.require_gp0(self.cpl() == 0)
    }

    /// Linear address of `size` bytes of the descriptor that a selector names, if they are within the table's limit.
    pub(super) fn descriptor_address(&self, selector: Selector, size: u32) -> Option<u64> {
        let (base, limit) = if selector.ti() {
            let ldt = &self.state.seg[seg::LDTR];
            if !ldt.attr.present() {
                return None;
            }
            (ldt.base, ldt.limit)
        } else {
            (self.state.gdtr.base, self.state.gdtr.limit as u32)
        };
        let offset = selector.offset();
        (offset + (size - 1) <= limit).then(|| base.wrapping_add(offset as u64))
    }

    /// The descriptor that a selector names. Outside the table: `vector` with the selector.
    pub(super) fn descriptor(
        &mut self,
        selector: Selector,
        vector: Vector,
    ) -> Result<Descriptor, Interrupted> {
        match self.descriptor_address(selector, 8) {
            Some(gva) => Ok(Descriptor::from_bits(self.system_read(gva)?)),
            None => self.bad(vector, selector),
        }
    }

    /// The descriptor for an instruction that reports failure in ZF: `None` outside the table.
    pub(super) fn probe_descriptor(&mut self, selector: Selector) -> Result<Option<Descriptor>, Interrupted> {
        match self.descriptor_address(selector, 8) {
            Some(gva) if !selector.is_null() => Ok(Some(Descriptor::from_bits(self.system_read(gva)?))),
            _ => Ok(None),
        }
    }

    /// The upper 8 bytes of a 16-byte system descriptor: address bits 63:32, then reserved.
    pub(super) fn descriptor_high(&mut self, selector: Selector, vector: Vector) -> Result<u64, Interrupted> {
        match self.descriptor_address(selector, 16) {
            Some(gva) => self.system_read(gva.wrapping_add(8)),
            None => self.bad(vector, selector),
        }
    }

    /// Sets the accessed bit of a code or data descriptor in memory. Like silicon, writes only where it was clear.
    pub(super) fn mark_accessed(
        &mut self,
        selector: Selector,
        descriptor: Descriptor,
    ) -> Result<Descriptor, Interrupted> {
        let marked = descriptor.with_typ(descriptor.seg_type().with_accessed(true).into_bits());
        if marked != descriptor
            && let Some(gva) = self.descriptor_address(selector, 8)
        {
            self.system_write::<u8>(gva.wrapping_add(5), (marked.into_bits() >> 40) as u8)?;
        }
        Ok(marked)
    }

    /// Loads ES, SS, DS, FS or GS, as MOV and POP do.
    pub(super) fn load_segment(&mut self, n: usize, selector: u16) -> Result<(), Interrupted> {
        self.state.seg[n] = self.fetch_segment(n, selector)?;
        Ok(())
    }

    /// What a load of ES, SS, DS, FS or GS would put there.
    pub(super) fn fetch_segment(&mut self, n: usize, selector: u16) -> Result<Segment, Interrupted> {
        match self.mode() {
            // Limit and attributes stay, which is what "unreal mode" lives on.
            Mode::Real => Ok(Segment { base: (selector as u64) << 4, selector, ..self.state.seg[n] }),
            Mode::Virtual8086 => Ok(Segment::real(selector, 3)),
            _ if n == seg::SS => self.stack_segment(selector, self.cpl(), Vector::GP),
            _ => self.data_segment(selector),
        }
    }

    /// SS for a privilege level. `vector`: #GP for loads, #TS for stacks out of a TSS.
    pub(super) fn stack_segment(
        &mut self,
        value: u16,
        cpl: u8,
        vector: Vector,
    ) -> Result<Segment, Interrupted> {
        let selector = Selector::from_bits(value);
        if selector.is_null() {
            let fine = self.state.is_64bit_code() && cpl < 3 && selector.rpl() == cpl;
            return if fine { Ok(Segment::null(value)) } else { self.bad(vector, Selector::new()) };
        }
        let descriptor = self.descriptor(selector, vector)?;
        let fine = descriptor.is_data()
            && descriptor.seg_type().is_writable()
            && selector.rpl() == cpl
            && descriptor.dpl() == cpl;
        self.require(fine, vector, selector)?;
        self.require(descriptor.present(), Vector::SS, selector)?;
        Ok(self.mark_accessed(selector, descriptor)?.segment(value))
    }

    fn data_segment(&mut self, value: u16) -> Result<Segment, Interrupted> {
        let selector = Selector::from_bits(value);
        if selector.is_null() {
            return Ok(Segment::null(value));
        }
        let descriptor = self.descriptor(selector, Vector::GP)?;
        let (typ, dpl) = (descriptor.seg_type(), descriptor.dpl());
        let privileged = typ.is_conforming_code() || (selector.rpl() <= dpl && self.cpl() <= dpl);
        self.require(descriptor.s() && typ.is_readable() && privileged, Vector::GP, selector)?;
        self.require(descriptor.present(), Vector::NP, selector)?;
        Ok(self.mark_accessed(selector, descriptor)?.segment(value))
    }

    /// Makes data segments unusable that the outer level, to which control returns, may not use.
    /// See: SDM vol. 2 RET, RETURN-TO-OUTER-PRIVILEGE-LEVEL
    pub(super) fn drop_inner_segments(&mut self, cpl: u8) {
        for n in [seg::ES, seg::DS, seg::FS, seg::GS] {
            let segment = &self.state.seg[n];
            let typ = segment.seg_type();
            if segment.attr.dpl() < cpl && segment.attr.present() && !typ.is_conforming_code() {
                // The base stays, which matters to 64-bit code for FS and GS.
                let base = segment.base;
                self.state.seg[n] = Segment { base, ..Segment::null(0) };
            }
        }
    }
}
