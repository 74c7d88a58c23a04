//! What notes say without memory, strings and the guest's own frame numbers.

use super::{frames::Frames, is_string};
use vmtape_arch::{
    PAGE_SHIFT,
    note::{Note, PageRole},
    paging::Pte,
};

/// A note as others may see it. `physical`: the exit before it is about a guest physical address.
pub fn redact(frames: &Frames, note: Note, physical: bool) -> Option<Note> {
    let address = |gpa: u64| frames.address(gpa);
    // An entry that leads to another frame; what is no address in it stays.
    let entry = |pte: u64, level: u8| {
        let page = Pte::from_bits(pte);
        let level = if page.ps() && level > 1 { level } else { 1 };
        page.with_frame(frames.frame(page.frame(), level)).into_bits()
    };
    let value = |place: u64, value: u64, bytes: u8| {
        let bits = 8 * u32::from(bytes.clamp(1, 8));
        frames.digest(place, &value.to_le_bytes()) & (u64::MAX >> (64 - bits))
    };
    Some(match note {
        Note::PageFault { address: at, code } => {
            Note::PageFault { address: if physical { address(at) } else { at }, code }
        }
        Note::Mmio { kind, len, gpa, value: data } if !is_apic(gpa) => {
            Note::Mmio { kind, len, gpa: address(gpa), value: value(gpa, data, len) }
        }
        Note::FastMmio { gpa } => Note::FastMmio { gpa: address(gpa) },
        Note::Pio { write, port, size, count, .. } => Note::Pio { write, port, size, count, value: 0 },
        Note::Cpuid { function, index, found, used_max_basic, .. } if is_string(function) => {
            Note::Cpuid { function, index, eax: 0, ebx: 0, ecx: 0, edx: 0, found, used_max_basic }
        }
        Note::Cr { write, number: 3, value } => Note::Cr { write, number: 3, value: entry(value, 1) },
        Note::EmulateInsn { rip, csbase, len, insn, mode, failed } => {
            let bytes = insn.to_le_bytes();
            let low = u128::from(frames.digest(1, &bytes));
            let insn: u128 = (low | u128::from(frames.digest(2, &bytes)) << 64) & mask(len);
            Note::EmulateInsn { rip, csbase, len, insn, mode, failed }
        }
        Note::SpteRequested { gfn, level, .. } => {
            Note::SpteRequested { gfn: frames.frame(gfn, large(gfn, level)), pfn: 0, level }
        }
        Note::SetSpte { gfn, spte, level } => {
            Note::SetSpte { gfn: frames.frame(gfn, large(gfn, level)), spte: flags(spte), level }
        }
        Note::TdpSpteChanged { gfn, level, old, new } => Note::TdpSpteChanged {
            gfn: frames.frame(gfn, large(gfn, level)),
            level,
            old: flags(old),
            new: flags(new),
        },
        Note::PagingElement { pte, level } => Note::PagingElement { pte: entry(pte, level), level },
        Note::SetAccessed { gpa } => Note::SetAccessed { gpa: address(gpa) },
        Note::SetDirty { gpa } => Note::SetDirty { gpa: address(gpa) },
        Note::GetPage { gfn, role, created } => {
            Note::GetPage { gfn: table(frames, gfn, role), role, created }
        }
        Note::SyncPage { gfn, role } => Note::SyncPage { gfn: table(frames, gfn, role), role },
        Note::UnsyncPage { gfn, role } => Note::UnsyncPage { gfn: table(frames, gfn, role), role },
        Note::ZapPage { gfn, role } => Note::ZapPage { gfn: table(frames, gfn, role), role },
        Note::MarkMmioSpte { gfn, access } => Note::MarkMmioSpte { gfn: frames.frame(gfn, 1), access },
        Note::HandleMmioPageFault { address: at, gfn, access } => {
            let at = if physical { address(at) } else { at };
            Note::HandleMmioPageFault { address: at, gfn: frames.frame(gfn, 1), access }
        }
        Note::FastPageFault { address: at, code, fixed } => {
            Note::FastPageFault { address: if physical { address(at) } else { at }, code, fixed }
        }
        Note::MatchMmio { gva, gpa, write, by_gpa } => {
            Note::MatchMmio { gva, gpa: address(gpa), write, by_gpa }
        }
        Note::Hypercall { nr, .. } => Note::Hypercall { nr, args: [0; 4] },
        Note::NestedVmenter { rip, vmcb, nested_rip, int_ctl, event_inj, npt, old, pgd } => {
            Note::NestedVmenter {
                rip,
                vmcb: address(vmcb),
                nested_rip,
                int_ctl,
                event_inj,
                npt,
                old,
                pgd: address(pgd),
            }
        }
        // No events of KVM's: steps of a silicon's walk have entries of memory in them.
        Note::SiliconStep { .. } | Note::Rule { .. } | Note::Warning { .. } | Note::MemoryType { .. } => {
            return None;
        }
        Note::Other(_) => return None,
        other => other,
    })
}

/// The local APIC's registers are the same in every machine.
fn is_apic(gpa: u64) -> bool {
    const APIC_PAGE: u64 = 0xfee0_0000;
    gpa >> PAGE_SHIFT == APIC_PAGE >> PAGE_SHIFT
}

/// An entry of the host's without the frame.
fn flags(spte: u64) -> u64 {
    Pte::from_bits(spte).with_frame(0).into_bits()
}

/// The level of a page of which this is the first frame. Events of large pages may name any frame in them.
fn large(gfn: u64, level: u8) -> u8 {
    let size = 1u64 << (9 * u32::from(level.clamp(1, 5) - 1));
    if gfn & (size - 1) == 0 { level } else { 1 }
}

/// The frame of a guest's table, or the first that a direct shadow page maps.
fn table(frames: &Frames, gfn: u64, role: u32) -> u64 {
    let role = PageRole::from_bits(role);
    let level = if role.direct() { large(gfn, role.level() + 1) } else { 1 };
    frames.frame(gfn, level)
}

/// So many bytes.
fn mask(len: u8) -> u128 {
    match 8 * u32::from(len.min(15)) {
        0 => 0,
        bits => u128::MAX >> (128 - bits),
    }
}
