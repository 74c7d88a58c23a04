//! Notes as they cross the ABI, and back.

use super::{Note, NoteKind, RawNote};
use crate::{exception::Vector, memory_type::MemoryType, msr::ReachedPat};

/// Two or more small fields packed in one argument, low bits first.
const fn pack(fields: &[(u64, u32)]) -> u64 {
    let (mut value, mut shift, mut i) = (0, 0, 0);
    while i < fields.len() {
        value |= fields[i].0 << shift;
        shift += fields[i].1;
        i += 1;
    }
    value
}

impl Note {
    /// The form in which it crosses the ABI.
    pub fn to_raw(self) -> RawNote {
        let raw = |kind, args: &[u64]| {
            let mut note = RawNote { kind, ..Default::default() };
            note.args[..args.len()].copy_from_slice(args);
            note
        };
        use NoteKind as K;
        match self {
            Self::PageFault { address, code } => raw(K::PAGE_FAULT, &[address, code]),
            Self::Cpuid { function, index, eax, ebx, ecx, edx, found, used_max_basic } => raw(
                K::CPUID,
                &[
                    pack(&[(function.into(), 32), (index.into(), 32)]),
                    pack(&[(eax.into(), 32), (ebx.into(), 32)]),
                    pack(&[(ecx.into(), 32), (edx.into(), 32)]),
                    pack(&[(found.into(), 1), (used_max_basic.into(), 1)]),
                ],
            ),
            Self::Msr { write, index, data, exception, host_initiated, passed, pat } => {
                let [write, exception, host, passed] =
                    [write, exception, host_initiated, passed].map(|bit| (bit.into(), 1));
                raw(K::MSR, &[index.into(), data, pack(&[write, exception, host, passed, (pat.0.into(), 8)])])
            }
            Self::Cr { write, number, value } => {
                raw(K::CR, &[value, pack(&[(write.into(), 1), (number.into(), 8)])])
            }
            Self::Pio { write, port, size, count, value } => raw(
                K::PIO,
                &[pack(&[(port.into(), 16), (size.into(), 8), (write.into(), 8), (count.into(), 32)]), value],
            ),
            Self::Mmio { kind, len, gpa, value } => {
                raw(K::MMIO, &[gpa, value, pack(&[(kind.into(), 8), (len.into(), 8)])])
            }
            Self::InjException { vector, has_error, error_code, reinjected } => raw(
                K::INJ_EXCEPTION,
                &[vector.0.into(), error_code.into(), pack(&[(has_error.into(), 1), (reinjected.into(), 1)])],
            ),
            Self::InjVirq { vector, soft, reinjected } => {
                raw(K::INJ_VIRQ, &[vector.into(), pack(&[(soft.into(), 1), (reinjected.into(), 1)])])
            }
            Self::EmulateInsn { rip, csbase, len, insn, mode, failed } => raw(
                K::EMULATE_INSN,
                &[
                    rip,
                    csbase.into(),
                    insn as u64,
                    (insn >> 64) as u64,
                    pack(&[(len.into(), 8), (mode.into(), 8), (failed.into(), 1)]),
                ],
            ),
            Self::UserspaceExit { reason, errno } => {
                raw(K::USERSPACE_EXIT, &[reason.into(), u64::from(errno as u32)])
            }
            Self::SpteRequested { gfn, pfn, level } => raw(K::SPTE_REQUESTED, &[gfn, pfn, level.into()]),
            Self::SetSpte { gfn, spte, level } => raw(K::SET_SPTE, &[gfn, spte, level.into()]),
            Self::PagetableWalk { address, pferr } => raw(K::PAGETABLE_WALK, &[address, pferr.into()]),
            Self::PagingElement { pte, level } => raw(K::PAGING_ELEMENT, &[pte, level.into()]),
            Self::WalkerError { pferr } => raw(K::WALKER_ERROR, &[pferr.into()]),
            Self::SetAccessed { gpa } => raw(K::SET_ACCESSED, &[gpa]),
            Self::SetDirty { gpa } => raw(K::SET_DIRTY, &[gpa]),
            Self::GetPage { gfn, role, created } => raw(K::GET_PAGE, &[gfn, role.into(), created.into()]),
            Self::SyncPage { gfn, role } => raw(K::SYNC_PAGE, &[gfn, role.into()]),
            Self::UnsyncPage { gfn, role } => raw(K::UNSYNC_PAGE, &[gfn, role.into()]),
            Self::ZapPage { gfn, role } => raw(K::ZAP_PAGE, &[gfn, role.into()]),
            Self::MarkMmioSpte { gfn, access } => raw(K::MARK_MMIO_SPTE, &[gfn, access.into()]),
            Self::HandleMmioPageFault { address, gfn, access } => {
                raw(K::HANDLE_MMIO_PAGE_FAULT, &[address, gfn, access.into()])
            }
            Self::FastPageFault { address, code, fixed } => {
                raw(K::FAST_PAGE_FAULT, &[address, code, fixed.into()])
            }
            Self::Apic { write, register, value } => raw(K::APIC, &[register.into(), value, write.into()]),
            Self::ApicIpi { icr, destination } => raw(K::APIC_IPI, &[icr.into(), destination.into()]),
            Self::ApicAcceptIrq { apic, mode, level, vector } => {
                raw(K::APIC_ACCEPT_IRQ, &[apic.into(), mode.into(), level.into(), vector.into()])
            }
            Self::Hypercall { nr, args } => raw(K::HYPERCALL, &[nr, args[0], args[1], args[2], args[3]]),
            Self::FastMmio { gpa } => raw(K::FAST_MMIO, &[gpa]),
            Self::Entry { rip, intr_info, error_code } => {
                raw(K::ENTRY, &[rip, intr_info.into(), error_code.into()])
            }
            Self::SiliconStep { gpa, before, after, level } => {
                raw(K::SILICON_STEP, &[gpa, before, after, level.into()])
            }
            Self::Rule { id } => raw(K::RULE, &[id.into()]),
            Self::Warning { id, value } => raw(K::WARNING, &[id.into(), value]),
            Self::TdpSpteChanged { gfn, level, old, new } => {
                raw(K::TDP_SPTE_CHANGED, &[gfn, level.into(), old, new])
            }
            Self::MatchMmio { gva, gpa, write, by_gpa } => {
                raw(K::MATCH_MMIO, &[gva, gpa, pack(&[(write.into(), 1), (by_gpa.into(), 1)])])
            }
            Self::NestedVmenter { rip, vmcb, nested_rip, int_ctl, event_inj, npt, old, pgd } => raw(
                if old { K::NESTED_VMRUN } else { K::NESTED_VMENTER },
                &[
                    rip,
                    vmcb,
                    nested_rip,
                    pack(&[(int_ctl.into(), 32), (event_inj.into(), 32)]),
                    npt.into(),
                    pgd,
                ],
            ),
            Self::NestedIntercepts { cr, exceptions, words: [a, b, c] } => raw(
                K::NESTED_INTERCEPTS,
                &[
                    pack(&[(cr.into(), 32), (exceptions.into(), 32)]),
                    pack(&[(a.into(), 32), (b.into(), 32)]),
                    c.into(),
                ],
            ),
            Self::NestedVmexit { rip, reason, info1, info2, intr_info, error_code } => raw(
                K::NESTED_VMEXIT,
                &[reason.into(), info1, info2, pack(&[(intr_info.into(), 32), (error_code.into(), 32)]), rip],
            ),
            Self::NestedVmexitInject { code, info1, info2, intr_info, error_code } => raw(
                K::NESTED_VMEXIT_INJECT,
                &[code.into(), info1, info2, pack(&[(intr_info.into(), 32), (error_code.into(), 32)])],
            ),
            Self::NestedIntrVmexit { rip } => raw(K::NESTED_INTR_VMEXIT, &[rip]),
            Self::NestedVmenterFailed { check, error } => {
                raw(K::NESTED_VMENTER_FAILED, &[check.into(), error.into()])
            }
            Self::Invlpga { rip, asid, address } => raw(K::INVLPGA, &[rip, asid.into(), address]),
            Self::Skinit { rip, slb } => raw(K::SKINIT, &[rip, slb.into()]),
            Self::SmmTransition { smbase, entering, old } => {
                raw(if old { K::ENTER_SMM } else { K::SMM_TRANSITION }, &[smbase, entering.into()])
            }
            Self::MemoryType { gva, gpa, memory_type, guest, icount } => {
                let types = pack(&[(memory_type.0.into(), 8), (guest.0.into(), 8)]);
                raw(K::MEMORY_TYPE, &[gva, gpa, types, icount])
            }
            Self::Other(note) => note,
        }
    }

