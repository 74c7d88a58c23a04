//! What a VM keeps for dirty logging.

use super::{bitmap::Bitmap, ring::Ring};
use crate::{fault_points::FaultPoint, slots::Slots, tdp::pml::Pml};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use vmtape_abi::Host;

/// KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE and KVM_DIRTY_LOG_INITIALLY_SET.
pub const MANUAL_ENABLE: u64 = 1;
pub const INITIALLY_SET: u64 = 2;

/// Why a page counts as written. The order of numbers is that of `dirty-mark-lost`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// An entry that allows writes was made, by a read fault too.
    Mapped,
    /// `fast_page_fault` gave write access back.
    FastPageFault,
    /// Silicon's log had it.
    Pml,
    /// `kvm_vcpu_write_guest`: the emulator.
    Emulator,
    /// `update_accessed_dirty_bits` of KVM's own walk.
    Walk,
    /// `kvm_vcpu_unmap`: a VMCB or VMCS of L1's.
    Unmapped,
}

/// What a VM keeps for dirty logging.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DirtyLog {
    /// `manual_dirty_log_protect`.
    pub(super) manual: u64,
    /// By slot (`memslot->dirty_bitmap`).
    pub(super) bitmaps: BTreeMap<u32, Bitmap>,
    /// Entries of each vCPU's ring; zero: bitmaps are used.
    pub(super) ring_entries: u32,
    pub(super) rings: Vec<Ring>,
    /// Each vCPU's buffer of page-modification logging; silicon uses it while a slot logs.
    pub(crate) pml: Vec<Pml>,
    /// `nr_memslots_dirty_logging` is not zero.
    pub(super) active: bool,
}

impl DirtyLog {
    /// KVM_CREATE_VCPU.
    pub(crate) fn create_vcpu(&mut self, vcpu: u32, pml: bool) {
        let len = vcpu as usize + 1;
        self.pml.resize_with(len.max(self.pml.len()), Pml::default);
        let (entries, reserved) = (self.ring_entries, Ring::reserved(pml));
        self.rings.resize_with(len.max(self.rings.len()), || Ring::new(entries, reserved));
    }

    /// The buffer in which silicon logs the vCPU's writes, if page-modification logging is enabled in its VMCS.
    pub(crate) fn pml_of(&mut self, vcpu: u32) -> Option<&mut Pml> {
        if self.active { self.pml.get_mut(vcpu as usize) } else { None }
    }

    /// `kvm_dirty_log_manual_protect_and_init_set`.
    pub(super) fn initially_set(&self) -> bool {
        self.manual & INITIALLY_SET != 0
    }

    /// Bitmaps come and go with the slots' flags (`kvm_prepare_memory_region`).
    pub(crate) fn follow(&mut self, slots: &Slots) {
        self.active = slots.iter().any(|slot| slot.logs_dirty());
        self.bitmaps.retain(|id, _| slots.iter().any(|slot| slot.id == *id && slot.logs_dirty()));
        if self.ring_entries != 0 {
            return;
        }
        let set = self.initially_set();
        for slot in slots.iter().filter(|slot| slot.logs_dirty()) {
            self.bitmaps.entry(slot.id).or_insert_with(|| Bitmap::new(slot.size >> 12, set));
        }
    }

    /// `mark_page_dirty_in_slot`: a page that KVM lets the vCPU write, or wrote itself on its behalf.
    pub(crate) fn mark(&mut self, slots: &Slots, vcpu: u32, gfn: u64, source: Source, host: &mut dyn Host) {
        if !self.active {
            return;
        }
        let Some(slot) = slots.find(gfn << 12).filter(|slot| slot.logs_dirty()) else { return };
        // What silicon logged has a point of its own, which is asked without silicon too.
        let silicon = source == Source::Pml;
        let lost =
            |point: FaultPoint, a, b, host: &mut dyn Host| !silicon && point.poll(vcpu, a, b, host).is_some();
        if lost(FaultPoint::DIRTY_MARK_LOST, gfn, source as u64, host) {
            return;
        }
        let aba = (source == Source::FastPageFault)
            .then(|| FaultPoint::FAST_PF_ABA.poll(vcpu, gfn, slot.id.into(), host))
            .flatten();
        let gfn = aba.filter(|other| slot.contains(other << 12)).unwrap_or(gfn);
        let offset = gfn - (slot.gpa >> 12);
        if self.ring_entries != 0 {
            if !lost(FaultPoint::RING_ENTRY_LOST, slot.id.into(), offset, host) {
                self.rings[vcpu as usize].push(slot.id, offset);
            }
        } else if let Some(bitmap) = self.bitmaps.get_mut(&slot.id) {
            bitmap.set(offset);
        }
    }
}
