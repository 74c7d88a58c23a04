//! Imported traces held against hosts: what their exits tell is judged, the rest is left open and said, and nothing is never
//! the same.

use anyhow::{Result, ensure};
use serde_json::Value;
use std::{fs, path::Path};
use vmtape_conformance::{tail, vmtape};

const SAFE: i32 = 0;
const UNSAFE: i32 = 1;
const COULD_NOT_TEST: i32 = 125;

/// An exit with its events, as tracefs prints them.
fn exit(reason: &str, info1: u64, info2: u64, events: &[&str]) -> Vec<String> {
    let exit = format!(
        "kvm_exit: vcpu 0 reason {reason} rip 0x401000 info1 {info1:#018x} info2 {info2:#018x} intr_info 0x00000000 \
         error_code 0x00000000"
    );
    let entry = "kvm_entry: vcpu 0, rip 0x401003".to_owned();
    [vec![exit], events.iter().map(|event| (*event).to_owned()).collect(), vec![entry]].concat()
}

fn import(folder: &Path, lines: &[String]) -> Result<()> {
    let line = |(at, line): (usize, &String)| format!("        CPU 0/KVM-7  [002] d..1. 1.{at:06}: {line}\n");
    let text: String = lines.iter().enumerate().map(line).collect();
    fs::write(folder.join("trace.txt"), text)?;
    let imported = vmtape(folder, &["import", "-o", "real.tape", "trace.txt"])?;
    ensure!(imported.status.success(), "{}", tail(&imported));
    Ok(())
}

/// Judges a trace for a host; gives the host's answer, null where nothing could be judged.
fn check(lines: &[String], host: &str, code: i32) -> Result<Value> {
    let folder = tempfile::tempdir()?;
    import(folder.path(), lines)?;
    let checked = vmtape(folder.path(), &["check", "real.tape", "--to", host, "--json"])?;
    ensure!(checked.status.code() == Some(code), "{host}: {}", tail(&checked));
    let report: Value = serde_json::from_slice(&checked.stdout)?;
    Ok(report["assessments"].get(0).cloned().unwrap_or_default())
}

/// A device that the guest writes to, under EPT.
fn device(gpa: u64) -> Vec<String> {
    exit("EPT_MISCONFIG", 0, 0, &[&format!("kvm_mmio: mmio write len 4 gpa {gpa:#x} val 0x1")])
}

fn cpuid(function: u32, [a, b, c, d]: [u32; 4]) -> Vec<String> {
    let event = format!(
        "kvm_cpuid: func {function:x} idx 0 rax {a:x} rbx {b:x} rcx {c:x} rdx {d:x}, cpuid entry found"
    );
    exit("CPUID", 0, 0, &[&event])
}

#[test]
fn a_device_beyond_the_hosts_width_breaks() -> Result<()> {
    let lines = [device(0xfe00_0000), device(1 << 40)].concat();
    let narrow = check(&lines, "intel-39", UNSAFE)?;
    assert_eq!((&narrow["verdict"], &narrow["exit"]), (&"unsafe".into(), &1.into()), "{narrow}");
    assert_eq!(narrow["findings"][0]["place"]["kind"], "device", "{narrow}");
    assert_eq!(narrow["pins"]["phys_bits"], 39, "{narrow}");
    assert_eq!((&narrow["evidence"]["judged"], &narrow["evidence"]["differ"]), (&2.into(), &1.into()));
    let wide = check(&lines, "intel-46", SAFE)?;
    assert!(wide["reason"].as_str().unwrap_or_default().contains("only as far as the trace tells"), "{wide}");
    assert_eq!(wide["replay"], Value::Null, "nothing ran");
    Ok(())
}

/// See: KVM commit b628cb523c65: with four levels addresses beyond 48 bits cannot be mapped, however wide the processor is.
#[test]
fn levels_decide_what_can_be_mapped() -> Result<()> {
    let page = exit(
        "EPT_VIOLATION",
        0x181,
        0,
        &["kvm_page_fault: vcpu 0 rip 0x401000 address 0x0002000000000000 error_code 0x181"],
    );
    let four = check(&page, "intel-52-4level", UNSAFE)?;
    assert_eq!(four["findings"][0]["subject"], "mappable", "{four}");
    check(&page, "intel-52", SAFE)?;
    Ok(())
}

