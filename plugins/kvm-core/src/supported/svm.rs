//! What an L1 hypervisor learns of SVM: CPUID 0x80000001 ECX[2] and 0x8000000A.
//!
//! See: KVM arch/x86/kvm/svm/svm.c svm_set_cpu_caps(), cpuid.c __do_cpuid_func()

use super::bit;
use crate::{
    cpuid::feature,
    profile::{Options, Switch},
};
use vmtape_arch::host::{Silicon, Vendor};

/// Revision, and how many ASIDs there are.
const REVISION: u32 = 1;
const ASIDS: u32 = 8;

/// Whether guests get SVM from silicon that has it.
pub fn is_offered(silicon_has: bool, host: &Silicon, options: &Options) -> bool {
    silicon_has && host.vendor == Vendor::AMD && options.on(Switch::NESTED)
}

/// EAX, EBX, ECX and EDX of 0x8000000A. `silicon`: its own EDX. Decode assists, SVM's lock and AVIC are never told of.
pub fn leaf(silicon: u32, host: &Silicon, options: &Options) -> [u32; 4] {
    if !is_offered(true, host, options) {
        return [0; 4];
    }
    let on = |switch| options.on(switch);
    let has = |f| silicon & bit(f) != 0;
    let npt = on(Switch::NPT);
    let told = [
        (feature::NPT, npt),
        (feature::LBRV, on(Switch::NESTED_LBRV) && on(Switch::LBRV) && has(feature::LBRV)),
        (feature::NRIPS, on(Switch::NRIPS) && host.nrips.is_set()),
        (
            feature::TSCRATEMSR,
            on(Switch::NESTED_TSC_SCALING) && on(Switch::TSC_SCALING) && has(feature::TSCRATEMSR),
        ),
        (feature::VMCBCLEAN, on(Switch::VMCBCLEAN_TOLD)),
        (feature::FLUSHBYASID, on(Switch::FLUSHBYASID_TOLD)),
        (feature::PAUSEFILTER, on(Switch::NESTED_PAUSE_FILTER) && has(feature::PAUSEFILTER)),
        (feature::PFTHRESHOLD, on(Switch::NESTED_PAUSE_FILTER) && has(feature::PFTHRESHOLD)),
        (
            feature::V_VMSAVE_VMLOAD,
            on(Switch::NESTED_VLS) && on(Switch::VLS) && npt && has(feature::V_VMSAVE_VMLOAD),
        ),
        (feature::VGIF, on(Switch::NESTED_VGIF) && on(Switch::VGIF) && has(feature::VGIF)),
        (
            feature::VNMI,
            on(Switch::NESTED_VNMI) && on(Switch::VNMI) && on(Switch::VGIF) && has(feature::VNMI),
        ),
        (feature::SVME_ADDR_CHK, on(Switch::VMCBCLEAN_TOLD)),
    ];
    let edx = told.iter().filter(|(_, told)| *told).map(|(f, _)| bit(*f)).sum();
    [REVISION, ASIDS, 0, edx]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::Scope;

    fn edx(scope: Scope, silicon: u32, kvm: &[(&str, &str)]) -> [u32; 4] {
        let owned: Vec<_> = kvm.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect();
        let options = Options::parse(scope, "", &owned).unwrap();
        let host = Silicon { vendor: Vendor::AMD, ..super::super::tests::host(48) };
        leaf(silicon, &Silicon { nrips: true.into(), ..host }, &options)
    }

    /// The table by release, on silicon that has everything and on silicon that has nothing optional.
    #[test]
    fn features_by_release() {
        const ALL: u32 = u32::MAX;
        for (kvm, everything, little) in [
            ("v5.10", 0x0000_0009, 0x0000_0009),
            ("v6.1", 0x1001_943b, 0x1000_0029),
            ("v6.12", 0x1201_947b, 0x1000_0069),
            ("v7.2", 0x1201_947b, 0x1000_0069),
        ] {
            assert_eq!(edx(Scope::NPT, ALL, &[("kvm", kvm)]), [1, 8, 0, everything], "{kvm}");
            assert_eq!(edx(Scope::NPT, 0, &[("kvm", kvm)]), [1, 8, 0, little], "{kvm}");
        }
        // As recorded in L1 on 6.12 without nrips: with nested paging, and without.
        assert_eq!(edx(Scope::NPT, 0, &[("nrips", "0")])[3], 0x1000_0061);
        assert_eq!(edx(Scope::SVM, 0, &[("nrips", "0")])[3], 0x1000_0060);
    }

    #[test]
    fn parameters_take_features_away() {
        let without = |parameter| edx(Scope::NPT, u32::MAX, &[(parameter, "0")])[3] ^ 0x1201_947b;
        for (parameter, bits) in [
            ("nrips", 1 << 3),
            ("lbrv", 1 << 1),
            ("tsc_scaling", 1 << 4),
            ("vls", 1 << 15),
            ("vgif", 1 << 16 | 1 << 25),
            ("vnmi", 1 << 25),
        ] {
            assert_eq!(without(parameter), bits, "{parameter}");
        }
        assert_eq!(edx(Scope::NPT, u32::MAX, &[("nested", "0")]), [0; 4]);
    }
}
