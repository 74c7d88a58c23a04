//! One exit after the other, held against a host.

use super::{
    faults::{self, Fault},
    found::Found,
    slots::Slot,
    target::Target,
};
use crate::{
    check::{
        finding::{Finding, Pin, Severity, Subject},
        footprint::{Kind, Place},
        tables::Entry,
    },
    exempt,
};
use std::collections::BTreeMap;
use vmtape_arch::{
    PAGE_SHIFT,
    cpuid::{CpuidEntry, find},
    exit::{Isa, SvmExitCode, VmxReason, reason_name},
    host::Vendor,
    level::Level,
    note::Note,
    paging::Pte,
    regs::Cr4,
};
use vmtape_machine::model::{FEATURES, Feature, Register, named};
use vmtape_traces::ExitGroup;

/// What is to be said of an exit.
pub enum Answer {
    /// The host does the same about it.
    Alike,
    /// The host takes another exit, of which the guest sees nothing.
    Otherwise { here: String, there: String },
    /// The guest sees a difference.
    Differs,
    /// The host has no part in it.
    Exempt(&'static str),
    /// It does not tell enough.
    Open(String),
}

const FEATURE: &str = "SDM vol. 2A CPUID; APM vol. 3 appendix E";
const LISTED: &str = "KVM arch/x86/kvm/x86.c kvm_init_msr_lists(), KVM_GET_MSR_INDEX_LIST";
const RESERVED: &str = "KVM commit 3edd68399dc1: KVM_CAP_SMALLER_MAXPHYADDR";
const WIDTH: &str = "KVM arch/x86/kvm/cpuid.c __do_cpuid_func() 0x80000008, cpuid_query_maxphyaddr()";

const INSTRUCTIONS: &str = "instructions in which a host's widths, levels and features have no part";
const PORTS: &str = "port I/O, which the VMM answers";
const NESTED: &str = "exits of a guest's guest, or about one: both levels' tables would have to be known";
const NO_ADDRESS: &str = "faults without their address: neither kvm_page_fault nor kvm_mmio was traced";
const NO_WALK: &str = "page faults without their walk: kvm_mmu_paging_element was not traced";
/// What is left open and has to do with widths.
pub const OF_WIDTH: [&str; 3] = [NESTED, NO_ADDRESS, NO_WALK];
const NO_EVENT: &str = "without the event that tells what it is about";
const REFUSED: &str = "MSRs that were refused where the trace was made";
const CHOSEN: &str = "MSRs whose value the host or the VMM chooses";
const UNLISTED: &str = "MSRs that no list of KVM has";
const UNMODELLED: &str = "feature bits of CPUID that are not modelled";

/// Features that a VMM adds itself, whatever the host has.
const ADDED_BY_VMM: [&str; 2] = ["hypervisor", "tsc-deadline"];
/// Features by which a guest becomes a hypervisor.
const HYPERVISOR: [&str; 2] = ["vmx", "svm"];
/// Leaves of which every bit is a feature.
const FEATURE_WORDS: [(u32, Register); 6] = [
    (1, Register::Ecx),
    (1, Register::Edx),
    (7, Register::Ebx),
    (7, Register::Ecx),
    (0x8000_0001, Register::Ecx),
    (0x8000_0001, Register::Edx),
];

/// A trace's guest on a host.
pub struct Judge<'t> {
    target: &'t Target,
    /// What the guest's CPUID instructions gave it.
    table: Vec<CpuidEntry>,
    /// Events that were judged.
    pub events: u64,
    found: BTreeMap<String, Found>,
    /// Findings of the exit at hand: (the sentence, the guest sees it).
    now: Vec<(String, bool)>,
    exit: Option<u64>,
}

impl<'t> Judge<'t> {
    pub fn new(target: &'t Target, table: Vec<CpuidEntry>) -> Self {
        Self { target, table, events: 0, found: BTreeMap::new(), now: Vec::new(), exit: None }
    }

