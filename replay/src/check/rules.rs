//! What the tape shows, held against what a host has.

use super::{
    Guest, Host,
    finding::{DMA, Finding, Pin, Severity, Subject},
    footprint::Place,
    reserved,
};
use vmtape_arch::{
    cpuid::{CpuidEntry, find, maxphyaddr},
    msr::Msr,
    regs::Cr4,
};
use vmtape_machine::model::{FEATURES, Feature, Register, guest_phys_bits, named};

const WIDTHS: &str = "KVM arch/x86/kvm/cpuid.c __do_cpuid_func() 0x80000008, cpuid_query_maxphyaddr()";
const SLOTS: &str = "KVM arch/x86/kvm/x86.c kvm_arch_prepare_memory_region(), mmu.h kvm_mmu_max_gfn()";
const MAPPABLE: &str = "KVM commit b628cb523c65: GuestPhysBits is the widest address that can be mapped";
const RESERVED: &str = "KVM commit 3edd68399dc1: KVM_CAP_SMALLER_MAXPHYADDR";
const FEATURE: &str = "SDM vol. 2A CPUID; APM vol. 3 appendix E";
const STATE: &str = "KVM arch/x86/kvm/x86.c kvm_vcpu_ioctl_x86_set_xsave(), __kvm_set_xcr()";
const NESTED: &str = "vmtape runs no second level of guests yet";
/// Features that a VMM adds itself, whatever the host has.
const ADDED_BY_VMM: [&str; 2] = ["hypervisor", "tsc-deadline"];
/// Features by which a guest becomes a hypervisor.
const NESTED_FEATURES: [&str; 2] = ["vmx", "svm"];

/// Everything that can be said without running the guest.
pub fn findings(guest: &Guest, host: &Host) -> Vec<Finding> {
    let mut findings = Vec::new();
    let widths = Widths::of(guest, host);
    width(guest, host, &widths, &mut findings);
    slots(guest, host, &widths, &mut findings);
    mappable(guest, host, &widths, &mut findings);
    reserved_bits(guest, host, &widths, &mut findings);
    iommu(guest, host, &widths, &mut findings);
    reserved::findings(guest, host, &mut findings);
    vendor(guest, host, &mut findings);
    features(guest, host, &mut findings);
    vmx_capabilities(guest, host, &mut findings);
    state(guest, host, &mut findings);
    findings
}

/// The widths that are so often taken for one another.
struct Widths {
    /// The guest's MAXPHYADDR, the widest of its vCPUs if they differ, and the narrowest.
    guest: u8,
    narrowest: u8,
    /// Its GuestPhysBits; 0: not told.
    guest_mappable: u8,
    /// What KVM gives there, and what its VMM makes of that.
    kvm: u8,
    host: u8,
    mappable: u8,
}

impl Widths {
    fn of(guest: &Guest, host: &Host) -> Self {
        let kvm = maxphyaddr(&host.supported);
        let told = guest_phys_bits(&host.supported);
        let first = maxphyaddr(&guest.machine.cpuid);
        let later = &guest.footprint.widths;
        Self {
            guest: later.last().map_or(first, |bits| first.max(*bits)),
            narrowest: later.first().map_or(first, |bits| first.min(*bits)),
            guest_mappable: guest_phys_bits(&guest.machine.cpuid),
            kvm,
            host: widest(host),
            mappable: if told != 0 { told } else { host.passport.mappable_bits() },
        }
    }
}

/// The widest guest that a host takes: as KVM says, and as its VMM does.
pub fn widest(host: &Host) -> u8 {
    let kvm = maxphyaddr(&host.supported);
    kvm.min(host.passport.phys_bits_limit.unwrap_or(kvm))
}

/// The first entry or device that needs more address bits.
fn first_beyond<'g>(guest: &'g Guest, bits: u8) -> Option<&'g Place> {
    let footprint = &guest.footprint;
    let places = footprint.entries.beyond(bits).into_iter().chain(footprint.devices.beyond(bits));
    places.min_by_key(|place| place.exit.unwrap_or(u64::MAX))
}

