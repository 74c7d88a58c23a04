//! Exits and notes from the fields of a tracepoint by name: of `trace-cmd report -R`, and of records in binary.
//!
//! See: KVM arch/x86/kvm/trace.h, arch/x86/kvm/mmu/mmutrace.h (5.10, 6.1, 6.12)

use super::{name::Name, note};
use vmtape_arch::{
    apic::Icr,
    exception::Vector,
    exit::{Exit, Isa},
    msr::ReachedPat,
    note::{Note, PageRole},
};

/// An event's fields.
pub trait Fields {
    /// A number, sign-extended if its type is signed.
    fn number(&self, name: Name) -> Option<u64>;
    /// The first bytes of an array, low byte first.
    fn bytes(&self, name: Name) -> Option<u128>;
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
        isa: Isa(get(Name::ISA)? as _),
        reason: get(Name::EXIT_REASON)? as u32,
        info1: get(Name::INFO1)?,
        info2: get(Name::INFO2)?,
        intr_info: get(Name::INTR_INFO).unwrap_or(0) as u32,
        error_code: get(Name::ERROR_CODE).unwrap_or(0) as u32,
        ..Default::default()
    };
    note::addresses(&mut exit);
    Some((get(Name::GUEST_RIP)?, exit))
}

/// A note, if the event has one.
pub fn note(event: &str, f: &dyn Fields) -> Option<Note> {
    let get = |name| f.number(name);
    let yes = |name| f.number(name).map(|value| value != 0);
    let small = |name| u8::try_from(f.number(name)?).ok();
    let word = |name| Some(f.number(name)? as u32);
    Some(match event {
        "kvm_entry" => Note::Entry {
            rip: get(Name::RIP)?,
            intr_info: word(Name::INTR_INFO).unwrap_or(0),
            error_code: word(Name::ERROR_CODE).unwrap_or(0),
        },
        "kvm_page_fault" => {
            Note::PageFault { address: get(Name::FAULT_ADDRESS)?, code: get(Name::ERROR_CODE)? }
        }
        "kvm_cpuid" => Note::Cpuid {
            function: word(Name::FUNCTION)?,
            index: word(Name::INDEX)?,
            eax: word(Name::RAX)?,
            ebx: word(Name::RBX)?,
            ecx: word(Name::RCX)?,
            edx: word(Name::RDX)?,
            found: yes(Name::FOUND)?,
            used_max_basic: yes(Name::USED_MAX_BASIC)?,
        },
        "kvm_msr" => Note::Msr {
            write: yes(Name::WRITE)?,
            index: word(Name::ECX)?,
            data: get(Name::DATA)?,
            exception: yes(Name::EXCEPTION)?,
            host_initiated: false,
            passed: false,
            pat: ReachedPat::ONLY,
        },
        "kvm_cr" => Note::Cr { write: yes(Name::RW)?, number: small(Name::CR)?, value: get(Name::VAL)? },
        "kvm_pio" => Note::Pio {
            write: yes(Name::RW)?,
            port: u16::try_from(get(Name::PORT)?).ok()?,
            size: small(Name::SIZE)?,
            count: word(Name::COUNT)?,
            value: get(Name::VAL)?,
        },
        "kvm_mmio" => Note::Mmio {
            kind: small(Name::TYPE)?,
            len: small(Name::LEN)?,
            gpa: get(Name::GPA)?,
            value: get(Name::VAL)?,
        },
        "kvm_fast_mmio" => Note::FastMmio { gpa: get(Name::GPA)? },
        "kvm_apic" => {
            Note::Apic { write: yes(Name::RW)?, register: word(Name::REG)?, value: get(Name::VAL)? }
        }
        "kvm_apic_ipi" => {
            let icr = Icr::from_low(word(Name::ICR_LOW)?);
            // The bits that are printed, as text has them.
            let icr = Icr::new()
                .with_vector(icr.vector())
                .with_mode(icr.mode())
                .with_logical(icr.logical())
                .with_assert(icr.assert())
                .with_level(icr.level())
                .with_shorthand(icr.shorthand());
            Note::ApicIpi { icr: icr.low(), destination: word(Name::DEST_ID)? }
        }
        "kvm_apic_accept_irq" => Note::ApicAcceptIrq {
            apic: word(Name::APICID)?,
            mode: (get(Name::DM)? >> 8 & 7) as u8,
            level: yes(Name::TM)?,
            vector: small(Name::VEC)?,
        },
        "kvm_hypercall" => Note::Hypercall {
            nr: get(Name::NR)?,
            args: [get(Name::A0)?, get(Name::A1)?, get(Name::A2)?, get(Name::A3)?],
        },
        "kvm_inj_exception" => {
            let vector = Vector(small(Name::EXCEPTION)?);
            let error_code = if yes(Name::HAS_ERROR)? { word(Name::ERROR_CODE)? } else { 0 };
            let has_error = yes(Name::HAS_ERROR)? && (vector.has_error_code() || error_code != 0);
            Note::InjException {
                vector,
                has_error,
                error_code,
                reinjected: yes(Name::REINJECTED).unwrap_or(false),
            }
        }
        "kvm_inj_virq" => Note::InjVirq {
            vector: small(Name::VECTOR).or_else(|| small(Name::IRQ))?,
            soft: yes(Name::SOFT).unwrap_or(false),
            reinjected: yes(Name::REINJECTED).unwrap_or(false),
        },
        "kvm_userspace_exit" => match word(Name::ERRNO)? as i32 {
            errno @ ..0 => Note::UserspaceExit { reason: 0, errno },
            _ => Note::UserspaceExit { reason: word(Name::REASON)?, errno: 0 },
        },
        "kvm_emulate_insn" => {
            let len = small(Name::LEN).filter(|len| *len <= 15)?;
            Note::EmulateInsn {
                rip: get(Name::RIP)?,
                csbase: word(Name::CSBASE)?,
                len,
                insn: f.bytes(Name::INSN)? & ((1 << (8 * u32::from(len))) - 1),
                mode: small(Name::FLAGS)?,
                failed: yes(Name::FAILED)?,
            }
        }
        _ => mmu_note(event, f)?,
    })
}

