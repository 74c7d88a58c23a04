//! Notes as tracepoint text, in the form of kernel 6.12. Host addresses, which notes do not carry, print as zero.

use super::tables::{ACCESS, ApicRegister, MmioKind, UserspaceReason, pferr};
use std::fmt::{self, Display, Write};
use vmtape_arch::{
    apic::{DeliveryMode, Icr, Shorthand},
    exit::SvmExitCode,
    msr::ReachedPat,
    note::{EmulateMode, Note, PageRole},
    vmrun_check::VmrunCheck,
};

/// A note's text after `event: `, or `None` where it is no tracepoint of KVM. `vcpu` and `rip` are those of the exit that
/// it belongs to.
pub fn note_text(note: &Note, vcpu: u32, rip: u64) -> Option<String> {
    let mut out = String::new();
    let written = write(&mut out, note, vcpu, rip).is_ok();
    (written && !out.is_empty()).then_some(out)
}

fn rw(write: bool) -> &'static str {
    if write { "write" } else { "read" }
}

fn optional(present: bool, text: &'static str) -> &'static str {
    if present { text } else { "" }
}

/// A name, or the number as `__print_symbolic` writes it.
fn named(name: Option<&'static str>, number: impl Into<u64>) -> impl Display {
    name.map_or_else(|| format!("{:#x}", number.into()), str::to_owned)
}

fn write(f: &mut String, note: &Note, vcpu: u32, rip: u64) -> fmt::Result {
    match *note {
        Note::PageFault { address, code } => {
            write!(f, "vcpu {vcpu} rip {rip:#x} address {address:#018x} error_code {code:#x}")
        }
        Note::Cpuid { function, index, eax, ebx, ecx, edx, found, used_max_basic } => write!(
            f,
            "func {function:x} idx {index:x} rax {eax:x} rbx {ebx:x} rcx {ecx:x} rdx {edx:x}, cpuid entry {}{}",
            if found { "found" } else { "not found" },
            optional(used_max_basic, ", used max basic"),
        ),
        Note::Msr { write, index, data, exception, host_initiated, passed, pat } => write!(
            f,
            "msr_{} {index:x} = {data:#x}{}{}{}{}",
            rw(write),
            optional(exception, " (#GP)"),
            optional(host_initiated, " (host)"),
            optional(passed, " (passed)"),
            match pat {
                ReachedPat::ONLY => "",
                ReachedPat::HPAT => " (hPAT)",
                _ => " (gPAT)",
            },
        ),
        Note::Cr { write, number, value } => write!(f, "cr_{} {number:x} = {value:#x}", rw(write)),
        Note::Pio { write, port, size, count, value } => write!(
            f,
            "pio_{} at {port:#x} size {size} count {count} val {value:#x} {}",
            rw(write),
            optional(count > 1, "(...)"),
        ),
        Note::Mmio { kind, len, gpa, value } => {
            let kind = named(MmioKind(kind).name(), kind);
            write!(f, "mmio {kind} len {len} gpa {gpa:#x} val {value:#x}")
        }
        Note::InjException { vector, has_error, error_code, reinjected } => {
            // The kernel's table ends at #MC.
            write!(f, "{}", named(vector.name().filter(|_| vector.0 <= 18 && vector.0 != 2), vector.0))?;
            if has_error {
                write!(f, " ({error_code:#x})")?;
            }
            f.write_str(optional(reinjected, " [reinjected]"))
        }
        Note::InjVirq { vector, soft, reinjected } => {
            let kind = if soft { "Soft/INTn" } else { "IRQ" };
            write!(f, "{kind} {vector:#x}{}", optional(reinjected, " [reinjected]"))
        }
        Note::EmulateInsn { rip, csbase, len, insn, mode, failed } => {
            let bytes = &insn.to_le_bytes()[..usize::from(len.min(15))];
            let hex: Vec<_> = bytes.iter().map(|b| format!("{b:02x}")).collect();
            write!(f, "{csbase:x}:{rip:x}:{}", hex.join(" "))?;
            if mode != super::MODE_UNTOLD {
                write!(f, " ({})", named(EmulateMode(mode).name(), mode))?;
            }
            f.write_str(optional(failed, " failed"))
        }
        Note::UserspaceExit { reason, errno } => {
            let name = match errno {
                -4 => "restart".to_owned(),
                ..0 => "error".to_owned(),
                _ => named(UserspaceReason(reason).name(), reason).to_string(),
            };
            write!(f, "reason {name} ({})", if errno < 0 { errno.unsigned_abs() } else { reason })
        }
        Note::SpteRequested { gfn, pfn, level } => write!(f, "gfn {gfn:x} pfn {pfn:x} level {level}"),
        Note::SetSpte { gfn, spte, level } => write!(f, "gfn {gfn:x} spte {spte:x} level {level} at 0"),
        Note::PagetableWalk { address, pferr: code } => {
            write!(f, "addr {address:x} pferr {code:x} {}", pferr(code.into()))
        }
        Note::PagingElement { pte, level } => write!(f, "pte {pte:x} level {level}"),
        Note::WalkerError { pferr: code } => write!(f, "pferr {code:x} {}", pferr(code.into())),
        Note::SetAccessed { gpa } | Note::SetDirty { gpa } => write!(f, "gpa {gpa:x}"),
        Note::GetPage { gfn, role, created } => {
            page(f, gfn, role)?;
            f.write_str(if created { " new" } else { " existing" })
        }
        Note::SyncPage { gfn, role } | Note::UnsyncPage { gfn, role } | Note::ZapPage { gfn, role } => {
            page(f, gfn, role)
        }
        Note::MarkMmioSpte { gfn, access } => write!(f, "sptep:0 gfn {gfn:x} access {access:x} gen 0"),
        Note::HandleMmioPageFault { address, gfn, access } => {
            write!(f, "addr:{address:x} gfn {gfn:x} access {access:x}")
        }
        Note::FastPageFault { address, code, fixed } => write!(
            f,
            "vcpu {vcpu} gva {address:x} error_code {} sptep 0 old 0 new 0 spurious 0 fixed {}",
            pferr(code),
            u8::from(fixed),
        ),
        Note::Apic { write, register, value } => {
            let register = named(ApicRegister(register).name(), register);
            write!(f, "apic_{} {register} = {value:#x}", rw(write))
        }
        Note::ApicIpi { icr, destination } => {
            let icr = Icr::from_low(icr);
            write!(
                f,
                "dst {destination:x} vec {} ({}|{}|{}|{}|{})",
                icr.vector(),
                DeliveryMode(icr.mode()),
                if icr.logical() { "logical" } else { "physical" },
                if icr.assert() { "assert" } else { "de-assert" },
                if icr.level() { "level" } else { "edge" },
                Shorthand(icr.shorthand()),
            )
        }
        Note::ApicAcceptIrq { apic, mode, level, vector } => {
            let level = if level { "level" } else { "edge" };
            write!(f, "apicid {apic:x} vec {vector} ({}|{level})", DeliveryMode(mode))
        }
        Note::Hypercall { nr, args: [a0, a1, a2, a3] } => {
            write!(f, "nr {nr:#x} a0 {a0:#x} a1 {a1:#x} a2 {a2:#x} a3 {a3:#x}")
        }
        Note::FastMmio { gpa } => write!(f, "fast mmio at gpa {gpa:#x}"),
        Note::Entry { rip, intr_info, error_code } => {
            write!(f, "vcpu {vcpu}, rip {rip:#x}")?;
            if (intr_info, error_code) != (0, 0) {
                write!(f, " intr_info {intr_info:#010x} error_code {error_code:#010x}")?;
            }
            Ok(())
        }
        Note::TdpSpteChanged { gfn, level, old, new } => {
            write!(f, "as id 0 gfn {gfn:x} level {level} old_spte {old:x} new_spte {new:x}")
        }
        Note::MatchMmio { gva, gpa, write, by_gpa } => {
            let (kind, by) = (if write { "Write" } else { "Read" }, if by_gpa { "GPA" } else { "GVA" });
            write!(f, "gva {gva:#x} gpa {gpa:#x} {kind} {by}")
        }
        Note::NestedVmenter { rip, vmcb, nested_rip, int_ctl, event_inj, npt, old: true, .. } => write!(
            f,
            "rip: {rip:#018x} vmcb: {vmcb:#018x} nrip: {nested_rip:#018x} int_ctl: {int_ctl:#010x} event_inj: \
             {event_inj:#010x} npt: {}",
            if npt { "on" } else { "off" }
        ),
        Note::NestedVmenter { rip, vmcb, nested_rip, int_ctl, event_inj, npt, pgd, .. } => write!(
            f,
            "rip: {rip:#018x} vmcb: {vmcb:#018x} nested_rip: {nested_rip:#018x} int_ctl: {int_ctl:#010x} event_inj: \
             {event_inj:#010x} nested_npt={} {}: {pgd:#018x}",
            if npt { "y" } else { "n" },
            if npt { "nested_cr3" } else { "guest_cr3" }
        ),
        Note::NestedIntercepts { cr, exceptions, words: [a, b, c] } => write!(
            f,
            "cr_read: {:04x} cr_write: {:04x} excp: {exceptions:08x} intercepts: {a:08x} {b:08x} {c:08x}",
            cr as u16,
            cr >> 16
        ),
        Note::NestedVmexit { rip, reason, info1, info2, intr_info, error_code } => write!(
            f,
            "vcpu {vcpu} reason {} rip {rip:#x} info1 {info1:#018x} info2 {info2:#018x} intr_info {intr_info:#010x} \
             error_code {error_code:#010x}",
            svm_reason(reason)
        ),
        Note::NestedVmexitInject { code, info1, info2, intr_info, error_code } => write!(
            f,
            "reason: {} ext_inf1: {info1:#018x} ext_inf2: {info2:#018x} ext_int: {intr_info:#010x} ext_int_err: \
             {error_code:#010x}",
            svm_reason(code)
        ),
        Note::NestedIntrVmexit { rip } => write!(f, "rip: {rip:#018x}"),
        Note::NestedVmenterFailed { check, error } => {
            write!(f, "{}{}", named(VmrunCheck(check).name(), check), optional(error != 0, " error"))
        }
        Note::Invlpga { rip, asid, address } => {
            write!(f, "rip: {rip:#018x} asid: {asid} address: {address:#018x}")
        }
        Note::Skinit { rip, slb } => write!(f, "rip: {rip:#018x} slb: {slb:#010x}"),
        Note::SmmTransition { smbase, entering, .. } => {
            let way = if entering { "entering" } else { "leaving" };
            write!(f, "vcpu {vcpu}: {way} SMM, smbase {smbase:#x}")
        }
        Note::SiliconStep { .. }
        | Note::MemoryType { .. }
        | Note::Rule { .. }
        | Note::Warning { .. }
        | Note::Other(_) => Ok(()),
    }
}

/// An exit of L2, which only SVM has here.
fn svm_reason(code: u32) -> impl Display {
    named(SvmExitCode(code).name(), code)
}

/// A shadow page. Parts of the role that the kernel does not print follow its text.
fn page(f: &mut String, gfn: u64, role: u32) -> fmt::Result {
    let role = PageRole::from_bits(role);
    write!(
        f,
        "sp gen 0 gfn {gfn:x} l{} {}-byte q{}{} {}{} {}nxe {}ad root 0 sync",
        role.level(),
        if role.has_4_byte_gpte() { 4 } else { 8 },
        role.quadrant(),
        optional(role.direct(), " direct"),
        ACCESS[usize::from(role.access())],
        optional(role.invalid(), " invalid"),
        optional(!role.efer_nx(), "!"),
        optional(role.ad_disabled(), "!"),
    )?;
    if role != role.printed() {
        write!(f, " role {:x}", role.into_bits())?;
    }
    Ok(())
}
