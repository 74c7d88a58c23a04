//! Silicon under two-dimensional paging: a guest's access through both dimensions.
//!
//! Manuals: Intel SDM 325384-087, chapter 29; AMD APM volume 2, 24593 rev. 3.42, 15.25.

pub use super::nested::{Nested, NestedFault};

use super::{
    ept::walk_ept,
    npt::walk_npt,
    pml::Pml,
    private::{NESTED_POINTS, PrivateTables},
    recent::Key,
};
use crate::{
    epoch::Basis,
    fault_points::FaultPoint,
    memory_type::{Caching, two_dimensional},
    mmu::{Config, Mmu},
    pages::Pages,
    slots::Slots,
    spte::Format,
    walk::{self, AdPolicy, Failure, Leaf, Paging, Step, Steps, Tables, Update, Walk, WalkAccess},
};
use vmtape_abi::Host;
use vmtape_arch::{
    access::{AccessKind, Mapping, MappingKind},
    exception::PageFaultError,
    exit::{EptQualification, NpfInfo},
    level::Place,
    paging::Pte,
    vcpu::VcpuState,
};

/// A nested fault in the middle of a guest's access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NestedStop {
    /// The guest physical address that could not be translated.
    pub gpa: u64,
    pub fault: NestedFault,
    /// What the nested access was: for a guest's table a write where silicon counts it so.
    pub kind: AccessKind,
    /// The access was to a guest paging-structure entry.
    pub table: bool,
    /// The rights of the linear address; meaningless for tables.
    pub leaf: Leaf,
}

impl NestedStop {
    /// The exit qualification of an EPT violation. See: SDM Table 28-7
    pub fn qualification(&self, advanced: bool) -> EptQualification {
        let NestedFault::Violation { read, write, fetch } = self.fault else {
            return EptQualification::new();
        };
        let table_write = self.table && self.kind == AccessKind::WRITE;
        let mut info = EptQualification::new()
            .with_read(self.kind == AccessKind::READ || table_write)
            .with_write(self.kind == AccessKind::WRITE)
            .with_fetch(self.kind == AccessKind::FETCH)
            .with_perm_r(read)
            .with_perm_w(write)
            .with_perm_x(fetch)
            .with_gva_valid(true)
            .with_gva_translated(!self.table);
        if advanced && !self.table {
            let acc = self.leaf.acc;
            info = info.with_gva_user(acc.user()).with_gva_writable(acc.write()).with_gva_nx(!acc.exec());
        }
        info
    }

    /// EXITINFO1 of a nested page fault. See: APM 15.25.6 Nested versus Guest Page Faults, Fault Ordering
    pub fn npf_info(&self) -> NpfInfo {
        let NestedFault::Npf(error) = self.fault else { return NpfInfo::new() };
        NpfInfo::new().with_code(error.into_bits()).with_final_page(!self.table).with_table(self.table)
    }
}

/// How a guest's access through both dimensions ends.
#[derive(Clone, Copy, Debug)]
pub enum GuestAccess {
    Mapped(Mapping),
    /// The guest's own tables fault.
    Fault(PageFaultError),
    Nested(NestedStop),
}

/// A guest's tables as silicon reads them: each address goes through the nested tables first.
struct GuestTables<'a> {
    pages: &'a mut Pages,
    config: &'a Config,
    root: u64,
    levels: u8,
    host: &'a mut dyn Host,
    /// What reading an entry counts as.
    entry_kind: AccessKind,
    last: Nested,
    /// Where writes are logged.
    pml: Option<&'a mut Pml>,
    vcpu: u32,
    /// Fault points may answer.
    armed: bool,
}

