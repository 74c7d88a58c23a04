//! hPAT and gPAT: which PAT an access reaches, by release, by the parts of the change, and by the quirk. Values are those of the
//! kernel's svm_nested_pat_test.

use super::*;
use crate::{
    kvm::nested::{pat, vmcb12},
    silicon::vmcb::Clean,
};
use vmtape_arch::{msr::Msr, state::MsrEntry};
use vmtape_kvm_core::vm::Ops;

const L1_PAT: u64 = 0x0007_0406_0007_0404;
const L2_PAT: u64 = 0x0606_0606_0606_0606;
const L2_WRITES: u64 = 0x0606_0606_0606_0604;
const INVALID: u64 = 0x0808_0808_0808_0808;

const MERGED: &[(&str, &str)] = &[("kvm", "v7.2"), ("nested_svm_shared_pat", "0")];
const SHARED: &[&[(&str, &str)]] =
    &[&[("kvm", "v5.10")], &[("kvm", "v6.1")], &[("kvm", "v6.12")], &[("kvm", "v7.2")]];

/// A vCPU in L2, with or without nested paging.
fn in_l2(options: &[(&str, &str)], np: bool) -> Bench {
    let mut bench = l1(options, true);
    bench.state().pat = L1_PAT;
    let vcpu = &mut bench.vm.vcpus[0];
    vcpu.vmcb01.vmcb.save.g_pat = L1_PAT;
    let mut wanted = vmcb12();
    wanted.save.g_pat = L2_PAT;
    wanted.control.nested_ctl.set_np_enable(np);
    let view = L1::new(&bench.vm.shared, &vcpu.core.cpuid);
    vcpu.nested.vmcb12 = vmcb12::cache(&view, &wanted);
    pat::load(&view, &mut vcpu.nested, L1_PAT, Clean::new());
    vcpu.core.guest_mode = true;
    bench
}

impl Bench {
    /// RDMSR of IA32_PAT, by the guest or by the VMM.
    fn pat(&mut self, by_host: bool) -> u64 {
        let (vm, state) = (&mut self.vm, &self.states[0]);
        vm.shared.get_msr(&mut vm.vcpus[0], state, Msr::IA32_PAT.0, by_host, &mut self.host).unwrap()
    }

    fn write_pat(&mut self, data: u64, by_host: bool) -> bool {
        let (vm, state) = (&mut self.vm, &mut self.states[0]);
        vm.shared.set_msr(&mut vm.vcpus[0], state, Msr::IA32_PAT.0, data, by_host, &mut self.host).is_ok()
    }

    fn g_pats(&self) -> (u64, u64) {
        let vcpu = &self.vm.vcpus[0];
        (vcpu.vmcb01.vmcb.save.g_pat, vcpu.nested.vmcb02.vmcb.save.g_pat)
    }

    /// What #VMEXIT leaves in vmcb12 that had L2_PAT.
    fn stored(&self) -> u64 {
        let vcpu = &self.vm.vcpus[0];
        let mut vmcb = vmcb12();
        vmcb.save.g_pat = L2_PAT;
        pat::store(&self.as_l1(), &mut vmcb, &vcpu.nested.vmcb12, &vcpu.nested.vmcb02.vmcb);
        vmcb.save.g_pat
    }
}

/// Scenarios 1, 2, 3, 5: L2 reads, writes, and writes what is no PAT; L1 reads, and looks into vmcb12.
#[test]
fn one_pat_or_two() {
    for options in SHARED {
        for np in [true, false] {
            let mut bench = in_l2(options, np);
            assert_eq!(bench.pat(false), L1_PAT, "{options:?}");
            assert!(!bench.write_pat(INVALID, false) && bench.write_pat(L2_WRITES, false));
            assert_eq!((bench.pat(false), bench.g_pats()), (L2_WRITES, (L2_WRITES, L2_WRITES)));
            assert_eq!((bench.stored(), bench.state().pat), (L2_PAT, L2_WRITES), "{options:?}");
        }
    }
    for options in [MERGED, &[("kvm", "gpat-v3-series")]] {
        let mut bench = in_l2(options, true);
        assert_eq!(bench.pat(false), L2_PAT, "{options:?}");
        assert!(!bench.write_pat(INVALID, false) && bench.write_pat(L2_WRITES, false));
        assert_eq!((bench.pat(false), bench.g_pats()), (L2_WRITES, (L1_PAT, L2_WRITES)), "{options:?}");
        assert_eq!((bench.stored(), bench.state().pat), (L2_WRITES, L1_PAT), "{options:?}");
        // Without nested paging there is one again.
        let mut bench = in_l2(options, false);
        assert_eq!(bench.pat(false), L1_PAT);
        assert!(bench.write_pat(L2_WRITES, false));
        assert_eq!((bench.stored(), bench.state().pat), (L2_PAT, L2_WRITES), "{options:?}");
    }
}

