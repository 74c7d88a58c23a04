//! KVM's software walk of a guest's tables, and the address translation of its emulator.
//!
//! See: KVM arch/x86/kvm/mmu/paging_tmpl.h walk_addr_generic(); x86.c emulator_read_write_onepage()

use crate::{
    dirty::{DirtyLog, Source},
    fault::WalkFault,
    fault_points::FaultPoint,
    insn::{self, has_two_operands_in_memory, reads_before_write},
    mmu::{ContextId, GuestTables, Mmu},
    slots::Slots,
    walk::{self, AdPolicy, Failure, Leaf, Mode, Paging, Seen, Steps, Tables, Update, Walk, WalkAccess},
};
use std::cell::Cell;
use vmtape_abi::{EmulatorMmu, Host, Translation};
use vmtape_arch::{
    access::{Access, AccessKind},
    exception::{Exception, PageFaultError},
    exit::EptQualification,
    level::{Dimension, Place, Stage},
    note::{Note, NoteKind},
    paging::{Pte, bits},
    sensitive::Sensitive,
    vcpu::VcpuState,
};

/// APIC_DEFAULT_PHYS_BASE: always MMIO for the emulator.
const APIC_BASE: u64 = 0xfee0_0000;

/// L1's memory as KVM reads it: through the memory slots.
struct SlotTables<'a> {
    slots: &'a Slots,
    dirty: &'a mut DirtyLog,
    host: &'a mut dyn Host,
    vcpu: u32,
    /// Where the notes of the walk belong; `None`: nobody hears of it.
    noted: Option<Place>,
    /// Bits that make `translate_gpa` refuse an address; none where it refuses nothing.
    illegal: u64,
    /// Fault points may answer.
    armed: bool,
}

/// `translate_gpa` refused an address.
struct IllegalGpa;

impl IllegalGpa {
    /// What the guest takes for it: only RSVD is ever set in the walker's fault, so vector, CR2 and the rest are what the
    /// kernel's stack held. Modelled as a #PF at address zero. See: the revert, commit e7177339d7b5
    fn fault(self) -> WalkFault {
        WalkFault {
            stage: Stage::GUEST,
            address: 0,
            error: PageFaultError::new().with_rsvd(true),
            qualification: EptQualification::new(),
        }
    }
}

impl SlotTables<'_> {
    /// `translate_gpa` as commit ec7771ab471b has it.
    fn check(&self, gpa: u64) -> Result<(), IllegalGpa> {
        if gpa & self.illegal == 0 { Ok(()) } else { Err(IllegalGpa) }
    }
}

impl Tables for SlotTables<'_> {
    type Stop = IllegalGpa;

    fn read(&mut self, address: u64, size: u8) -> Result<Option<u64>, IllegalGpa> {
        self.check(address)?;
        let Some(hpa) = self.slots.hpa(address) else { return Ok(None) };
        let entry = if size == 4 { self.host.read_u32(hpa).map(u64::from) } else { self.host.read_u64(hpa) };
        let Some(entry) = entry.filter(|_| self.armed) else { return Ok(entry) };
        let flipped = FaultPoint::KVM_ENTRY_FLIP.ask(self.vcpu, address, entry, self.host).unwrap_or(0);
        Ok(Some(entry ^ if size == 4 { flipped & u64::from(u32::MAX) } else { flipped }))
    }

    fn update(&mut self, address: u64, old: u64, new: u64, size: u8) -> Result<Update, IllegalGpa> {
        let Some(slot) = self.slots.find(address).filter(|slot| !slot.readonly()) else {
            return Ok(Update::ReadOnly);
        };
        Ok(match self.host.cmpxchg(slot.hpa(address), old, new, size) {
            Some(true) => {
                // `update_accessed_dirty_bits`
                self.dirty.mark(self.slots, self.vcpu, address >> 12, Source::Walk, self.host);
                Update::Done
            }
            Some(false) => Update::Changed,
            None => Update::ReadOnly,
        })
    }

    fn translate(&mut self, address: u64, _kind: AccessKind, _leaf: Leaf) -> Result<(), IllegalGpa> {
        self.check(address)
    }

    fn seen(&mut self, event: Seen) {
        if let Some(place) = self.noted {
            let note = match event {
                Seen::Element { level, entry } => Note::PagingElement { pte: entry, level },
                Seen::Accessed { gpa } => Note::SetAccessed { gpa },
                Seen::Dirty { gpa } => Note::SetDirty { gpa },
            };
            self.host.note_at(self.vcpu, place, note);
        }
    }
}