impl GuestTables<'_> {
    fn nested(&mut self, gpa: u64, kind: AccessKind) -> Result<Nested, NestedFault> {
        let key = Key { root: self.root, levels: self.levels, kind };
        // Where faults may answer, each walk asks anew.
        if !self.armed
            && let Some(known) = self.pages.recent.get(&key, gpa)
        {
            return Ok(known);
        }
        let walked = self.walk_nested(gpa, kind);
        if !self.armed
            && let Ok(nested) = &walked
        {
            self.pages.recent.put(&key, gpa, nested);
        }
        walked
    }

    fn walk_nested(&mut self, gpa: u64, kind: AccessKind) -> Result<Nested, NestedFault> {
        let (config, root, levels) = (self.config, self.root, self.levels);
        let mut tables = PrivateTables::new(self.pages, self.vcpu, gpa);
        if self.armed {
            tables.faults = Some((&mut *self.host, &NESTED_POINTS));
        }
        match config.format {
            Format::Ept { .. } => {
                let pml = self.pml.as_deref_mut();
                walk_ept(&mut tables, config, root, levels, gpa, kind, pml)
            }
            Format::X86 { .. } => walk_npt(&mut tables, config, root, levels, gpa, kind),
        }
    }

    fn fault(&mut self, point: FaultPoint, a: u64, b: u64) -> Option<u64> {
        if self.armed { point.ask(self.vcpu, a, b, self.host) } else { None }
    }

    /// A fault although everything is allowed.
    fn spurious(&mut self, gpa: u64, kind: AccessKind, nested: &Nested) -> Option<NestedFault> {
        self.fault(FaultPoint::SPURIOUS_FAULT, gpa, kind.0.into())?;
        Some(match self.config.format {
            Format::Ept { .. } => {
                NestedFault::Violation { read: nested.read, write: nested.write, fetch: nested.fetch }
            }
            Format::X86 { .. } => {
                let write = kind == AccessKind::WRITE;
                let error = PageFaultError::new().with_p(true).with_u(true).with_w(write);
                NestedFault::Npf(error.with_i(kind == AccessKind::FETCH))
            }
        })
    }

    /// What a guest's entry becomes by an update of which accessed or dirty bit may be lost.
    fn kept(&mut self, gpa: u64, old: u64, new: u64) -> u64 {
        if !self.armed {
            return new;
        }
        let (before, mut after) = (Pte::from_bits(old), Pte::from_bits(new));
        if after.d() && !before.d() && self.fault(FaultPoint::LOST_DIRTY, gpa, old).is_some() {
            after.set_d(false);
        }
        if after.a() && !before.a() && self.fault(FaultPoint::LOST_ACCESSED, gpa, old).is_some() {
            after.set_a(false);
        }
        after.into_bits()
    }

    fn entry(&mut self, gpa: u64, kind: AccessKind) -> Result<u64, NestedStop> {
        let stop = |fault| NestedStop { gpa, fault, kind, table: true, leaf: Leaf::default() };
        self.nested(gpa, kind).map(|nested| nested.hpa).map_err(stop)
    }
}

impl Tables for GuestTables<'_> {
    type Stop = NestedStop;

    fn read(&mut self, address: u64, size: u8) -> Result<Option<u64>, NestedStop> {
        let hpa = self.entry(address, self.entry_kind)?;
        let entry = if size == 4 { self.host.read_u32(hpa).map(u64::from) } else { self.host.read_u64(hpa) };
        let Some(entry) = entry.filter(|_| self.armed) else { return Ok(entry) };
        let flipped = self.fault(FaultPoint::GUEST_ENTRY_FLIP, address, entry).unwrap_or(0);
        Ok(Some(entry ^ if size == 4 { flipped & u64::from(u32::MAX) } else { flipped }))
    }

    fn update(&mut self, address: u64, old: u64, new: u64, size: u8) -> Result<Update, NestedStop> {
        let hpa = self.entry(address, AccessKind::WRITE)?;
        let kept = self.kept(address, old, new);
        if kept == old {
            return Ok(Update::Lost(old));
        }
        Ok(match self.host.cmpxchg(hpa, old, kept, size) {
            Some(true) if kept != new => Update::Lost(kept),
            Some(true) => Update::Done,
            Some(false) => Update::Changed,
            None => Update::ReadOnly,
        })
    }

    fn translate(&mut self, address: u64, kind: AccessKind, leaf: Leaf) -> Result<(), NestedStop> {
        match self.nested(address, kind) {
            Ok(nested) => {
                self.last = nested;
                match self.spurious(address, kind, &nested) {
                    Some(fault) => Err(NestedStop { gpa: address, fault, kind, table: false, leaf }),
                    None => Ok(()),
                }
            }
            Err(fault) => Err(NestedStop { gpa: address, fault, kind, table: false, leaf }),
        }
    }
}

/// What stands behind a host physical address.
pub(crate) fn mapping_kind(slots: &Slots, gpa: u64) -> MappingKind {
    match slots.find(gpa) {
        Some(slot) if slot.id >= crate::slots::PRIVATE_SLOT => MappingKind::APIC_PAGE,
        _ => MappingKind::RAM,
    }
}

/// The mapping for the host's TLB that both dimensions allow together.
fn combine(
    paging: &Paging,
    access: &WalkAccess,
    walk: &Walk,
    nested: &Nested,
    kind: MappingKind,
    caching: Caching,
) -> Mapping {
    let guest = walk.memory_type(caching.pat);
    let [read, write, fetch] = paging.rights(walk.acc, walk.pkey, access);
    Mapping {
        gpa: walk.gpa & !0xfff,
        hpa: nested.hpa & !0xfff,
        read: (read && nested.read).into(),
        write: (write && walk.dirty && nested.write).into(),
        fetch: (fetch && nested.fetch).into(),
        global: walk.global.into(),
        kind,
        guest_page_shift: walk.page_shift,
        memory_type: two_dimensional(guest, nested.memory_type, caching.disabled),
        guest_memory_type: guest,
    }
}

