//! kvm-unit-tests' `access` under nested paging with a guest narrower than its host, held against what the real kvm_amd
//! printed, from the first line to the last count.
//!
//! One recording is of npf_interception() patched to emulate (`v2-npf-emulate` here), by an image that counts its failures by
//! kind and prints only the first ones; the image here prints all, so the kinds are counted from what it prints. The other is
//! of npf_interception() as every release has it, and was cut after 400 lines; of that one the sums at its end are known too.

use anyhow::{Context, Result, ensure};
use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};
use vmtape_conformance::{guest_status, kvm_unit_tests, program, tail, vmtape};

/// As the recording was made, less the protection keys that its host did not have.
const MACHINE: [&str; 8] =
    ["-b", "svm-npt", "--host", "amd-48-qemu", "--cpu", "max,-pku,phys-bits=36", "-m", "256M"];
/// Cases of the test's main loop, and its seven others.
const CASES: &str = "2899975 tests, ";

fn recording_file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../traces/recordings").join(name)
}

fn recording(name: &str) -> Result<String> {
    let file = recording_file(name);
    let text = fs::read_to_string(&file).with_context(|| file.display().to_string())?;
    Ok(text.replace('\r', ""))
}

/// What the test prints under a profile.
fn access(kvm: &str) -> Result<String> {
    let images = kvm_unit_tests()?;
    let folder = tempfile::tempdir()?;
    let image = images.join("access_test.flat");
    let image = image.to_string_lossy();
    let mut line = vec!["run", "--guest-status", "--kvm", kvm];
    line.extend(MACHINE);
    line.push(&image);
    let output = vmtape(folder.path(), &line)?;
    ensure!(output.status.code() == Some(guest_status::FAIL), "{kvm}: {}", tail(&output));
    Ok(String::from_utf8(output.stdout)?.replace('\r', ""))
}

/// A failed case: its flags, what was wrong, and the walk that was printed of it.
struct Failure<'a> {
    flags: Vec<&'a str>,
    reason: &'a str,
    text: &'a str,
}

impl<'a> Failure<'a> {
    /// Of a block that starts after `test `.
    fn parse(block: &'a str) -> Option<Self> {
        // The block ends with the walk; what follows is progress, or the next case.
        let end = block.find("\n\n").or_else(|| block.find("\n.")).unwrap_or(block.len());
        let text = block[..end].trim_end_matches(['\n', '.']);
        let (flags, verdict) = text.lines().next()?.split_once(": FAIL: ")?;
        Some(Self { flags: flags.split(' ').collect(), reason: verdict, text })
    }

    /// `error code 5 expected d` is of the kind error_code, `pte 2000021 expected 2000001` of the kind pte.
    fn reason_kind(&self) -> &'static str {
        match () {
            () if self.reason.starts_with("error code") => "error_code",
            () if self.reason.starts_with("pte ") => "pte",
            () if self.reason.starts_with("pde ") => "pde",
            () if self.reason == "unexpected access" => "unexpected_access",
            () => "other",
        }
    }

    /// The kind as the counting image names it: the reason, and of the flags only those that it tells apart, in its order.
    fn kind(&self) -> String {
        const TOLD_APART: [&str; 12] = [
            "pte.36", "pte.51", "pde.36", "pde.51", "pde.pse", "write", "fetch", "user", "twice", "pte.a",
            "pte.d", "pde.a",
        ];
        let flags = TOLD_APART.into_iter().filter(|flag| self.flags.contains(flag));
        std::iter::once(self.reason_kind()).chain(flags).collect::<Vec<_>>().join(" ")
    }

    /// The class of which the counting image prints the first ones.
    fn class(&self) -> (&'static str, bool) {
        (self.reason_kind(), self.flags.contains(&"pde.36"))
    }
}

fn failures(serial: &str) -> Vec<Failure<'_>> {
    serial.split("\ntest ").skip(1).filter_map(Failure::parse).collect()
}

