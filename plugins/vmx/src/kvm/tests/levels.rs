//! Addresses beyond what EPT's levels translate: bits 51:48 under four of them.
//!
//! See: Intel, 5-Level Paging and 5-Level EPT; KVM mmu/mmu.c kvm_mmu_get_tdp_level(), mmu/tdp_mmu.c

use super::{ASM, NO_ASM, Outcome, READ, WRITE, outcome};
use crate::{
    rules::Rule,
    testing::{DATA, Ended, GVA, Guest, MEMORY, PTE, silicon},
};
use vmtape_abi::{Backend, Errno, MemoryRegion, Query};
use vmtape_arch::{
    cpuid::{CpuidEntry, find},
    exit::{ResumeKind, VmxReason},
    host::Silicon,
    note::Note,
};

const BIT48: u64 = 1 << 48;
const VIOLATION: Ended = Ended::Exit(VmxReason::EPT_VIOLATION, 0x181);
const MIB2: u64 = 2 << 20;

/// A host of 52 bits with this many levels of EPT; the guest's page lies at 1 << 48.
fn wide(maxphyaddr: u8, ept_levels: u8, options: &[(&str, &str)]) -> Guest {
    let mut guest = Guest::new(Silicon { ept_levels, ..silicon(52) }, maxphyaddr, options);
    guest.populate();
    guest.set(PTE, BIT48 | 0x67);
    guest
}

fn slot(guest: &mut Guest, gpa: u64, hpa: u64) -> Result<(), Errno> {
    let region = MemoryRegion { slot: 1, flags: 0, gpa, size: MIB2, hpa };
    guest.vm.set_memory_region(&region, &mut guest.host)
}

fn decided_by(guest: &mut Guest, rule: Rule) -> bool {
    std::mem::take(&mut guest.host.notes).contains(&rule.note())
}

#[test]
fn without_a_slot_each_access_is_mmio() {
    let mut guest = wide(52, 4, NO_ASM);
    for _ in 0..3 {
        assert_eq!(outcome(&mut guest, READ, false), (Outcome::Mmio(BIT48), vec![VIOLATION]));
        assert_eq!((guest.exit.gpa, guest.exit.info1 & !0xe00), (BIT48, 0x181));
        assert!(decided_by(&mut guest, Rule::EPT4_WIDE_GPA));
    }
}

/// KVM maps, then finds its work done, and silicon never looks: no progress.
#[test]
fn with_a_slot_there_is_no_progress() {
    let mut guest = wide(52, 4, NO_ASM);
    slot(&mut guest, BIT48, MIB2).unwrap();
    let mapped = |guest: &mut Guest| {
        guest.host.notes.clear();
        assert_eq!(guest.access(READ, false), VIOLATION);
        assert_eq!(guest.handle().kind, ResumeKind::RESUME);
        guest.host.notes.iter().any(|note| matches!(note, Note::TdpSpteChanged { level: 1, .. }))
    };
    assert!(mapped(&mut guest), "RET_PF_FIXED");
    // Once more, without the dirty bit: an entry that was writable keeps what silicon made of it. See: mmu/spte.c make_spte()
    assert!(mapped(&mut guest), "RET_PF_FIXED");
    assert!(!mapped(&mut guest) && !mapped(&mut guest), "RET_PF_SPURIOUS");
    assert_eq!(outcome(&mut guest, READ, false).0, Outcome::Stuck);
    assert_eq!(outcome(&mut guest, WRITE, false).0, Outcome::Stuck);
}

