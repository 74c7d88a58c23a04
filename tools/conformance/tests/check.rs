//! Verdicts about destinations: their forms, exit codes, and that they are the same twice.

use anyhow::{Context, Result};
use std::{fs, path::Path};
use vmtape_conformance::{tail, vmtape};

const SAFE: Option<i32> = Some(0);
const UNSAFE: Option<i32> = Some(1);
const USAGE: Option<i32> = Some(2);
const COULD_NOT_TEST: Option<i32> = Some(125);

/// Firmware that has put a BAR at the top of 40 bits.
fn record(folder: &Path) -> Result<()> {
    let line = ["record", "-q", "-b", "vmx", "--cpu", "max,phys-bits=40", "-o", "bar.tape", "builtin:bar"];
    let recorded = vmtape(folder, &line)?;
    assert!(recorded.status.success(), "{}", tail(&recorded));
    Ok(())
}

fn fleet(folder: &Path) -> Result<()> {
    for (name, text) in [
        ("client", "vendor = 'intel'\nphys-bits = 39\niommu-bits = 39\n"),
        ("xeon", "vendor = 'intel'\nphys-bits = 46\nkvm = 'v6.12,allow_smaller_maxphyaddr=on'\n"),
        ("flat", "base = 'intel-52-4level'\nkvm = 'v6.1'\n"),
    ] {
        fs::write(folder.join(format!("{name}.toml")), text)?;
    }
    Ok(())
}

#[test]
fn exit_codes_tell_the_worst_verdict() -> Result<()> {
    let folder = tempfile::tempdir()?;
    record(folder.path())?;
    fs::write(folder.path().join("cut.tape"), b"VMTAPE")?;
    for (line, code) in [
        (vec!["check", "bar.tape", "--to", "intel-46"], SAFE),
        (vec!["check", "bar.tape", "--to", "intel-46", "intel-39"], UNSAFE),
        (vec!["check", "bar.tape", "--to", "nowhere"], USAGE),
        (vec!["check", "bar.tape", "--to", "intel-46", "intel-46"], USAGE),
        (vec!["check", "bar.tape"], USAGE),
        (vec!["check", "cut.tape", "--to", "intel-46"], COULD_NOT_TEST),
        (vec!["check", "bar.tape", "--to", "intel-46,vmx,no_such_parameter=1"], USAGE),
    ] {
        let output = vmtape(folder.path(), &line)?;
        assert_eq!(output.status.code(), code, "{line:?}: {}", tail(&output));
    }
    Ok(())
}

#[test]
fn json_names_the_first_address_that_breaks() -> Result<()> {
    let folder = tempfile::tempdir()?;
    record(folder.path())?;
    let output = vmtape(folder.path(), &["check", "bar.tape", "--to", "intel-39", "--pin", "--json"])?;
    let report: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    assert_eq!(report["schema_version"], 2);
    let host = &report["assessments"][0];
    assert_eq!(host["verdict"], "refused");
    let place = &host["findings"][0]["place"];
    assert_eq!(place["kind"], "entry");
    assert_eq!(place["at"], "0x2101000");
    assert_eq!(place["value"], "0xfc0000009b");
    assert_eq!(host["exit"], place["exit"], "the first exit that differs shows the entry");
    assert_eq!(report["pin"]["settings"]["phys_bits"], 39);
    assert_eq!((&report["pin"]["safe"], &report["pin"]["moves"]), (&1.into(), &1.into()));
    Ok(())
}