/// L2's tables as KVM reads them: every address goes through L1's nested tables first (`translate_nested_gpa`).
struct NestedTables<'a> {
    slots: SlotTables<'a>,
    /// L1's nested tables.
    nested: Paging,
    /// L2's tables have accessed bits, so that reading one of their entries counts as a write.
    entry_kind: AccessKind,
    policy: AdPolicy,
    /// Entries that were read: their addresses in L2 and in L1.
    read: Vec<(u64, u64)>,
    /// L1's guest physical address of the access.
    last: u64,
}

impl NestedTables<'_> {
    /// Only the frame is translated, so that notes and faults have the page's address.
    fn translate_nested_gpa(&mut self, ngpa: u64, kind: AccessKind, stage: Stage) -> Result<u64, WalkFault> {
        // "NPT walks are always user-walks". See: KVM mmu.c translate_nested_gpa()
        let access = WalkAccess { kind, user: true, implicit: false };
        let page = ngpa & !0xfff;
        let (walk, _) =
            walk_slots(&self.nested, page, &access, access.pferr(), stage, self.policy, &mut self.slots)?;
        Ok(walk.gpa | ngpa & 0xfff)
    }
}

impl Tables for NestedTables<'_> {
    type Stop = WalkFault;

    fn read(&mut self, address: u64, size: u8) -> Result<Option<u64>, WalkFault> {
        let gpa = self.translate_nested_gpa(address, self.entry_kind, Stage::NESTED_TABLE)?;
        self.read.push((address, gpa));
        self.slots.read(gpa, size).map_err(IllegalGpa::fault)
    }

    fn update(&mut self, address: u64, old: u64, new: u64, size: u8) -> Result<Update, WalkFault> {
        // KVM writes where it has read, and does not translate again. See: paging_tmpl.h update_accessed_dirty_bits()
        let Some((_, gpa)) = self.read.iter().rfind(|(of, _)| *of == address).copied() else {
            return Ok(Update::ReadOnly);
        };
        self.slots.update(gpa, old, new, size).map_err(IllegalGpa::fault)
    }

    fn translate(&mut self, address: u64, kind: AccessKind, _leaf: Leaf) -> Result<(), WalkFault> {
        self.last = self.translate_nested_gpa(address, kind, Stage::NESTED_FINAL)?;
        Ok(())
    }

    fn seen(&mut self, event: Seen) {
        let nested = self.slots.noted;
        self.slots.noted = nested.map(|place| Place { dimension: Dimension::GUEST, ..place });
        self.slots.seen(event);
        self.slots.noted = nested;
    }
}

/// The notes around a walk, and its fault in KVM's words.
struct Told<'a> {
    paging: &'a Paging,
    access: &'a WalkAccess,
    stage: Stage,
    place: Option<Place>,
}

impl Told<'_> {
    fn begin(&self, vcpu: u32, address: u64, pferr: u32, host: &mut dyn Host) {
        if let Some(place) = self.place {
            host.note_at(vcpu, place, Note::PagetableWalk { address, pferr });
        }
    }

    /// See: KVM paging_tmpl.h walk_addr_generic(), from `error:` on
    fn fault(
        &self,
        vcpu: u32,
        address: u64,
        error: PageFaultError,
        steps: &Steps,
        host: &mut dyn Host,
    ) -> WalkFault {
        if let Some(place) = self.place {
            host.note_at(vcpu, place, Note::WalkerError { pferr: error.into_bits() });
        }
        WalkFault { stage: self.stage, address, error, qualification: self.qualification(error, steps) }
    }

    /// What an EPT violation in these tables would say; nothing if they are not EPT or are misconfigured.
    fn qualification(&self, error: PageFaultError, steps: &Steps) -> EptQualification {
        if !matches!(self.paging.mode, Mode::Ept { .. }) || error.rsvd() {
            return EptQualification::new();
        }
        let found = steps.last().map_or(walk::Acc::ALL, |step| {
            step.above.and(self.paging.entry_access(Pte::from_bits(step.before)))
        });
        EptQualification::new()
            .with_read(self.access.kind == AccessKind::READ)
            .with_write(self.access.kind == AccessKind::WRITE)
            .with_fetch(self.access.kind == AccessKind::FETCH)
            .with_perm_r(found.user())
            .with_perm_w(found.write())
            .with_perm_x(found.exec())
            .with_gva_valid(true)
            .with_gva_translated(self.stage == Stage::NESTED_FINAL)
    }
}

