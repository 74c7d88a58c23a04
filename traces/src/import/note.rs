//! Tracepoint text into notes, in the forms of kernels 5.10 to 7.2. The inverse of `text::note_text`.

use super::{
    fields::{self, Fields, RawText},
    name::Name,
    plugin,
};
use crate::text::tables::{ACCESS, ApicRegister, MmioKind, parse_pferr, parse_reason};
use vmtape_arch::{
    apic::{DeliveryMode, Icr, Shorthand},
    exception::Vector,
    exit::{Exit, Isa, VmxReason},
    msr::ReachedPat,
    note::{EmulateMode, Note, PageRole},
};

/// Takes a text apart from the left.
#[derive(Clone, Copy)]
struct Scan<'a>(&'a str);

impl<'a> Scan<'a> {
    /// The text up to a word, which is skipped.
    fn until(&mut self, word: &str) -> Option<&'a str> {
        let (before, after) = self.0.split_once(word)?;
        self.0 = after;
        Some(before)
    }

    /// A hexadecimal number after a word, with or without `0x`; the number ends at the first other character. One that
    /// does not fit is none: the line stays as it is.
    fn hex<T: TryFrom<u64>>(&mut self, word: &str) -> Option<T> {
        self.until(word)?;
        self.0 = self.0.strip_prefix("0x").unwrap_or(self.0);
        self.number(16)
    }

    /// A decimal number after a word.
    fn dec<T: TryFrom<u64>>(&mut self, word: &str) -> Option<T> {
        self.until(word)?;
        self.number(10)
    }

    fn number<T: TryFrom<u64>>(&mut self, radix: u32) -> Option<T> {
        let end = self.0.find(|c: char| !c.is_digit(radix)).unwrap_or(self.0.len());
        let (digits, rest) = self.0.split_at(end);
        self.0 = rest;
        u64::from_str_radix(digits, radix).ok()?.try_into().ok()
    }

    fn has(&self, word: &str) -> bool {
        self.0.contains(word)
    }
}

/// `kvm_exit`'s fields: the rip and the exit. `last` is the architecture of reasons that print as numbers.
///
/// Kernels before 5.10 and libtraceevent's plugin print `info A B` and tell neither `intr_info` nor `error_code`: zeros.
pub fn exit(text: &str, last: Isa) -> Option<(u64, Exit)> {
    if let Some(raw) = RawText::new(text) {
        return fields::exit(&raw);
    }
    let mut s = Scan(text);
    s.until("reason ")?;
    let reason = s.until(" rip ")?;
    let (isa, reason) = parse_reason(reason, last).or_else(|| plugin::reason(reason, last))?;
    let rip = s.hex("")?;
    let old = !s.has(" info1 ");
    let (info1, info2) =
        if old { (s.hex(" info ")?, s.hex(" ")?) } else { (s.hex(" info1 ")?, s.hex(" info2 ")?) };
    let told = s.has(" intr_info ");
    let intr_info = if told { s.hex(" intr_info ")? } else { 0 };
    let error_code = if told { s.hex(" error_code ")? } else { 0 };
    let mut exit = Exit { isa, reason, info1, info2, intr_info, error_code, ..Default::default() };
    addresses(&mut exit);
    Some((rip, exit))
}

/// The rip that `kvm_page_fault` tells, from 6.1 on.
pub fn rip(text: &str) -> Option<u64> {
    match RawText::new(text) {
        Some(raw) => raw.number(Name::GUEST_RIP),
        None => Scan(text).hex(" rip "),
    }
}

/// Where an exit's own fields hold addresses.
pub(crate) fn addresses(exit: &mut Exit) {
    use vmtape_arch::exit::SvmExitCode as Svm;
    match exit.isa {
        Isa::SVM if exit.reason == Svm::NPF.0 => exit.gpa = exit.info2,
        Isa::SVM if exit.reason == Svm::EXCP_PF.0 => exit.gva = exit.info2,
        // A page fault: its exit qualification is the linear address.
        Isa::VMX
            if exit.reason & 0xffff == VmxReason::EXCEPTION_NMI.0 && exit.intr_info as u8 == Vector::PF.0 =>
        {
            exit.gva = exit.info1;
        }
        _ => {}
    }
}