#[test]
fn a_fleet_is_a_table_json_and_a_page_the_same_twice() -> Result<()> {
    let folder = tempfile::tempdir()?;
    fleet(folder.path())?;
    let line = ["check", "--fleet", "client.toml", "xeon.toml", "flat.toml", "--guest", "builtin:bar"];
    let table = vmtape(folder.path(), &line)?;
    assert_eq!(table.status.code(), UNSAFE, "{}", tail(&table));
    let text = String::from_utf8(table.stdout)?;
    assert!(text.contains("flat -> client: refused (builtin:bar)"), "{text}");
    let mut forms = Vec::new();
    for page in ["one.html", "two.html"] {
        let json = vmtape(folder.path(), &[&line[..], &["--pin", "--json", "--html", page]].concat())?;
        assert_eq!(json.status.code(), UNSAFE, "{}", tail(&json));
        forms.push((json.stdout, fs::read(folder.path().join(page))?));
    }
    // What made the page, and when, stands in one line of it.
    let page = |form: &(Vec<u8>, Vec<u8>)| -> Result<(String, String)> {
        let text = String::from_utf8(form.1.clone())?;
        let (made, rest): (Vec<_>, Vec<_>) = text.lines().partition(|line| line.starts_with("<footer"));
        Ok((made.join("\n"), rest.join("\n")))
    };
    let [(made, one), (_, two)] = [page(&forms[0])?, page(&forms[1])?];
    assert!(forms[0].0 == forms[1].0 && one == two, "two checks differ");
    for part in ["UTC by vmtape 0", "commit", "<code>vmtape check --fleet client.toml", "--html one.html"] {
        assert!(made.contains(part), "{part} is missing in {made}");
    }
    let report: serde_json::Value = serde_json::from_slice(&forms[0].0)?;
    let cells = report["matrix"]["cells"].as_array().context("cells")?;
    assert_eq!(cells.len(), 9);
    // A cell says how to see it again.
    let again = |cell: &serde_json::Value| cell["assessment"]["replay"]["divergence"].clone();
    let cell = cells.iter().find(|cell| !again(cell).is_null()).context("a difference")?;
    let command = again(cell)["reproduce"].as_str().context("a command")?.to_owned();
    let line = command.split(' ').skip(1).chain(["--json"]).collect::<Vec<_>>();
    let alone: serde_json::Value = serde_json::from_slice(&vmtape(folder.path(), &line)?.stdout)?;
    let cells = alone["matrix"]["cells"].as_array().context("cells")?;
    let same = cells.iter().find(|other| other["from"] == cell["from"] && other["to"] == cell["to"]);
    assert_eq!(same, Some(cell), "{command}");
    let page = String::from_utf8(forms[0].1.clone())?;
    assert!(page.starts_with("<!doctype html>") && page.contains("<svg") && !page.contains("http"), "{page}");
    Ok(())
}

/// A fleet of hosts that differ in width alone: the guest that touches a reserved bit is the only one to mind. What was found
/// follows from the host's width, which a host as wide as the guest shows; a real difference stays one.
// See: SDM vol. 3A 4.5.4, bits above MAXPHYADDR are reserved; KVM commit 3edd68399dc1
#[test]
fn reserved_bits_alone_are_a_grade_of_their_own() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let line = ["check", "--fleet", "intel-46", "intel-52", "amd-48", "--cpu", "max,phys-bits=46,-la57"];
    let text = String::from_utf8(vmtape(folder.path(), &[&line[..], &["--pin"]].concat())?.stdout)?;
    assert!(text.contains("intel-46 -> intel-52: conditional (builtin:illegal): run there, "), "{text}");
    assert!(text.contains("only a guest that relies on reserved bits sees that"), "{text}");
    // To the other vendor, too: said to be one, and a caution.
    assert!(text.contains("caution: the guest was recorded on intel"), "{text}");
    let json = vmtape(folder.path(), &[&line[..], &["--guest", "builtin:bar", "--json"]].concat())?;
    let report: serde_json::Value = serde_json::from_slice(&json.stdout)?;
    let cells = report["matrix"]["cells"].as_array().context("cells")?;
    let outcome = |from: &str, to: &str| {
        cells.iter().find(|cell| cell["from"] == from && cell["to"] == to).map(|cell| cell["verdict"].clone())
    };
    assert_eq!(outcome("intel-46", "intel-52"), Some("safe".into()), "firmware does not rely on them");
    // One whose width is beyond the host's is refused as ever.
    let recorded = ["record", "-q", "-b", "vmx", "--host", "intel-52", "-o", "a.tape", "builtin:illegal"];
    assert!(vmtape(folder.path(), &recorded)?.status.success());
    let refused = vmtape(folder.path(), &["check", "a.tape", "--to", "intel-46"])?;
    assert!(String::from_utf8(refused.stdout)?.contains("intel-46: REFUSED"));
    Ok(())
}

#[test]
fn pins_say_which_versions_know_them() -> Result<()> {
    let folder = tempfile::tempdir()?;
    record(folder.path())?;
    let text = String::from_utf8(
        vmtape(folder.path(), &["check", "bar.tape", "--to", "intel-39", "intel-52-4level", "--pin"])?.stdout,
    )?;
    for known in ["phys-bits from QEMU 2.7 on", "maxphysaddr from libvirt 8.7.0 on"] {
        assert!(text.contains(known), "{known} is missing in {text}");
    }
    Ok(())
}