/// A walk of tables that lie in L1's memory.
fn walk_slots(
    paging: &Paging,
    address: u64,
    access: &WalkAccess,
    pferr: u32,
    stage: Stage,
    policy: AdPolicy,
    tables: &mut SlotTables<'_>,
) -> Result<(Walk, Steps), WalkFault> {
    let told = Told { paging, access, stage, place: tables.noted };
    told.begin(tables.vcpu, address, pferr, tables.host);
    let mut steps = Steps::default();
    match walk::walk(paging, address, access, policy, tables, &mut steps) {
        Ok(walk) => Ok((walk, steps)),
        Err(Failure::Fault(error)) => Err(told.fault(tables.vcpu, address, error, &steps, tables.host)),
        Err(Failure::Stopped(illegal)) => {
            tables.host.log(2, "kvm: the page walk left its fault uninitialized");
            Err(illegal.fault())
        }
    }
}

impl Mmu {
    fn slot_tables<'a>(
        &'a mut self,
        vcpu: u32,
        noted: Option<Place>,
        illegal: u64,
        host: &'a mut dyn Host,
    ) -> SlotTables<'a> {
        let (slots, dirty, armed) = (&self.slots, &mut self.dirty, self.armed);
        SlotTables { slots, dirty, host, vcpu, noted, illegal, armed }
    }

    /// `FNAME(walk_addr)`: the tables of the context in use, which are L1's nested ones while L2 runs under them. `pferr` is
    /// what the note shows.
    pub(crate) fn walk_addr(
        &mut self,
        vcpu: u32,
        state: &VcpuState,
        address: u64,
        access: &WalkAccess,
        pferr: u32,
        host: &mut dyn Host,
    ) -> Result<(Walk, Steps), WalkFault> {
        let mmu = &self.vcpus[vcpu as usize];
        let paging = self.tables(vcpu, mmu.mmu, state, host);
        let (stage, dimension) = match mmu.mmu {
            ContextId::Guest => (Stage::NESTED_FINAL, Dimension::NESTED),
            _ => (Stage::GUEST, Dimension::GUEST),
        };
        let noted = self.noted(vcpu, &paging, dimension, host);
        if self.is_beyond_32_bits(vcpu, &paging, address) {
            return Err(WalkFault {
                stage,
                address,
                error: paging.describe(access),
                qualification: EptQualification::new(),
            });
        }
        let illegal = self.illegal_gpa_bits(paging);
        let mut tables = self.slot_tables(vcpu, noted, illegal, host);
        walk_slots(&paging, address, access, pferr, stage, AdPolicy::AfterTranslation, &mut tables)
    }

    /// `gva_to_gpa` of the context that translates linear addresses (`walk_mmu`), with the guest's width: one dimension, or
    /// two while L2 runs under L1's nested tables.
    pub fn walk_guest(
        &mut self,
        vcpu: u32,
        state: &VcpuState,
        gva: u64,
        access: &WalkAccess,
        pferr: u32,
        host: &mut dyn Host,
    ) -> Result<(Walk, Steps), WalkFault> {
        if !self.vcpu(vcpu).is_nested() {
            return self.walk_addr(vcpu, state, gva, access, pferr, host);
        }
        self.walk_nested(vcpu, state, gva, access, pferr, AdPolicy::AfterTranslation, true, host)
    }

    /// Whether an address of L2's has more bits than a nested table of L1's 32-bit modes. KVM's walk drops them and silicon's does not,
    /// so that under KVM the access faults for ever; here L1 hears of it.
    fn is_beyond_32_bits(&self, vcpu: u32, paging: &Paging, address: u64) -> bool {
        let narrow = matches!(paging.mode, Mode::Pae | Mode::Bits32 { .. });
        narrow && address >> 32 != 0 && self.vcpus[vcpu as usize].mmu == ContextId::Guest
    }

    /// Both dimensions: L2's tables, whose every address L1's nested tables translate.
    #[expect(clippy::too_many_arguments)]
    fn walk_nested(
        &mut self,
        vcpu: u32,
        state: &VcpuState,
        gva: u64,
        access: &WalkAccess,
        pferr: u32,
        policy: AdPolicy,
        noted: bool,
        host: &mut dyn Host,
    ) -> Result<(Walk, Steps), WalkFault> {
        let mmu = &self.vcpus[vcpu as usize];
        let (paging, nested) = (mmu.nested_mmu.paging(state), self.tables(vcpu, mmu.mmu, state, host));
        // See: KVM svm/svm.c svm_cache_reg(), VCPU_EXREG_PDPTR
        let paging = if self.config.amd { paging.with_pdpt_in_memory(state.cr3) } else { paging };
        let place = |dimension| self.noted(vcpu, &nested, dimension, host).filter(|_| noted);
        let told = Told {
            paging: &paging,
            access,
            stage: Stage::GUEST,
            place: place(Dimension::GUEST).filter(|_| paging.mode != Mode::None),
        };
        let noted = place(Dimension::NESTED);
        told.begin(vcpu, gva, pferr, host);
        let slots = self.slot_tables(vcpu, noted, 0, host);
        let mut tables =
            NestedTables { slots, nested, entry_kind: AccessKind::WRITE, policy, read: Vec::new(), last: 0 };
        let mut steps = Steps::default();
        match walk::walk(&paging, gva, access, policy, &mut tables, &mut steps) {
            Ok(walk) => Ok((Walk { gpa: tables.last, ..walk }, steps)),
            Err(Failure::Fault(error)) => Err(told.fault(vcpu, gva, error, &steps, tables.slots.host)),
            Err(Failure::Stopped(fault)) => Err(fault),
        }
    }

    /// The paging of a context. PAE's pointers of a nested page table are in no register: they are read for each walk, and
    /// count as not present where there is no memory. See: KVM svm/nested.c nested_svm_get_tdp_pdptr()
    pub(crate) fn tables(&self, vcpu: u32, id: ContextId, state: &VcpuState, host: &mut dyn Host) -> Paging {
        let context = self.vcpus[vcpu as usize].context(id);
        let mut paging = context.paging(state);
        if let GuestTables::Npt { ncr3 } = context.tables
            && paging.mode == Mode::Pae
        {
            let first = ncr3 & bits(5, 51);
            paging.pdptr = std::array::from_fn(|i| {
                self.slots.hpa(first + 8 * i as u64).and_then(|hpa| host.read_u64(hpa)).unwrap_or(0)
            });
        }
        paging
    }

    /// Where the notes of a walk belong, if anybody wants them.
    fn noted(&self, vcpu: u32, paging: &Paging, dimension: Dimension, host: &dyn Host) -> Option<Place> {
        let noted = paging.mode != Mode::None && host.wants(NoteKind::PAGETABLE_WALK);
        let level = self.vcpus[vcpu as usize].level();
        noted.then_some(Place { level, dimension })
    }

    /// What `translate_gpa` refuses in this walk. With paging off there is no walk that could ask it.
    fn illegal_gpa_bits(&self, paging: Paging) -> u64 {
        let checks = self.config.translate_gpa_check && paging.mode != Mode::None;
        if checks { bits(paging.maxphyaddr.into(), 63) } else { 0 }
    }

    /// A walk without a trace: no accessed bits, no notes.
    fn peek(
        &mut self,
        vcpu: u32,
        state: &VcpuState,
        gva: u64,
        access: &WalkAccess,
        host: &mut dyn Host,
    ) -> Option<u64> {
        if self.vcpu(vcpu).is_nested() {
            let walk = self.walk_nested(vcpu, state, gva, access, 0, AdPolicy::None, false, host);
            return walk.ok().map(|(walk, _)| walk.gpa);
        }
        let paging = self.context(vcpu).paging(state);
        let mut tables = self.slot_tables(vcpu, None, 0, host);
        let mut steps = Steps::default();
        walk::walk(&paging, gva, access, AdPolicy::None, &mut tables, &mut steps).ok().map(|walk| walk.gpa)
    }

    /// The address in L1's memory that a fault's address stands for, without a trace of looking.
    pub fn l1_gpa(&mut self, vcpu: u32, state: &VcpuState, address: u64, host: &mut dyn Host) -> Option<u64> {
        let id = self.vcpu(vcpu).mmu;
        if id != ContextId::Guest {
            return Some(address);
        }
        let paging = self.tables(vcpu, id, state, host);
        let access = WalkAccess { user: true, ..Default::default() };
        let (mut tables, mut steps) = (self.slot_tables(vcpu, None, 0, host), Steps::default());
        walk::walk(&paging, address, &access, AdPolicy::None, &mut tables, &mut steps)
            .ok()
            .map(|walk| walk.gpa)
    }

    /// Up to 15 bytes of the instruction at RIP, without a trace of looking.
    pub fn peek_instruction(&mut self, vcpu: u32, state: &VcpuState, host: &mut dyn Host) -> Vec<u8> {
        let access = WalkAccess { kind: AccessKind::FETCH, user: state.cpl == 3, implicit: false };
        let mut gva = state.rip.wrapping_add(state.seg[vmtape_arch::vcpu::seg::CS].base);
        let mut bytes = Vec::new();
        while bytes.len() < 15 {
            let Some(gpa) = self.peek(vcpu, state, gva, &access, host) else { break };
            let Some(hpa) = self.slots.hpa(gpa) else { break };
            let mut part = vec![0; (15 - bytes.len()).min(0x1000 - (gva & 0xfff) as usize)];
            if !host.read(hpa, &mut part) {
                break;
            }
            gva = gva.wrapping_add(part.len() as u64);
            bytes.extend(part);
        }
        bytes
    }

    /// The emulator's view of memory. `exit_gpa`: EMULTYPE_PF on a direct MMU, the exit's address, used for operands with
    /// the same page offset.
    pub fn emulator(&mut self, vcpu: u32, exit_gpa: Option<u64>) -> EmulatorView<'_> {
        EmulatorView {
            mmu: self,
            vcpu,
            exit_gpa,
            use_gpa: Cell::new(true),
            reads_first: Cell::new(false),
            atomic: Cell::new(false),
            skips: false,
            protected: false,
            forced: false,
            taken: None,
        }
    }
}