fn mmu_note(event: &str, f: &dyn Fields) -> Option<Note> {
    let get = |name| f.number(name);
    let small = |name| u8::try_from(f.number(name)?).ok();
    let word = |name| Some(f.number(name)? as u32);
    let page = || Some((f.number(Name::GFN)?, f.roles().printed(f.number(Name::ROLE)? as u32)));
    Some(match event {
        "kvm_mmu_spte_requested" => {
            Note::SpteRequested { gfn: get(Name::GFN)?, pfn: get(Name::PFN)?, level: small(Name::LEVEL)? }
        }
        "kvm_mmu_set_spte" => {
            Note::SetSpte { gfn: get(Name::GFN)?, spte: get(Name::SPTE)?, level: small(Name::LEVEL)? }
        }
        "kvm_mmu_pagetable_walk" => {
            Note::PagetableWalk { address: get(Name::ADDR)?, pferr: word(Name::PFERR)? }
        }
        "kvm_mmu_paging_element" => Note::PagingElement { pte: get(Name::PTE)?, level: small(Name::LEVEL)? },
        "kvm_mmu_walker_error" => Note::WalkerError { pferr: word(Name::PFERR)? },
        "kvm_mmu_set_accessed_bit" => Note::SetAccessed { gpa: get(Name::GPA)? },
        "kvm_mmu_set_dirty_bit" => Note::SetDirty { gpa: get(Name::GPA)? },
        "mark_mmio_spte" => Note::MarkMmioSpte { gfn: get(Name::GFN)?, access: small(Name::ACCESS)? },
        "handle_mmio_page_fault" => Note::HandleMmioPageFault {
            address: get(Name::ADDR)?,
            gfn: get(Name::GFN)?,
            access: small(Name::ACCESS)?,
        },
        "kvm_tdp_mmu_spte_changed" => Note::TdpSpteChanged {
            gfn: get(Name::GFN)?,
            level: small(Name::LEVEL)?,
            old: get(Name::OLD_SPTE)?,
            new: get(Name::NEW_SPTE)?,
        },
        "vcpu_match_mmio" => Note::MatchMmio {
            gva: get(Name::GVA)?,
            gpa: get(Name::GPA)?,
            write: get(Name::WRITE)? != 0,
            by_gpa: get(Name::GPA_MATCH)? != 0,
        },
        "kvm_mmu_get_page" => {
            let (gfn, role) = page()?;
            Note::GetPage { gfn, role, created: get(Name::CREATED)? != 0 }
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
const HEXADECIMAL: [Name; 22] = [
    Name::FUNCTION,
    Name::INDEX,
    Name::RAX,
    Name::RBX,
    Name::RCX,
    Name::RDX,
    Name::ECX,
    Name::CR,
    Name::RIP,
    Name::CSBASE,
    Name::ADDR,
    Name::PFERR,
    Name::PTE,
    Name::GFN,
    Name::PFN,
    Name::SPTE,
    Name::SPTEP,
    Name::OLD_SPTE,
    Name::NEW_SPTE,
    Name::ACCESS,
    Name::GPA,
    Name::FAULT_ADDRESS,
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

    fn value(&self, name: Name) -> Option<&'a str> {
        self.text.split(' ').find_map(|pair| pair.strip_prefix(name.text())?.strip_prefix('='))
    }
}

impl Fields for RawText<'_> {
    fn number(&self, name: Name) -> Option<u64> {
        let value = self.value(name)?;
        if let Some(hex) = value.strip_prefix("0x") {
            return u64::from_str_radix(hex, 16).ok();
        }
        // In one event `error_code` has no prefix either: `kvm_page_fault` of 5.10.
        let old_fault = name == Name::ERROR_CODE && self.value(Name::FAULT_ADDRESS).is_some();
        if !self.decimal && (HEXADECIMAL.contains(&name) || old_fault) {
            return u64::from_str_radix(value, 16).ok();
        }
        value.parse().ok().or_else(|| value.parse::<i64>().ok().map(i64::cast_unsigned))
    }

    /// `insn=ARRAY[0f, a2]`.
    fn bytes(&self, name: Name) -> Option<u128> {
        let name = name.text();
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