    /// MAXPHYADDR of the guest, where it has asked for it.
    pub fn guest_phys_bits(&self) -> Option<u8> {
        find(&self.table, 0x8000_0008, 0).map(|leaf| leaf.eax as u8)
    }

    /// The findings, the first first.
    pub fn into_found(self) -> Vec<Found> {
        let mut found: Vec<_> = self.found.into_values().collect();
        found.sort_by_key(|found| found.finding.exit.unwrap_or(0));
        found
    }

    /// Where the last exit was, for what was found at it first.
    pub fn is_at(&mut self, vcpu: u32, rip: u64, time: u64) {
        for (sentence, _) in &self.now {
            if let Some(found) = self.found.get_mut(sentence).filter(|found| found.times == 1) {
                (found.vcpu, found.rip, found.time) = (vcpu, rip, time);
            }
        }
    }

    pub fn exit(&mut self, group: &ExitGroup) -> Answer {
        self.now.clear();
        self.exit = Some(group.number);
        let exit = &group.exit.exit;
        let nested = |note: &Note| {
            matches!(
                note,
                Note::NestedVmenter { .. } | Note::NestedVmexit { .. } | Note::NestedVmexitInject { .. }
            )
        };
        if exit.level != Level::L1 || group.notes.iter().any(nested) {
            return Answer::Open(NESTED.into());
        }
        if exempt::is_host_exit(exit) {
            return Answer::Exempt(exempt::HOST_SCHEDULING.name);
        }
        let (mut judged, mut open) = (false, None);
        for note in &group.notes {
            match self.note(note) {
                None => {}
                Some(Ok(())) => judged = true,
                Some(Err(why)) => open = Some(why),
            }
        }
        let answer = match faults::of(group) {
            Some(fault) => self.fault(group, fault),
            None => self.instruction(group, judged),
        };
        if self.now.iter().any(|(_, seen)| *seen) {
            return Answer::Differs;
        }
        match (answer, open) {
            (Answer::Alike | Answer::Open(_), Some(why)) => Answer::Open(why.into()),
            (answer, _) => answer,
        }
    }