/// KVM's emulator on a vCPU.
pub struct EmulatorView<'a> {
    mmu: &'a mut Mmu,
    vcpu: u32,
    exit_gpa: Option<u64>,
    /// The instruction has one memory operand (`emulator_can_use_gpa`).
    use_gpa: Cell<bool>,
    /// The operand that is written is read before, by an access of its own.
    reads_first: Cell<bool>,
    /// The operand is written by `emulator_cmpxchg_emulated`.
    atomic: Cell<bool>,
    /// Nothing is executed: the length is all that counts.
    skips: bool,
    /// The guest is in protected mode.
    protected: bool,
    /// Emulation was asked for: what L1 may want to intercept is known, whether or not it is executed.
    forced: bool,
    /// The instruction that was kept back, of those that were asked for.
    taken: Option<Sensitive>,
}

impl EmulatorView<'_> {
    /// For EMULTYPE_SKIP. Instructions that exit without next-RIP save but that KVM's decoder lacks (INVPCID) exist on no
    /// silicon, so their length is taken as it is.
    pub fn skipping(self) -> Self {
        Self { skips: true, ..self }
    }

    /// For EMULTYPE_TRAP_UD_FORCED.
    pub fn forced(self) -> Self {
        Self { forced: true, ..self }
    }

    /// The instruction that ended the emulation with SENSITIVE.
    pub fn taken(&self) -> Option<Sensitive> {
        self.taken
    }

    /// For an instruction of a guest in this state.
    pub fn in_mode_of(&mut self, state: &VcpuState) {
        self.protected = state.cr0().pe();
    }

    /// Whether the fault that ended the emulation is one of L1's nested tables; any other is forgotten.
    pub fn ends_in_nested_fault(&mut self, fault: &Exception) -> bool {
        let nested = &mut self.mmu.vcpu(self.vcpu).nested_fault;
        *nested = nested.take().filter(|found| found.exception() == *fault);
        nested.is_some()
    }

    /// Where a guest physical address leads; `mmio`: it is known to be no RAM.
    fn locate(&self, gpa: u64, write: bool, mmio: bool) -> Translation {
        let slot = self.mmu.slots.find(gpa).filter(|slot| !(mmio || write && slot.readonly()));
        Translation {
            gpa,
            hpa: slot.map_or(0, |slot| slot.hpa(gpa)),
            ram: slot.is_some().into(),
            pad: [0; 7],
        }
    }

    /// `vcpu_is_mmio_gpa`.
    fn is_mmio(&self, gva: u64, gpa: u64, write: bool, host: &mut dyn Host) -> bool {
        if gpa & !0xfff == APIC_BASE {
            return true;
        }
        let hit = self.mmu.match_mmio_gpa(self.vcpu, gpa);
        if hit {
            host.note_at(
                self.vcpu,
                self.mmu.place(self.vcpu),
                Note::MatchMmio { gva, gpa, write, by_gpa: true },
            );
        }
        hit
    }

    /// `vcpu_mmio_gva_to_gpa`, first part: the last MMIO page, if the rights that it had suffice.
    fn matches_last(&self, state: &VcpuState, gva: u64, access: &WalkAccess) -> Option<u64> {
        let gpa = self.mmu.match_mmio_gva(self.vcpu, gva)?;
        let mmu = &self.mmu.vcpus[self.vcpu as usize];
        let paging = mmu.context(mmu.walk_mmu).paging(state);
        let acc = walk::Acc::from_bits(mmu.mmio.acc);
        let forgotten = self.mmu.config.mmio_read_forgotten && access.kind == AccessKind::READ;
        let suffices = !forgotten && paging.permit(acc, 0, access).is_ok();
        (paging.mode == Mode::None || suffices).then_some(gpa)
    }
}

