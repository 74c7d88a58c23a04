//! The virtual-machine control structure. KVM's half writes controls, silicon reads them at VM entry and writes the
//! VM-exit information fields.
//!
//! The register file of a vCPU is `VcpuState`, of the host and of KVM alike. The guest-state area mirrors it where VM entry
//! looks: KVM's half writes it before each VM entry, and silicon writes at each VM exit what a guest changes without one.
//! The host-state area holds what a Linux host has there, as far as VM entry checks it.
//!
//! Manual: Intel SDM volume 3C, doc 325384-087, chapter 25 Virtual Machine Control Structures.

mod controls;
mod field;

pub use controls::{CpuBased, EntryControls, ExitControls, PendingDebug, PinBased, Secondary};
pub use field::VmcsField;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

/// Fields of one width and type that appendix B numbers, rounded up.
const INDICES: usize = 32;
const FIELDS: usize = 4 * 4 * INDICES;

/// Bytes of a VMCS region (IA32_VMX_BASIC[44:32]), of which silicon writes all.
const REGION: usize = 4096;

/// A VMCS. Where a field lies in it is silicon's own affair.
#[derive(Clone, Debug)]
pub struct Vmcs {
    /// IA32_VMX_BASIC[30:0]. See: 25.2 Format of the VMCS Region
    pub revision_id: u32,
    /// Why a VM exit failed; zero: none did.
    pub abort: u32,
    /// VMLAUNCH needs it clear, VMRESUME launched. See: 25.1 Overview
    pub launched: bool,
    /// VM entry has found it legal, and since then only those fields have changed that each entry checks anew.
    pub examined: bool,
    fields: Box<[u64; FIELDS]>,
}

/// What silicon knows of a VMCS is no part of it.
impl PartialEq for Vmcs {
    fn eq(&self, other: &Self) -> bool {
        let region = |vmcs: &Self| (vmcs.revision_id, vmcs.abort, vmcs.launched);
        region(self) == region(other) && self.fields == other.fields
    }
}

impl Eq for Vmcs {}

impl Vmcs {
    /// A region as VMCLEAR leaves it.
    pub fn new(revision_id: u32) -> Self {
        Self { revision_id, abort: 0, launched: false, examined: false, fields: Box::new([0; FIELDS]) }
    }

    /// A shadow VMCS, with the indicator that says so. See: 25.2 Format of the VMCS Region
    pub fn shadow(revision_id: u32) -> Self {
        Self::new(revision_id | 1 << 31)
    }

    /// What the region in memory holds once silicon has written it: two words that the manual names, then the fields by their
    /// encodings, a format that is ours, then zeroes.
    pub fn to_region(&self) -> Vec<u8> {
        let words = [self.revision_id, self.abort].map(u32::to_le_bytes).concat();
        let fields = VmcsField::NAMED.iter().flat_map(|(field, _)| self.read(*field).to_le_bytes());
        let mut region: Vec<u8> = words.into_iter().chain(fields).collect();
        region.resize(REGION, 0);
        region
    }

    const fn slot(field: VmcsField) -> usize {
        let group = (field.width().0 as usize) * 4 + field.field_type().0 as usize;
        group * INDICES + field.index()
    }

    /// VMREAD, and silicon's own reads.
    pub fn read(&self, field: VmcsField) -> u64 {
        self.fields[Self::slot(field)]
    }

    /// VMREAD of a field of at most 32 bits.
    pub fn read32(&self, field: VmcsField) -> u32 {
        self.read(field) as u32
    }

    /// VMWRITE, and silicon's own writes.
    pub fn write(&mut self, field: VmcsField, value: impl Into<u64>) {
        let (slot, value) = (Self::slot(field), value.into() & field.mask());
        let changed = std::mem::replace(&mut self.fields[slot], value) ^ value;
        self.examined &= changed == 0 || field.is_checked_by_each_entry(changed);
    }
}

impl Serialize for Vmcs {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let in_use: Vec<(u16, u64)> =
            (0..).zip(self.fields.iter().copied()).filter(|(_, value)| *value != 0).collect();
        (self.revision_id, self.abort, self.launched, in_use).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Vmcs {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        type Saved = (u32, u32, bool, Vec<(u16, u64)>);
        let (revision_id, abort, launched, in_use) = Saved::deserialize(deserializer)?;
        let mut vmcs = Self { abort, launched, ..Self::new(revision_id) };
        for (slot, value) in in_use {
            let field = vmcs.fields.get_mut(usize::from(slot));
            *field.ok_or_else(|| D::Error::custom("a field behind the end"))? = value;
        }
        Ok(vmcs)
    }
}

#[cfg(test)]
mod tests {
    use super::{
        field::{FieldType, Width},
        *,
    };
    use std::collections::BTreeSet;

    /// Every named field has a place of its own, and an encoding that says what the manual's table says.
    #[test]
    fn encodings() {
        let places: BTreeSet<_> = VmcsField::NAMED.iter().map(|(field, _)| Vmcs::slot(*field)).collect();
        assert_eq!(places.len(), VmcsField::NAMED.len());
        assert!(VmcsField::NAMED.iter().all(|(field, _)| field.index() < INDICES && field.0 & 1 == 0));
        for (field, width, kind, index) in [
            (VmcsField::VIRTUAL_PROCESSOR_ID, Width::BITS16, FieldType::CONTROL, 0),
            (VmcsField::EPT_POINTER, Width::BITS64, FieldType::CONTROL, 13),
            (VmcsField::GUEST_PHYSICAL_ADDRESS, Width::BITS64, FieldType::EXIT_INFORMATION, 0),
            (VmcsField::SECONDARY_VM_EXEC_CONTROL, Width::BITS32, FieldType::CONTROL, 15),
            (VmcsField::GUEST_ACTIVITY_STATE, Width::BITS32, FieldType::GUEST, 19),
            (VmcsField::GUEST_RFLAGS, Width::NATURAL, FieldType::GUEST, 16),
            (VmcsField(0x6c16), Width::NATURAL, FieldType::HOST, 11),
        ] {
            assert_eq!((field.width(), field.field_type(), field.index()), (width, kind, index), "{field}");
        }
    }

    #[test]
    fn values_have_their_fields_width() {
        let mut vmcs = Vmcs::new(1);
        for (field, kept) in [
            (VmcsField::VIRTUAL_PROCESSOR_ID, 0xffff),
            (VmcsField::EXCEPTION_BITMAP, 0xffff_ffff),
            (VmcsField::GUEST_RIP, u64::MAX),
            (VmcsField::TSC_OFFSET, u64::MAX),
        ] {
            vmcs.write(field, u64::MAX);
            assert_eq!(vmcs.read(field), kept, "{field}");
        }
        let saved = postcard::to_stdvec(&vmcs).unwrap();
        assert_eq!(postcard::from_bytes::<Vmcs>(&saved).unwrap(), vmcs);
    }
}
