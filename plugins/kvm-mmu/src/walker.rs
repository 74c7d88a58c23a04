//! KVM's software walk of a guest's tables, and the address translation of its emulator.
//!
//! See: KVM arch/x86/kvm/mmu/paging_tmpl.h walk_addr_generic(); x86.c emulator_read_write_onepage()

use crate::{
    insn::{self, has_two_operands_in_memory, reads_before_write},
    mmu::{GuestWidth, Mmu},
    slots::Slots,
    walk::{self, AdPolicy, Failure, Leaf, Mode, Paging, Seen, Steps, Tables, Update, Walk, WalkAccess},
};
use std::cell::Cell;
use vmtape_abi::{EmulatorMmu, Host, Translation};
use vmtape_arch::{
    access::{Access, AccessKind},
    exception::{Exception, PageFaultError},
    note::{Note, NoteKind},
    paging::bits,
    vcpu::VcpuState,
};

/// APIC_DEFAULT_PHYS_BASE: always MMIO for the emulator.
const APIC_BASE: u64 = 0xfee0_0000;

/// The guest's tables as KVM reads them: through the memory slots.
struct SlotTables<'a> {
    slots: &'a Slots,
    host: &'a mut dyn Host,
    vcpu: u32,
    noted: bool,
    /// Bits that make `translate_gpa` refuse an address; none where it refuses nothing.
    illegal: u64,
}

/// `translate_gpa` refused an address.
struct IllegalGpa;

impl IllegalGpa {
    /// What the guest takes for it: only RSVD is ever set in the walker's fault, so vector, CR2 and the rest are what the
    /// kernel's stack held. Modelled as a #PF at address zero. See: the revert, commit e7177339d7b5
    fn exception(self) -> Exception {
        Exception::pf(0, PageFaultError::new().with_rsvd(true))
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
        Ok(if size == 4 { self.host.read_u32(hpa).map(u64::from) } else { self.host.read_u64(hpa) })
    }

    fn update(&mut self, address: u64, old: u64, new: u64, size: u8) -> Result<Update, IllegalGpa> {
        let Some(slot) = self.slots.find(address).filter(|slot| !slot.readonly()) else {
            return Ok(Update::ReadOnly);
        };
        Ok(match self.host.cmpxchg(slot.hpa(address), old, new, size) {
            Some(true) => Update::Done,
            Some(false) => Update::Changed,
            None => Update::ReadOnly,
        })
    }

    fn translate(&mut self, address: u64, _kind: AccessKind, _leaf: Leaf) -> Result<(), IllegalGpa> {
        self.check(address)
    }

    fn seen(&mut self, event: Seen) {
        if self.noted {
            let note = match event {
                Seen::Element { level, entry } => Note::PagingElement { pte: entry, level },
                Seen::Accessed { gpa } => Note::SetAccessed { gpa },
                Seen::Dirty { gpa } => Note::SetDirty { gpa },
            };
            self.host.note(self.vcpu, note);
        }
    }
}

/// The guest's paging as KVM's walk sees it.
fn guest_paging(state: &VcpuState, width: GuestWidth) -> Paging {
    let paging = Paging::of(state, width.maxphyaddr, width.gbpages, width.amd);
    // The walk of 4-byte entries assumes PSE-36, and EFER.NX alone makes fetches reported.
    // See: KVM mmu.c is_cpuid_PSE36(), paging_tmpl.h walk_addr_generic()
    Paging { pse36: 36, reports_fetch: state.efer().nxe() || state.cr4().smep(), ..paging }
}

impl Mmu {
    /// `FNAME(walk_addr)` with the guest's width; `pferr` is what the note shows.
    pub fn walk_guest(
        &mut self,
        vcpu: u32,
        state: &VcpuState,
        gva: u64,
        access: &WalkAccess,
        pferr: u32,
        host: &mut dyn Host,
    ) -> Result<(Walk, Steps), Exception> {
        let paging = guest_paging(state, self.vcpu(vcpu).width);
        let noted = paging.mode != Mode::None && host.wants(NoteKind::PAGETABLE_WALK);
        if noted {
            host.note(vcpu, Note::PagetableWalk { address: gva, pferr });
        }
        let illegal = self.illegal_gpa_bits(paging);
        let mut tables = SlotTables { slots: &self.slots, host, vcpu, noted, illegal };
        let mut steps = Steps::default();
        match walk::walk(&paging, gva, access, AdPolicy::AfterTranslation, &mut tables, &mut steps) {
            Ok(walk) => Ok((walk, steps)),
            Err(Failure::Fault(error)) => {
                if noted {
                    host.note(vcpu, Note::WalkerError { pferr: error.into_bits() });
                }
                Err(Exception::pf(gva, error))
            }
            Err(Failure::Stopped(illegal)) => {
                host.log(2, "kvm: the page walk left its fault uninitialized");
                Err(illegal.exception())
            }
        }
    }

