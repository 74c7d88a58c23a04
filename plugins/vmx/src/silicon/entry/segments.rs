//! Checks on the guest's segment registers.
//!
//! Manual: Intel SDM volume 3C, doc 325384-087, 27.3.1.2 Checks on Guest Segment Registers.

use super::{HIGH, is_canonical, require};
use crate::silicon::vmcs::{EntryControls, Vmcs, VmcsField as F};
use bitfield_struct::bitfield;
use vmtape_arch::{
    descriptor::{SegType, Selector, SystemType},
    host::Silicon,
    regs::{Cr0, Rflags},
    vcpu::seg,
};

/// What can be wrong with a segment register, in the manual's order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SegmentCheck {
    TableIndicator,
    StackRpl,
    /// In virtual-8086 mode: not the selector, shifted.
    BaseOfSelector,
    BaseCanonical,
    BaseHigh,
    /// In virtual-8086 mode.
    Limit64K,
    /// In virtual-8086 mode.
    Rights8086,
    Type,
    /// S: a system segment, or none.
    System,
    Dpl,
    NotPresent,
    Reserved,
    /// D/B and L are both set.
    DefaultSize,
    Granularity,
    Unusable,
}

type Refused = (usize, SegmentCheck);

/// An access-rights field. See: Table 25-2
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct SegmentRights {
    #[bits(4)]
    pub typ: u8,
    pub s: bool,
    #[bits(2)]
    pub dpl: u8,
    pub present: bool,
    #[bits(4)]
    reserved_low: u8,
    pub avl: bool,
    pub l: bool,
    pub db: bool,
    pub g: bool,
    pub unusable: bool,
    #[bits(15)]
    reserved_high: u16,
}

impl SegmentRights {
    /// Of a register by its encoding number.
    pub fn of(vmcs: &Vmcs, register: usize) -> Self {
        Self::from_bits(vmcs.read32(F::GUEST_ES_AR_BYTES.of_segment(register)))
    }
}

/// Expand-up data that is writable and accessed: what real mode leaves in CS.
const DATA: u8 = 3;
/// The access rights of every segment in virtual-8086 mode.
const RIGHTS_8086: u32 = 0xf3;

/// What the checks depend on.
#[derive(Clone, Copy, Debug)]
pub struct Modes {
    pub v8086: bool,
    pub ia32e: bool,
    pub unrestricted: bool,
    pub protected: bool,
    /// CS.L.
    pub code64: bool,
}

impl Modes {
    pub fn of(vmcs: &Vmcs) -> Self {
        Self {
            v8086: Rflags::from_bits(vmcs.read(F::GUEST_RFLAGS)).vm(),
            ia32e: EntryControls::from_bits(vmcs.read32(F::VM_ENTRY_CONTROLS)).ia32e_mode_guest(),
            unrestricted: vmcs.secondary().unrestricted_guest(),
            protected: Cr0::from_bits(vmcs.read(F::GUEST_CR0)).pe(),
            code64: SegmentRights::of(vmcs, seg::CS).l(),
        }
    }
}

/// Whether the guest's segment registers pass.
pub fn segments_are_legal(vmcs: &Vmcs, silicon: &Silicon) -> bool {
    check(vmcs, silicon, Modes::of(vmcs)).is_ok()
}

pub fn check(vmcs: &Vmcs, silicon: &Silicon, modes: Modes) -> Result<(), Refused> {
    check_selectors(vmcs, modes)?;
    for register in seg::ES..=seg::TR {
        let what = Checked::of(vmcs, register);
        let base = F::GUEST_ES_BASE.of_segment(register);
        let canonical = is_canonical(vmcs, silicon, base);
        let low = vmcs.read(base) & HIGH == 0;
        what.base(modes, canonical, low).map_err(|why| (register, why))?;
    }
    for register in seg::ES..=seg::GS {
        let what = Checked::of(vmcs, register);
        require(!modes.v8086 || what.limit == 0xffff, (register, SegmentCheck::Limit64K))?;
    }
    let code = Checked::of(vmcs, seg::CS);
    let stack = Checked::of(vmcs, seg::SS);
    for register in seg::ES..=seg::GS {
        let what = Checked::of(vmcs, register);
        let checked = if modes.v8086 {
            require(what.rights.into_bits() == RIGHTS_8086, SegmentCheck::Rights8086)
        } else {
            what.code_or_data(modes, &code, &stack)
        };
        checked.map_err(|why| (register, why))?;
    }
    Checked::of(vmcs, seg::TR).task(modes).map_err(|why| (seg::TR, why))?;
    Checked::of(vmcs, seg::LDTR).local_table().map_err(|why| (seg::LDTR, why))
}

fn check_selectors(vmcs: &Vmcs, modes: Modes) -> Result<(), Refused> {
    let [tr, ldtr, ss, cs] = [seg::TR, seg::LDTR, seg::SS, seg::CS].map(|n| Checked::of(vmcs, n));
    require(!tr.selector.ti(), (seg::TR, SegmentCheck::TableIndicator))?;
    require(ldtr.rights.unusable() || !ldtr.selector.ti(), (seg::LDTR, SegmentCheck::TableIndicator))?;
    let any = modes.v8086 || modes.unrestricted;
    require(any || ss.selector.rpl() == cs.selector.rpl(), (seg::SS, SegmentCheck::StackRpl))
}

