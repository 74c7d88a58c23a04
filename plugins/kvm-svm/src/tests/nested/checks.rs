//! Which VMCBs KVM and silicon refuse, near the border between the valid and the others: the tables of the facts, by the
//! manual's offsets, against the checks.

use super::*;
use crate::{
    kvm::nested::{checks, checks::Check, vmcb12},
    silicon::{checks as silicon_checks, checks::Invalid},
    tests::bench::silicon,
};
use proptest::prelude::*;

const EFER: usize = 0x4d0;
const CR4: usize = 0x548;
const CR3: usize = 0x550;
const CR0: usize = 0x558;
const DR7: usize = 0x560;
const DR6: usize = 0x568;
const CS_ATTRIB: usize = 0x412;
const G_PAT: usize = 0x668;
const IOPM: usize = 0x40;
const MSRPM: usize = 0x48;
const ASID: usize = 0x58;
const INT_CTL: usize = 0x60;
const NESTED_CTL: usize = 0x90;
const EVENT_INJ: usize = 0xa8;
const NCR3: usize = 0xb0;
const INTERCEPTS_3: usize = 0x0c;
const INTERCEPTS_4: usize = 0x10;

/// Fields with values on both sides of a border.
const BORDERS: &[(usize, &[u64])] = &[
    (
        EFER,
        &[0x1500, 0x500, 0x1d00, 0x1000, 0x1100, 0x1501, 0x3500, 0x5500, 0x1700, 0x1_0000_1500, 0x20_1500],
    ),
    (CR0, &[0x8000_0001, 0x8000_0000, 1, 0xe000_0001, 0xa000_0001, 0xc000_0001, 0x1_8000_0001, u64::MAX]),
    (CR3, &[0, 1 << 35, 1 << 36, 1 << 51, 1 << 52, 0xfff, 1 << 63]),
    (CR4, &[0x20, 0, 0x620, 0x2020, 0x100_0020, 0x1_0000_0020, 0x2_0020, 0x10_0020]),
    (DR6, &[0, 0xffff_0ff0, 1 << 32, 1 << 63]),
    (DR7, &[0x400, u32::MAX as u64, 1 << 32, 1 << 63]),
    (
        G_PAT,
        &[
            0,
            0x0606_0606_0606_0606,
            0x0808_0808_0808_0808,
            2,
            3,
            0x0700_0000_0000_0000,
            0x1000_0000_0000_0000,
        ],
    ),
    (IOPM, &[0x2000, 0xf_ffff_d000, 0xf_ffff_c000, 0xf_ffff_dfff, 0xf_ffff_e000, 1 << 36, 1 << 46]),
    (MSRPM, &[0x5000, 0xf_ffff_e000, 0xf_ffff_efff, 0xf_ffff_f000, 1 << 36, 1 << 46, u64::MAX]),
    (ASID, &[1, 0, 0xffff, 1 << 40 | 1, 3 << 32 | 1]),
    (INT_CTL, &[0, 1 << 26, 1 << 24, 1 << 31]),
    (NESTED_CTL, &[0, 1, 2, 9]),
    (NCR3, &[0x1000, 0xfff, 1 << 35, 1 << 36, 1 << 46]),
    (
        EVENT_INJ,
        &[
            0,
            0x8000_0030,
            0x8000_0130,
            0x8000_0202,
            0x8000_0302,
            0x8000_030e,
            0x8000_0b0e,
            0x8000_0309,
            0x8000_0315,
        ],
    ),
    (
        EVENT_INJ,
        &[0x302, 0x8000_031e, 0x8000_031f, 0x8000_0320, 0x8000_0480, 0x8000_0580, 0x8000_0700, 0xffff_f30e],
    ),
    (INTERCEPTS_3, &[0, 1 << 1, 1 << 28]),
    (INTERCEPTS_4, &[0, 1, 2]),
];
/// CS attributes: L, D, both, neither.
const CS: [u16; 4] = [0x29b, 0x49b, 0x69b, 0x9b];

/// Changes of fields, by their number and value, and attributes of CS.
type Changes = (Vec<(usize, prop::sample::Index)>, u16);

fn near_the_border() -> impl Strategy<Value = Changes> {
    let change = (0..BORDERS.len(), any::<prop::sample::Index>());
    (prop::collection::vec(change, 0..4), prop::sample::select(&CS[..]))
}

fn changed((changes, cs): &Changes) -> Vmcb {
    let mut vmcb = vmcb12();
    for (field, value) in changes {
        let (offset, values) = BORDERS[*field];
        put_word(&mut vmcb, offset, *value.get(values));
    }
    vmcb.as_mut_bytes()[CS_ATTRIB..CS_ATTRIB + 2].copy_from_slice(&cs.to_le_bytes());
    vmcb
}

/// What a row needs of KVM.
#[derive(Clone, Copy)]
struct Kernel {
    /// Where it stands in [`RELEASES`].
    release: usize,
    npt: bool,
    /// L2 has a PAT of its own.
    gpat: bool,
}

