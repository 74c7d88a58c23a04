//! Exits and notes from the fields of a tracepoint by name: of `trace-cmd report -R`, and of records in binary.
//!
//! See: KVM arch/x86/kvm/trace.h, arch/x86/kvm/mmu/mmutrace.h (5.10, 6.1, 6.12)

use super::note;
use crate::text::tables::IcrLow;
use vmtape_arch::{
    exception::Vector,
    exit::{Exit, Isa},
    msr::ReachedPat,
    note::{Note, PageRole},
};

/// An event's fields.
pub trait Fields {
    /// A number, sign-extended if its type is signed.
    fn number(&self, name: &str) -> Option<u64>;
    /// The first bytes of an array, low byte first.
    fn bytes(&self, name: &str) -> Option<u128>;
    /// How this kernel lays out `union kvm_mmu_page_role`.
    fn roles(&self) -> Roles {
        Roles::Has4ByteGpte
    }
}

/// Layouts of `kvm_mmu_page_role.word`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Roles {
    /// 5.10: bit 4 is `gpte_is_8_bytes`.
    GpteIs8Bytes,
    /// 6.1 and 6.12.
    #[default]
    Has4ByteGpte,
}

impl Roles {
    /// The role as far as the kernel's text tells it.
    fn printed(self, word: u32) -> u32 {
        let mut role = PageRole::from_bits(word).printed();
        if self == Self::GpteIs8Bytes {
            role.set_has_4_byte_gpte(!role.has_4_byte_gpte());
        }
        role.into_bits()
    }
}

/// `kvm_exit`'s rip and exit.
pub fn exit(f: &dyn Fields) -> Option<(u64, Exit)> {
    let get = |name| f.number(name);
    let mut exit = Exit {
        isa: Isa(get("isa")? as _),
        reason: get("exit_reason")? as u32,
        info1: get("info1")?,
        info2: get("info2")?,
        intr_info: get("intr_info").unwrap_or(0) as u32,
        error_code: get("error_code").unwrap_or(0) as u32,
        ..Default::default()
    };
    note::addresses(&mut exit);
    Some((get("guest_rip")?, exit))
}

/// A note, if the event has one.
pub fn note(event: &str, f: &dyn Fields) -> Option<Note> {
    let get = |name| f.number(name);
    let yes = |name| f.number(name).map(|value| value != 0);
    let small = |name| u8::try_from(f.number(name)?).ok();
    let word = |name| Some(f.number(name)? as u32);
    Some(match event {
        "kvm_entry" => Note::Entry {
            rip: get("rip")?,
            intr_info: word("intr_info").unwrap_or(0),
            error_code: word("error_code").unwrap_or(0),
        },
        "kvm_page_fault" => Note::PageFault { address: get("fault_address")?, code: get("error_code")? },
        "kvm_cpuid" => Note::Cpuid {
            function: word("function")?,
            index: word("index")?,
            eax: word("rax")?,
            ebx: word("rbx")?,
            ecx: word("rcx")?,
            edx: word("rdx")?,
            found: yes("found")?,
            used_max_basic: yes("used_max_basic")?,
        },
        "kvm_msr" => Note::Msr {
            write: yes("write")?,
            index: word("ecx")?,
            data: get("data")?,
            exception: yes("exception")?,
            host_initiated: false,
            passed: false,
            pat: ReachedPat::ONLY,
        },
        "kvm_cr" => Note::Cr { write: yes("rw")?, number: small("cr")?, value: get("val")? },
        "kvm_pio" => Note::Pio {
            write: yes("rw")?,
            port: u16::try_from(get("port")?).ok()?,
            size: small("size")?,
            count: word("count")?,
            value: get("val")?,
        },
        "kvm_mmio" => {
            Note::Mmio { kind: small("type")?, len: small("len")?, gpa: get("gpa")?, value: get("val")? }
        }
        "kvm_fast_mmio" => Note::FastMmio { gpa: get("gpa")? },
        "kvm_apic" => Note::Apic { write: yes("rw")?, register: word("reg")?, value: get("val")? },
        "kvm_apic_ipi" => {
            let icr = IcrLow::from_bits(word("icr_low")?);
            // The bits that are printed, as text has them.
            let icr = IcrLow::new()
                .with_vector(icr.vector())
                .with_mode(icr.mode())
                .with_logical(icr.logical())
                .with_assert(icr.assert())
                .with_level(icr.level())
                .with_shorthand(icr.shorthand());
            Note::ApicIpi { icr: icr.into_bits(), destination: word("dest_id")? }
        }
        "kvm_apic_accept_irq" => Note::ApicAcceptIrq {
            apic: word("apicid")?,
            mode: (get("dm")? >> 8 & 7) as u8,
            level: yes("tm")?,
            vector: small("vec")?,
        },
        "kvm_hypercall" => {
            Note::Hypercall { nr: get("nr")?, args: [get("a0")?, get("a1")?, get("a2")?, get("a3")?] }
        }
        "kvm_inj_exception" => {
            let vector = Vector(small("exception")?);
            let error_code = if yes("has_error")? { word("error_code")? } else { 0 };
            let has_error = yes("has_error")? && (vector.has_error_code() || error_code != 0);
            Note::InjException {
                vector,
                has_error,
                error_code,
                reinjected: yes("reinjected").unwrap_or(false),
            }
        }
        "kvm_inj_virq" => Note::InjVirq {
            vector: small("vector").or_else(|| small("irq"))?,
            soft: yes("soft").unwrap_or(false),
            reinjected: yes("reinjected").unwrap_or(false),
        },
        "kvm_userspace_exit" => match word("errno")? as i32 {
            errno @ ..0 => Note::UserspaceExit { reason: 0, errno },
            _ => Note::UserspaceExit { reason: word("reason")?, errno: 0 },
        },
        "kvm_emulate_insn" => {
            let len = small("len").filter(|len| *len <= 15)?;
            Note::EmulateInsn {
                rip: get("rip")?,
                csbase: word("csbase")?,
                len,
                insn: f.bytes("insn")? & ((1 << (8 * u32::from(len))) - 1),
                mode: small("flags")?,
                failed: yes("failed")?,
            }
        }
        _ => mmu_note(event, f)?,
    })
}