    /// Decodes a note; an unknown kind is kept as it is.
    pub fn from_raw(raw: RawNote) -> Self {
        let a = &raw.args;
        let bit = |arg: u64, n: u32| arg >> n & 1 != 0;
        use NoteKind as K;
        match raw.kind {
            K::PAGE_FAULT => Self::PageFault { address: a[0], code: a[1] },
            K::CPUID => Self::Cpuid {
                function: a[0] as u32,
                index: (a[0] >> 32) as u32,
                eax: a[1] as u32,
                ebx: (a[1] >> 32) as u32,
                ecx: a[2] as u32,
                edx: (a[2] >> 32) as u32,
                found: bit(a[3], 0),
                used_max_basic: bit(a[3], 1),
            },
            K::MSR => Self::Msr {
                index: a[0] as u32,
                data: a[1],
                write: bit(a[2], 0),
                exception: bit(a[2], 1),
                host_initiated: bit(a[2], 2),
                passed: bit(a[2], 3),
                pat: ReachedPat((a[2] >> 4) as u8),
            },
            K::CR => Self::Cr { value: a[0], write: bit(a[1], 0), number: (a[1] >> 1) as u8 },
            K::PIO => Self::Pio {
                port: a[0] as u16,
                size: (a[0] >> 16) as u8,
                write: bit(a[0], 24),
                count: (a[0] >> 32) as u32,
                value: a[1],
            },
            K::NESTED_VMENTER | K::NESTED_VMRUN => Self::NestedVmenter {
                rip: a[0],
                vmcb: a[1],
                nested_rip: a[2],
                int_ctl: a[3] as u32,
                event_inj: (a[3] >> 32) as u32,
                npt: bit(a[4], 0),
                old: raw.kind == K::NESTED_VMRUN,
                pgd: a[5],
            },
            K::NESTED_INTERCEPTS => Self::NestedIntercepts {
                cr: a[0] as u32,
                exceptions: (a[0] >> 32) as u32,
                words: [a[1] as u32, (a[1] >> 32) as u32, a[2] as u32],
            },
            K::NESTED_VMEXIT => Self::NestedVmexit {
                reason: a[0] as u32,
                info1: a[1],
                info2: a[2],
                intr_info: a[3] as u32,
                error_code: (a[3] >> 32) as u32,
                rip: a[4],
            },
            K::NESTED_VMEXIT_INJECT => Self::NestedVmexitInject {
                code: a[0] as u32,
                info1: a[1],
                info2: a[2],
                intr_info: a[3] as u32,
                error_code: (a[3] >> 32) as u32,
            },
            K::NESTED_INTR_VMEXIT => Self::NestedIntrVmexit { rip: a[0] },
            K::NESTED_VMENTER_FAILED => Self::NestedVmenterFailed { check: a[0] as u32, error: a[1] as u32 },
            K::INVLPGA => Self::Invlpga { rip: a[0], asid: a[1] as u32, address: a[2] },
            K::SKINIT => Self::Skinit { rip: a[0], slb: a[1] as u32 },
            K::ENTER_SMM | K::SMM_TRANSITION => {
                Self::SmmTransition { smbase: a[0], entering: bit(a[1], 0), old: raw.kind == K::ENTER_SMM }
            }
            K::MMIO => Self::Mmio { gpa: a[0], value: a[1], kind: a[2] as u8, len: (a[2] >> 8) as u8 },
            K::INJ_EXCEPTION => Self::InjException {
                vector: Vector(a[0] as u8),
                error_code: a[1] as u32,
                has_error: bit(a[2], 0),
                reinjected: bit(a[2], 1),
            },
            K::INJ_VIRQ => Self::InjVirq { vector: a[0] as u8, soft: bit(a[1], 0), reinjected: bit(a[1], 1) },
            K::EMULATE_INSN => Self::EmulateInsn {
                rip: a[0],
                csbase: a[1] as u32,
                insn: u128::from(a[2]) | u128::from(a[3]) << 64,
                len: a[4] as u8,
                mode: (a[4] >> 8) as u8,
                failed: bit(a[4], 16),
            },
            K::USERSPACE_EXIT => Self::UserspaceExit { reason: a[0] as u32, errno: a[1] as u32 as i32 },
            K::SPTE_REQUESTED => Self::SpteRequested { gfn: a[0], pfn: a[1], level: a[2] as u8 },
            K::SET_SPTE => Self::SetSpte { gfn: a[0], spte: a[1], level: a[2] as u8 },
            K::PAGETABLE_WALK => Self::PagetableWalk { address: a[0], pferr: a[1] as u32 },
            K::PAGING_ELEMENT => Self::PagingElement { pte: a[0], level: a[1] as u8 },
            K::WALKER_ERROR => Self::WalkerError { pferr: a[0] as u32 },
            K::SET_ACCESSED => Self::SetAccessed { gpa: a[0] },
            K::SET_DIRTY => Self::SetDirty { gpa: a[0] },
            K::GET_PAGE => Self::GetPage { gfn: a[0], role: a[1] as u32, created: bit(a[2], 0) },
            K::SYNC_PAGE => Self::SyncPage { gfn: a[0], role: a[1] as u32 },
            K::UNSYNC_PAGE => Self::UnsyncPage { gfn: a[0], role: a[1] as u32 },
            K::ZAP_PAGE => Self::ZapPage { gfn: a[0], role: a[1] as u32 },
            K::MARK_MMIO_SPTE => Self::MarkMmioSpte { gfn: a[0], access: a[1] as u8 },
            K::HANDLE_MMIO_PAGE_FAULT => {
                Self::HandleMmioPageFault { address: a[0], gfn: a[1], access: a[2] as u8 }
            }
            K::FAST_PAGE_FAULT => Self::FastPageFault { address: a[0], code: a[1], fixed: bit(a[2], 0) },
            K::APIC => Self::Apic { register: a[0] as u32, value: a[1], write: bit(a[2], 0) },
            K::APIC_IPI => Self::ApicIpi { icr: a[0] as u32, destination: a[1] as u32 },
            K::APIC_ACCEPT_IRQ => Self::ApicAcceptIrq {
                apic: a[0] as u32,
                mode: a[1] as u8,
                level: bit(a[2], 0),
                vector: a[3] as u8,
            },
            K::HYPERCALL => Self::Hypercall { nr: a[0], args: [a[1], a[2], a[3], a[4]] },
            K::FAST_MMIO => Self::FastMmio { gpa: a[0] },
            K::ENTRY => Self::Entry { rip: a[0], intr_info: a[1] as u32, error_code: a[2] as u32 },
            K::SILICON_STEP => Self::SiliconStep { gpa: a[0], before: a[1], after: a[2], level: a[3] as u8 },
            K::RULE => Self::Rule { id: a[0] as u32 },
            K::WARNING => Self::Warning { id: a[0] as u32, value: a[1] },
            K::TDP_SPTE_CHANGED => {
                Self::TdpSpteChanged { gfn: a[0], level: a[1] as u8, old: a[2], new: a[3] }
            }
            K::MEMORY_TYPE => Self::MemoryType {
                gva: a[0],
                gpa: a[1],
                memory_type: MemoryType(a[2] as u8),
                guest: MemoryType((a[2] >> 8) as u8),
                icount: a[3],
            },
            K::MATCH_MMIO => {
                Self::MatchMmio { gva: a[0], gpa: a[1], write: bit(a[2], 0), by_gpa: bit(a[2], 1) }
            }
            _ => Self::Other(raw),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::level::Place;

    #[test]
    fn every_kind_survives_the_abi() {
        for (kind, _) in NoteKind::NAMED {
            let raw = RawNote { kind: *kind, place: Place::L1, pad: 0, args: [1, 1, 1, 1, 1, 0] };
            let canonical = Note::from_raw(raw).to_raw();
            assert_eq!(Note::from_raw(canonical).to_raw(), canonical, "{kind}");
            assert_eq!(canonical.kind, *kind);
        }
    }
}
