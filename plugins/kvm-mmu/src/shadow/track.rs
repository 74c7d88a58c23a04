//! Writes to guest page tables that KVM sees: emulated ones, and what is unprotected instead.
//!
//! See: KVM arch/x86/kvm/mmu/mmu.c kvm_mmu_track_write(), __kvm_mmu_unprotect_gfn_and_retry()

use crate::{mmu::Mmu, pages::entry_address, walk::WalkAccess};
use vmtape_abi::Host;
use vmtape_arch::{access::AccessKind, vcpu::VcpuState};

/// Writes without a fault through the page, after which it is taken for something else than a page table.
const FLOOD: u32 = 3;

impl Mmu {
    /// `kvm_mmu_track_write`: guest memory at `gpa` was written by KVM's emulator.
    pub fn track_write(&mut self, vcpu: u32, gpa: u64, len: u8, host: &mut dyn Host) {
        if self.shadow.indirect == 0 {
            return;
        }
        let (mut gpa, mut len) = (gpa, u64::from(len));
        if self.context(vcpu).cpu_role.base.level() > 2 && len == 4 {
            (gpa, len) = (gpa & !7, 8);
        }
        for table in self.shadow.with_gptes(gpa >> 12) {
            if self.shadow.get(table).is_none_or(|sp| sp.role.invalid()) {
                continue;
            }
            if self.is_misaligned(table, gpa, len) || self.is_flooded(table) {
                self.prepare_zap(vcpu, table, host);
                continue;
            }
            let Some((first, count)) = self.written_entries(table, gpa) else { continue };
            for index in first..first + count {
                let changed = self.zap_entry(entry_address(table, index));
                self.shadow.flush |= changed;
            }
        }
        self.shadow_flush(host);
    }

    /// `detect_write_misaligned`: not a write of one whole entry.
    fn is_misaligned(&self, table: u64, gpa: u64, len: u64) -> bool {
        let size = if self.shadow.sp(table).role.has_4_byte_gpte() { 4 } else { 8 };
        let offset = gpa & 0xfff;
        if offset & (size - 1) == 0 && len == 1 {
            return false;
        }
        (offset ^ (offset + len - 1)) & !(size - 1) != 0 || len < 4
    }

    /// `detect_write_flooding`.
    fn is_flooded(&mut self, table: u64) -> bool {
        let sp = self.shadow.sp_mut(table);
        if sp.role.level() == 1 {
            return false;
        }
        sp.write_flooding += 1;
        sp.write_flooding >= FLOOD
    }

    /// `get_written_sptes`: the entries that mirror what was written.
    fn written_entries(&self, table: u64, gpa: u64) -> Option<(u64, u64)> {
        let role = self.shadow.sp(table).role;
        let mut offset = gpa & 0xfff;
        let mut count = 1;
        if role.has_4_byte_gpte() {
            offset <<= 1;
            if role.level() == 2 {
                // A 4-byte directory entry maps 4 MiB, which takes two entries.
                offset = (offset & !7) << 1;
                count = 2;
            }
            if offset >> 12 != u64::from(role.quadrant()) {
                return None;
            }
            offset &= 0xfff;
        }
        Some((offset / 8, count))
    }

    /// `__kvm_mmu_unprotect_gfn_and_retry`: zaps the shadow pages of a frame, so that the guest can write it.
    pub fn unprotect_and_retry(
        &mut self,
        vcpu: u32,
        state: &VcpuState,
        address: u64,
        host: &mut dyn Host,
    ) -> bool {
        if self.shadow.indirect == 0 {
            return false;
        }
        let mut gpa = address;
        if !self.context(vcpu).root_role.direct() {
            let access = WalkAccess { kind: AccessKind::WRITE, user: state.cpl == 3, implicit: false };
            match self.walk_guest(vcpu, state, address, &access, access.pferr(), host) {
                Ok((walk, _)) => gpa = walk.gpa,
                Err(_) => return false,
            }
        }
        let pages = self.shadow.with_gptes(gpa >> 12);
        let any = !pages.is_empty();
        for table in pages {
            if self.shadow.get(table).is_some_and(|sp| !sp.role.invalid()) {
                self.prepare_zap(vcpu, table, host);
            }
        }
        self.shadow_flush(host);
        if any {
            self.vcpu(vcpu).last_retry = Some((state.rip, address));
        }
        any
    }
}
