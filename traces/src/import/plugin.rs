//! Texts of libtraceevent's KVM plugin, which `trace-cmd report` and `perf script` print instead of the kernel's.
//!
//! See: libtraceevent plugins/plugin_kvm.c (1.7)

use crate::text::MODE_UNTOLD;
use vmtape_arch::{
    exit::{Isa, SvmExitCode},
    note::{Note, PageRole},
};

/// An exit code as the plugin names it: `EXIT_NPF`, `EXIT_EXCP_PF`, `EXIT_READ_CR0`; `UNKNOWN (78)` where it has no name.
pub fn reason(text: &str, last: Isa) -> Option<(Isa, u32)> {
    if let Some(number) = text.strip_prefix("UNKNOWN (") {
        // Releases put a symbol behind it: `+0x...`.
        return Some((last, number.split(')').next()?.parse().ok()?));
    }
    // What the kernel calls INTERRUPT_WINDOW now.
    if text == "PENDING_INTERRUPT" {
        return Some((Isa::VMX, vmtape_arch::exit::VmxReason::INTERRUPT_WINDOW.0));
    }
    let name = text.strip_prefix("EXIT_")?;
    Some((Isa::SVM, svm_code(name)?))
}

fn svm_code(name: &str) -> Option<u32> {
    if let Some((register, base)) = register(name) {
        return Some(base + register);
    }
    if let Some(exception) = name.strip_prefix("EXCP_") {
        const NAMES: [&str; 20] = [
            "DE", "DB", "", "BP", "OF", "BR", "UD", "NM", "DF", "", "TS", "NP", "SS", "GP", "PF", "", "MF",
            "AC", "MC", "XF",
        ];
        return Some(SvmExitCode::EXCP_DE.0 + NAMES.iter().position(|known| *known == exception)? as u32);
    }
    /// From 0x60 on, in the order of the codes. See: APM volume 2, appendix C.
    const FROM_INTR: [&str; 46] = [
        "INTR",
        "NMI",
        "SMI",
        "INIT",
        "VINTR",
        "CR0_SEL_WRITE",
        "IDTR_READ",
        "GDTR_READ",
        "LDTR_READ",
        "TR_READ",
        "IDTR_WRITE",
        "GDTR_WRITE",
        "LDTR_WRITE",
        "TR_WRITE",
        "RDTSC",
        "RDPMC",
        "PUSHF",
        "POPF",
        "CPUID",
        "RSM",
        "IRET",
        "SWINT",
        "INVD",
        "PAUSE",
        "HLT",
        "INVLPG",
        "INVLPGA",
        "IOIO",
        "MSR",
        "TASK_SWITCH",
        "FERR_FREEZE",
        "SHUTDOWN",
        "VMRUN",
        "VMMCALL",
        "VMLOAD",
        "VMSAVE",
        "STGI",
        "CLGI",
        "SKINIT",
        "RDTSCP",
        "ICEBP",
        "WBINVD",
        "MONITOR",
        "MWAIT",
        "MWAIT_COND",
        "XSETBV",
    ];
    Some(match name {
        "NPF" => SvmExitCode::NPF.0,
        "AVIC_INCOMPLETE_IPI" => 0x401,
        "AVIC_UNACCELERATED_ACCESS" => 0x402,
        "ERR" => u32::MAX,
        _ => 0x60 + FROM_INTR.iter().position(|known| *known == name)? as u32,
    })
}

/// `READ_CR0`, `WRITE_DR7`: the register's number and the code of the first of its kind.
fn register(name: &str) -> Option<(u32, u32)> {
    const KINDS: [(&str, u32); 4] =
        [("READ_CR", 0), ("WRITE_CR", 0x10), ("READ_DR", 0x20), ("WRITE_DR", 0x30)];
    KINDS.iter().find_map(|(kind, base)| {
        let number: u32 = name.strip_prefix(kind)?.parse().ok()?;
        (number < 16).then_some((number, *base))
    })
}

/// A note from a text that the plugin prints in its own form.
pub fn note(event: &str, text: &str) -> Option<Note> {
    match event {
        "kvm_emulate_insn" => emulate_insn(text),
        "kvm_mmu_get_page" => {
            let (created, page) = match text.split_once(' ')? {
                ("new", page) => (true, page),
                ("existing", page) => (false, page),
                _ => return None,
            };
            let (gfn, role) = self::page(page)?;
            Some(Note::GetPage { gfn, role, created })
        }
        "kvm_mmu_sync_page" => page(text).map(|(gfn, role)| Note::SyncPage { gfn, role }),
        "kvm_mmu_unsync_page" => page(text).map(|(gfn, role)| Note::UnsyncPage { gfn, role }),
        "kvm_mmu_prepare_zap_page" => page(text).map(|(gfn, role)| Note::ZapPage { gfn, role }),
        _ => None,
    }
}

/// `f0000:ec2f: 0f 20 c1 FAIL`, or as this program prints it with ` failed`: the mode is not told. Builds that disassemble print no bytes.
fn emulate_insn(text: &str) -> Option<Note> {
    let (csbase, rest) = text.split_once(':')?;
    let (rip, bytes) = rest.split_once(':')?;
    let failure = [" FAIL", " failed"].iter().find_map(|word| bytes.strip_suffix(word));
    let (bytes, failed) = match failure {
        Some(bytes) => (bytes, true),
        None => (bytes, false),
    };
    let (mut insn, mut len) = (0, 0u8);
    for byte in bytes.split_whitespace() {
        insn |= u128::from(u8::from_str_radix(byte, 16).ok().filter(|_| byte.len() == 2 && len < 15)?)
            << (8 * len);
        len += 1;
    }
    Some(Note::EmulateInsn {
        rip: u64::from_str_radix(rip.trim(), 16).ok()?,
        csbase: u32::from_str_radix(csbase, 16).ok()?,
        len,
        insn,
        mode: MODE_UNTOLD,
        failed,
    })
}

/// Where only some releases print the frame: without it a line stays one.
/// `sp gfn c0000 2 q0 direct wux !pae nxe wp root 0 sync`: it takes `has_4_byte_gpte` for PAE, and does not tell whether
/// accessed and dirty bits are off.
fn page(text: &str) -> Option<(u64, u32)> {
    let mut words = text.strip_prefix("sp gfn ")?.split_whitespace();
    let gfn = u64::from_str_radix(words.next()?, 16).ok()?;
    let level = words.next()?.parse().ok().filter(|level| *level < 16)?;
    let mut role = PageRole::new().with_level(level);
    role.set_quadrant(words.next()?.strip_prefix('q')?.parse::<u8>().ok()? & 3);
    for word in words.take_while(|word| *word != "root") {
        match word {
            "direct" => role.set_direct(true),
            "invalid" => role.set_invalid(true),
            "pae" => role.set_has_4_byte_gpte(true),
            "nxe" => role.set_efer_nx(true),
            _ => {
                if let Some(access) = crate::text::tables::ACCESS.iter().position(|known| *known == word) {
                    role.set_access(access as u8);
                }
            }
        }
    }
    Some((gfn, role.into_bits()))
}
