//! KVM_GET_SUPPORTED_CPUID: what of the silicon's CPUID a guest may have.
//!
//! See: KVM arch/x86/kvm/cpuid.c kvm_set_cpu_caps(), __do_cpuid_func()

mod svm;

use crate::{
    cpuid::{Feature, Reg, feature, indexed, plain},
    profile::{Options, Switch},
};
use vmtape_arch::{
    cpuid::{CPUID_FLAG_SIGNIFICANT_INDEX, CpuidEntry, find},
    host::Silicon,
};

/// Highest basic leaf that KVM knows.
const MAX_BASIC: u32 = 0x24;
/// Highest extended leaf that KVM knows.
const MAX_EXTENDED: u32 = 0x8000_0022;
/// "KVMKVMKVM" in EBX, ECX, EDX.
const SIGNATURE: [u32; 3] = [0x4b4d_564b, 0x564b_4d56, 0x4d];
/// Paravirtual features (KVM_FEATURE_*) that are modelled: CLOCKSOURCE, NOP_IO_DELAY, CLOCKSOURCE2, STEAL_TIME, PV_UNHALT, PV_TLB_FLUSH
/// (no vCPU is ever told to be preempted), PV_SEND_IPI, POLL_CONTROL, PV_SCHED_YIELD, CLOCKSOURCE_STABLE_BIT. Every release has them.
const PARAVIRTUAL: u32 = 0x0100_3aab;
/// ASYNC_PF, ASYNC_PF_VMEXIT, ASYNC_PF_INT.
const ASYNC_PF: u32 = 1 << 4 | 1 << 10 | 1 << 14;
/// Components that KVM saves for a guest (KVM_SUPPORTED_XCR0): x87, SSE, AVX, AVX-512, PKRU. MPX and AMX are left out.
const XCR0: u32 = 0x2e7;
/// The component of protection keys, which shadow paging does not have.
const XCR0_PKRU: u32 = 1 << 9;

/// A register of a leaf with the bits that KVM passes on, as its `kvm_cpu_cap_mask` lists them.
struct Mask(u32, u32, [u32; 4]);

/// EAX, EBX, ECX, EDX by leaf and subleaf. Without what is a parameter (VMX, SVM: `nested`; PDCM: `enable_pmu`; SGX) and
/// without what KVM sets itself.
const MASKS: &[Mask] = &[
    Mask(1, 0, [u32::MAX, u32::MAX, 0x76fa_3203, 0x0f8b_fbff]),
    Mask(7, 0, [u32::MAX, 0xfdbf_2ff9, 0x1a41_5f4e, 0xbc81_451c]),
    Mask(7, 1, [0x00c0_1c30, 0, 0, 0x0000_4030]),
    Mask(0x8000_0001, 0, [u32::MAX, u32::MAX, 0x0061_0bf3, 0xefd3_fbff]),
    Mask(0x8000_0007, 0, [0, 0, 0, 1 << 8]),
];

/// Address bits that four paging levels translate.
const FOUR_LEVELS_WIDTH: u32 = 48;

/// The table that the ioctl returns. `tdp_levels`: most paging levels below the guest (EPT or NPT), none under shadow paging.
pub fn supported_cpuid(
    silicon: &[CpuidEntry],
    host: &Silicon,
    options: &Options,
    tdp_levels: Option<u8>,
) -> Vec<CpuidEntry> {
    let top = |class: u32| find(silicon, class, 0).map_or(0, |e| e.eax);
    let speculation = speculation(silicon);
    let mut entries: Vec<_> = silicon
        .iter()
        .filter(|e| e.function <= top(0).min(MAX_BASIC) || (0x8000_0000..=MAX_EXTENDED).contains(&e.function))
        .filter_map(|e| supported_entry(e, host, options, tdp_levels))
        .map(|e| with_speculation(e, &speculation))
        .collect();
    entries.push(plain(0x4000_0000, [0x4000_0001, SIGNATURE[0], SIGNATURE[1], SIGNATURE[2]]));
    let async_pf = if options.on(Switch::ASYNC_PF_INT) { ASYNC_PF } else { 0 };
    entries.push(plain(0x4000_0001, [PARAVIRTUAL | async_pf, 0, 0, 0]));
    entries.sort_by_key(|e| (e.function & 0xc000_0000 == 0x4000_0000, e.function, e.index));
    entries
}