fn width(guest: &Guest, host: &Host, widths: &Widths, findings: &mut Vec<Finding>) {
    let name = &host.passport.name;
    let mut refuse = |text: String| {
        let place = first_beyond(guest, widths.host);
        let rest = if place.is_none() { "; nothing on this tape needs the bits beyond" } else { "" };
        let sentence = format!("the guest has {} physical address bits, {text}{rest}", widths.guest);
        let finding = Finding::new(Severity::Refuses, Subject::Width, sentence, WIDTHS);
        findings.push(finding.at(place).pin(Pin::PhysBits(widths.host)));
    };
    if widths.guest <= widths.host {
        return;
    }
    if widths.guest <= widths.kvm {
        refuse(format!("the VMM of {name} gives no more than {}", widths.host));
    } else if widths.kvm < host.passport.silicon.phys_bits {
        let (all, taken) = (host.passport.silicon.phys_bits, host.passport.silicon.phys_bits - widths.kvm);
        refuse(format!("{name} has {all}, of which memory encryption takes {taken} under shadow paging"));
    } else {
        refuse(format!("{name} has {}", widths.kvm));
    }
    let chosen = ["phys-bits", "host-phys-bits-limit"].iter().any(|key| guest.machine.cpu.contains(key));
    if !chosen {
        let sentence = format!(
            "nobody chose the guest's width: `{}` took the {} bits of the host that it started on",
            guest.machine.cpu, widths.guest
        );
        let finding = Finding::new(Severity::Caution, Subject::Width, sentence, WIDTHS);
        findings.push(finding.pin(Pin::PhysBits(widths.host)));
    }
}

fn slots(guest: &Guest, host: &Host, widths: &Widths, findings: &mut Vec<Finding>) {
    let slots = &guest.footprint.slots;
    let name = &host.passport.name;
    if let Some(slot) = slots.beyond(widths.kvm) {
        let sentence =
            format!("{name} has {} physical address bits, a memory slot needs {}", widths.kvm, slot.bits());
        let finding = Finding::new(Severity::Refuses, Subject::Slot, sentence, SLOTS).at(Some(slot));
        findings.push(finding.pin(Pin::PhysBits(widths.kvm)).pin(Pin::AtLeastPhysBits(slots.bits())));
    } else if let Some(slot) = slots.beyond(widths.mappable) {
        let sentence = format!(
            "{name} maps {} bits, a memory slot needs {}: the first access to it never ends",
            widths.mappable,
            slot.bits()
        );
        let finding = Finding::new(Severity::Breaks, Subject::Slot, sentence, MAPPABLE);
        let finding = finding.at(Some(slot)).pin(Pin::PhysBits(widths.mappable));
        findings.push(finding.pin(Pin::AtLeastPhysBits(slots.bits())));
    }
    if let Some(slot) = slots.beyond(widths.guest) {
        let sentence = format!(
            "the guest has {} physical address bits, its memory needs {}: it cannot address all of it, on any host",
            widths.guest,
            slots.bits()
        );
        let finding = Finding::new(Severity::Breaks, Subject::Slot, sentence, SLOTS);
        findings.push(finding.at(Some(slot)).pin(Pin::AtLeastPhysBits(slots.bits())));
    }
}

fn mappable(guest: &Guest, host: &Host, widths: &Widths, findings: &mut Vec<Finding>) {
    let name = &host.passport.name;
    let beyond_guest = guest.footprint.devices.beyond(widths.guest);
    if widths.guest_mappable > widths.guest {
        let severity = if beyond_guest.is_some() { Severity::Breaks } else { Severity::Caution };
        let sentence = format!(
            "CPUID leaf 0x80000008 contradicts itself: GuestPhysBits {}, MAXPHYADDR {}; firmware that goes by the first \
             places BARs where the guest's own paging entries are illegal",
            widths.guest_mappable, widths.guest
        );
        let finding = Finding::new(severity, Subject::Mappable, sentence, MAPPABLE);
        findings.push(finding.at(beyond_guest).pin(Pin::GuestPhysBits(widths.guest.min(widths.mappable))));
    } else if let Some(place) = beyond_guest {
        let faults = host.hides_width || host.passport.silicon.phys_bits <= widths.guest;
        let (severity, words) = match faults {
            true => (Severity::Breaks, "they fault there"),
            false => (Severity::Caution, "they do not fault there only because the host is wider"),
        };
        let sentence = format!(
            "a device is beyond the guest's {} physical address bits: its paging entries are illegal, {words}",
            widths.guest
        );
        let finding = Finding::new(severity, Subject::Mappable, sentence, WIDTHS);
        findings.push(finding.at(Some(place)).pin(Pin::AtLeastPhysBits(guest.footprint.devices.bits())));
    }
    let promised = if widths.guest_mappable == 0 { widths.guest } else { widths.guest_mappable };
    if promised <= widths.mappable || widths.guest > widths.host {
        return;
    }
    let (sentence, pin) = if widths.guest_mappable == 0 {
        (
            format!(
                "{name} maps {} bits, and nothing tells the guest so (MAXPHYADDR {promised}, no GuestPhysBits)",
                widths.mappable
            ),
            Pin::GuestPhysBits(widths.mappable),
        )
    } else {
        (
            format!("the guest was promised {promised} GuestPhysBits, {name} maps {}", widths.mappable),
            Pin::GuestPhysBits(widths.mappable),
        )
    };
    let place = guest.footprint.devices.beyond(widths.mappable);
    findings.push(Finding::new(Severity::Caution, Subject::Mappable, sentence, MAPPABLE).at(place).pin(pin));
}

