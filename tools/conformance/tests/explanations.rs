//! What a divergence is explained by: the sentence, the cause with its source, the run that confirms it, and the walks
//! with the entry that decides. Each row is one access of kvm-unit-tests' x86/access.c, or one of KVM's selftests.

use anyhow::{Context, Result};
use std::path::Path;
use vmtape_conformance::{tail, vmtape};

/// One tape replayed on another machine.
struct Row {
    /// Where the expected behaviour stands.
    source: &'static str,
    record: &'static [&'static str],
    replay: &'static [&'static str],
    /// What the explanation says.
    says: &'static [&'static str],
}

/// KVM with capability 185 under EPT, the guest 36 bits wide.
const NARROW: [&str; 4] = ["-b", "vmx,allow_smaller_maxphyaddr=on", "--cpu", "max,phys-bits=36"];

const NARROW_GUESTS: &[Row] = &[
    Row {
        source: "kvm-unit-tests x86/access.c, pte.p pte.36 pde.p under NPT; KVM commit 3edd68399dc1",
        record: &["builtin:touch,pte=0x1002000001"],
        replay: &["-b", "svm-npt"],
        says: &[
            "cause: amd-accessed-before-npf (silicon behaviour): silicon of svm-npt",
            "with amd-accessed-before-npf=off: this difference is gone, others are left",
            "signature: entry:+A@",
            "level 1 at 0x2102000: 0x1002000001 -> 0x1002000021 [P A]",
            "0x1002000001 [P]   <-- decides: bit 36 is reserved, addresses have 36 bits",
        ],
    },
    Row {
        source: "KVM vmx/vmx.c handle_ept_violation(), commit b96e6506c2ea",
        record: &["builtin:touch,pte=0x1002000001"],
        replay: &["-b", "vmx,allow_smaller_maxphyaddr=off"],
        says: &[
            "the instruction completes, as device access to 0x1002000000; expected: the guest takes #PF (0x9)",
            "cause: allow_smaller_maxphyaddr (configuration): bit 36 is reserved by the 36 bits of the guest",
            "with allow_smaller_maxphyaddr=on: both sides are equal here",
            "signature: outcome:#PF(0x9)>mmio@",
        ],
    },
    Row {
        source: "KVM x86.c kvm_fixup_and_inject_pf_error(): a write to a read-only page, CR0.WP=1",
        record: &["builtin:touch,pte=0x1002000001,access=write"],
        replay: &["-b", "vmx,allow_smaller_maxphyaddr=off"],
        says: &[
            "the guest takes #PF (0x3), CR2 0xffff923400000000; expected: the guest takes #PF (0xb)",
            "it goes on to the permissions and reports 0x3, without RSVD",
            "0x1002000001 [P]   <-- decides: not writable (W is clear); bit 36 is reserved for the guest (36 bits)",
            "signature: outcome:#PF(0xb)>#PF(0x3)@",
        ],
    },
    Row {
        source: "KVM x86.c kvm_fixup_and_inject_pf_error(): a fetch from a page with NX set",
        record: &["builtin:touch,pte=0x8000001002000001,access=fetch"],
        replay: &["-b", "svm-npt"],
        says: &["signature: outcome:#PF(0x19)>#PF(0x11)@", "decides: not executable (NX is set)"],
    },
    Row {
        source: "KVM posting of 27 Feb 2020, kvm_inject_rsvd_bits_pf(): error code 8, CR2 the guest physical address",
        record: &["builtin:touch,pte=0x1002000001"],
        replay: &["--kvm", "v1-series"],
        says: &[
            "the guest takes #PF (0x8), CR2 0x1002000000; expected: the guest takes #PF (0x9), CR2 0xffff923400000000",
            "error code 0x8 has RSVD without P",
            "v1-rsvd-pf=off: both sides are equal here",
        ],
    },
    Row {
        source: "KVM selftests smaller_maxphyaddr_emulation_test.c: FLDS is beyond the emulator",
        record: &["builtin:touch,pte=0x1002000001,access=x87"],
        replay: &["-b", "svm"],
        says: &[
            "expected: KVM_RUN returns KVM_EXIT_INTERNAL_ERROR suberror 1",
            "cause: emulator-knows-not (KVM)",
        ],
    },
];