#[test]
fn pinned_to_the_narrowest_host_firmware_may_go_everywhere() -> Result<()> {
    let folder = tempfile::tempdir()?;
    fleet(folder.path())?;
    let line =
        ["check", "--fleet", "client.toml", "xeon.toml", "flat.toml", "--guest", "builtin:bar", "--pin"];
    let text = String::from_utf8(vmtape(folder.path(), &line)?.stdout)?;
    assert!(text.contains("host-phys-bits=off,phys-bits=39"), "{text}");
    assert!(text.contains("tried: 6 of 6 moves are safe with that"), "{text}");
    let pinned = vmtape(folder.path(), &[&line[..7], &["--cpu", "max,phys-bits=39,-la57"]].concat())?;
    assert_eq!(pinned.status.code(), SAFE, "{}", tail(&pinned));
    Ok(())
}

/// The guest looks at a reserved bit once, early: a host that does not hide its width answers otherwise. Moved later, it
/// has its answer already.
#[test]
fn what_a_guest_did_before_it_moves_does_not_count() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let line = ["record", "-q", "-b", "vmx", "--host", "intel-46", "-o", "a.tape", "builtin:illegal"];
    let recorded = vmtape(folder.path(), &line)?;
    assert!(recorded.status.success(), "{}", tail(&recorded));
    let check = |moment: &str| -> Result<(Option<i32>, serde_json::Value)> {
        let line = ["check", "a.tape", "--to", "intel-52", "--at", moment, "--json"];
        let output = vmtape(folder.path(), &line)?;
        Ok((output.status.code(), serde_json::from_slice(&output.stdout)?))
    };
    let (code, at_boot) = check("start")?;
    assert_eq!((code, &at_boot["assessments"][0]["verdict"]), (UNSAFE, &"conditional".into()));
    let divergence = &at_boot["assessments"][0]["replay"]["divergence"];
    let looks = divergence["icount"].as_u64().context("an instruction")?;
    let (_, before) = check(&format!("insn={}", looks - 20))?;
    let moved = before["guest"]["moves_at_instruction"].as_u64().context("a moment")?;
    assert!((looks - 20..=looks).contains(&moved), "{moved}, not about {looks}");
    let same = &before["assessments"][0]["replay"]["divergence"];
    assert_eq!((&same["signature"], &same["icount"]), (&divergence["signature"], &divergence["icount"]));
    assert_eq!(before["assessments"][0]["reason"], at_boot["assessments"][0]["reason"]);
    let (code, after) = check(&format!("insn={}", looks + 1))?;
    assert_eq!((code, &after["assessments"][0]["verdict"]), (SAFE, &"safe".into()), "{after:#}");
    assert!(
        after["assessments"][0]["findings"].as_array().is_some_and(|found| !found.is_empty()),
        "still a caution"
    );
    let beyond = vmtape(folder.path(), &["check", "a.tape", "--to", "intel-52", "--at", "exit=99999"])?;
    assert_eq!(beyond.status.code(), COULD_NOT_TEST, "{}", tail(&beyond));
    Ok(())
}

/// A BAR that the guest has taken out of its tables again is no device of the guest's that moves then.
#[test]
fn what_a_guest_no_longer_holds_when_it_moves_does_not_count() -> Result<()> {
    let folder = tempfile::tempdir()?;
    record(folder.path())?;
    fs::write(folder.path().join("node.toml"), "vendor = 'intel'\nphys-bits = 46\niommu-bits = 39\n")?;
    let check = |moment: &str| -> Result<serde_json::Value> {
        let line = ["check", "bar.tape", "--vfio", "--to", "node.toml", "--at", moment, "--json"];
        Ok(serde_json::from_slice(&vmtape(folder.path(), &line)?.stdout)?)
    };
    let held = |report: &serde_json::Value| {
        let guest = &report["guest"];
        let bits = |field: &str| guest[field].as_u64().unwrap_or_default();
        (bits("entry_bits").max(bits("device_bits")), report["assessments"][0]["verdict"].clone())
    };
    let whole = check("start")?;
    assert_eq!(held(&whole), (40, "unsafe".into()), "{whole:#}");
    assert_eq!(held(&check("exit=1")?), (40, "unsafe".into()));
    let last = whole["guest"]["exits"].as_u64().context("exits")? - 1;
    let (bits, verdict) = held(&check(&format!("exit={last}"))?);
    assert!(bits < 40 && verdict == "safe", "{bits} bits, {verdict}");
    Ok(())
}