/// The guest physical address that a VMX exit reported, where a note after it tells.
pub fn gpa_of(exit: &Exit, note: &Note) -> Option<u64> {
    match (VmxReason(exit.reason & 0xffff), note) {
        _ if exit.isa != Isa::VMX || exit.gpa != 0 => None,
        (VmxReason::EPT_VIOLATION, Note::PageFault { address, .. }) => Some(*address),
        (VmxReason::EPT_MISCONFIG, Note::FastMmio { gpa } | Note::Mmio { gpa, .. }) => Some(*gpa),
        _ => None,
    }
}

/// A note from the text of an event, if it has a decoded form.
pub fn note(event: &str, text: &str) -> Option<Note> {
    match RawText::new(text) {
        Some(raw) => fields::note(event, &raw),
        None => kernel_note(event, text).or_else(|| plugin::note(event, text)),
    }
}

/// A note from the text that the kernel prints.
fn kernel_note(event: &str, text: &str) -> Option<Note> {
    let mut s = Scan(text);
    Some(match event {
        "kvm_entry" => Note::Entry {
            rip: s.hex("rip ")?,
            intr_info: if s.has("intr_info ") { s.hex("intr_info ")? } else { 0 },
            error_code: if s.has("error_code ") { s.hex("error_code ")? } else { 0 },
        },
        "kvm_page_fault" => Note::PageFault { address: s.hex("address ")?, code: s.hex("error_code ")? },
        "kvm_cpuid" => cpuid(s)?,
        "kvm_msr" => {
            let write = direction(s.until(" ")?, "msr")?;
            let (index, data) = (s.hex("")?, s.hex(" = ")?);
            Note::Msr {
                write,
                index,
                data,
                exception: s.has("(#GP)"),
                host_initiated: s.has("(host)"),
                passed: s.has("(passed)"),
                pat: match (s.has("(hPAT)"), s.has("(gPAT)")) {
                    (true, _) => ReachedPat::HPAT,
                    (_, true) => ReachedPat::GPAT,
                    _ => ReachedPat::ONLY,
                },
            }
        }
        "kvm_cr" => {
            let write = direction(s.until(" ")?, "cr")?;
            Note::Cr { write, number: s.hex("")?, value: s.hex(" = ")? }
        }
        "kvm_pio" => {
            let write = direction(s.until(" ")?, "pio")?;
            Note::Pio {
                write,
                port: s.hex("at ")?,
                size: s.dec("size ")?,
                count: s.dec("count ")?,
                value: s.hex("val ")?,
            }
        }
        "kvm_mmio" => {
            let kind = s.until(" len ").and_then(|text| text.strip_prefix("mmio "))?;
            let number = || u8::from_str_radix(kind.strip_prefix("0x")?, 16).ok();
            Note::Mmio {
                kind: MmioKind::from_name(kind).map(|kind| kind.0).or_else(number)?,
                len: s.dec("")?,
                gpa: s.hex("gpa ")?,
                value: s.hex("val ")?,
            }
        }
        "kvm_inj_exception" => inj_exception(s)?,
        "kvm_inj_virq" => inj_virq(s)?,
        "kvm_emulate_insn" => emulate_insn(s)?,
        "kvm_userspace_exit" => userspace_exit(s)?,
        "kvm_fast_mmio" => Note::FastMmio { gpa: s.hex("gpa ")? },
        "kvm_apic" => {
            let write = direction(s.until(" ")?, "apic")?;
            let register = s.until(" = ")?;
            let number = || u32::from_str_radix(register.strip_prefix("0x")?, 16).ok();
            let register = ApicRegister::from_name(register).map(|r| r.0).or_else(number)?;
            Note::Apic { write, register, value: s.hex("")? }
        }
        "kvm_apic_ipi" => {
            let (destination, vector) = (s.hex("dst ")?, s.dec("vec ")?);
            let mut word = |end| s.until(end);
            word("(")?;
            let icr = Icr::new()
                .with_vector(vector)
                .with_mode(DeliveryMode::from_name(word("|")?)?.0)
                .with_logical(word("|")? == "logical")
                .with_assert(word("|")? == "assert")
                .with_level(word("|")? == "level")
                .with_shorthand(Shorthand::from_name(word(")")?)?.0);
            Note::ApicIpi { icr: icr.low(), destination }
        }
        "kvm_apic_accept_irq" => {
            let (apic, vector) = (s.hex("apicid ")?, s.dec("vec ")?);
            s.until("(")?;
            let mode = DeliveryMode::from_name(s.until("|")?)?.0;
            Note::ApicAcceptIrq { apic, vector, mode, level: s.until(")")? == "level" }
        }
        "kvm_hypercall" => Note::Hypercall {
            nr: s.hex("nr ")?,
            args: [s.hex("a0 ")?, s.hex("a1 ")?, s.hex("a2 ")?, s.hex("a3 ")?],
        },
        _ => return nested_note(event, s).or_else(|| mmu_note(event, s)),
    })
}