    /// An event outside exits.
    pub fn loose(&mut self, note: &Note) -> Result<(), &'static str> {
        (self.exit, _) = (None, self.now.clear());
        match (self.note(note), note) {
            (Some(judged), _) => judged,
            (None, Note::PageFault { .. }) => {
                Err("page faults without their exit, of which nothing tells whether the address is physical")
            }
            _ => Ok(()),
        }
    }

    /// A memory slot that a line tells of.
    pub fn slot(&mut self, slot: Slot) -> bool {
        (self.exit, _) = (None, self.now.clear());
        self.reach(&Place::slot(slot.gpa, slot.size));
        true
    }

    fn find(&mut self, finding: Finding) {
        let seen = finding.severity != Severity::Caution;
        let key = finding.sentence.clone();
        self.now.push((key.clone(), seen));
        let found = self.found.entry(key).or_insert_with(|| {
            let finding = Finding { exit: finding.exit.or(self.exit), ..finding };
            Found { finding, times: 0, vcpu: 0, rip: 0, time: 0 }
        });
        found.times += 1;
    }

    fn reach(&mut self, place: &Place) {
        self.events += 1;
        let place = Place { exit: self.exit, ..place.clone() };
        self.target.reach(&place).into_iter().for_each(|finding| self.find(finding));
    }

    /// An event. `None`: there is nothing of a host in it. Err: it does not tell enough.
    fn note(&mut self, note: &Note) -> Option<Result<(), &'static str>> {
        match *note {
            Note::Mmio { gpa, .. } | Note::FastMmio { gpa } => self.reach(&Place::device(gpa, 0)),
            Note::HandleMmioPageFault { gfn, .. } | Note::MarkMmioSpte { gfn, .. } => {
                self.reach(&Place::device(gfn << PAGE_SHIFT, 0));
            }
            Note::SpteRequested { gfn, level, .. } => {
                let size = 1u64 << (PAGE_SHIFT + 9 * u32::from(level.clamp(1, 5) - 1));
                let first = (gfn << PAGE_SHIFT) & !(size - 1);
                self.reach(&Place { kind: Kind::Page, ..Place::slot(first, size) });
            }
            Note::PagingElement { pte, level } if Pte::from_bits(pte).p() => {
                self.reach(&Place::entry(Entry { level, at: 0, value: pte }, self.exit).nowhere());
            }
            Note::Cpuid { function, index, eax, ebx, ecx, edx, found, .. } => {
                let entry = CpuidEntry { function, index, eax, ebx, ecx, edx, ..CpuidEntry::default() };
                let told = if found { self.leaf(&entry) } else { Ok(()) };
                self.events += u64::from(told.is_ok());
                return Some(told);
            }
            Note::Msr { write, index, exception, .. } => {
                let told = self.msr(write, index, exception);
                self.events += u64::from(told.is_ok());
                return Some(told);
            }
            Note::Cr { write: true, number, value } => self.control_register(number, value),
            Note::Cr { .. } | Note::Hypercall { .. } => self.events += 1,
            _ => return None,
        }
        Some(Ok(()))
    }

    fn fault(&mut self, group: &ExitGroup, fault: Fault) -> Answer {
        match fault {
            Fault::Below { gpa: None, .. } => return Answer::Open(NO_ADDRESS.into()),
            Fault::Below { gpa: Some(gpa), device } => {
                let kind = if device { Kind::Device } else { Kind::Page };
                self.reach(&Place { kind, ..Place::device(gpa, group.number) });
            }
            Fault::Page => {
                let walked = group.notes.iter().any(|note| matches!(note, Note::PagingElement { .. }));
                let mapped = group.notes.iter().any(tells_gpa);
                if faults::meets_reserved_bits(group) {
                    if !walked {
                        return Answer::Open(NO_WALK.into());
                    }
                    self.illegal_entry(group);
                } else if !walked && !mapped {
                    return Answer::Open(NO_WALK.into());
                }
            }
        }
        match faults::there(group, fault, self.target) {
            Some(there) => Answer::Otherwise { here: name(group), there },
            None => Answer::Alike,
        }
    }

    /// The walk ended at reserved bits where the trace was made. They are reserved there too if that processor, or a KVM that
    /// hides its width, has them so.
    fn illegal_entry(&mut self, group: &ExitGroup) {
        let last = group.notes.iter().rev().find_map(|note| match *note {
            Note::PagingElement { pte, level } => Some(Entry { level, at: 0, value: pte }),
            _ => None,
        });
        let Some(entry) = last else { return };
        let place = Place::entry(entry, Some(group.number)).nowhere();
        let silicon = self.target.passport.silicon.phys_bits;
        let (bits, narrowest) = (place.bits(), self.guest_phys_bits().unwrap_or(0));
        let of_address = self.guest_phys_bits().is_some_and(|guest| bits > guest);
        if !of_address || bits > silicon || self.target.hides_width {
            return;
        }
        let sentence = format!(
            "bits {}:{narrowest} of paging entries are reserved for the guest and not for {}, whose KVM does not hide it: \
             an entry that faults in the trace does not fault there",
            silicon - 1,
            self.target.name()
        );
        let finding = Finding::new(Severity::Breaks, Subject::ReservedBits, sentence, RESERVED);
        let pin = Pin::HideWidth(self.target.name().to_owned());
        self.find(finding.at(Some(&place)).pin(pin));
    }

    /// An exit for an instruction, or for something else that is no fault. `judged`: its events tell what it is about.
    fn instruction(&self, group: &ExitGroup, judged: bool) -> Answer {
        let exit = &group.exit.exit;
        let told = || match judged {
            true => Answer::Alike,
            false => Answer::Open(format!("{} {NO_EVENT}", name(group))),
        };
        let virtual_apic = || match self.target.passport.silicon.apicv.is_set() {
            true => Answer::Alike,
            false => Answer::Otherwise {
                here: name(group),
                there: if self.is_intel() { "EPT_MISCONFIG" } else { "npf" }.to_owned(),
            },
        };
        match exit.isa {
            Isa::VMX => match VmxReason(exit.reason) {
                VmxReason::CPUID | VmxReason::MSR_READ | VmxReason::MSR_WRITE | VmxReason::VMCALL => told(),
                VmxReason::CR_ACCESS => told(),
                VmxReason::IO_INSTRUCTION => Answer::Exempt(PORTS),
                VmxReason::HLT
                | VmxReason::PAUSE_INSTRUCTION
                | VmxReason::INVLPG
                | VmxReason::INVD
                | VmxReason::WBINVD
                | VmxReason::DR_ACCESS
                | VmxReason::MONITOR_TRAP_FLAG => Answer::Exempt(INSTRUCTIONS),
                VmxReason::RDTSC | VmxReason::RDTSCP => Answer::Exempt(exempt::TIME_VALUES.name),
                VmxReason::INTERRUPT_WINDOW | VmxReason::NMI_WINDOW | VmxReason::PML_FULL => {
                    Answer::Exempt(exempt::HOST_SCHEDULING.name)
                }
                VmxReason::APIC_ACCESS | VmxReason::APIC_WRITE | VmxReason::EOI_INDUCED => virtual_apic(),
                VmxReason::TPR_BELOW_THRESHOLD => virtual_apic(),
                _ => open(group, judged),
            },
            Isa::SVM => match SvmExitCode(exit.reason) {
                SvmExitCode::CPUID | SvmExitCode::MSR | SvmExitCode::VMMCALL => told(),
                SvmExitCode::IOIO => Answer::Exempt(PORTS),
                SvmExitCode::HLT
                | SvmExitCode::PAUSE
                | SvmExitCode::INVLPG
                | SvmExitCode::INVD
                | SvmExitCode::WBINVD
                | SvmExitCode::CR0_SEL_WRITE
                | SvmExitCode::IRET => Answer::Exempt(INSTRUCTIONS),
                SvmExitCode(0x020..=0x03f) => Answer::Exempt(INSTRUCTIONS),
                SvmExitCode::RDTSC | SvmExitCode::RDTSCP => Answer::Exempt(exempt::TIME_VALUES.name),
                SvmExitCode::VINTR => Answer::Exempt(exempt::HOST_SCHEDULING.name),
                SvmExitCode(0x000..=0x01f) => told(),
                _ => open(group, judged),
            },
            _ => open(group, judged),
        }
    }

    fn is_intel(&self) -> bool {
        self.target.passport.silicon.vendor == Vendor::INTEL
    }

    fn control_register(&mut self, number: u8, value: u64) {
        self.events += 1;
        match number {
            3 => {
                /// Bits that are no address: 63 and 62 and 61 say what to flush and how to treat tags.
                const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
                let entry = Entry { level: 0, at: 0, value: value & ADDRESS };
                let place = Place::entry(entry, self.exit).nowhere();
                self.target.reach(&place).into_iter().for_each(|finding| self.find(finding));
            }
            4 => {
                let cr4 = Cr4::from_bits(value);
                let bits = [
                    (cr4.la57(), "la57"),
                    (cr4.smep(), "smep"),
                    (cr4.smap(), "smap"),
                    (cr4.umip(), "umip"),
                    (cr4.fsgsbase(), "fsgsbase"),
                    (cr4.pcide(), "pcid"),
                    (cr4.osxsave(), "xsave"),
                    (cr4.pke(), "pku"),
                ];
                for name in bits.into_iter().filter(|(set, _)| *set).map(|(_, name)| name) {
                    if let Some(feature) = named(name).ok().filter(|feature| self.lacks(feature)) {
                        self.missing(feature, "the guest turns it on in CR4");
                    }
                }
            }
            _ => {}
        }
    }

    /// Whether a feature that some processor has is not there.
    fn lacks(&self, feature: &Feature) -> bool {
        let called = |name: &String| named(name).is_ok_and(|known| known == feature);
        let withheld = self.target.passport.without.iter().any(called);
        let known = self.target.known.iter().any(|table| has(table, feature));
        withheld || known && !has(&self.target.supported, feature)
    }

    fn missing(&mut self, feature: &Feature, how: &str) {
        let register = format!("{:?}", feature.register).to_uppercase();
        let sentence = format!(
            "CPUID leaf {:#x} {register}[{}] ({}) is not there on {}, and {how}",
            feature.leaf,
            feature.bit,
            feature.name,
            self.target.name()
        );
        let finding = Finding::new(Severity::Breaks, Subject::Feature, sentence, FEATURE);
        self.find(finding.pin(Pin::Without(vec![feature.name.to_owned()])));
    }

    /// A leaf that the guest has read.
    fn leaf(&mut self, entry: &CpuidEntry) -> Result<(), &'static str> {
        let told = FEATURES.iter().filter(|f| f.leaf == entry.function && f.subleaf == entry.index);
        let told: Vec<_> = told.filter(|feature| set(entry, feature)).collect();
        for feature in &told {
            if HYPERVISOR.contains(&feature.name) {
                let sentence = format!(
                    "the guest may be a hypervisor ({}): its nested state is not judged",
                    feature.name
                );
                self.find(Finding::new(Severity::Caution, Subject::Nested, sentence, FEATURE));
            } else if !ADDED_BY_VMM.contains(&feature.name) && self.lacks(feature) {
                self.missing(feature, "the guest has read that it has it");
            }
        }
        match entry.function {
            0 => self.vendor(entry),
            0xd if entry.index == 0 => self.components(entry.eax),
            0x8000_0008 => self.widths(entry.eax),
            _ => {}
        }
        let unmodelled = FEATURE_WORDS
            .iter()
            .filter(|(leaf, _)| *leaf == entry.function && entry.index == 0)
            .any(|(leaf, register)| {
                let known =
                    FEATURES.iter().filter(|f| (f.leaf, f.register) == (*leaf, *register) && f.subleaf == 0);
                word(entry, *register) & !known.fold(0, |bits, feature| bits | 1 << feature.bit) != 0
            });
        if unmodelled { Err(UNMODELLED) } else { Ok(()) }
    }

    fn vendor(&mut self, entry: &CpuidEntry) {
        /// The first four letters, in EBX: GenuineIntel; AuthenticAMD and HygonGenuine.
        const VENDORS: [(&[u8; 4], Vendor); 3] =
            [(b"Genu", Vendor::INTEL), (b"Auth", Vendor::AMD), (b"Hygo", Vendor::AMD)];
        let vendor = VENDORS.iter().find(|(name, _)| **name == entry.ebx.to_le_bytes()).map(|(_, v)| *v);
        let there = self.target.passport.silicon.vendor;
        if let Some(vendor) = vendor.filter(|vendor| *vendor != there) {
            let sentence = format!(
                "the guest sees a CPUID of {vendor}'s, {} is {there}: system calls of 32-bit code, model-specific registers and \
                 errata differ",
                self.target.name()
            );
            self.find(Finding::new(Severity::Caution, Subject::Vendor, sentence, FEATURE));
        }
    }

    /// Components of the extended state that the guest may enable.
    fn components(&mut self, bits: u32) {
        let lost = bits & !find(&self.target.supported, 0xd, 0).map_or(0, |leaf| leaf.eax);
        if lost != 0 {
            let numbers: Vec<_> =
                (0..32).filter(|bit| lost >> bit & 1 != 0).map(|bit| bit.to_string()).collect();
            let sentence = format!(
                "extended state: component {} is promised to the guest and cannot be restored on {}; whether it is enabled no \
                 event tells",
                numbers.join(", "),
                self.target.name()
            );
            self.find(Finding::new(Severity::Caution, Subject::State, sentence, FEATURE));
        }
    }

    fn widths(&mut self, eax: u32) {
        let (guest, mappable) = (eax as u8, (eax >> 16) as u8);
        let (width, name) = (self.target.width(), self.target.name().to_owned());
        if guest > width {
            let sentence = format!("the guest has {guest} physical address bits, {name} has {width}");
            let finding = Finding::new(Severity::Refuses, Subject::Width, sentence, WIDTH);
            self.find(finding.pin(Pin::PhysBits(width)));
        } else if mappable.max(guest) > self.target.mappable() && self.target.two_dimensional {
            let reach = self.target.mappable();
            let promised = if mappable == 0 { guest } else { mappable };
            let sentence =
                format!("the guest was promised {promised} bits that can be mapped, {name} maps {reach}");
            let finding = Finding::new(Severity::Caution, Subject::Mappable, sentence, WIDTH);
            self.find(finding.pin(Pin::GuestPhysBits(reach)));
        }
    }

    fn msr(&mut self, write: bool, index: u32, exception: bool) -> Result<(), &'static str> {
        /// IA32_VMX_BASIC to IA32_VMX_VMFUNC. See: SDM vol. 4 Table 2-2
        const VMX: std::ops::RangeInclusive<u32> = 0x480..=0x491;
        match index {
            _ if exception => Err(REFUSED),
            _ if is_everywhere(index) || self.target.msrs.contains(&index) => Ok(()),
            _ if VMX.contains(&index) || self.target.feature_msrs.contains(&index) => Err(CHOSEN),
            _ if self.target.known_msrs.contains(&index) => {
                let did = if write { "writes" } else { "reads" };
                let sentence = format!(
                    "the guest {did} MSR {index:#x}, which KVM does not have on {}",
                    self.target.name()
                );
                self.find(Finding::new(Severity::Breaks, Subject::Feature, sentence, LISTED));
                Ok(())
            }
            _ => Err(UNLISTED),
        }
    }
}