const OTHERS: &[Row] = &[
    Row {
        source: "KVM commit 63f5a1909f9e: a shadow page of a wider vCPU is found by a narrower one",
        record: &["-b", "svm", "--set-cpuid", "start,vcpu=1,phys-bits=36", "builtin:stale"],
        replay: &["--kvm", "v6.12,+role-has-cpuid"],
        says: &[
            "cause: role-has-cpuid (KVM)",
            "uses a translation that was made when bit 40 was legal",
            "with role-has-cpuid=off: both sides are equal here",
            "nobody walks the guest's tables: a translation made earlier is used. They hold",
            "decides: bit 40 is reserved, addresses have 36 bits",
        ],
    },
    Row {
        source: "Tao Su, kvm list, 18 Dec 2023: memory beyond 48 bits under four levels of EPT",
        record: &[
            "-b",
            "vmx",
            "--host",
            "intel-52-4level",
            "--memory-region",
            "gpa=0x1000000000000,size=2M",
            "builtin:touch,gpa=0x1000000000000",
        ],
        replay: &["--host", "intel-52"],
        says: &[
            "the instruction completes; expected: the guest exits at this instruction for ever",
            "cause: unmappable-address (silicon behaviour): four levels of nested tables translate address bits 47:0 only",
            "with EPT levels 4: both sides are equal here",
            "signature: outcome:endless>none@",
        ],
    },
    Row {
        source: "SDM vol. 3A 4.7: a bit that was reserved on the old host is an address bit on the new one",
        record: &["-b", "vmx", "--host", "intel-46", "builtin:touch,pte=0x400002000001"],
        replay: &["--host", "intel-52"],
        says: &[
            "cause: width-of-silicon (clause of the manuals): bit 46 is reserved by the 46 bits of the guest and an \
             ordinary address bit by the 52 bits of vmx on intel-52",
            "vmx on intel-52 with MAXPHYADDR 46: both sides are equal here",
            "0x400002000001 [P]   <-- decides: bit 46 is reserved, addresses have 46 bits",
            "bit 46 is reserved for the guest (46 bits), not for this host (52 bits)",
        ],
    },
    Row {
        source: "KVM x86.c kvm_arch_prepare_memory_region(): no slot beyond kvm_mmu_max_gfn()",
        record: &[
            "-b",
            "vmx",
            "--host",
            "intel-52",
            "--cpu",
            "max,phys-bits=46",
            "--memory-region",
            "gpa=0x400000000000,size=2M",
            "builtin:hello",
        ],
        replay: &["--host", "intel-46"],
        says: &["cause: memory-beyond-the-host (KVM)", "signature: ioctl:KVM_SET_USER_MEMORY_REGION:0>-22@"],
    },
    Row {
        source: "KVM commit b96e6506c2ea: allow_smaller_maxphyaddr defaults to off, and shadow paging needs it not",
        record: &["-b", "vmx", "--cpu", "max,phys-bits=36", "builtin:matrix"],
        replay: &["-b", "svm"],
        says: &[
            "cause: smaller-maxphyaddr-default-off (KVM): bit 36 is reserved by the 36 bits of the guest",
        ],
    },
    Row {
        source: "KVM selftests mmu_role_test.c -m, removed by commit feb627e8d6f6: only shadow paging notices another width",
        record: &[
            "-b",
            "svm",
            "--kvm",
            "v5.10",
            "--set-cpuid",
            "insn=20000,phys-bits=32",
            "--memory-region",
            "gpa=0x200000000,size=4K,insn=20000",
            "builtin:role",
        ],
        replay: &["-b", "svm-npt"],
        says: &[
            "cause: nested paging (configuration): bit 32 is reserved by the 32 bits of the guest",
            "confirmed: the two machines differ in nothing but nested paging: off and on",
            "signature: outcome:#PF(0x9)>mmio@",
        ],
    },
    Row {
        source: "KVM selftests mmu_role_test.c -g; KVM cpuid.c kvm_vcpu_after_set_cpuid(): silicon cannot be told about 1 GiB pages",
        record: &[
            "-b",
            "svm",
            "--kvm",
            "v5.10",
            "--set-cpuid",
            "insn=20000,-pdpe1gb",
            "--memory-region",
            "gpa=0x200000000,size=4K,insn=20000",
            "builtin:role",
        ],
        replay: &["-b", "svm-npt"],
        says: &[
            "cause: nested paging (configuration): the guest's CPUID has no 1 GiB pages",
            "signature: outcome:#PF(0x9)>mmio@",
        ],
    },
    Row {
        source: "KVM commit feb627e8d6f6, x86.c kvm_arch_vcpu_ioctl(): KVM_SET_CPUID2 after KVM_RUN",
        record: &["-b", "vmx", "--kvm", "v5.10", "--set-cpuid", "exit=20,phys-bits=36", "builtin:hello"],
        replay: &["--kvm", "v5.16"],
        says: &[
            "actual: KVM_SET_CPUID2 vcpu 0, ",
            "cause: forbid-cpuid-after-run (KVM): KVM_SET_CPUID2 after KVM_RUN is refused with -EINVAL",
            "feb627e8d6f6",
            "signature: ioctl:KVM_SET_CPUID2:0>-22@",
            "the VMM can see it",
        ],
    },
    Row {
        source: "KVM x86.c kvm_vm_ioctl_check_extension(), KVM_CAP_SMALLER_MAXPHYADDR",
        record: &["-b", "vmx,allow_smaller_maxphyaddr=on", "--check-extension", "185", "builtin:hello"],
        replay: &["-b", "vmx,allow_smaller_maxphyaddr=off"],
        says: &[
            "the VMM asks: KVM_CHECK_EXTENSION 185: 1",
            "cause: allow_smaller_maxphyaddr (configuration)",
            "signature: ioctl:KVM_CHECK_EXTENSION:1>0@",
        ],
    },
];