/// Of guests of AMD's guests. What Intel's say has other words and stays text.
fn nested_note(event: &str, mut s: Scan<'_>) -> Option<Note> {
    Some(match event {
        "kvm_nested_vmrun" => Note::NestedVmenter {
            rip: s.hex("rip: ")?,
            vmcb: s.hex("vmcb: ")?,
            nested_rip: s.hex("nrip: ")?,
            int_ctl: s.hex("int_ctl: ")?,
            event_inj: s.hex("event_inj: ")?,
            npt: s.has("npt: on"),
            old: true,
            pgd: 0,
        },
        "kvm_nested_vmenter" => {
            let (rip, vmcb) = (s.hex("rip: ")?, s.hex("vmcb: ")?);
            let nested_rip = s.hex("nested_rip: ")?;
            let (int_ctl, event_inj) = (s.hex("int_ctl: ")?, s.hex("event_inj: ")?);
            let npt = s.has("nested_npt=y");
            let pgd = s.hex(if npt { "nested_cr3: " } else { "guest_cr3: " })?;
            Note::NestedVmenter { rip, vmcb, nested_rip, int_ctl, event_inj, npt, old: false, pgd }
        }
        "kvm_nested_intercepts" => {
            let (read, write): (u32, u32) = (s.hex("cr_read: ")?, s.hex("cr_write: ")?);
            let exceptions = s.hex("excp: ")?;
            Note::NestedIntercepts {
                cr: read | write << 16,
                exceptions,
                words: [s.hex("intercepts: ")?, s.hex(" ")?, s.hex(" ")?],
            }
        }
        "kvm_nested_vmexit" => {
            s.until("reason ")?;
            let reason = svm_reason(s.until(" rip ")?)?;
            Note::NestedVmexit {
                reason,
                rip: s.hex("")?,
                info1: s.hex(" info1 ")?,
                info2: s.hex(" info2 ")?,
                intr_info: s.hex(" intr_info ")?,
                error_code: s.hex(" error_code ")?,
            }
        }
        "kvm_nested_vmexit_inject" => {
            s.until("reason: ")?;
            Note::NestedVmexitInject {
                code: svm_reason(s.until(" ext_inf1: ")?)?,
                info1: s.hex("")?,
                info2: s.hex("ext_inf2: ")?,
                intr_info: s.hex("ext_int: ")?,
                error_code: s.hex("ext_int_err: ")?,
            }
        }
        "kvm_nested_intr_vmexit" => Note::NestedIntrVmexit { rip: s.hex("rip: ")? },
        "kvm_invlpga" => {
            Note::Invlpga { rip: s.hex("rip: ")?, asid: s.dec("asid: ")?, address: s.hex("address: ")? }
        }
        "kvm_skinit" => Note::Skinit { rip: s.hex("rip: ")?, slb: s.hex("slb: ")? },
        "kvm_enter_smm" | "kvm_smm_transition" => {
            let entering = s.has("entering SMM");
            Note::SmmTransition { smbase: s.hex("smbase ")?, entering, old: event == "kvm_enter_smm" }
        }
        _ => return None,
    })
}

fn svm_reason(text: &str) -> Option<u32> {
    let (isa, reason) = parse_reason(text, Isa::SVM)?;
    (isa == Isa::SVM).then_some(reason)
}