impl Mmu {
    /// A guest's access under two-dimensional paging: silicon's walk of the guest's tables with the host's width.
    /// The steps are those that silicon took, for the tape.
    pub fn tdp_access(
        &mut self,
        vcpu: u32,
        state: &VcpuState,
        gva: u64,
        access: &WalkAccess,
        caching: Caching,
        host: &mut dyn Host,
    ) -> (GuestAccess, Steps) {
        let config = self.config;
        let paging = Paging::of(state, config.host_width, config.gbpages, config.amd);
        // Those of L1 are registers here, which MOV to CR3 loads and checks.
        let in_memory = config.amd && self.vcpus[vcpu as usize].guest_mode;
        let paging = if in_memory { paging.with_pdpt_in_memory(state.cr3) } else { paging };
        let mmu = self.context(vcpu);
        let root = self.shadow_root(vcpu).0;
        let (entry_kind, policy) = match config.format {
            Format::Ept { ad: true } => (AccessKind::WRITE, AdPolicy::AfterTranslation),
            Format::Ept { ad: false } => (AccessKind::READ, AdPolicy::AfterTranslation),
            Format::X86 { .. } if !config.accessed_before_nested_fault => {
                (AccessKind::WRITE, AdPolicy::AfterTranslation)
            }
            Format::X86 { .. } => {
                let dirty = config.dirty_before_nested_fault;
                (AccessKind::WRITE, AdPolicy::BeforeTranslation { dirty })
            }
        };
        let levels = mmu.root_role.level();
        // vmcs02 has no log. See: KVM vmx/nested.c prepare_vmcs02_early(), commit c3bb9a20834f
        let in_l2 = self.vcpus[vcpu as usize].is_nested();
        let logs = config.pml && !(in_l2 && config.dirty.pml_off_for_l2);
        let mut tables = GuestTables {
            pages: &mut self.pages,
            config: &config,
            root,
            levels,
            host,
            entry_kind,
            last: Nested::default(),
            pml: if logs { self.dirty.pml_of(vcpu) } else { None },
            vcpu,
            armed: self.armed,
        };
        let mut steps = Steps::default();
        let outcome = match walk::walk(&paging, gva, access, policy, &mut tables, &mut steps) {
            Ok(walk) => {
                // KVM's own slots are at L1's addresses.
                let nested = self.vcpus[vcpu as usize].is_nested();
                let kind = if nested { MappingKind::RAM } else { mapping_kind(&self.slots, walk.gpa) };
                GuestAccess::Mapped(combine(&paging, access, &walk, &tables.last, kind, caching))
            }
            Err(Failure::Fault(error)) => GuestAccess::Fault(error),
            Err(Failure::Stopped(stop)) => GuestAccess::Nested(stop),
        };
        (outcome, steps)
    }

    /// Changes the lowest entry for a frame behind KVM's back: for tests of silicon, and for faults.
    pub fn edit_leaf(&mut self, vcpu: u32, gfn: u64, edit: impl Fn(u64) -> u64) {
        let mmu = self.context(vcpu);
        let entry = self.tdp_last(mmu.root.unwrap().hpa, mmu.root_role.level(), gfn);
        self.pages.write(entry.address, edit(entry.spte));
    }
}

/// The steps of a walk as notes for the tape. `place`: who was running, and which dimension was walked.
pub fn note_steps(vcpu: u32, place: Place, steps: &[Step], host: &mut dyn Host) {
    use vmtape_arch::note::{Note, NoteKind};
    if !host.wants(NoteKind::SILICON_STEP) {
        return;
    }
    for step in steps {
        let Step { address, before, after, level, .. } = *step;
        host.note_at(vcpu, place, Note::SiliconStep { gpa: address, before, after, level });
    }
}

impl Mmu {
    /// `Answer::epoch` of a walk that has just mapped RAM; zero where faults may answer.
    pub fn epoch(&mut self, vcpu: u32, caching: Option<Caching>) -> u64 {
        if self.armed {
            return 0;
        }
        let of = &self.vcpus[vcpu as usize];
        let basis = Basis {
            changes: self.pages.recent.changes(),
            generation: self.generation,
            root: self.shadow_root(vcpu),
            levels: self.context(vcpu).root_role.level(),
            nested: of.is_nested(),
            guest_mode: of.guest_mode,
            caching,
        };
        self.vcpu(vcpu).epoch.of(basis)
    }
}