/// Records, replays, and gives what the replay says.
fn explanation(folder: &Path, record: &[&str], replay: &[&str]) -> Result<String> {
    // A guest that cannot go on ends its recording with a code of its own.
    let recorded = vmtape(folder, &[&["record", "-q", "-o", "a.tape"], record].concat())?;
    assert!(matches!(recorded.status.code(), Some(0 | 1)), "{record:?}: {}", tail(&recorded));
    let explain = if replay.contains(&"--json") { &[][..] } else { &["--explain"] };
    let replayed = vmtape(folder, &[&["replay", "a.tape"], replay, explain].concat())?;
    assert_eq!(replayed.status.code(), Some(1), "{replay:?}: {}", tail(&replayed));
    String::from_utf8(replayed.stdout).context("the explanation is text")
}

fn check(rows: &[Row], before: &[&str]) -> Result<()> {
    let folder = tempfile::tempdir()?;
    for row in rows {
        let record = [before, row.record].concat();
        let text = explanation(folder.path(), &record, row.replay)?;
        for wanted in row.says {
            assert!(text.contains(wanted), "{}: {wanted:?} is missing in:\n{text}", row.source);
        }
    }
    Ok(())
}

#[test]
fn narrow_guests() -> Result<()> {
    check(NARROW_GUESTS, &NARROW)
}

#[test]
fn stale_pages_endless_exits_and_ioctls() -> Result<()> {
    check(OTHERS, &[])
}

#[test]
fn a_signature_does_not_depend_on_how_late_a_divergence_comes() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let signature = |wait: &str| -> Result<String> {
        let guest = format!("builtin:touch,pte=0x1002000001,times=2,wait={wait}");
        let text = explanation(folder.path(), &[&NARROW[..], &[&guest]].concat(), &["-b", "svm-npt"])?;
        let line = text.lines().find(|line| line.contains("signature:")).context("a signature")?;
        Ok(line.to_owned())
    };
    assert_eq!(signature("1")?, signature("50000")?);
    Ok(())
}