/// A register whose write KVM refuses has no value to lose: a move to an equal host is safe.
#[test]
fn a_register_that_kvm_does_not_keep_is_not_lost_by_a_move() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let msrs = ["--set-msr", "0xc0011021=1,insn=100", "--get-msr", "0xc0011021,insn=3000"];
    let line = [&["record", "-q", "-b", "svm-npt", "--host", "amd-48", "-o", "a.tape"], &msrs[..]].concat();
    let recorded = vmtape(folder.path(), &[&line[..], &["builtin:late"]].concat())?;
    assert!(recorded.status.success(), "{}", tail(&recorded));
    let checked = vmtape(folder.path(), &["check", "a.tape", "--at", "insn=1000", "--to", "amd-48"])?;
    assert_eq!(checked.status.code(), SAFE, "{}", tail(&checked));
    Ok(())
}

#[test]
fn this_machine_has_a_passport_that_can_be_checked() -> Result<()> {
    let folder = tempfile::tempdir()?;
    record(folder.path())?;
    let probed = vmtape(folder.path(), &["host", "probe", "-o", "this.toml", "--name", "this-machine"])?;
    assert!(probed.status.success(), "{}", tail(&probed));
    let checked = vmtape(folder.path(), &["check", "bar.tape", "--to", "this.toml"])?;
    assert!(matches!(checked.status.code(), Some(0 | 1)), "{}", tail(&checked));
    assert!(String::from_utf8(checked.stdout)?.contains("this-machine: "));
    Ok(())
}

/// RAM and a BAR in what AMD's hosts keep for HyperTransport: VFIO maps neither. The built-in BAR is elsewhere by default.
/// See: Linux drivers/iommu/amd/iommu.c amd_iommu_get_resv_regions()
#[test]
fn reserved_ranges_are_no_place_for_memory_or_bars() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let recorded = |name: &str, options: &[&str]| -> Result<()> {
        let mut line = vec!["record", "-q", "-b", "svm-npt", "--host", "amd-48", "--cpu", "host", "-o", name];
        line.extend(options);
        let output = vmtape(folder.path(), &line)?;
        assert!(output.status.success(), "{}", tail(&output));
        Ok(())
    };
    recorded("bar.tape", &["builtin:bar,at=0xfdffe00000"])?;
    recorded("ram.tape", &["--memory-region", "gpa=0xfcfff00000,size=2M,start", "builtin:hello"])?;
    recorded("top.tape", &["builtin:bar,at=0xfffd40000000"])?;
    recorded("default.tape", &["builtin:bar"])?;
    recorded("below.tape", &["builtin:bar,at=0xfcffe00000"])?;
    fs::write(folder.path().join("free.toml"), "base = 'amd-48'\nreserved = []\n")?;
    fs::write(folder.path().join("rmrr.toml"), "base = 'amd-48'\nreserved = ['0x1000-0x1fff RMRR']\n")?;
    for (tape, to, vfio, code, says) in [
        ("bar.tape", "amd-48", true, UNSAFE, "first: the device address (BAR) 0xfdffe00000"),
        ("ram.tape", "amd-48", true, UNSAFE, "keep memory and BARs out of 0xfd00000000-0xffffffffff"),
        ("top.tape", "amd-48", true, UNSAFE, "unverified"),
        ("bar.tape", "amd-48", false, SAFE, "caution: amd-48 keeps 0xfd00000000-0xffffffffff"),
        ("default.tape", "amd-48", true, SAFE, ""),
        ("below.tape", "amd-48", true, SAFE, ""),
        ("bar.tape", "free.toml", true, SAFE, ""),
        ("below.tape", "rmrr.toml", true, UNSAFE, "RMRR"),
    ] {
        let mut line = vec!["check", tape, "--to", to];
        line.extend(vfio.then_some("--vfio"));
        let output = vmtape(folder.path(), &line)?;
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.code() == code && text.contains(says), "{line:?}: {text}{}", tail(&output));
    }
    Ok(())
}