fn mmu_note(event: &str, mut s: Scan<'_>) -> Option<Note> {
    Some(match event {
        "kvm_mmu_spte_requested" => {
            Note::SpteRequested { gfn: s.hex("gfn ")?, pfn: s.hex("pfn ")?, level: s.dec("level ")? }
        }
        "kvm_mmu_set_spte" => {
            Note::SetSpte { gfn: s.hex("gfn ")?, spte: s.hex("spte ")?, level: s.dec("level ")? }
        }
        "kvm_mmu_pagetable_walk" => Note::PagetableWalk { address: s.hex("addr ")?, pferr: s.hex("pferr ")? },
        "kvm_mmu_paging_element" => Note::PagingElement { pte: s.hex("pte ")?, level: s.dec("level ")? },
        "kvm_mmu_walker_error" => Note::WalkerError { pferr: s.hex("pferr ")? },
        "kvm_mmu_set_accessed_bit" => Note::SetAccessed { gpa: s.hex("gpa ")? },
        "kvm_mmu_set_dirty_bit" => Note::SetDirty { gpa: s.hex("gpa ")? },
        "mark_mmio_spte" => Note::MarkMmioSpte { gfn: s.hex("gfn ")?, access: s.hex("access ")? },
        "handle_mmio_page_fault" => Note::HandleMmioPageFault {
            address: s.hex("addr:")?,
            gfn: s.hex("gfn ")?,
            access: s.hex("access ")?,
        },
        "fast_page_fault" => {
            let address = s.hex("gva ")?;
            s.until("error_code ")?;
            // With no bit set the flags are an empty word.
            let code = if s.0.starts_with("sptep ") { 0 } else { parse_pferr(s.until(" ")?)? };
            Note::FastPageFault { address, code, fixed: s.dec::<u8>("fixed ")? != 0 }
        }
        "kvm_tdp_mmu_spte_changed" => Note::TdpSpteChanged {
            gfn: s.hex("gfn ")?,
            level: s.dec("level ")?,
            old: s.hex("old_spte ")?,
            new: s.hex("new_spte ")?,
        },
        "vcpu_match_mmio" => Note::MatchMmio {
            gva: s.hex("gva ")?,
            gpa: s.hex("gpa ")?,
            write: s.has("Write"),
            by_gpa: s.has("GPA"),
        },
        "kvm_mmu_get_page" => {
            let created = s.0.trim_end().split(' ').any(|word| word == "new");
            let (gfn, role) = page(s)?;
            Note::GetPage { gfn, role, created }
        }
        "kvm_mmu_sync_page" => page(s).map(|(gfn, role)| Note::SyncPage { gfn, role })?,
        "kvm_mmu_unsync_page" => page(s).map(|(gfn, role)| Note::UnsyncPage { gfn, role })?,
        "kvm_mmu_prepare_zap_page" => page(s).map(|(gfn, role)| Note::ZapPage { gfn, role })?,
        _ => return None,
    })
}

/// `WHAT_read` or `WHAT_write`: whether it is a write.
fn direction(word: &str, what: &str) -> Option<bool> {
    match word.strip_prefix(what)? {
        "_read" => Some(false),
        "_write" => Some(true),
        _ => None,
    }
}

fn cpuid(mut s: Scan<'_>) -> Option<Note> {
    let (function, index) = (s.hex("func ")?, s.hex("idx ")?);
    let mut register = |word| s.hex(word);
    let (eax, ebx, ecx, edx) = (register("rax ")?, register("rbx ")?, register("rcx ")?, register("rdx ")?);
    s.until("cpuid entry ")?;
    let found = s.0.starts_with("found");
    Some(Note::Cpuid { function, index, eax, ebx, ecx, edx, found, used_max_basic: s.has("used max basic") })
}

