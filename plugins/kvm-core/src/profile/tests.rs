//! The registry against itself, and options against it.

use super::*;
use std::collections::BTreeSet;

fn parse(options: &[(&str, &str)]) -> Result<Options, OptionError> {
    parse_for(Scope::VMX, options)
}

fn parse_for(scope: Scope, options: &[(&str, &str)]) -> Result<Options, OptionError> {
    let owned: Vec<_> = options.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect();
    Options::parse(scope, "vmx", &owned)
}

#[test]
fn defaults_and_overrides() {
    let options = parse(&[("ept", "off"), ("+allow_smaller_maxphyaddr", "")]).unwrap();
    assert!(!options.on(Switch::EPT) && options.on(Switch::ALLOW_SMALLER_MAXPHYADDR));
    assert!(options.on(Switch::EPTAD) && !options.on(Switch::NRIPS));
    assert_eq!(options.resolved()[0], ("kvm".into(), "v6.12".into()));
}

#[test]
fn errors_name_what_is_unknown() {
    let text = |options| parse(options).unwrap_err().to_string();
    assert!(text(&[("kvm", "v4.4")]).contains("v4.4"));
    assert!(text(&[("nptt", "on")]).contains("nptt"));
    assert!(text(&[("ept", "maybe")]).contains("maybe"));
    assert!(text(&[("nrips", "on")]).contains("vmx"), "an AMD parameter is unknown to vmx");
}

/// Every profile resolves to options that resolve to themselves, whatever was overridden.
#[test]
fn resolved_options_are_a_fixed_point() {
    for name in release::rows().map(|row| row.0) {
        for scope in [Scope::VMX, Scope::SVM, Scope::NPT] {
            for extra in [("-smaller-maxphyaddr", ""), ("+role-has-cpuid", ""), ("tdp_mmu", "off")] {
                let options = parse_for(scope, &[("kvm", name), extra]).unwrap();
                let again = Options::parse(scope, "", &options.resolved());
                assert_eq!(again, Ok(options), "{name} {extra:?}");
            }
        }
    }
}

#[test]
fn entries_are_unique_and_name_known_releases() {
    for scope in [Scope::VMX, Scope::SVM, Scope::NPT] {
        let switches: Vec<_> = entries_of(scope).map(|e| e.switch).collect();
        assert_eq!(switches.iter().collect::<BTreeSet<_>>().len(), switches.len());
    }
    for entry in entries() {
        let name = entry.switch.name().expect("every entry's switch has a name");
        assert!((entry.switch.0 as usize) < set::SWITCHES, "{name}");
        let releases = entry.since.into_iter().chain(entry.until.map(|(release, _)| release));
        let places: Vec<_> = releases.map(|release| position(release).expect(release)).collect();
        assert!(places.is_sorted(), "{name} ends before it starts");
        assert!(!entry.text.is_empty() && !entry.source.is_empty(), "{name}");
        if entry.kind == Kind::Patch {
            assert!(!entry.commit.is_empty() && !entry.subject.is_empty(), "{name}");
        }
    }
    let listed: BTreeSet<_> = entries().map(|e| e.switch).collect();
    assert_eq!(listed.len(), Switch::NAMED.len(), "a switch without an entry");
}

/// First releases and reverts as the kernel's history has them.
#[test]
fn releases_have_their_patches() {
    let on = |profile: &str, switch| parse(&[("kvm", profile)]).unwrap().on(switch);
    for (switch, without, with) in [
        (Switch::SMALLER_MAXPHYADDR, "v5.8", "v5.9-rc1"),
        (Switch::SMALLER_MAXPHYADDR_DEFAULT_OFF, "v5.9-rc1", "v5.9-rc7"),
        (Switch::TRANSLATE_GPA_CHECK, "v5.15", "v5.14"),
        (Switch::WARN_CPUID_AFTER_RUN, "v5.13", "v5.14"),
        (Switch::WARN_CPUID_AFTER_RUN, "v5.16", "v5.15"),
        (Switch::FORBID_CPUID_AFTER_RUN, "v5.15", "v5.16"),
        (Switch::ALLOW_SAME_CPUID, "v5.16", "v5.17"),
        (Switch::GUEST_PHYS_BITS, "v6.9", "v6.10"),
        (Switch::V1_RSVD_PF, "v5.6", "v1-series"),
        (Switch::FORBID_CPUID_IN_GUEST_MODE, "v6.19", "latest"),
    ] {
        let name = switch.name().unwrap();
        assert!(!on(without, switch) && on(with, switch), "{name}");
    }
    assert_eq!(parse(&[("kvm", "latest")]).unwrap().profile(), "v7.2");
    assert!(!on("v1-series", Switch::SMALLER_MAXPHYADDR));
}