/// The two exits to userspace that were proposed instead. MMIO at such an address works, so it stays as it is.
#[test]
fn explicit_exits() {
    let memory_fault = [0, BIT48, 0x1000, 0, 0, 0];
    let cases = [
        ("+early-memory-fault-exit", ResumeKind::MEMORY_FAULT, Errno::EFAULT.0, memory_fault),
        ("+early-internal-error-exit", ResumeKind::INTERNAL_ERROR, 0, [4, 1, BIT48, 0, 0, 0]),
    ];
    for (patch, kind, errno, data) in cases {
        let mut guest = wide(52, 4, &[(patch, "")]);
        assert_eq!(outcome(&mut guest, READ, false), (Outcome::Mmio(BIT48), vec![VIOLATION]), "{patch}");
        slot(&mut guest, BIT48, MIB2).unwrap();
        let (Outcome::Userspace(resume), exits) = outcome(&mut guest, READ, false) else { panic!("{patch}") };
        assert_eq!((resume.kind, resume.errno, resume.data), (kind, errno, data));
        assert_eq!(exits, [VIOLATION]);
        assert!(decided_by(&mut guest, Rule::UNMAPPABLE_EXIT));
        // Memory within reach is not concerned.
        guest.set(PTE, DATA | 0x67);
        assert_eq!(outcome(&mut guest, READ, false).0, Outcome::Done, "{patch}");
    }
}

/// The posting of December 2023: the guest is told 48 bits, and what EPT cannot translate is emulated: as a reserved bit to a
/// guest that listened, as memory to one that did not.
#[test]
fn emulation_of_what_ept_cannot_translate() {
    let patch: &[(&str, &str)] = &[("+cap-advertised-gpa", "")];
    let mut listens = wide(48, 4, patch);
    assert_eq!(outcome(&mut listens, READ, false).0, Outcome::PageFault(0x9, GVA));
    let mut ignores = wide(52, 4, patch);
    assert_eq!(outcome(&mut ignores, READ, false).0, Outcome::Mmio(BIT48));
    slot(&mut ignores, BIT48, MIB2).unwrap();
    assert_eq!(outcome(&mut ignores, READ, false), (Outcome::Done, vec![VIOLATION]));
    assert!(decided_by(&mut ignores, Rule::UNTRANSLATABLE_EMULATED));
}

/// Five levels where the guest needs and silicon has them; the EPT pointer says so.
#[test]
fn the_depth_follows_the_guest() {
    for (maxphyaddr, silicon_levels, levels, low) in
        [(52, 5, 5, 0x66), (49, 5, 5, 0x66), (48, 5, 4, 0x5e), (52, 4, 4, 0x5e)]
    {
        let mut guest = wide(maxphyaddr, silicon_levels, NO_ASM);
        assert_eq!(
            guest.vm.shared.kvm.mmu.tdp_level(0),
            levels,
            "{maxphyaddr} bits, {silicon_levels} levels"
        );
        let root = guest.vm.shared.kvm.mmu.context(0).root.unwrap().hpa;
        assert_eq!(guest.vm.query(0, Query::EPTP), Ok(root | low));
    }
    let no_ad = wide(52, 5, &[("eptad", "off")]);
    assert_eq!(no_ad.vm.query(0, Query::EPTP).map(|eptp| eptp & 0xfff), Ok(0x26));
}

#[test]
fn five_levels_translate_everything() {
    let mut guest = wide(52, 5, NO_ASM);
    assert_eq!(outcome(&mut guest, READ, false), (Outcome::Mmio(BIT48), vec![VIOLATION]));
    slot(&mut guest, BIT48, MIB2).unwrap();
    assert_eq!(outcome(&mut guest, READ, false).0, Outcome::Done);
}

/// A guest of 48 bits has four levels even where silicon has five, and the host's width lets bit 48 pass.
#[test]
fn a_narrow_guest_on_five_levels() {
    let mut exact = wide(48, 5, ASM);
    assert_eq!(outcome(&mut exact, READ, false), (Outcome::PageFault(0x9, GVA), vec![VIOLATION]));
    let mut missed = wide(48, 5, NO_ASM);
    assert_eq!(outcome(&mut missed, READ, false), (Outcome::Mmio(BIT48), vec![VIOLATION]));
}