#[test]
fn features_that_the_guest_has_read() -> Result<()> {
    const SMEP: u32 = 1 << 7;
    let folder = tempfile::tempdir()?;
    let old = folder.path().join("old.toml");
    fs::write(&old, "base = \"intel-46\"\nname = \"old\"\nwithout = [\"smep\"]\n")?;
    let lines = cpuid(7, [0, SMEP, 0, 0]);
    let without = check(&lines, &old.to_string_lossy(), UNSAFE)?;
    assert_eq!(without["pins"]["without"], serde_json::json!(["smep"]), "{without}");
    check(&lines, "intel-46", SAFE)?;
    let width = check(&cpuid(0x8000_0008, [46, 0, 0, 0]), "intel-39", UNSAFE)?;
    assert_eq!((&width["verdict"], &width["evidence"]["guest_phys_bits"]), (&"refused".into(), &46.into()));
    // A bit that no model has is not judged.
    const AVX512F: u32 = 1 << 16;
    let unknown = check(&cpuid(7, [0, AVX512F, 0, 0]), "intel-46", COULD_NOT_TEST)?;
    assert_eq!(unknown, Value::Null, "nothing was judged");
    Ok(())
}

/// An entry that is illegal for its guest is so there too, if the processor or its KVM has it so.
#[test]
fn reserved_bits_of_a_walk() -> Result<()> {
    let fault = exit(
        "PF excp",
        0x9,
        0x40_0000,
        &[
            "kvm_page_fault: vcpu 0 rip 0x401000 address 0x0000000000400000 error_code 0x9",
            "kvm_mmu_pagetable_walk: addr 400000 pferr 9 P|RSVD",
            "kvm_mmu_paging_element: pte 2003 level 2",
            "kvm_mmu_paging_element: pte 1000003003 level 1",
            "kvm_mmu_walker_error: pferr 9 P|RSVD",
            "kvm_inj_exception: #PF (0x9)",
        ],
    );
    let lines = [cpuid(0x8000_0008, [36, 0, 0, 0]), fault.clone()].concat();
    let lines: Vec<_> = lines.into_iter().map(|line| line.replace("reason CPUID", "reason cpuid")).collect();
    let nested = check(&lines, "amd-48", UNSAFE)?;
    assert_eq!(nested["findings"][0]["subject"], "reserved-bits", "{nested}");
    check(&lines, "amd-48,svm", SAFE)?;
    // Without the walk nobody can say.
    let blind: Vec<_> = fault.iter().filter(|line| !line.contains("mmu_p")).cloned().collect();
    let unknown = check(&[cpuid(1, [0; 4]), blind].concat(), "amd-48", COULD_NOT_TEST)?;
    assert_eq!((&unknown["verdict"], &unknown["evidence"]["open_faults"]), (&"unknown".into(), &1.into()));
    Ok(())
}

#[test]
fn control_registers_and_slots() -> Result<()> {
    const LA57: u64 = 1 << 12;
    let cr4 = exit("CR_ACCESS", 4, 0, &[&format!("kvm_cr: cr_write 4 = {:#x}", LA57 | 0x20)]);
    check(&cr4, "intel-52", SAFE)?;
    let la57 = check(&cr4, "intel-46", UNSAFE)?;
    assert_eq!(la57["findings"][0]["subject"], "feature", "{la57}");
    let slot = "tracing_mark_write: kvm_set_user_memory Slot#1 flags=0x0 gpa=0x10000000000 size=0x80000000 ua=0x7f00 ret=0";
    let lines = [vec![slot.to_owned()], device(0xfe00_0000)].concat();
    let refused = check(&lines, "intel-39", UNSAFE)?;
    assert_eq!(
        (&refused["verdict"], &refused["evidence"]["slots"]),
        (&"refused".into(), &1.into()),
        "{refused}"
    );
    check(&lines, "intel-46", SAFE)?;
    Ok(())
}