/// Rows of the table of stable updates of nested SVM: releases that have a change, of the four that are read.
#[test]
fn nested_svm_by_release() {
    for (switch, first) in [
        (Switch::NESTED_INVALID_CLEARS_GIF, "v5.10"),
        (Switch::NESTED_VMCB02, "v5.13"),
        (Switch::VMRUN_UNMAPPED_GP, "v6.1"),
        (Switch::NESTED_CHECK_NCR3, "v6.1"),
        (Switch::NESTED_EVENT_INJ_CLEARED, "v6.12"),
        (Switch::NESTED_VMMCALL_INTERCEPTED, "v6.12"),
        (Switch::NESTED_CHECK_EVENT_INJ, "v7.2"),
        (Switch::GPAT_CHECKED, "v7.2"),
    ] {
        for release in ["v5.9", "v5.10", "v6.1", "v6.12", "v7.2"] {
            let has = parse_for(Scope::NPT, &[("kvm", release)]).unwrap().on(switch);
            let name = switch.name().unwrap();
            assert_eq!(has, position(first) <= position(release), "{name} in {release}");
        }
    }
    // In 6.12.117 and after 7.2.13: neither of the profiles on both sides of it has the row.
    let lma = |kvm| parse_for(Scope::SVM, &[("kvm", kvm)]).unwrap().on(Switch::NESTED_LMA_IGNORED);
    assert!(!lma("v6.11") && lma("v6.12") && !lma("v7.2"));
}

/// The quirk alone changes nothing: the patches that it guards do, and releases before them have none, whatever is asked of it.
#[test]
fn the_shared_pat_is_a_quirk() {
    let parse = |kvm| parse_for(Scope::NPT, &[("kvm", kvm), ("-nested_svm_shared_pat", "")]).unwrap();
    for (kvm, merged, posted) in
        [("v6.12", false, false), ("gpat-v3-series", false, true), ("v7.2", true, false)]
    {
        let options = parse(kvm);
        assert!(!options.on(Switch::NESTED_SVM_SHARED_PAT));
        assert_eq!(
            (options.on(Switch::GPAT_MSR), options.on(Switch::V3_GPAT_MSR)),
            (merged, posted),
            "{kvm}"
        );
    }
    let v3 = parse("gpat-v3-series");
    assert!(v3.on(Switch::V3_GPAT_STATE) && !v3.on(Switch::GPAT_STATE) && !v3.on(Switch::V2_GPAT_STATE));
}

/// KVM_CAP_DISABLE_QUIRKS2: those that the release has, one after the other, and back again where a checkpoint says so. What an
/// option has turned off stays off.
#[test]
fn quirks_are_disabled_at_run_time() {
    for (scope, kvm, quirks) in [
        (Scope::NPT, "v5.10", 0),
        (Scope::NPT, "v6.12", 0x20),
        (Scope::NPT, "v7.2", 0x820),
        (Scope::SVM, "v7.2", 0x820),
        (Scope::VMX, "v7.2", 0x220),
    ] {
        assert_eq!(parse_for(scope, &[("kvm", kvm)]).unwrap().quirks(), quirks, "{kvm}");
    }
    let mut options = parse_for(Scope::NPT, &[("kvm", "v7.2"), ("fix_hypercall_insn", "0")]).unwrap();
    let on = |options: &Options| {
        (options.on(Switch::NESTED_SVM_SHARED_PAT), options.on(Switch::FIX_HYPERCALL_INSN))
    };
    assert_eq!(on(&options), (true, false));
    options.set_disabled_quirks(0x800);
    assert_eq!((on(&options), options.disabled_quirks()), ((false, false), 0x800));
    options.set_disabled_quirks(0);
    assert_eq!(on(&options), (true, false));
}

/// `force_emulation_prefix` is a set of flags from 6.1 on, and a boolean before.
#[test]
fn the_prefix_has_flags() {
    let on = |options: &Options| {
        (options.on(Switch::FORCE_EMULATION_PREFIX), options.on(Switch::FEP_CLEAR_RFLAGS_RF))
    };
    for (kvm, value, expected) in [
        ("v5.10", "1", Some((true, false))),
        ("v5.10", "2", None),
        ("v6.1", "1", Some((true, false))),
        ("v6.12", "0", Some((false, false))),
        ("v6.12", "2", Some((true, true))),
        ("v6.12", "3", Some((true, true))),
        ("v6.12", "4", None),
    ] {
        let parsed = parse_for(Scope::VMX, &[("kvm", kvm), ("force_emulation_prefix", value)]);
        assert_eq!(parsed.as_ref().ok().map(on), expected, "{kvm} {value}");
        if let Ok(options) = parsed {
            let resolved = options.resolved();
            let again: Vec<_> = resolved.iter().map(|(a, b)| (a.as_str(), b.as_str())).collect();
            assert_eq!(parse_for(Scope::VMX, &again).as_ref(), Ok(&options), "{kvm} {value}");
        }
    }
}