#[test]
fn slots_end_at_the_host_s_width() {
    let mut guest = Guest::new(silicon(46), 46, &[]);
    let region = MemoryRegion { slot: 1, flags: 0, gpa: 1 << 46, size: MEMORY, hpa: 0 };
    assert_eq!(guest.vm.set_memory_region(&region, &mut guest.host), Err(Errno::EINVAL));
    // ... and not at what EPT can map.
    assert_eq!(slot(&mut wide(52, 4, NO_ASM), BIT48, 0), Ok(()));
}

/// MMIO at 1 << 48 | DATA takes the EPT entry of the memory at DATA, which is emulated from then on.
#[test]
fn mmio_collides_with_memory_below() {
    let mut guest = wide(52, 4, NO_ASM);
    guest.set(PTE, BIT48 | DATA | 0x67);
    assert_eq!(outcome(&mut guest, READ, false).0, Outcome::Mmio(BIT48 | DATA));
    assert!(decided_by(&mut guest, Rule::EPT4_ALIAS));
    guest.set(PTE, DATA | 0x67);
    let misconfiguration = Ended::Exit(VmxReason::EPT_MISCONFIG, 0);
    assert_eq!(outcome(&mut guest, READ, false), (Outcome::Done, vec![misconfiguration]));
    assert!(decided_by(&mut guest, Rule::EPT4_ALIAS));
    // A device where no memory is below collides with nothing.
    guest.set(PTE, BIT48 | 1 << 40 | 0x67);
    assert_eq!(outcome(&mut guest, READ, false).0, Outcome::Mmio(BIT48 | 1 << 40));
    assert!(!decided_by(&mut guest, Rule::EPT4_ALIAS));
}

/// Two pages of memory that meet in one entry: the one that was there stays. (Linux 6.12 would stop the host with BUG.)
#[test]
fn memory_collides_with_memory_below() {
    let mut guest = wide(52, 4, NO_ASM);
    slot(&mut guest, BIT48 | DATA, 0).unwrap();
    guest.set(PTE, BIT48 | DATA | 0x67);
    assert_eq!(outcome(&mut guest, READ, false).0, Outcome::Stuck);
    assert!(decided_by(&mut guest, Rule::EPT4_ALIAS));
    guest.set(PTE, DATA | 0x67);
    assert_eq!(outcome(&mut guest, READ, false), (Outcome::Done, vec![]));
}

/// KVM_GET_SUPPORTED_CPUID, leaf 0x80000008: MAXPHYADDR and, since v6.10, what EPT can map. Shadow paging maps everything.
/// See: KVM cpuid.c __do_cpuid_func(), commits b628cb523c65 and 6f5c9600621b; cpuid_query_maxguestphyaddr()
#[test]
fn the_widths_that_kvm_advertises() {
    let eax = |ept_levels, options: &[(&str, &str)]| {
        let guest = Guest::new(Silicon { ept_levels, ..silicon(52) }, 52, options);
        let leaf = |function, eax| CpuidEntry { function, eax, ..Default::default() };
        let supported =
            guest.vm.supported_cpuid(&[leaf(0x8000_0000, 0x8000_0008), leaf(0x8000_0008, 0x3934)]);
        let eax = find(&supported, 0x8000_0008, 0).unwrap().eax;
        (eax & 0xff, eax >> 16 & 0xff)
    };
    assert_eq!(eax(4, &[("kvm", "v6.12")]), (52, 48));
    assert_eq!(eax(5, &[("kvm", "v6.12")]), (52, 52));
    assert_eq!(eax(4, &[("kvm", "v7.2")]), (52, 48));
    assert_eq!(eax(4, &[("kvm", "v6.1")]), (52, 0));
    assert_eq!(eax(4, &[("ept", "off")]), (52, 0));
    assert_eq!(eax(4, &[("+cap-advertised-gpa", "")]).0, 48);
    assert_eq!(eax(5, &[("+cap-advertised-gpa", "")]).0, 52);
}