fn pat_is_valid(pat: u64) -> bool {
    pat.to_le_bytes().iter().all(|kind| [0, 1, 4, 5, 6, 7].contains(kind))
}

/// The first row of the tables of save-state and control checks that fails, in their order.
fn expected(vmcb: &Vmcb, kernel: Kernel) -> Option<Check> {
    let [efer, cr0, cr3, cr4] = [EFER, CR0, CR3, CR4].map(|offset| word(vmcb, offset));
    let cs = word(vmcb, CS_ATTRIB) as u16;
    let bit = |value: u64, number: u32| value >> number & 1 != 0;
    let (lme, pg) = (bit(efer, 8), bit(cr0, 31));
    let long = lme && pg;
    let new = kernel.release >= 1;
    let newest = kernel.release >= 3;
    // 7.2 clears NP_ENABLE where L1's CPUID has no NPT; here it has.
    let np = bit(word(vmcb, NESTED_CTL), 0);
    let map = |offset: usize, size: u64| {
        let base = word(vmcb, offset) & !0xfff;
        base.max(base.wrapping_add(size - 1)) >> WIDTH == 0
    };
    let event = word(vmcb, EVENT_INJ) as u32;
    let legal_exception = [0, 1, 3, 4, 5, 6, 7, 8, 10, 11, 12, 13, 14, 16, 17, 18, 19, 28, 30];
    let legal_event = match event >> 8 & 7 {
        0 | 2 | 4 => true,
        3 => legal_exception.contains(&(event & 0xff)),
        _ => false,
    };
    let rows = [
        (Check::SVME_CLEAR, !bit(efer, 12)),
        (Check::NW_WITHOUT_CD, !bit(cr0, 30) && bit(cr0, 29)),
        (Check::CR0_HIGH, new && cr0 >> 32 != 0),
        (Check::DR6_HIGH, word(vmcb, DR6) >> 32 != 0),
        (Check::DR7_HIGH, word(vmcb, DR7) >> 32 != 0),
        (Check::LONG_MODE_WITHOUT_PAE, long && !bit(cr4, 5)),
        (Check::LONG_MODE_WITHOUT_PE, long && !bit(cr0, 0)),
        (Check::CR3_ILLEGAL, long && cr3 >> WIDTH != 0),
        (Check::CS_LONG_AND_DEFAULT, long && new && cs & 0x600 == 0x600),
        // VME to PCE without more than L1's CPUID has, OSFXSR, OSXMMEXCPT.
        (Check::CR4_INVALID, cr4 & !0x7ff != 0),
        // SCE, LME, LMA, NX, SVME, LMSLE, FFXSR.
        (Check::EFER_INVALID, new && efer & !0x7d01 != 0),
        (Check::G_PAT_INVALID, kernel.gpat && np && !pat_is_valid(word(vmcb, G_PAT))),
        (Check::VMRUN_NOT_INTERCEPTED, !bit(word(vmcb, INTERCEPTS_4), 0)),
        (Check::ASID_ZERO, word(vmcb, ASID) as u32 == 0),
        (Check::NP_WITHOUT_NPT, np && !kernel.npt),
        (Check::NCR3_ILLEGAL, new && np && word(vmcb, NCR3) >> WIDTH != 0),
        (Check::MSRPM_ILLEGAL, new && !map(MSRPM, 0x2000)),
        (Check::IOPM_ILLEGAL, new && !map(IOPM, 0x3000)),
        (
            Check::VNMI_WITHOUT_NMI,
            kernel.release >= 2 && bit(word(vmcb, INT_CTL), 26) && !bit(word(vmcb, INTERCEPTS_3), 1),
        ),
        (Check::EVENT_INJ_INVALID, newest && event >> 31 != 0 && !legal_event),
    ];
    rows.iter().find(|(_, fails)| *fails).map(|(check, _)| *check)
}

/// What KVM says of a VMCB in L1's memory.
fn kvm(bench: &Bench, npt: bool, vmcb: &Vmcb) -> Option<Check> {
    let l1 = bench.as_l1();
    checks::check(&l1, npt, &vmcb12::cache(&l1, vmcb)).err()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..Default::default() })]

    #[test]
    fn kvm_refuses_what_the_tables_say(changes in near_the_border()) {
        let vmcb = changed(&changes);
        for (release, name) in RELEASES.into_iter().enumerate() {
            for npt in [true, false] {
                let bench = l1(&[("kvm", name)], npt);
                // CPUID without NPT: 7.2 takes the bit away. See `sanitized_without_npt`.
                if !npt && release == 3 {
                    continue;
                }
                let kernel = Kernel { release, npt, gpat: false };
                prop_assert_eq!(kvm(&bench, npt, &vmcb), expected(&vmcb, kernel), "{} npt={}", name, npt);
            }
        }
        let own = l1(&[("kvm", "v7.2"), ("nested_svm_shared_pat", "0")], true);
        let kernel = Kernel { release: 3, npt: true, gpat: true };
        prop_assert_eq!(kvm(&own, true, &vmcb), expected(&vmcb, kernel));
    }

    /// Silicon's own checks of the same VMCBs: what an old KVM lets through is refused there, if the field passes through
    /// unchanged.
    #[test]
    fn silicon_refuses_what_the_contract_says(changes in near_the_border()) {
        let vmcb = changed(&changes);
        let checked = silicon_checks::check(&vmcb, &silicon(HOST_WIDTH as u8));
        prop_assert_eq!(checked.is_err(), silicon_refuses(&vmcb), "{:?}", checked);
    }
}