fn mmu_note(event: &str, f: &dyn Fields) -> Option<Note> {
    let get = |name| f.number(name);
    let small = |name| u8::try_from(f.number(name)?).ok();
    let word = |name| Some(f.number(name)? as u32);
    let page = || Some((f.number("gfn")?, f.roles().printed(f.number("role")? as u32)));
    Some(match event {
        "kvm_mmu_spte_requested" => {
            Note::SpteRequested { gfn: get("gfn")?, pfn: get("pfn")?, level: small("level")? }
        }
        "kvm_mmu_set_spte" => Note::SetSpte { gfn: get("gfn")?, spte: get("spte")?, level: small("level")? },
        "kvm_mmu_pagetable_walk" => Note::PagetableWalk { address: get("addr")?, pferr: word("pferr")? },
        "kvm_mmu_paging_element" => Note::PagingElement { pte: get("pte")?, level: small("level")? },
        "kvm_mmu_walker_error" => Note::WalkerError { pferr: word("pferr")? },
        "kvm_mmu_set_accessed_bit" => Note::SetAccessed { gpa: get("gpa")? },
        "kvm_mmu_set_dirty_bit" => Note::SetDirty { gpa: get("gpa")? },
        "mark_mmio_spte" => Note::MarkMmioSpte { gfn: get("gfn")?, access: small("access")? },
        "handle_mmio_page_fault" => {
            Note::HandleMmioPageFault { address: get("addr")?, gfn: get("gfn")?, access: small("access")? }
        }
        "kvm_tdp_mmu_spte_changed" => Note::TdpSpteChanged {
            gfn: get("gfn")?,
            level: small("level")?,
            old: get("old_spte")?,
            new: get("new_spte")?,
        },
        "vcpu_match_mmio" => Note::MatchMmio {
            gva: get("gva")?,
            gpa: get("gpa")?,
            write: get("write")? != 0,
            by_gpa: get("gpa_match")? != 0,
        },
        "kvm_mmu_get_page" => {
            let (gfn, role) = page()?;
            Note::GetPage { gfn, role, created: get("created")? != 0 }
        }
        "kvm_mmu_sync_page" => page().map(|(gfn, role)| Note::SyncPage { gfn, role })?,
        "kvm_mmu_unsync_page" => page().map(|(gfn, role)| Note::UnsyncPage { gfn, role })?,
        "kvm_mmu_prepare_zap_page" => page().map(|(gfn, role)| Note::ZapPage { gfn, role })?,
        _ => return None,
    })
}

/// `name=value` pairs as `trace-cmd report -R` prints them.
pub struct RawText<'a> {
    text: &'a str,
    /// Numbers without `0x` are decimal, whatever the field: the print format was not understood.
    decimal: bool,
}

/// What libtraceevent prints before the fields of an event whose print format it does not understand.
const FAILED_TO_PARSE: &str = "[FAILED TO PARSE]";

/// Fields that print formats show in hexadecimal without `0x`.
const HEXADECIMAL: [&str; 22] = [
    "function",
    "index",
    "rax",
    "rbx",
    "rcx",
    "rdx",
    "ecx",
    "cr",
    "rip",
    "csbase",
    "addr",
    "pferr",
    "pte",
    "gfn",
    "pfn",
    "spte",
    "sptep",
    "old_spte",
    "new_spte",
    "access",
    "gpa",
    "fault_address",
];

impl<'a> RawText<'a> {
    /// The fields, if the text is made of such pairs.
    pub fn new(text: &'a str) -> Option<Self> {
        let pairs = text.strip_prefix(FAILED_TO_PARSE).map(str::trim_start);
        let (text, decimal) = (pairs.unwrap_or(text), pairs.is_some());
        let first = text.split(' ').next()?;
        // It never understands how shadow pages are printed.
        let decimal = decimal || text.contains(" role=");
        first.contains('=').then_some(Self { text, decimal })
    }

    fn value(&self, name: &str) -> Option<&'a str> {
        self.text.split(' ').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))
    }
}

impl Fields for RawText<'_> {
    fn number(&self, name: &str) -> Option<u64> {
        let value = self.value(name)?;
        if let Some(hex) = value.strip_prefix("0x") {
            return u64::from_str_radix(hex, 16).ok();
        }
        // In one event `error_code` has no prefix either: `kvm_page_fault` of 5.10.
        let old_fault = name == "error_code" && self.value("fault_address").is_some();
        if !self.decimal && (HEXADECIMAL.contains(&name) || old_fault) {
            return u64::from_str_radix(value, 16).ok();
        }
        value.parse().ok().or_else(|| value.parse::<i64>().ok().map(i64::cast_unsigned))
    }

    /// `insn=ARRAY[0f, a2]`.
    fn bytes(&self, name: &str) -> Option<u128> {
        let at = self.text.find(&format!("{name}=ARRAY["))? + name.len() + 7;
        let list = self.text[at..].split(']').next()?;
        let bytes: Option<Vec<u8>> = list.split(", ").map(|byte| u8::from_str_radix(byte, 16).ok()).collect();
        let mut array = [0; 16];
        for (place, byte) in array.iter_mut().zip(bytes?) {
            *place = byte;
        }
        Some(u128::from_le_bytes(array))
    }
}