/// The first address bit that is reserved for the guest and not for the host, whose KVM does not hide it.
pub fn reserved_from(guest: &Guest, host: &Host) -> Option<u8> {
    let narrowest = Widths::of(guest, host).narrowest;
    (narrowest < host.passport.silicon.phys_bits && !host.hides_width).then_some(narrowest)
}

fn reserved_bits(guest: &Guest, host: &Host, widths: &Widths, findings: &mut Vec<Finding>) {
    let silicon = host.passport.silicon.phys_bits;
    if reserved_from(guest, host).is_none() {
        return;
    }
    let name = &host.passport.name;
    let sentence = format!(
        "bits {}:{} of paging entries are reserved for the guest and not for {name}, whose KVM does not hide it \
         (KVM_CAP_SMALLER_MAXPHYADDR is 0): they do not fault there",
        silicon - 1,
        widths.narrowest
    );
    // An entry with such bits is evidence only as far as running the guest shows a difference.
    let finding = Finding::new(Severity::Caution, Subject::ReservedBits, sentence, RESERVED);
    let place = guest.footprint.entries.beyond(widths.narrowest);
    findings.push(finding.at(place).pin(Pin::HideWidth(name.clone())));
}

fn iommu(guest: &Guest, host: &Host, widths: &Widths, findings: &mut Vec<Finding>) {
    let Some(bits) = host.passport.iommu_bits else { return };
    let footprint = &guest.footprint;
    let place = footprint.slots.beyond(bits).or(footprint.devices.beyond(bits));
    let name = &host.passport.name;
    let severity = if guest.assigned_device { Severity::Breaks } else { Severity::Caution };
    if let Some(place) = place {
        let sentence = format!("devices of {name} reach {bits} address bits: mapping this for DMA fails");
        let finding = Finding::new(severity, Subject::Iommu, sentence, DMA).at(Some(place));
        // Without an assigned device nothing has to be narrower for it.
        findings.push(if guest.assigned_device { finding.pin(Pin::PhysBits(bits)) } else { finding });
    } else if guest.assigned_device && widths.guest > bits {
        let sentence = format!(
            "devices of {name} reach {bits} address bits, the guest may place BARs within {}",
            widths.guest
        );
        let finding = Finding::new(Severity::Caution, Subject::Iommu, sentence, DMA);
        findings.push(finding.pin(Pin::PhysBits(bits)));
    }
}

fn vendor(guest: &Guest, host: &Host, findings: &mut Vec<Finding>) {
    let (from, to) = (guest.machine.silicon.vendor, host.passport.silicon.vendor);
    if from != to {
        let sentence = format!(
            "the guest was recorded on {from} and sees its CPUID, {} is {to}: system calls of 32-bit code, model-specific \
             registers and errata differ",
            host.passport.name
        );
        findings.push(Finding::new(Severity::Caution, Subject::Vendor, sentence, FEATURE));
    }
}

/// Whether a table has a feature.
pub fn has(table: &[CpuidEntry], feature: &Feature) -> bool {
    find(table, feature.leaf, feature.subleaf).is_some_and(|entry| {
        let register = match feature.register {
            Register::Eax => entry.eax,
            Register::Ebx => entry.ebx,
            Register::Ecx => entry.ecx,
            Register::Edx => entry.edx,
        };
        register >> feature.bit & 1 != 0
    })
}

/// Whether this is a name of the feature.
fn is_called(feature: &Feature, name: &str) -> bool {
    named(name).is_ok_and(|known| known == feature)
}

/// Features that the guest has, that its host gave, and that the other host does not give.
pub fn missing(guest: &Guest, host: &Host) -> Vec<&'static Feature> {
    let lacks = |feature: &Feature| {
        let named = host.passport.without.iter().any(|name| is_called(feature, name));
        named || has(&guest.supported, feature) && !has(&host.supported, feature)
    };
    FEATURES
        .iter()
        .filter(|feature| has(&guest.machine.cpuid, feature) && !ADDED_BY_VMM.contains(&feature.name))
        .filter(|feature| lacks(feature))
        .collect()
}