/// A segment register of the guest-state area.
struct Checked {
    register: usize,
    selector: Selector,
    base: u64,
    limit: u32,
    rights: SegmentRights,
}

impl Checked {
    fn of(vmcs: &Vmcs, register: usize) -> Self {
        Self {
            register,
            selector: Selector::from_bits(vmcs.read(F::GUEST_ES_SELECTOR.of_segment(register)) as u16),
            base: vmcs.read(F::GUEST_ES_BASE.of_segment(register)),
            limit: vmcs.read32(F::GUEST_ES_LIMIT.of_segment(register)),
            rights: SegmentRights::of(vmcs, register),
        }
    }

    /// Base-address fields.
    fn base(&self, modes: Modes, canonical: bool, low: bool) -> Result<(), SegmentCheck> {
        let usable = !self.rights.unusable();
        let shifted = u64::from(self.selector.into_bits()) << 4;
        let is_code_or_data = self.register <= seg::GS;
        let legal_8086 = !modes.v8086 || !is_code_or_data || self.base == shifted;
        require(legal_8086, SegmentCheck::BaseOfSelector)?;
        match self.register {
            seg::TR | seg::FS | seg::GS => require(canonical, SegmentCheck::BaseCanonical),
            seg::LDTR => require(!usable || canonical, SegmentCheck::BaseCanonical),
            seg::CS => require(low, SegmentCheck::BaseHigh),
            _ => require(!usable || low, SegmentCheck::BaseHigh),
        }
    }

    /// Access rights of CS, SS, DS, ES, FS and GS outside virtual-8086 mode.
    fn code_or_data(&self, modes: Modes, code: &Self, stack: &Self) -> Result<(), SegmentCheck> {
        let rights = self.rights;
        let checked = self.register == seg::CS || !rights.unusable();
        if checked {
            require(self.has_legal_type(modes), SegmentCheck::Type)?;
            require(rights.s(), SegmentCheck::System)?;
        }
        require(self.has_legal_dpl(modes, code, stack), SegmentCheck::Dpl)?;
        if !checked {
            return Ok(());
        }
        require(rights.present(), SegmentCheck::NotPresent)?;
        let both = self.register == seg::CS && modes.ia32e && rights.l() && rights.db();
        require(!both, SegmentCheck::DefaultSize)?;
        self.reserved_and_granularity()
    }

    fn has_legal_type(&self, modes: Modes) -> bool {
        let typ = SegType::from_bits(self.rights.typ());
        match self.register {
            seg::CS => typ.code() && typ.accessed() || modes.unrestricted && self.rights.typ() == DATA,
            seg::SS => typ.is_writable() && typ.accessed(),
            _ => typ.accessed() && typ.is_readable(),
        }
    }

    fn has_legal_dpl(&self, modes: Modes, code: &Self, stack: &Self) -> bool {
        let (dpl, typ) = (self.rights.dpl(), SegType::from_bits(self.rights.typ()));
        match self.register {
            seg::CS if !typ.code() => dpl == 0,
            seg::CS if typ.is_conforming_code() => dpl <= stack.rights.dpl(),
            seg::CS => dpl == stack.rights.dpl(),
            seg::SS => {
                (modes.unrestricted || dpl == self.selector.rpl())
                    && (dpl == 0 || code.rights.typ() != DATA && modes.protected)
            }
            _ => {
                modes.unrestricted
                    || self.rights.unusable()
                    || typ.is_conforming_code()
                    || dpl >= self.selector.rpl()
            }
        }
    }

    fn reserved_and_granularity(&self) -> Result<(), SegmentCheck> {
        let (rights, limit) = (self.rights, self.limit);
        require(rights.reserved_low() == 0 && rights.reserved_high() == 0, SegmentCheck::Reserved)?;
        let (low, high) = (limit & 0xfff, limit >> 20);
        require((low == 0xfff || !rights.g()) && (high == 0 || rights.g()), SegmentCheck::Granularity)
    }

    /// Access rights of TR.
    fn task(&self, modes: Modes) -> Result<(), SegmentCheck> {
        let rights = self.rights;
        let short = SystemType(rights.typ()) == SystemType::TSS16_BUSY && !modes.ia32e;
        require(short || SystemType(rights.typ()) == SystemType::TSS_BUSY, SegmentCheck::Type)?;
        require(!rights.s(), SegmentCheck::System)?;
        require(rights.present(), SegmentCheck::NotPresent)?;
        self.reserved_and_granularity()?;
        require(!rights.unusable(), SegmentCheck::Unusable)
    }

    /// Access rights of LDTR.
    fn local_table(&self) -> Result<(), SegmentCheck> {
        let rights = self.rights;
        if rights.unusable() {
            return Ok(());
        }
        require(SystemType(rights.typ()) == SystemType::LDT, SegmentCheck::Type)?;
        require(!rights.s(), SegmentCheck::System)?;
        require(rights.present(), SegmentCheck::NotPresent)?;
        self.reserved_and_granularity()
    }
}
