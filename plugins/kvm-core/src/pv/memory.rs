//! The guest's memory as KVM reads and writes it on its own account.

use crate::Kvm;
use vmtape_abi::Host;
use vmtape_arch::PAGE_SIZE;

impl Kvm {
    /// `kvm_read_guest` of what lies within a page.
    pub(super) fn read_guest<const N: usize>(&self, gpa: u64, host: &mut dyn Host) -> Option<[u8; N]> {
        let mut bytes = [0; N];
        let hpa = self.within_a_page(gpa, N)?;
        host.read(hpa, &mut bytes).then_some(bytes)
    }

    /// `kvm_write_guest` of what lies within a page, with the mark in the dirty log. False: there is no memory.
    pub(crate) fn write_guest(&mut self, vcpu: u32, gpa: u64, bytes: &[u8], host: &mut dyn Host) -> bool {
        let slot = self.mmu.slots.find(gpa).filter(|slot| !slot.readonly());
        let written =
            slot.and_then(|_| self.within_a_page(gpa, bytes.len())).is_some_and(|hpa| host.write(hpa, bytes));
        if written {
            self.mmu.mark_dirty(vcpu, gpa / PAGE_SIZE, host);
        }
        written
    }

    fn within_a_page(&self, gpa: u64, len: usize) -> Option<u64> {
        (gpa % PAGE_SIZE + len as u64 <= PAGE_SIZE).then(|| self.mmu.slots.hpa(gpa)).flatten()
    }
}