#[test]
fn fed_exits_and_two_tapes_are_explained_too() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let record = [&NARROW[..], &["builtin:touch,pte=0x1002000001"]].concat();
    let off = ["-b", "vmx,allow_smaller_maxphyaddr=off"];
    let text = explanation(folder.path(), &record, &[&off[..], &["--mode", "exits"]].concat())?;
    assert!(text.contains("cause: allow_smaller_maxphyaddr (configuration)"), "{text}");
    assert!(text.contains("with allow_smaller_maxphyaddr=on: both sides are equal here"), "{text}");
    let other =
        [&["record", "-q", "-o", "b.tape"], &off[..], &NARROW[2..], &["builtin:touch,pte=0x1002000001"]];
    vmtape(folder.path(), &other.concat())?;
    let diff = vmtape(folder.path(), &["diff", "a.tape", "b.tape"])?;
    let text = String::from_utf8(diff.stdout)?;
    assert_eq!(diff.status.code(), Some(1), "{text}");
    assert!(
        text.contains(
            "confirmed: the two machines differ in nothing but allow_smaller_maxphyaddr: on and off"
        ),
        "{text}"
    );
    Ok(())
}

#[test]
fn a_page_fault_that_the_guest_forgets_is_a_divergence() -> Result<()> {
    let folder = tempfile::tempdir()?;
    // The pushed error code is gone from the stack when the two are compared next.
    let record = [&NARROW[..], &["builtin:late"]].concat();
    let text = explanation(folder.path(), &record, &["-b", "vmx,allow_smaller_maxphyaddr=off"])?;
    assert!(text.contains("signature: outcome:#PF(0x"), "{text}");
    Ok(())
}

#[test]
fn json_has_the_cause() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let record = [&NARROW[..], &["builtin:touch,pte=0x1002000001"]].concat();
    let text = explanation(folder.path(), &record, &["-b", "svm-npt", "--json"])?;
    for wanted in [
        "\"signature\": \"entry:+A@0x",
        "\"kind\": \"silicon\"",
        "\"name\": \"amd-accessed-before-npf\"",
        "\"confirmed\": \"svm-npt on amd-46 with amd-accessed-before-npf=off",
        "\"stories\": [",
    ] {
        assert!(text.contains(wanted), "{wanted} is missing in:\n{text}");
    }
    Ok(())
}

/// Lines that a screen has, and columns.
const SCREEN: (usize, usize) = (24, 100);

/// How many lines a terminal makes of a text.
fn lines_on_screen(text: &str) -> usize {
    text.lines().map(|line| line.chars().count().div_ceil(SCREEN.1).max(1)).sum()
}

/// By default: what, class, cause, the entry that decides, both outcomes, and how to see more.
#[test]
fn a_divergence_fits_a_screen() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let record = [&NARROW[..], &["builtin:touch,pte=0x1002000001"]].concat();
    for (elsewhere, deciding) in [
        (&["-b", "svm-npt"][..], "level 1 at 0x2102000: 0x1002000001 -> 0x1002000021 [P A]"),
        (&["-b", "svm-npt", "--mode", "exits"], "level 1 at 0x2102000: 0x1002000001 -> 0x1002000021 [P A]"),
        (&["-b", "vmx,allow_smaller_maxphyaddr=off"], "decides: bit 36 is reserved, addresses have 36 bits"),
    ] {
        let long = explanation(folder.path(), &record, elsewhere)?;
        let short = vmtape(folder.path(), &[&["replay", "a.tape"], elsewhere].concat())?;
        let short = String::from_utf8(short.stdout)?;
        assert!(lines_on_screen(&short) <= SCREEN.0, "{} lines:\n{short}", lines_on_screen(&short));
        for part in
            ["first divergence: ", "  class: ", "  cause: ", "  signature: ", "  expected, ", "  actual, "]
        {
            let line = |text: &str| text.lines().find(|line| line.starts_with(part)).map(str::to_owned);
            assert!(line(&short).is_some() && line(&short) == line(&long), "{part} in:\n{short}");
        }
        for part in [deciding, "  again: vmtape replay a.tape", "  more: --explain"] {
            assert!(short.contains(part), "{part} is missing in:\n{short}");
        }
    }
    Ok(())
}