fn supported_entry(
    entry: &CpuidEntry,
    host: &Silicon,
    options: &Options,
    tdp_levels: Option<u8>,
) -> Option<CpuidEntry> {
    let mut e = *entry;
    let tdp = tdp_levels.is_some();
    let xcr0 = if tdp { XCR0 } else { XCR0 & !XCR0_PKRU };
    if let Some(Mask(_, _, masks)) = MASKS.iter().find(|m| m.0 == e.function && m.1 == e.index) {
        [e.eax, e.ebx, e.ecx, e.edx] =
            [e.eax & masks[0], e.ebx & masks[1], e.ecx & masks[2], e.edx & masks[3]];
    }
    match (e.function, e.index) {
        (0, _) => e.eax = e.eax.min(MAX_BASIC),
        // KVM models the x2APIC whether or not the host has one.
        (1, _) => e.ecx |= bit(feature::X2APIC),
        (6, _) => e = plain(6, [bit(feature::ARAT), 0, 0, 0]),
        (7, 0) => {
            e.eax = e.eax.min(2);
            e.ebx |= bit(feature::TSC_ADJUST);
            e.edx |= bit(feature::ARCH_CAPABILITIES);
            // Protection keys are not implemented for shadow paging.
            if !tdp {
                e.ecx &= !bit(feature::PKU);
            }
        }
        // No virtual PMU, SGX, processor trace, AMX.
        (3 | 5 | 9 | 0xa | 0x12 | 0x14 | 0x1d | 0x1e, _) if e.index == 0 => e = plain(e.function, [0; 4]),
        (0x12 | 0x14 | 0x1d | 0x1e, _) => return None,
        // No topology: a valid one would show in subleaf 1.
        (0xb | 0x1f, 0) => e = indexed(e.function, 0, [0; 4]),
        (0xb | 0x1f, _) => return None,
        (0xd, 0) => {
            e.eax &= xcr0;
            e.edx = 0;
        }
        // XSAVEOPT, XSAVEC, XGETBV1, XSAVES.
        (0xd, 1) => {
            e.eax &= 0xf;
            (e.ecx, e.edx) = (0, 0);
        }
        (0xd, index) if index >= 32 || xcr0 >> index & 1 == 0 => return None,
        (0x8000_0000, _) => e.eax = e.eax.min(MAX_EXTENDED),
        (0x8000_0001, _) if svm::is_offered(entry.ecx & bit(feature::SVM) != 0, host, options) => {
            e.ecx |= bit(feature::SVM);
        }
        (0x8000_000a, _) => e = plain(0x8000_000a, svm::leaf(entry.edx, host, options)),
        (0x8000_0008, _) => {
            e.eax = address_widths(e.eax, host, options, tdp_levels);
            e.edx = 0;
        }
        _ => {}
    }
    e.flags &= CPUID_FLAG_SIGNIFICANT_INDEX;
    Some(e)
}

/// Each vendor has bits of its own for the parts of speculation control, and KVM offers both vendors' for what the kernel found.
/// See: Linux arch/x86/kernel/cpu/common.c init_speculation_control(); KVM cpuid.c kvm_set_cpu_caps()
fn speculation(silicon: &[CpuidEntry]) -> Vec<Feature> {
    let has = |feature: Feature| feature.is_in(silicon);
    let restricted = has(feature::SPEC_CTRL) || has(feature::AMD_IBRS);
    let barrier = has(feature::SPEC_CTRL) || has(feature::AMD_IBPB);
    let single_thread = has(feature::STIBP) || has(feature::AMD_STIBP);
    let offered = [
        (restricted && barrier, feature::SPEC_CTRL),
        (single_thread, feature::STIBP),
        (has(feature::AMD_SSBD), feature::SPEC_CTRL_SSBD),
        (barrier, feature::AMD_IBPB),
        (restricted, feature::AMD_IBRS),
        (single_thread, feature::AMD_STIBP),
        (has(feature::SPEC_CTRL_SSBD), feature::AMD_SSBD),
    ];
    offered.into_iter().filter(|(there, _)| *there).map(|(_, feature)| feature).collect()
}

