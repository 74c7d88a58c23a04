//! The ioctls that a VMM makes while its guest is stopped, each declared once: what it is called with and what it gives,
//! how a tape keeps it, how the command line spells it, and how it reads. Only its implementation stands elsewhere
//! (host/machine/src/machine/control.rs).
//!
//! The numbers are part of the tape's format and of the description of a machine: a new ioctl goes to the end.

#[macro_use]
mod declare;
mod field;
mod nested;
mod pages;
mod spelling;

pub(crate) use field::{Field, Packed, Unpacked};
pub use nested::NestedBytes;
pub use pages::{Pages, RingEntries, RingEntry};
pub use spelling::Spelling;

use field::{Errno, Shown};
use serde::{Deserialize, Serialize};
use std::fmt;
use vmtape_arch::{cpuid::CpuidEntry, memory::Supply, query::Query};

/// Whether an ioctl changes the VM or only asks.
const CHANGES: bool = true;
const ASKS: bool = false;

/// How the command line spells an ioctl.
#[derive(Debug)]
pub struct Ioctl {
    /// The option's name, without dashes.
    pub option: &'static str,
    /// The word for its value.
    pub value: &'static str,
    pub help: &'static str,
    /// Reads its arguments from the option's value.
    pub parse: fn(&mut Spelling<'_>) -> Result<Action, String>,
}

ioctls! {
    /// KVM_SET_CPUID2. A script has a change to the vCPU's table, as `CpuidChange` in host/machine spells it.
    0 => SetCpuid {
        name: "KVM_SET_CPUID2",
        effect: CHANGES,
        option: "set-cpuid" = "CHANGE",
        help: "KVM_SET_CPUID2 with the table as it was but for CHANGE[,vcpu=N,WHEN]: same, phys-bits=36, virt-bits=57, \
               +FEATURE, -FEATURE, 0x80000008.eax=VALUE, reorder, nent=257",
        args: { vcpu: u32 = vcpu() },
        script: { change: String = rest("a change is needed: same, phys-bits=36, +FEATURE, 0x80000008.eax=VALUE, ...") },
        asks: "vcpu {vcpu}, {change}",
        made: { entries: Vec<CpuidEntry> },
        called: "vcpu {vcpu}, {entries}",
        gives: { result: i32 } "{result}",
    }

    /// KVM_SET_USER_MEMORY_REGION. The machine has memory for the largest size that its script gives a slot.
    1 => SetMemoryRegion {
        name: "KVM_SET_USER_MEMORY_REGION",
        effect: CHANGES,
        option: "memory-region" = "REGION",
        help: "KVM_SET_USER_MEMORY_REGION: gpa=A,size=S[,slot=N,flags=F,WHEN]; size=0 deletes the slot",
        args: {
            slot: u32 = slot(),
            gpa: u64 = bytes_or_zero("gpa"),
            size: u64 = bytes("size"),
            flags: u32 = number_or_zero("flags"),
        },
        asks: "slot {slot} gpa {gpa:#x} size {size:#x}",
        made: { hpa: u64 },
        called: "slot {slot} flags {flags:#x} gpa {gpa:#x} size {size:#x} hpa {hpa:#x}",
        gives: { result: i32 } "{result}",
    }

    /// KVM_SET_MSRS with one register.
    2 => SetMsr {
        name: "KVM_SET_MSRS",
        effect: CHANGES,
        option: "set-msr" = "MSR",
        help: "KVM_SET_MSRS: INDEX=VALUE[,vcpu=N,WHEN]",
        args: { vcpu: u32 = vcpu(), index: u32 = before_equals(), data: u64 = after_equals() },
        asks: "vcpu {vcpu} {index:x} = {data:#x}",
        gives: { result: i32 } "{result}",
    }

    /// KVM_CHECK_EXTENSION; the result is what it returns.
    3 => CheckExtension {
        name: "KVM_CHECK_EXTENSION",
        effect: ASKS,
        option: "check-extension" = "CAP",
        help: "KVM_CHECK_EXTENSION: NUMBER[,WHEN]; `vmtape backends` has the numbers",
        args: { cap: u32 = number() },
        asks: "{cap}",
        gives: { result: i64 } "{result}",
    }

    /// KVM_GET_CPUID2.
    4 => GetCpuid {
        name: "KVM_GET_CPUID2",
        effect: ASKS,
        option: "get-cpuid" = "WHEN",
        help: "KVM_GET_CPUID2: WHEN[,vcpu=N]",
        args: { vcpu: u32 = vcpu() },
        asks: "vcpu {vcpu}",
        gives: { entries: Vec<CpuidEntry>, result: i32 } "{result}, {entries}",
    }

    /// KVM_GET_SUPPORTED_CPUID.
    5 => GetSupportedCpuid {
        name: "KVM_GET_SUPPORTED_CPUID",
        effect: ASKS,
        option: "get-supported-cpuid" = "WHEN",
        help: "KVM_GET_SUPPORTED_CPUID: WHEN",
        args: {},
        asks: "",
        gives: { entries: Vec<CpuidEntry>, result: i32 } "{result}, {entries}",
    }

    /// KVM_GET_MSRS with one register.
    6 => GetMsr {
        name: "KVM_GET_MSRS",
        effect: ASKS,
        option: "get-msr" = "MSR",
        help: "KVM_GET_MSRS: INDEX[,vcpu=N,WHEN]",
        args: { vcpu: u32 = vcpu(), index: u32 = number() },
        asks: "vcpu {vcpu} {index:x}",
        gives: { data: u64, result: i32 } "{data:#x}",
    }

    /// A value that no ioctl shows.
    7 => Query {
        name: "{query}",
        effect: ASKS,
        option: "query" = "NAME",
        help: "A value that no ioctl shows: ept-vpid-cap, max-usable-gpa, eptp, shadow-pages, gfn-track-bytes, \
               last-vmentry-cpu [,vcpu=N,WHEN]",
        args: { vcpu: u32 = vcpu(), query: Query = query() },
        asks: "vcpu {vcpu}",
        gives: { value: u64, result: i32 } "{value:#x}",
    }

    /// KVM_ENABLE_CAP of the VM, with its first argument.
    8 => EnableCap {
        name: "KVM_ENABLE_CAP",
        effect: CHANGES,
        option: "enable-cap" = "CAP",
        help: "KVM_ENABLE_CAP: NUMBER[,arg=N,flags=N,WHEN]; WHEN may be create: before there are vCPUs",
        args: { flags: u32 = number_or_zero("flags"), arg: u64 = number_or_zero("arg"), cap: u32 = number() },
        asks: "{cap} arg {arg:#x} flags {flags:#x}",
        gives: { result: i32 } "{result}",
    }

    /// KVM_GET_DIRTY_LOG.
    9 => GetDirtyLog {
        name: "KVM_GET_DIRTY_LOG",
        effect: ASKS,
        option: "get-dirty-log" = "SLOT",
        help: "KVM_GET_DIRTY_LOG: SLOT[,WHEN]",
        args: { slot: u32 = number() },
        asks: "slot {slot}",
        gives: { pages: Pages, result: i32 } "{pages}",
    }

    /// KVM_CLEAR_DIRTY_LOG. A script has the pages as [`Pages::parse`] reads them.
    10 => ClearDirtyLog {
        name: "KVM_CLEAR_DIRTY_LOG",
        effect: CHANGES,
        option: "clear-dirty-log" = "SLOT",
        help: "KVM_CLEAR_DIRTY_LOG: SLOT,num_pages=N[,first_page=N,set=3+5-9,WHEN]; without set= every page",
        args: {
            num_pages: u32 = number_of("num_pages"),
            first_page: u64 = number_or_zero("first_page"),
            slot: u32 = number_before("set"),
        },
        script: { set: String = pages("set") },
        asks: "slot {slot} first_page {first_page} num_pages {num_pages}, {set}",
        made: { set: Pages },
        called: "slot {slot} first_page {first_page} num_pages {num_pages}, {set}",
        gives: { result: i32 } "{result}",
    }

    /// What userspace takes from a vCPU's dirty ring, which it has mapped.
    11 => HarvestDirtyRing {
        name: "dirty ring",
        effect: ASKS,
        option: "harvest-dirty-ring" = "WHEN",
        help: "Take what is new from the dirty ring of a vCPU: WHEN[,vcpu=N]",
        args: { vcpu: u32 = vcpu() },
        asks: "vcpu {vcpu}",
        gives: { entries: RingEntries, result: i32 } "{entries}",
    }

    /// KVM_RESET_DIRTY_RINGS; the result is the number of entries.
    12 => ResetDirtyRings {
        name: "KVM_RESET_DIRTY_RINGS",
        effect: CHANGES,
        option: "reset-dirty-rings" = "WHEN",
        help: "KVM_RESET_DIRTY_RINGS: WHEN",
        args: {},
        asks: "",
        gives: { result: i32 } "{result}",
    }

    /// The VMM takes pages of guest memory away, which come back in one way or another when they are needed: MADV_DONTNEED in a
    /// range that userfaultfd handles, or memory that is unmapped. KVM hears of it by its MMU notifier.
    13 => TakePages {
        name: "missing pages",
        effect: CHANGES,
        option: "missing" = "PAGES",
        help: "Memory that has not arrived (post-copy): gpa=A,size=S[,supply=demand,WHEN]. supply=demand: a page arrives once it \
               is waited for; never: the wait is interrupted; refused: the host does not give it (-EFAULT)",
        args: { supply: Supply = supply("supply"), gpa: u64 = bytes_or_zero("gpa"), size: u64 = bytes("size") },
        asks: "gpa {gpa:#x} size {size:#x}, supply {supply}",
        gives: { result: i32 } "{result}",
    }

    /// UFFDIO_COPY: pages arrive before anybody waits for them.
    14 => SupplyPages {
        name: "UFFDIO_COPY",
        effect: CHANGES,
        option: "supply" = "PAGES",
        help: "Memory that arrives, whether it is waited for or not: gpa=A,size=S[,WHEN]",
        args: { gpa: u64 = bytes_or_zero("gpa"), size: u64 = bytes("size") },
        asks: "gpa {gpa:#x} size {size:#x}",
        gives: { result: i32 } "{result}",
    }

    /// KVM_GET_NESTED_STATE.
    15 => GetNestedState {
        name: "KVM_GET_NESTED_STATE",
        effect: ASKS,
        option: "get-nested-state" = "WHEN",
        help: "KVM_GET_NESTED_STATE: WHEN[,vcpu=N]",
        args: { vcpu: u32 = vcpu() },
        asks: "vcpu {vcpu}",
        gives: { state: NestedBytes, result: i32 } "{state}",
    }

    /// KVM_SET_NESTED_STATE. A script has a change to what KVM_GET_NESTED_STATE gives, as `NestedChange` in host/machine spells it.
    16 => SetNestedState {
        name: "KVM_SET_NESTED_STATE",
        effect: CHANGES,
        option: "set-nested-state" = "CHANGE",
        help: "KVM_SET_NESTED_STATE with what KVM_GET_NESTED_STATE gives at that moment but for CHANGE[,vcpu=N,WHEN]: same, \
               flags=F, format=N, size=N, vmcb_pa=A, u64@OFFSET=VALUE (u64@16 is gPAT), bytes=N",
        args: { vcpu: u32 = vcpu() },
        script: { change: String = rest("a change is needed: same, flags=F, size=N, vmcb_pa=A, u64@OFFSET=VALUE, ...") },
        asks: "vcpu {vcpu}, {change}",
        made: { state: NestedBytes },
        called: "vcpu {vcpu}, {state}",
        gives: { result: i32 } "{result}",
    }
}

impl Control {
    /// Bytes that the event has beside its words.
    pub(crate) fn bytes(&self) -> usize {
        let mut bytes = Vec::new();
        self.pack(&mut Packed::new(&mut Vec::new(), &mut bytes));
        bytes.len()
    }
}

/// The words that are not empty.
fn words(f: &mut fmt::Formatter<'_>, words: [fmt::Arguments<'_>; 2]) -> fmt::Result {
    let [name, arguments] = words;
    f.write_fmt(name)?;
    if arguments.as_str() == Some("") { Ok(()) } else { write!(f, " {arguments}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn options_are_spelled_once() {
        let options: BTreeSet<_> = IOCTLS.iter().map(|ioctl| ioctl.option).collect();
        assert_eq!(options.len(), IOCTLS.len());
    }

    #[test]
    fn texts_name_the_call_its_arguments_and_its_result() {
        let get = |result| Control::GetMsr { vcpu: 1, index: 0x277, data: 6, result };
        assert_eq!(get(0).to_string(), "KVM_GET_MSRS vcpu 1 277: 0x6");
        assert_eq!(get(-22).to_string(), "KVM_GET_MSRS vcpu 1 277: -EINVAL");
        let table = Control::GetSupportedCpuid { entries: Vec::new(), result: 0 };
        assert_eq!(
            table.to_string(),
            "KVM_GET_SUPPORTED_CPUID: 0, 0 entries, phys-bits 36, guest-phys-bits 0"
        );
        assert_eq!(Action::GetSupportedCpuid {}.to_string(), "KVM_GET_SUPPORTED_CPUID");
        let query = Action::Query { vcpu: 0, query: Query::EPTP };
        assert_eq!((query.to_string().as_str(), query.vcpu()), ("eptp vcpu 0", Some(0)));
        assert_eq!(Action::CheckExtension { cap: 185 }.vcpu(), None);
    }
}