/// `#PF (0x9) [reinjected]`. Kernel 5.10 prints an error code even where there is none.
fn inj_exception(mut s: Scan<'_>) -> Option<Note> {
    let reinjected = s.has("[reinjected]");
    let name = s.0.split(' ').next()?;
    let number = || u8::from_str_radix(name.strip_prefix("0x")?, 16).ok().map(Vector);
    let vector = Vector::from_name(name).or_else(number)?;
    let printed = s.has(" (");
    let error_code = if printed { s.hex(" (")? } else { 0 };
    let has_error = printed && (vector.has_error_code() || error_code != 0);
    Some(Note::InjException { vector, has_error, error_code, reinjected })
}

/// `IRQ 0x8 [reinjected]`; kernel 5.10: `irq 8`.
fn inj_virq(mut s: Scan<'_>) -> Option<Note> {
    let (soft, reinjected) = (s.0.starts_with("Soft/INTn"), s.has("[reinjected]"));
    let old = s.0.starts_with("irq ");
    let vector = if old { s.dec("irq ")? } else { s.hex(" ")? };
    Some(Note::InjVirq { vector, soft, reinjected })
}

/// `0:401087:45 8b 30 (prot64) failed`.
fn emulate_insn(mut s: Scan<'_>) -> Option<Note> {
    let csbase = s.hex("")?;
    let rip = s.hex(":")?;
    s.until(":")?;
    let (bytes, mode) = (s.until("(")?, s.until(")")?);
    let (mut insn, mut len) = (0u128, 0);
    for byte in bytes.split_whitespace() {
        insn |= u128::from(u8::from_str_radix(byte, 16).ok()?).checked_shl(8 * len)?;
        len += 1;
    }
    let number = || u8::from_str_radix(mode.strip_prefix("0x")?, 16).ok();
    let mode = EmulateMode::from_name(mode).map(|mode| mode.0).or_else(number)?;
    (len <= 15).then(|| Note::EmulateInsn {
        rip,
        csbase,
        len: len as u8,
        insn,
        mode,
        failed: s.has("failed"),
    })
}

/// `reason KVM_EXIT_IO (2)`, `reason restart (4)`.
fn userspace_exit(mut s: Scan<'_>) -> Option<Note> {
    let name = s.until(" (").and_then(|text| text.strip_prefix("reason "))?;
    let number: u32 = s.dec("")?;
    Some(match name {
        "restart" | "error" => {
            Note::UserspaceExit { reason: 0, errno: i32::try_from(number).ok()?.checked_neg()? }
        }
        _ => Note::UserspaceExit { reason: number, errno: 0 },
    })
}

/// `sp gen 0 gfn 40000 l2 8-byte q0 direct wux nxe ad root 0 sync`: frame and role.
fn page(mut s: Scan<'_>) -> Option<(u64, u32)> {
    let gfn = s.hex("gfn ")?;
    let level = s.dec(" l").filter(|level| *level < 16)?;
    let mut role = PageRole::new().with_level(level);
    role.set_has_4_byte_gpte(s.dec::<u8>(" ")? == 4);
    role.set_quadrant(s.dec::<u8>("-byte q")? & 3);
    let words: Vec<_> = s.0.split_whitespace().collect();
    let access = words.iter().find_map(|word| access(word))?;
    role.set_access(access);
    role.set_direct(words.contains(&"direct"));
    role.set_invalid(words.contains(&"invalid"));
    role.set_efer_nx(words.contains(&"nxe"));
    role.set_ad_disabled(words.contains(&"!ad"));
    // What this program prints for the parts of a role that the kernel does not.
    let more = words.iter().position(|word| *word == "role").and_then(|at| words.get(at + 1));
    match more {
        Some(word) => Some((gfn, u32::from_str_radix(word, 16).ok()?)),
        None => Some((gfn, role.into_bits())),
    }
}

/// `wux`, or from 7.2 on `rwux` with bit 0 read, bit 1 write, bit 2 user, bit 3 execute.
fn access(word: &str) -> Option<u8> {
    if let Some(access) = ACCESS.iter().position(|text| *text == word) {
        return Some(access as u8);
    }
    let [r, w, u, x] = *word.as_bytes() else { return None };
    let is = |c, letter| if c == letter { Some(true) } else { (c == b'-').then_some(false) };
    is(r, b'r')?;
    Some(u8::from(is(x, b'x')?) | u8::from(is(w, b'w')?) << 1 | u8::from(is(u, b'u')?) << 2)
}