fn with_speculation(mut entry: CpuidEntry, offered: &[Feature]) -> CpuidEntry {
    for Feature(function, index, register, bit) in offered {
        if (entry.function, entry.index) == (*function, *index) {
            match register {
                Reg::Ebx => entry.ebx |= 1 << bit,
                Reg::Edx => entry.edx |= 1 << bit,
                _ => unreachable!("speculation control is in EBX and EDX"),
            }
        }
    }
    entry
}

/// CPUID 0x80000008 EAX: bits 7:0 physical, 15:8 linear, 23:16 what the level below can map.
/// See: KVM cpuid.c __do_cpuid_func()
fn address_widths(raw: u32, host: &Silicon, options: &Options, tdp_levels: Option<u8>) -> u32 {
    let field = |shift: u32| raw >> shift & 0xff;
    let physical = u32::from(host.phys_bits);
    let mappable = |width: u32| if tdp_levels == Some(5) { width } else { width.min(FOUR_LEVELS_WIDTH) };
    let told = match (tdp_levels, field(16)) {
        // Under shadow paging the guest shares the host's physical address space, without what encryption takes of it.
        (None, _) => physical.saturating_sub(host.encryption_bits.into()),
        (_, 1..) if !options.on(Switch::MAXPHYADDR_NOT_GUEST_PHYS_BITS) => field(16),
        _ if options.on(Switch::CAP_ADVERTISED_GPA) => mappable(physical),
        _ => physical,
    };
    let guest_physical = match tdp_levels {
        Some(_) if options.on(Switch::GUEST_PHYS_BITS) => mappable(physical),
        _ => 0,
    };
    told | field(8).max(48) << 8 | guest_physical << 16
}