/// What a trial changes in memory long before an instruction is no part of that instruction's difference.
#[test]
#[ignore = "needs kvm-unit-tests (VMTAPE_KUT)"]
fn both_modes_name_the_cause_of_a_long_run_alike() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let image = vmtape_conformance::kvm_unit_tests()?.join("access_test.flat");
    let image = image.to_str().context("a name in UTF-8")?;
    let record = ["-b", "svm-npt", "--cpu", "max,phys-bits=36", "--max-insns", "4000000", image];
    let [run, exits] = in_both_modes(folder.path(), &record, &["-b", "vmx"])?;
    assert_eq!(run.1, "amd-accessed-before-npf (silicon behaviour)");
    assert_eq!(run, exits);
    Ok(())
}

/// What a replay in each mode names: the signature, and the cause up to its sentence.
fn in_both_modes(folder: &Path, record: &[&str], replay: &[&str]) -> Result<[(String, String); 2]> {
    let named = |mode: &str| -> Result<(String, String)> {
        let text = explanation(folder, record, &[replay, &["--mode", mode]].concat())?;
        let line = |start: &str| {
            let line = text.lines().find_map(|line| line.trim_start().strip_prefix(start));
            line.map(str::to_owned).with_context(|| format!("no {start:?} in:\n{text}"))
        };
        let cause = line("cause: ")?;
        let name = cause.split(": ").next().unwrap_or_default().to_owned();
        Ok((line("signature: ")?, name))
    };
    Ok([named("run")?, named("exits")?])
}

/// One divergence has one signature and one cause, whichever way it is seen: what is taped, where it is replayed, and what
/// both modes say of it.
#[test]
fn both_modes_name_a_divergence_alike() -> Result<()> {
    const ILLEGAL: &str = "builtin:touch,pte=0x1002000001";
    const ON: &str = "vmx,allow_smaller_maxphyaddr=on";
    const CPU: [&str; 2] = ["--cpu", "max,phys-bits=36"];
    let folder = tempfile::tempdir()?;
    let ioctl_after_run =
        ["-b", "vmx", "--kvm", "v5.10", "--set-cpuid", "exit=20,phys-bits=36", "builtin:hello"];
    let asked = |backend: &'static str| ["-b", backend, "--check-extension", "185", "builtin:hello"];
    let rows: [(&[&str], &[&str], &str, &str); 12] = [
        (
            &["-b", ON, CPU[0], CPU[1], ILLEGAL],
            &["-b", "svm-npt"],
            "entry:+A",
            "amd-accessed-before-npf (silicon behaviour)",
        ),
        (
            &["-b", "svm-npt", CPU[0], CPU[1], ILLEGAL],
            &["-b", "svm"],
            "entry:-A",
            "amd-accessed-before-npf (silicon behaviour)",
        ),
        (
            &["-b", ON, CPU[0], CPU[1], ILLEGAL],
            &["-b", "vmx,allow_smaller_maxphyaddr=off"],
            "outcome:#PF(0x9)>mmio",
            "allow_smaller_maxphyaddr (configuration)",
        ),
        (
            &["-b", ON, CPU[0], CPU[1], "builtin:touch,pte=0x1002000001,access=write"],
            &["-b", "vmx,allow_smaller_maxphyaddr=off"],
            "outcome:#PF(0xb)>#PF(0x3)",
            "allow_smaller_maxphyaddr (configuration)",
        ),
        (
            &["-b", "vmx", "--kvm", "v5.9-rc1", CPU[0], CPU[1], ILLEGAL],
            &["--kvm", "v5.10"],
            "outcome:#PF(0x9)>mmio",
            "smaller-maxphyaddr-default-off (KVM)",
        ),
        // A patch that was never merged is a cause where one side has it, and only there.
        (
            &["-b", "svm-npt", CPU[0], CPU[1], ILLEGAL],
            &["--kvm", "v6.12,+v2-npf-emulate"],
            "outcome:mmio>#PF(0x9)",
            "v2-npf-emulate (KVM)",
        ),
        (&ioctl_after_run, &["--kvm", "v5.16"], "ioctl:KVM_SET_CPUID2:0>-22", "forbid-cpuid-after-run (KVM)"),
        (&asked("svm"), &["-b", "svm-npt"], "ioctl:KVM_CHECK_EXTENSION:1>0", "nested paging (configuration)"),
        (&asked("svm-npt"), &["-b", "svm"], "ioctl:KVM_CHECK_EXTENSION:0>1", "nested paging (configuration)"),
        (
            &asked("svm"),
            &["-b", "vmx"],
            "ioctl:KVM_CHECK_EXTENSION:1>0",
            "smaller-maxphyaddr-default-off (KVM)",
        ),
        (
            &asked(ON),
            &["-b", "vmx,allow_smaller_maxphyaddr=off"],
            "ioctl:KVM_CHECK_EXTENSION:1>0",
            "allow_smaller_maxphyaddr (configuration)",
        ),
        (
            &asked(ON),
            &["-b", "svm-npt"],
            "ioctl:KVM_CHECK_EXTENSION:1>0",
            "allow_smaller_maxphyaddr (configuration)",
        ),
    ];
    for (record, replay, what, cause) in rows {
        let [run, exits] = in_both_modes(folder.path(), record, replay)?;
        assert!(run.0.starts_with(&format!("{what}@")), "{record:?} {replay:?}: {run:?}");
        assert_eq!(run.1, cause, "{record:?} {replay:?}");
        assert_eq!(run, exits, "{record:?} {replay:?}");
    }
    Ok(())
}