    /// What `translate_gpa` refuses in this walk. With paging off there is no walk that could ask it.
    fn illegal_gpa_bits(&self, paging: Paging) -> u64 {
        let checks = self.config.translate_gpa_check && paging.mode != Mode::None;
        if checks { bits(paging.maxphyaddr.into(), 63) } else { 0 }
    }

    /// Up to 15 bytes of the instruction at RIP, without a trace of looking.
    pub fn peek_instruction(&mut self, vcpu: u32, state: &VcpuState, host: &mut dyn Host) -> Vec<u8> {
        let paging = guest_paging(state, self.vcpu(vcpu).width);
        let access = WalkAccess { kind: AccessKind::FETCH, user: state.cpl == 3, implicit: false };
        let mut gva = state.rip.wrapping_add(state.seg[vmtape_arch::vcpu::seg::CS].base);
        let mut bytes = Vec::new();
        while bytes.len() < 15 {
            let mut tables = SlotTables { slots: &self.slots, host, vcpu, noted: false, illegal: 0 };
            let mut steps = Steps::default();
            let Ok(walk) = walk::walk(&paging, gva, &access, AdPolicy::None, &mut tables, &mut steps) else {
                break;
            };
            let Some(hpa) = self.slots.hpa(walk.gpa) else { break };
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
            skips: false,
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
    /// Nothing is executed: the length is all that counts.
    skips: bool,
}

impl EmulatorView<'_> {
    /// For EMULTYPE_SKIP. Instructions that exit without next-RIP save but that KVM's decoder lacks (INVPCID) exist on no
    /// silicon, so their length is taken as it is.
    pub fn skipping(self) -> Self {
        Self { skips: true, ..self }
    }

    /// Where a guest physical address leads; `mmio`: it is known to be no RAM.
    fn locate(&self, gpa: u64, write: bool, mmio: bool) -> Translation {
        let slot = self.mmu.slots.find(gpa).filter(|slot| !(mmio || write && slot.readonly()));
        Translation { gpa, hpa: slot.map_or(0, |slot| slot.hpa(gpa)), ram: slot.is_some(), pad: [0; 7] }
    }

    /// `vcpu_is_mmio_gpa`.
    fn is_mmio(&self, gva: u64, gpa: u64, write: bool, host: &mut dyn Host) -> bool {
        if gpa & !0xfff == APIC_BASE {
            return true;
        }
        let hit = self.mmu.match_mmio_gpa(self.vcpu, gpa);
        if hit {
            host.note(self.vcpu, Note::MatchMmio { gva, gpa, write, by_gpa: true });
        }
        hit
    }

    /// `vcpu_mmio_gva_to_gpa`, first part: the last MMIO page, if the rights that it had suffice.
    fn matches_last(&self, state: &VcpuState, gva: u64, access: &WalkAccess) -> Option<u64> {
        let gpa = self.mmu.match_mmio_gva(self.vcpu, gva)?;
        let mmu = &self.mmu.vcpus[self.vcpu as usize];
        let paging = guest_paging(state, mmu.width);
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
                host.note(self.vcpu, Note::MatchMmio { gva, gpa, write, by_gpa: false });
                return Ok(self.locate(gpa, write, true));
            }
        }
        let (walk, _) =
            self.mmu.walk_guest(self.vcpu, state, gva, &walk_access, walk_access.pferr(), host)?;
        let mmio = operand && self.is_mmio(gva, walk.gpa, write, host);
        Ok(self.locate(walk.gpa, write, mmio))
    }

    fn wrote(&mut self, gpa: u64, len: u8, host: &mut dyn Host) {
        self.mmu.track_write(self.vcpu, gpa, len, host);
    }

    fn knows(&self, insn: &[u8]) -> bool {
        self.use_gpa.set(!has_two_operands_in_memory(insn));
        self.reads_first.set(reads_before_write(insn));
        self.skips || insn::is_known(insn)
    }
}
