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
    let replayed = vmtape(folder, &[&["replay", "a.tape"], replay].concat())?;
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