fn features(guest: &Guest, host: &Host, findings: &mut Vec<Finding>) {
    let name = &host.passport.name;
    let mut unasked = Vec::new();
    for feature in missing(guest, host) {
        let entry = find(&guest.machine.cpuid, feature.leaf, feature.subleaf);
        let read = entry.and_then(|entry| guest.footprint.read_at(entry));
        let used = feature.name == "la57" && Cr4::from_bits(guest.footprint.cr4).la57();
        if read.is_none() && !used {
            unasked.push(feature.name.to_owned());
            continue;
        }
        let register = format!("{:?}", feature.register).to_uppercase();
        let sentence = format!(
            "CPUID leaf {:#x} {register}[{}] ({}) is not there on {name}, and the guest {}",
            feature.leaf,
            feature.bit,
            feature.name,
            if used { "uses it" } else { "has read that it has it" }
        );
        let finding = Finding::new(Severity::Breaks, Subject::Feature, sentence, FEATURE);
        findings.push(finding.at_exit(read).pin(Pin::Without(vec![feature.name.to_owned()])));
    }
    if !unasked.is_empty() {
        let sentence = format!(
            "features that the guest has are not there on {name}: {}; it has not asked for them on this tape",
            unasked.join(", ")
        );
        let finding = Finding::new(Severity::Caution, Subject::Feature, sentence, FEATURE);
        findings.push(finding.pin(Pin::Without(unasked)));
    }
    nested(guest, findings);
}

fn nested(guest: &Guest, findings: &mut Vec<Finding>) {
    for name in NESTED_FEATURES {
        let nested = FEATURES.iter().find(|feature| feature.name == name);
        if nested.is_some_and(|feature| has(&guest.machine.cpuid, feature)) {
            let sentence = format!("the guest may be a hypervisor ({name}): its nested state is not judged");
            findings.push(Finding::new(Severity::Caution, Subject::Nested, sentence, NESTED));
        }
    }
}

/// Capabilities of VMX are bits of model-specific registers: a guest that has not read these was promised nothing.
fn vmx_capabilities(guest: &Guest, host: &Host, findings: &mut Vec<Finding>) {
    /// IA32_VMX_BASIC to IA32_VMX_VMFUNC. See: SDM vol. 4 Table 2-2
    const CAPABILITIES: std::ops::RangeInclusive<u32> = 0x480..=0x491;
    let read = guest.footprint.msrs.iter().find(|(index, _)| CAPABILITIES.contains(index));
    // Without VMX none of these bits is the guest's. See: QEMU target/i386/cpu.c feature_dependencies
    let promised = FEATURES.iter().any(|feature| feature.name == "vmx" && has(&guest.machine.cpuid, feature));
    for name in host.passport.without_vmx_capabilities().filter(|_| promised) {
        let (severity, words) = match read {
            Some((index, _)) => (Severity::Breaks, format!("the guest has read {}", msr(*index))),
            None => (Severity::Caution, "the guest has not read these registers on this tape".to_owned()),
        };
        let sentence = format!(
            "{name}, a bit of the VMX capability registers, is not there on {}; {words}",
            host.passport.name
        );
        let finding = Finding::new(severity, Subject::Feature, sentence, FEATURE);
        findings.push(finding.at_exit(read.map(|(_, exit)| *exit)).pin(Pin::Without(vec![name.to_owned()])));
    }
}

fn msr(index: u32) -> String {
    Msr(index).name().map_or_else(|| format!("MSR {index:#x}"), str::to_owned)
}

/// The size of the XSAVE area for these components, in bytes: 576 without any that have a place of their own.
fn area(table: &[CpuidEntry], components: u32) -> u32 {
    let own = (2..32).filter(|bit| components >> bit & 1 != 0).filter_map(|bit| find(table, 0xd, bit));
    own.map(|leaf| leaf.eax.saturating_add(leaf.ebx)).fold(576, u32::max)
}

/// Components that FXSAVE has too.
const X87_SSE: u32 = 3;

/// Components of the extended state that the other host cannot restore.
fn state(guest: &Guest, host: &Host, findings: &mut Vec<Finding>) {
    let components = |table: &[CpuidEntry]| find(table, 0xd, 0).map_or(0, |leaf| leaf.eax);
    let (components, there) = (components(&guest.machine.cpuid), components(&host.supported));
    let (size, other) = (area(&guest.machine.cpuid, components), area(&host.supported, there));
    let lost = components & !there & !X87_SSE;
    if lost == 0 {
        return;
    }
    let numbers: Vec<_> = (0..32).filter(|bit| lost >> bit & 1 != 0).map(|bit| bit.to_string()).collect();
    let used = guest.footprint.xcr0 & u64::from(lost) != 0;
    let sentence = format!(
        "extended state of up to {size} bytes, on {} of {other}: component {} {}",
        host.passport.name,
        numbers.join(", "),
        if used {
            "is enabled in XCR0 and cannot be restored there"
        } else {
            "cannot be restored there, and is not enabled at the end of the tape"
        }
    );
    let severity = if used { Severity::Breaks } else { Severity::Caution };
    findings.push(Finding::new(severity, Subject::State, sentence, STATE));
}