/// Silicon's own table, KVM's release, the host's width, nested paging: each part that differs goes to its cause.
// See: KVM cpuid.c kvm_set_cpu_caps(), __do_cpuid_func(); commit b628cb523c65
#[test]
fn supported_cpuid_is_explained_part_by_part() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let rows: [(&[&str], &[&str], &[&str]); 5] = [
        (
            &["-b", "vmx", "--host", "intel-46"],
            &["--host", "intel-52"],
            &[
                "cause: host: MAXPHYADDR ",
                "leaf 0x80000008 EAX bits 7:0 (phys-bits=52)",
                "leaf 0x7 ECX bit 16 (+la57)",
            ],
        ),
        (
            &["-b", "svm"],
            &["-b", "svm-npt"],
            &[
                "cause: nested paging (configuration): only svm-npt has nested paging",
                "leaf 0x7 ECX bit 3 (+pku)",
                "leaf 0xd.9 (added)",
                "leaf 0x80000008 EAX bits 23:16 (guest-phys-bits=48)",
            ],
        ),
        (
            &["-b", "vmx"],
            &["-b", "svm-npt"],
            &[
                "cause: the vendor (silicon behaviour): ",
                "leaf 0x0 EBX (0x68747541)",
                "leaf 0x80000001 EDX bit 22 (+mmxext)",
            ],
        ),
        (
            &["-b", "vmx"],
            &["-b", "svm"],
            &["cause: the vendor and nested paging (", "leaf 0x7 ECX bit 3 (-pku)"],
        ),
        (
            &["-b", "vmx", "--kvm", "v6.9"],
            &["--kvm", "v6.10"],
            &[
                "cause: guest-phys-bits (KVM): ",
                "b628cb523c65",
                "leaf 0x80000008 EAX bits 23:16 (guest-phys-bits=46)",
            ],
        ),
    ];
    for (record, replay, says) in rows {
        let record = [record, &["--get-supported-cpuid", "start", "builtin:hello"]].concat();
        for mode in ["run", "exits"] {
            let text = explanation(folder.path(), &record, &[replay, &["--mode", mode]].concat())?;
            for wanted in says.iter().chain(&["signature: ioctl:KVM_GET_SUPPORTED_CPUID:0>0@0x0"]) {
                assert!(
                    text.contains(wanted),
                    "{record:?} {replay:?} {mode}: {wanted:?} is missing in:\n{text}"
                );
            }
        }
    }
    Ok(())
}