/// The top of an AMD host's address space is HyperTransport's.
#[test]
fn addresses_that_a_host_keeps() -> Result<()> {
    let lines =
        exit("npf", 0x1_0000_000f, 0xfd_0000_0000, &["kvm_mmio: mmio write len 4 gpa 0xfd00000000 val 0x1"]);
    let kept = check(&lines, "amd-48", SAFE)?;
    assert_eq!(
        (&kept["findings"][0]["subject"], &kept["findings"][0]["severity"]),
        (&"reserved".into(), &"caution".into())
    );
    let folder = tempfile::tempdir()?;
    import(folder.path(), &lines)?;
    let assigned = vmtape(folder.path(), &["check", "real.tape", "--to", "amd-48", "--vfio"])?;
    assert_eq!(assigned.status.code(), Some(UNSAFE), "{}", tail(&assigned));
    Ok(())
}

#[test]
fn nothing_is_never_safe_nor_the_same() -> Result<()> {
    let ports =
        exit("IO_INSTRUCTION", 0x3f8_0000, 0, &["kvm_pio: pio_write at 0x3f8 size 1 count 1 val 0x41"]);
    check(&ports, "intel-46", COULD_NOT_TEST)?;
    let folder = tempfile::tempdir()?;
    import(folder.path(), &[ports, device(1 << 40)].concat())?;
    let replay = |arguments: &[&str]| vmtape(folder.path(), &[&["replay", "real.tape"], arguments].concat());
    let run = replay(&[])?;
    assert_eq!(run.status.code(), Some(COULD_NOT_TEST), "there is no guest to run: {}", tail(&run));
    let judged = replay(&["--mode", "exits", "--host", "intel-46"])?;
    let text = String::from_utf8_lossy(&judged.stdout).into_owned();
    assert_eq!(judged.status.code(), Some(COULD_NOT_TEST), "{text}");
    assert!(text.contains("NOT ALL IS KNOWN: 0 instructions, 1 exits") && !text.contains("SAME"), "{text}");
    let differs = replay(&["--mode", "exits", "--host", "intel-39", "--json"])?;
    assert_eq!(differs.status.code(), Some(UNSAFE), "{}", tail(&differs));
    let report: Value = serde_json::from_slice(&differs.stdout)?;
    assert_eq!(report["divergence"]["expected_exit"], 1, "{report}");
    for option in [&["--pin"][..], &["--html", "a.html"], &["--at", "exit=1"]] {
        let started = vmtape(folder.path(), &[&["check", "real.tape", "--to", "intel-46"], option].concat())?;
        assert_eq!(started.status.code(), Some(2), "{option:?}: {}", tail(&started));
    }
    Ok(())
}

/// The real KVM's own traces: with EPT, with NPT, and with a KVM that takes no exits.
#[test]
fn recordings_are_judged_as_far_as_they_go() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let recordings = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../traces/recordings").canonicalize()?;
    for (recording, host, code) in [
        ("ept1/setjmp", "intel-39", SAFE),
        ("npt1/setjmp", "amd-52", SAFE),
        ("npt1/setjmp", "intel-39", UNSAFE),
        ("ept1-asm/access_pb36", "amd-52", COULD_NOT_TEST),
        ("pvm/msr_focus", "intel-39", UNSAFE),
        ("npt1-nested/nested-touch", "amd-52", COULD_NOT_TEST),
    ] {
        let trace = recordings.join(recording).join("trace.txt.gz");
        let imported = vmtape(folder.path(), &["import", "-o", "real.tape", &trace.to_string_lossy()])?;
        ensure!(imported.status.success(), "{}", tail(&imported));
        let checked = vmtape(folder.path(), &["check", "real.tape", "--to", host])?;
        assert_eq!(checked.status.code(), Some(code), "{recording} on {host}: {}", tail(&checked));
    }
    Ok(())
}