fn count(failures: &[Failure<'_>]) -> BTreeMap<String, u32> {
    let mut counts = BTreeMap::new();
    for failure in failures {
        *counts.entry(failure.kind()).or_default() += 1;
    }
    counts
}

/// The recorded counts, by kind.
fn recorded_counts(serial: &str) -> BTreeMap<String, u32> {
    let parse = |line: &str| {
        let (count, kind) = line.strip_prefix("HIST ")?.split_once(' ')?;
        Some((kind.to_owned(), count.parse().ok()?))
    };
    serial.lines().filter_map(parse).collect()
}

fn summary(serial: &str) -> Option<&str> {
    serial.lines().find(|line| line.starts_with(CASES))
}

#[test]
#[ignore = "needs kvm-unit-tests: VMTAPE_KUT=FOLDER, its x86, built"]
fn the_patched_npf_interception_fails_kind_by_kind_as_it_did() -> Result<()> {
    let ours = access("v6.12,+v2-npf-emulate")?;
    let real = recording("patched-npfcheck-npt1/access_hist_pb36/serial.txt")?;
    assert_eq!(summary(&ours), Some("2899975 tests, 117008 failures"));
    assert_eq!(summary(&ours), summary(&real));

    let (our_failures, real_failures) = (failures(&ours), failures(&real));
    let recorded = recorded_counts(&real);
    assert_eq!((recorded.len(), recorded.values().sum::<u32>()), (248, 117_008));
    assert_eq!(count(&our_failures), recorded);

    // The first of each class, word for word.
    let mut seen = BTreeMap::new();
    for real in &real_failures {
        let nth: &mut usize = seen.entry(real.class()).or_default();
        let ours = our_failures.iter().filter(|ours| ours.class() == real.class()).nth(*nth);
        assert_eq!(ours.map(|ours| ours.text), Some(real.text));
        *nth += 1;
    }
    assert_eq!(seen.values().copied().collect::<Vec<_>>(), [8; 4]);
    assert_eq!(our_failures[0].reason, "pte 2000021 expected 2000001");
    assert_eq!(our_failures[0].flags, ["pte.p", "pte.36", "pde.p"]);
    Ok(())
}

#[test]
#[ignore = "needs kvm-unit-tests: VMTAPE_KUT=FOLDER, its x86, built"]
fn the_npf_interception_of_every_release_fails_as_recorded() -> Result<()> {
    let ours = access("v6.12")?;
    let real = recording("npt1/access_pb36/serial.txt")?;
    // The recording was cut within a line.
    let whole = real.lines().count() - 1;
    assert!(whole > 300);
    for (n, (real, ours)) in real.lines().zip(ours.lines()).take(whole).enumerate() {
        assert_eq!(real, ours, "line {}", n + 1);
    }

    // What the patch changed is known from the other recording: silicon's own page faults it did not touch, and where it
    // took a data access's exit, the access becomes MMIO here. A fetch faults in KVM's emulator, patched or not.
    let ours_by_kind = count(&failures(&ours));
    let patched = recorded_counts(&recording("patched-npfcheck-npt1/access_hist_pb36/serial.txt")?);
    for (kind, recorded) in &patched {
        let (reason, flags) = kind.split_once(' ').context("a kind has flags")?;
        let now = match reason {
            "pte" | "pde" if !flags.contains("fetch") => format!("unexpected_access {flags}"),
            _ => kind.clone(),
        };
        // Writes through a large page: with the patch only those to clean pages fail, which are half of them.
        let expected = if reason == "pde" { 2 * recorded } else { *recorded };
        assert_eq!(ours_by_kind.get(&now), Some(&expected), "{now}");
    }
    assert_eq!(summary(&ours), Some("2899975 tests, 245248 failures"));

    // How many kinds of failure, and failures, the real kvm_amd, 5.10.262 and 6.12.95, counted by the end.
    let mut by_reason = BTreeMap::<_, (u32, u32)>::new();
    for (kind, failures) in &ours_by_kind {
        let (kinds, sum) = by_reason.entry(kind.split(' ').next().unwrap_or(kind)).or_default();
        *kinds += 1;
        *sum += failures;
    }
    let counted =
        [("error_code", (160, 95_808)), ("pte", (16, 2_560)), ("unexpected_access", (192, 146_880))];
    assert_eq!(by_reason, BTreeMap::from(counted));
    Ok(())
}

/// Nested page faults at addresses beyond 36 bits, each with the events of the kinds that were recorded after it, up to a
/// number of exits. What a device answered is left out: it is not KVM's.
fn illegal_exits(folder: &Path, tape: &str, most: usize) -> Result<Vec<Vec<String>>> {
    const RECORDED: [&str; 8] = [
        "kvm_page_fault",
        "kvm_emulate_insn",
        "vcpu_match_mmio",
        "kvm_mmio",
        "handle_mmio_page_fault",
        "kvm_mmu_walker_error",
        "fast_page_fault",
        "kvm_inj_exception",
    ];
    let mut show =
        Command::new(program()?).current_dir(folder).args(["show", tape]).stdout(Stdio::piped()).spawn()?;
    let mut exits: Vec<Vec<String>> = Vec::new();
    let mut wanted = false;
    for line in BufReader::new(show.stdout.take().context("a pipe")?).lines() {
        let line = line?;
        // Task, CPU, flags and time, then the event.
        let event = line.splitn(3, ": ").skip(1).collect::<Vec<_>>();
        let [name, text] = event[..] else { continue };
        // What the kernel does not print follows a bar.
        let text = text.split(" val ").next().unwrap_or(text);
        let text = text.split(" | ").next().unwrap_or(text).trim_end();
        if name == "kvm_exit" {
            wanted = text.contains("reason npf ") && address(text).is_some_and(|gpa| gpa >> 36 != 0);
            if wanted && exits.len() == most {
                break;
            }
            if wanted {
                // Nothing was being delivered; what the field holds then is silicon's affair.
                let text = text.split(" intr_info").next().unwrap_or(text);
                exits.push(vec![text.to_owned()]);
            }
        } else if wanted && RECORDED.contains(&name) {
            exits.last_mut().context("an exit")?.push(format!("{name}: {text}"));
        }
    }
    show.kill()?;
    show.wait()?;
    Ok(exits)
}

/// EXITINFO2.
fn address(exit: &str) -> Option<u64> {
    let (_, after) = exit.split_once("info2 0x")?;
    u64::from_str_radix(after.split(' ').next()?, 16).ok()
}

#[test]
#[ignore = "needs kvm-unit-tests: VMTAPE_KUT=FOLDER, its x86, built"]
fn the_exits_beyond_the_guests_width_are_those_of_the_recording() -> Result<()> {
    let images = kvm_unit_tests()?;
    let folder = tempfile::tempdir()?;
    let trace = recording_file("npt1/access_pb36/trace.txt.gz").canonicalize()?;
    let imported = vmtape(folder.path(), &["import", "-o", "real.tape", &trace.to_string_lossy()])?;
    ensure!(imported.status.success(), "{}", tail(&imported));
    let image = images.join("access_test.flat");
    let image = image.to_string_lossy();
    let mut line = vec!["record", "-q", "-o", "ours.tape", "--max-insns", "28000000"];
    line.extend(MACHINE);
    line.push(&image);
    let recorded = vmtape(folder.path(), &line)?;
    ensure!(recorded.status.success(), "{}", tail(&recorded));

    let real = illegal_exits(folder.path(), "real.tape", usize::MAX)?;
    assert_eq!(real.len(), 754);
    let ours = illegal_exits(folder.path(), "ours.tape", real.len())?;
    assert_eq!(ours.len(), real.len());
    for (n, (real, ours)) in real.iter().zip(&ours).enumerate() {
        assert_eq!(real, ours, "exit {n} beyond 36 bits");
    }
    Ok(())
}