impl EmulatorMmu for EmulatorView<'_> {
    fn translate(
        &mut self,
        state: &VcpuState,
        access: &Access,
        host: &mut dyn Host,
    ) -> Result<Translation, Exception> {
        if access.kind == AccessKind::WRITE && !access.implicit && self.reads_first.get() {
            // See: KVM emulate.c x86_emulate_insn(), "optimisation - avoid slow emulated read if Mov"
            self.translate(state, &Access { kind: AccessKind::READ, ..*access }, host)?;
        }
        let gva = access.gva;
        let walk_access = WalkAccess::from(access);
        let write = access.kind == AccessKind::WRITE;
        let operand = access.kind != AccessKind::FETCH && !access.implicit;
        if operand {
            if let Some(gpa) = self.exit_gpa.filter(|gpa| self.use_gpa.get() && gpa & 0xfff == gva & 0xfff) {
                let mmio = self.is_mmio(gva, gpa, write, host);
                return Ok(self.locate(gpa, write, mmio));
            }
            if let Some(gpa) = self.matches_last(state, gva, &walk_access) {
                host.note_at(
                    self.vcpu,
                    self.mmu.place(self.vcpu),
                    Note::MatchMmio { gva, gpa, write, by_gpa: false },
                );
                return Ok(self.locate(gpa, write, true));
            }
        }
        let pferr = walk_access.pferr();
        let walk = match self.mmu.walk_guest(self.vcpu, state, gva, &walk_access, pferr, host) {
            Ok((walk, _)) => walk,
            Err(fault) => {
                self.mmu.vcpu(self.vcpu).nested_fault = Some(fault).filter(WalkFault::is_nested);
                return Err(fault.exception());
            }
        };
        let mmio = operand && self.is_mmio(gva, walk.gpa, write, host);
        Ok(self.locate(walk.gpa, write, mmio))
    }

    fn wrote(&mut self, gpa: u64, len: u8, host: &mut dyn Host) {
        // `kvm_vcpu_write_guest_page`
        let (first, last) = (gpa >> 12, (gpa + u64::from(len.max(1)) - 1) >> 12);
        // Within a page and of a size that the host's CMPXCHG has; all else is emulated as a plain write.
        let exchanged = self.atomic.get() && first == last && len.is_power_of_two() && len <= 8;
        if !(exchanged && self.mmu.config.dirty.atomics_unmarked) {
            (first..=last).for_each(|gfn| self.mmu.mark(self.vcpu, gfn, Source::Emulator, host));
        }
        self.mmu.track_write(self.vcpu, gpa, len, host);
    }

    fn knows(&self, insn: &[u8]) -> bool {
        self.use_gpa.set(!has_two_operands_in_memory(insn));
        self.reads_first.set(reads_before_write(insn));
        self.atomic.set(insn::is_atomic(insn));
        let offered = self.forced && insn::is_int_n(insn);
        let executed = !(self.protected && insn::is_software_interrupt(insn));
        self.skips || insn::is_known(insn) && (executed || offered)
    }

    fn sensitive(&mut self, insn: &Sensitive) -> bool {
        self.taken = Some(*insn);
        true
    }
}