fn bit(Feature(.., bit): Feature) -> u32 {
    1 << bit
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::Scope;
    use vmtape_arch::host::Vendor;

    pub(super) fn host(phys_bits: u8) -> Silicon {
        Silicon {
            vendor: Vendor::INTEL,
            phys_bits,
            host_levels: 5,
            ept_levels: 5,
            gbpages: true.into(),
            ept_ad: true.into(),
            ept_advanced: true.into(),
            apicv: true.into(),
            nrips: false.into(),
            decode_assists: false.into(),
            backing_shift: 21,
            rmw_reads_first: false.into(),
            encryption_bits: 0,
            vgif: false.into(),
            vls: false.into(),
            vnmi: false.into(),
        }
    }

    fn options(kvm: &str) -> Options {
        Options::parse(Scope::VMX, "", &[("kvm".to_owned(), kvm.to_owned())]).unwrap()
    }

    /// EAX of 0x80000008 on silicon that says 52 physical, 57 linear and no GuestPhysBits of its own.
    fn leaf8(options: &Options, phys_bits: u8, raw_guest_physical: u32, levels: Option<u8>) -> u32 {
        let silicon = [
            plain(0x8000_0000, [0x8000_0008, 0, 0, 0]),
            plain(0x8000_0008, [raw_guest_physical << 16 | 0x3934, 0, 0, 0]),
        ];
        find(&supported_cpuid(&silicon, &host(phys_bits), options, levels), 0x8000_0008, 0).unwrap().eax
    }

    /// Commits b628cb523c65 and 6f5c9600621b, both of v6.10.
    #[test]
    fn guest_phys_bits() {
        for (kvm, phys_bits, raw, levels, eax) in [
            ("v6.12", 52, 0, Some(4), 0x0030_3934),
            ("v6.12", 52, 0, Some(5), 0x0034_3934),
            ("v6.12", 52, 0, None, 0x0000_3934),
            ("v6.1", 52, 0, Some(4), 0x0000_3934),
            ("v6.9", 52, 0, Some(5), 0x0000_3934),
            // As the recorded host of 40 bits said of itself.
            ("v6.12", 40, 0, Some(4), 0x0028_3928),
            // A host that is a guest itself and was told that its host maps 48 bits.
            ("v6.9", 52, 48, Some(4), 0x0000_3930),
            ("v6.10", 52, 48, Some(4), 0x0030_3934),
            ("v6.9", 52, 48, None, 0x0000_3934),
        ] {
            assert_eq!(leaf8(&options(kvm), phys_bits, raw, levels), eax, "{kvm} {phys_bits} {levels:?}");
        }
    }

    /// The refused series of December 2023 told guests no more than four levels map.
    #[test]
    fn a_capped_width_is_advertised() {
        let mut options = options("v6.6");
        options.set(Switch::CAP_ADVERTISED_GPA, true);
        assert_eq!(leaf8(&options, 52, 0, Some(4)), 0x3930);
        assert_eq!(leaf8(&options, 52, 0, Some(5)), 0x3934);
        assert_eq!(leaf8(&options, 46, 0, Some(4)), 0x392e);
        assert_eq!(leaf8(&options, 52, 0, None), 0x3934);
    }

    /// A guest of one vendor's speculation control finds it on the other's hosts.
    #[test]
    fn speculation_control_has_both_vendors_bits() {
        let [intel, amd] = [
            [plain(7, [0, 0, 0, 1 << 26 | 1 << 27 | 1 << 31]), plain(0x8000_0008, [0x3034, 0, 0, 0])],
            [plain(7, [0; 4]), plain(0x8000_0008, [0x3034, 1 << 12 | 1 << 14 | 1 << 15 | 1 << 24, 0, 0])],
        ]
        .map(|leaves| {
            let silicon =
                [&[plain(0, [7, 0, 0, 0]), plain(0x8000_0000, [0x8000_0008, 0, 0, 0])], &leaves[..]].concat();
            let table = supported_cpuid(&silicon, &host(52), &options("v6.12"), Some(4));
            let leaf = |function| *find(&table, function, 0).unwrap();
            (leaf(7).edx & !bit(feature::ARCH_CAPABILITIES), leaf(0x8000_0008).ebx)
        });
        assert_eq!(intel, (1 << 26 | 1 << 27 | 1 << 31, 1 << 12 | 1 << 14 | 1 << 15 | 1 << 24));
        assert_eq!(amd, intel);
        assert!(super::speculation(&[plain(7, [0; 4])]).is_empty());
    }

    /// As cpuid.c of 5.10, 6.1 and 6.12 has it, but PV_EOI; v5.8 has asynchronous page faults with an interrupt first.
    #[test]
    fn paravirtual_features_by_release() {
        let offered = |kvm: &str| {
            let table = supported_cpuid(&[], &host(48), &options(kvm), Some(4));
            find(&table, 0x4000_0001, 0).unwrap().eax
        };
        for kvm in ["v5.8", "v5.10", "v6.1", "v6.12", "v7.2"] {
            assert_eq!(offered(kvm), 0x0100_7efb & !(1 << 6), "{kvm}");
        }
        assert_eq!(offered("v5.7"), 0x0100_7efb & !(1 << 6 | 1 << 4 | 1 << 10 | 1 << 14));
    }

    /// Without two-dimensional paging memory encryption's bits are not the guest's. See: boot_cpu_data.x86_phys_bits
    #[test]
    fn encryption_takes_address_bits() {
        let mut host = host(52);
        host.encryption_bits = 5;
        let silicon = [plain(0x8000_0008, [0x3034, 0, 0, 0])];
        let eax = |levels| {
            let table = supported_cpuid(&silicon, &host, &options("v6.12"), levels);
            find(&table, 0x8000_0008, 0).unwrap().eax
        };
        assert_eq!(eax(None), 0x302f);
        assert_eq!(eax(Some(4)), 0x30_3034);
    }

    #[test]
    fn leaf_1_of_the_recorded_host() {
        let ice_lake = plain(1, [0x706e5, 0x10800, 0x7ffa_fbbf, 0xbfeb_fbff]);
        let table =
            supported_cpuid(&[plain(0, [0x1b, 0, 0, 0]), ice_lake], &host(40), &options("v6.12"), Some(4));
        let e = find(&table, 1, 0).unwrap();
        // The VMM of the recordings added TSC-deadline and the hypervisor bit; VMX was the parameter `nested`.
        let added = 1 << 24 | 1 << 31 | 1 << 5;
        assert_eq!((e.ecx | added, e.edx), (0xf7fa_3223, 0x0f8b_fbff));
    }
}