/// Registers of every KVM that its list leaves out, because a VMM saves them by other means.
/// See: KVM x86.c kvm_get_msr_common()
fn is_everywhere(index: u32) -> bool {
    const OTHERS: [u32; 6] = [0x1b, 0xfe, 0x179, 0x17a, 0x277, 0xc000_0080];
    OTHERS.contains(&index)
        // MTRRs; banks of machine checks; x2APIC.
        || matches!(index, 0x200..=0x20f | 0x250..=0x26f | 0x2ff | 0x400..=0x47f | 0x800..=0x8ff)
}

/// Whether an event tells which guest physical address a page fault came to.
fn tells_gpa(note: &Note) -> bool {
    matches!(
        note,
        Note::SpteRequested { .. }
            | Note::HandleMmioPageFault { .. }
            | Note::MarkMmioSpte { .. }
            | Note::Mmio { .. }
    )
}

fn open(group: &ExitGroup, judged: bool) -> Answer {
    match judged {
        true => Answer::Alike,
        false => Answer::Open(format!("{}: the guest's instruction and registers are not told", name(group))),
    }
}

fn name(group: &ExitGroup) -> String {
    let exit = &group.exit.exit;
    reason_name(exit.isa, exit.reason)
        .map_or_else(|| format!("{} {:#x}", exit.isa, exit.reason), str::to_owned)
}

fn word(entry: &CpuidEntry, register: Register) -> u32 {
    match register {
        Register::Eax => entry.eax,
        Register::Ebx => entry.ebx,
        Register::Ecx => entry.ecx,
        Register::Edx => entry.edx,
    }
}

fn set(entry: &CpuidEntry, feature: &Feature) -> bool {
    word(entry, feature.register) >> feature.bit & 1 != 0
}

fn has(table: &[CpuidEntry], feature: &Feature) -> bool {
    find(table, feature.leaf, feature.subleaf).is_some_and(|entry| set(entry, feature))
}