/// A machine that differs for the host alone (levels of its tables, other entries of KVM's) is the same to the guest.
#[test]
fn what_only_the_host_notices_is_no_divergence() -> Result<()> {
    let folder = tempfile::tempdir()?;
    // The second one writes to its APIC, which exits like a trap.
    for guest in [&["builtin:cpuid"][..], &["--smp", "2", "builtin:smp2"]] {
        let record = ["record", "-q", "-b", "vmx", "--host", "intel-46", "-o", "a.tape"];
        let recorded = vmtape(folder.path(), &[&record, guest].concat())?;
        assert!(recorded.status.success(), "{}", tail(&recorded));
        for elsewhere in [&["--host", "intel-52"][..], &["-b", "vmx,ept=off"], &["--kvm", "v5.10"]] {
            // Exits alone do not tell what the guest did between them.
            for (mode, code) in [("run", 0), ("exits", 125)] {
                let replay = [&["replay", "a.tape", "--mode", mode], elsewhere].concat();
                let replayed = vmtape(folder.path(), &replay)?;
                assert_eq!(
                    replayed.status.code(),
                    Some(code),
                    "{guest:?} {elsewhere:?} {mode}: {}",
                    tail(&replayed)
                );
            }
        }
    }
    Ok(())
}

/// What an exit tells is enough for a machine that dealt otherwise with the exits before it, wherever the tape begins.
#[test]
fn fed_exits_find_as_much_whatever_the_checkpoints() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut all = Vec::new();
    for every in ["0", "1", "7", "100"] {
        let name = format!("every{every}.tape");
        let record = ["record", "-q", "-b", "svm-npt", "--host", "amd-48", "--cpu", "max,-pku,phys-bits=36"];
        let tape = ["--checkpoint-every", every, "-o", &name, "builtin:matrix"];
        vmtape(folder.path(), &[&record[..], &tape].concat())?;
        let replay = ["replay", &name, "-b", "vmx", "--host", "intel-48"];
        let replay = [&replay[..], &["--mode", "exits", "--continue"]].concat();
        let text = String::from_utf8(vmtape(folder.path(), &replay)?.stdout)?;
        let listed: Vec<_> =
            text.lines().filter(|line| line.contains(" x entry:")).map(str::to_owned).collect();
        let unknown: Vec<_> = text.lines().filter(|line| line.contains("unknown: ")).collect();
        assert!(!listed.is_empty() && unknown.len() == 1 && unknown[0].contains("between exits"), "{text}");
        all.push(listed);
    }
    assert!(all.iter().all(|listed| *listed == all[0]), "{all:#?}");
    Ok(())
}

/// The tape resynchronizes the other machine after each difference. A guest that runs cannot be.
#[test]
fn fed_exits_go_on_after_a_difference() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let record = [&NARROW[..], &["builtin:touch,pte=0x1002000001,times=5"]].concat();
    let text = explanation(folder.path(), &record, &["-b", "svm-npt", "--mode", "exits", "--continue"])?;
    let listed: Vec<_> =
        text.lines().skip_while(|line| *line != "all divergences, each signature once:").collect();
    assert!(listed.len() > 2 && listed[1].starts_with("  5 x entry:+A@0x"), "{text}");
    assert!(listed[2].starts_with("    cause: amd-accessed-before-npf (silicon behaviour): "), "{text}");
    let refused = vmtape(folder.path(), &["replay", "a.tape", "-b", "svm-npt", "--continue"])?;
    assert_eq!(refused.status.code(), Some(2), "{}", tail(&refused));
    assert!(String::from_utf8(refused.stderr)?.contains("runs another way from there on"));
    Ok(())
}