/// The silicon contract: SVME, CD/NW, high halves, EFER and CR4 MBZ, CR3 MBZ, long mode without PAE, PE or with CS.L and D,
/// VMRUN's intercept, maps, ASID, EVENTINJ, and under nested paging nCR3 and G_PAT.
fn silicon_refuses(vmcb: &Vmcb) -> bool {
    let [efer, cr0, cr3, cr4] = [EFER, CR0, CR3, CR4].map(|offset| word(vmcb, offset));
    let bit = |value: u64, number: u32| value >> number & 1 != 0;
    let long = bit(efer, 8) && bit(cr0, 31);
    let cs = word(vmcb, CS_ATTRIB) as u16;
    let end = |offset: usize, size: u64| (word(vmcb, offset) & !0xfff).saturating_add(size - 1);
    let beyond = |offset, size| end(offset, size) >> HOST_WIDTH != 0;
    let event = word(vmcb, EVENT_INJ) as u32;
    let bad_event = match event >> 8 & 7 {
        0 | 2 | 4 => false,
        3 => event & 0xff == 2 || event & 0xff >= 32,
        _ => true,
    };
    let np = bit(word(vmcb, NESTED_CTL), 0);
    !bit(efer, 12)
        || !bit(cr0, 30) && bit(cr0, 29)
        || (cr0 | word(vmcb, DR6) | word(vmcb, DR7)) >> 32 != 0
        || cr3 >> 52 != 0
        || efer & !0x36_fd01 != 0
        || cr4 & !0xf7_1fff != 0
        || long && (!bit(cr4, 5) || !bit(cr0, 0) || cs & 0x600 == 0x600)
        || !bit(word(vmcb, INTERCEPTS_4), 0)
        || beyond(MSRPM, 0x2000)
        || beyond(IOPM, 0x3000)
        || word(vmcb, ASID) as u32 == 0
        || event >> 31 != 0 && bad_event
        || np && (word(vmcb, NCR3) >> HOST_WIDTH != 0 || !pat_is_valid(word(vmcb, G_PAT)))
}

/// The rows in which only silicon refuses under 5.10: fields that reach vmcb02 as they are. kvm-unit-tests' svm_guest_state_test
/// passes there because of silicon.
#[test]
fn silicon_is_the_second_filter() {
    let old = l1(&[("kvm", "v5.10")], true);
    for (offset, value, invalid) in [
        (EFER, 0x1700, Invalid::EferReserved),
        (CR0, 0x1_8000_0001, Invalid::Cr0High),
        (EVENT_INJ, 0x8000_0302, Invalid::EventInjection),
    ] {
        let mut vmcb = vmcb12();
        put_word(&mut vmcb, offset, value);
        assert_eq!(kvm(&old, true, &vmcb), None);
        assert_eq!(silicon_checks::check(&vmcb, &silicon(HOST_WIDTH as u8)), Err(invalid));
    }
}

/// 7.2 clears NP_ENABLE in its copy where L1 was told of no NPT; the others fail VMRUN under npt=0.
#[test]
fn sanitized_without_npt() {
    let mut bench = l1(&[("kvm", "v7.2")], false);
    let without: Vec<_> = cpuid()
        .into_iter()
        .map(|entry| if entry.function == 0x8000_000a { CpuidEntry { edx: 0, ..entry } } else { entry })
        .collect();
    bench.vm.vcpus[0].core.cpuid = vmtape_kvm_core::cpuid::GuestCpuid::new(&without).unwrap();
    assert_eq!(kvm(&bench, false, &vmcb12()), None);
    for release in ["v5.10", "v6.1", "v6.12"] {
        let bench = l1(&[("kvm", release)], false);
        assert_eq!(kvm(&bench, false, &vmcb12()), Some(Check::NP_WITHOUT_NPT), "{release}");
    }
}

/// Texts as kvm_nested_vmenter_failed prints them.
#[test]
fn texts() {
    let text = |kvm, check| checks::worded(check, &l1(&[("kvm", kvm)], true).as_l1()).name().unwrap();
    assert_eq!(text("v6.1", Check::CR3_ILLEGAL), "kvm_vcpu_is_illegal_gpa(vcpu, save->cr3)");
    assert_eq!(text("v6.12", Check::CR3_ILLEGAL), "!kvm_vcpu_is_legal_cr3(vcpu, save->cr3)");
    assert_eq!(
        text("v7.2", Check::NCR3_ILLEGAL),
        "(control->misc_ctl & SVM_MISC_ENABLE_NP) && !kvm_vcpu_is_legal_gpa(vcpu, control->nested_cr3)"
    );
}
