//! Silicon under shadow paging: an ordinary walk of KVM's tables with the host's width.

use super::table_of;
use crate::{
    fault_points::FaultPoint,
    memory_type::{HOST_PAT, with_mtrr},
    mmu::Mmu,
    tdp::{
        private::{PrivateTables, SHADOW_POINTS},
        silicon::{GuestAccess, mapping_kind},
    },
    walk::{self, AdPolicy, Failure, Mode, Paging, Steps, WalkAccess},
};
use vmtape_abi::Host;
use vmtape_arch::{
    access::Mapping,
    memory_type::{MemoryType, Pat},
    vcpu::VcpuState,
};

impl Mmu {
    /// The paging that silicon runs with: CR0.PG, CR0.WP, CR4.PAE and EFER.NXE are always on.
    /// See: KVM arch/x86/kvm/svm/svm.c svm_set_cr0(), svm_set_cr4(), svm_set_efer()
    fn shadow_paging(&self, vcpu: u32, state: &VcpuState) -> Paging {
        let (root, pdptr) = self.shadow_root(vcpu);
        let (cr0, cr4) = (state.cr0(), state.cr4());
        let mode = match self.context(vcpu).root_role.level() {
            5 => Mode::Level5,
            4 => Mode::Level4,
            _ => Mode::Pae,
        };
        Paging {
            mode,
            root,
            pdptr,
            maxphyaddr: self.config.table_width(),
            nx: true,
            wp: true,
            smep: cr4.smep() && cr0.pg(),
            smap: cr4.smap() && cr0.pg(),
            ac: state.rflags().ac(),
            gbpages: self.config.gbpages,
            reports_fetch: true,
            ..Paging::BARE
        }
    }

    /// A guest's access under shadow paging. `Fault` is silicon's page fault, which KVM takes.
    pub fn shadow_access(
        &mut self,
        vcpu: u32,
        state: &VcpuState,
        gva: u64,
        access: &WalkAccess,
        host: &mut dyn Host,
    ) -> GuestAccess {
        let paging = self.shadow_paging(vcpu, state);
        // Entries of KVM's select entry 0. AMD's silicon has a PAT of the guest's only under nested paging, Intel's always.
        // See: APM vol. 2 15.25.4 Nested Paging and VMRUN/#VMEXIT; KVM vmx/vmx.c vmx_set_msr(), IA32_PAT
        let pat = if self.config.amd { HOST_PAT } else { Pat(state.pat) };
        if self.fault(vcpu, FaultPoint::SPURIOUS_FAULT, gva, access.kind.0.into(), host).is_some() {
            return GuestAccess::Fault(paging.describe(access));
        }
        let armed = self.armed;
        let mut tables = PrivateTables::new(&mut self.pages, vcpu, gva);
        tables.faults = armed.then_some((host, &SHADOW_POINTS));
        let mut steps = Steps::default();
        match walk::walk(&paging, gva, access, AdPolicy::AfterTranslation, &mut tables, &mut steps) {
            Ok(walk) => {
                let (table, index) = table_of(steps.last().map_or(0, |step| step.address));
                let page = walk.gpa & !0xfff;
                let size = (1u64 << walk.page_shift) - 1;
                // An entry that was read wrongly may lead to a table that is none.
                let known = self.shadow.get(table).is_some();
                let gpa =
                    if known { (self.entry_gfn(table, index) << 12) | page & size } else { page & !size };
                let [read, write, fetch] = paging.rights(walk.acc, 0, access);
                GuestAccess::Mapped(Mapping {
                    gpa,
                    hpa: page,
                    read: read.into(),
                    write: (write && walk.dirty).into(),
                    fetch: fetch.into(),
                    global: false.into(),
                    kind: mapping_kind(&self.slots, gpa),
                    guest_page_shift: walk.page_shift,
                    memory_type: with_mtrr(walk.memory_type(pat), MemoryType::WB),
                    guest_memory_type: MemoryType::UNTOLD,
                })
            }
            Err(Failure::Fault(error)) => GuestAccess::Fault(error),
            Err(Failure::Stopped(stop)) => match stop {},
        }
    }
}