/// Scenarios 6 and 7: what a VMM reads and writes while L2 runs is hPAT.
#[test]
fn host_initiated() {
    const OTHER: u64 = 0x0101_0101_0101_0101;
    for (options, np, read, pats) in [
        (MERGED, true, L1_PAT, (OTHER, L2_WRITES)),
        (MERGED, false, L2_WRITES, (OTHER, OTHER)),
        (&[("kvm", "v7.2")][..], true, L2_WRITES, (OTHER, OTHER)),
        (&[("kvm", "v6.12")], true, L2_WRITES, (OTHER, OTHER)),
        (&[("kvm", "gpat-v3-series")], true, L1_PAT, (OTHER, L2_WRITES)),
    ] {
        let mut bench = in_l2(options, np);
        assert!(bench.write_pat(L2_WRITES, false));
        assert_eq!(bench.pat(true), read, "{options:?}");
        assert!(bench.write_pat(OTHER, true));
        assert_eq!((bench.pat(true), bench.g_pats()), (OTHER, pats), "{options:?}");
        // The ioctl does the same.
        let mut entry = [MsrEntry { index: Msr::IA32_PAT.0, ..Default::default() }];
        assert_eq!(bench.vm.get_msrs(0, &mut bench.states[0], &mut entry, &mut bench.host), Ok(1));
        assert_eq!(entry[0].data, OTHER);
    }
}

/// Scenario 12: under the clean bit vmcb02 keeps the PAT of its last run.
#[test]
fn the_clean_bit_of_l1() {
    for (kept, expected) in [(true, L2_PAT), (false, L2_WRITES)] {
        let mut bench = in_l2(MERGED, true);
        let vcpu = &mut bench.vm.vcpus[0];
        vcpu.nested.vmcb12.save.g_pat = L2_WRITES;
        let view = L1::new(&bench.vm.shared, &vcpu.core.cpuid);
        pat::load(&view, &mut vcpu.nested, L1_PAT, Clean::new().with_np(kept));
        assert_eq!(bench.g_pats().1, expected);
    }
}

/// Scenario 13: a write while L2 runs leaves the clean bit of vmcb01 as it is until the series' first patch.
#[test]
fn clean_bits_of_a_write() {
    for (options, dirty) in [(&[("kvm", "v6.12")][..], [false, true]), (&[("kvm", "v7.2")], [true, true])] {
        let mut bench = in_l2(options, true);
        let vcpu = &mut bench.vm.vcpus[0];
        vcpu.vmcb01.vmcb.control.clean = Clean::ALL;
        vcpu.nested.vmcb02.vmcb.control.clean = Clean::ALL;
        assert!(bench.write_pat(L2_WRITES, false));
        let vcpu = &bench.vm.vcpus[0];
        let clean = [&vcpu.vmcb01.vmcb, &vcpu.nested.vmcb02.vmcb].map(|vmcb| vmcb.control.clean.np());
        assert_eq!(clean, dirty.map(|dirty| !dirty), "{options:?}");
    }
}

/// Each part alone does its part, and no other.
#[test]
fn part_by_part() {
    for (part, check, load, redirect, store) in [
        ("gpat-checked", true, false, false, false),
        ("gpat-in-vmcb02", false, true, false, false),
        ("gpat-msr", false, false, true, false),
        ("gpat-stored", false, false, false, true),
    ] {
        for posted in [true, false] {
            let name = if posted { format!("+v3-{part}") } else { format!("+{part}") };
            let base = [("kvm", "v7.2"), ("nested_svm_shared_pat", if posted { "1" } else { "0" })];
            let others = ["-gpat-checked", "-gpat-in-vmcb02", "-gpat-msr", "-gpat-stored", "-gpat-state"];
            let off = others.map(|name| (name, ""));
            let options = [&base[..], &off, &[(name.as_str(), "")]].concat();
            let mut bench = in_l2(&options, true);
            let checked = pat::is_checked(&bench.as_l1(), &bench.vm.vcpus[0].nested.vmcb12.control);
            assert_eq!((checked, bench.g_pats().1 == L2_PAT), (check, load), "{name}");
            bench.vm.vcpus[0].nested.vmcb02.vmcb.save.g_pat = L2_WRITES;
            assert_eq!(
                (bench.pat(false) == L2_WRITES, bench.stored() == L2_WRITES),
                (redirect, store),
                "{name}"
            );
        }
    }
}
