//! A first divergence as a test of kvm-unit-tests: it passes on the tape's machine and fails on the other.

use anyhow::{Context, Result, ensure};
use std::{fs, path::Path, process::Command};
use vmtape_conformance::{kvm_unit_tests, tail, vmtape};

/// A guest, its machine, and one that treats it otherwise. In the last only an accessed bit differs.
const CASES: [(&str, &[&str], &[&str]); 4] = [
    ("builtin:touch,pte=0x1002000001", &["-b", "svm", "--cpu", "max,phys-bits=36"], &["-b", "svm-npt"]),
    (
        "builtin:touch,pte=0x1002000007,access=write,cpl=3",
        &["-b", "vmx,allow_smaller_maxphyaddr=on", "--cpu", "max,phys-bits=36"],
        &["-b", "vmx,allow_smaller_maxphyaddr=off"],
    ),
    ("builtin:touch,pse=1,pde=0x1000200087", &["-b", "svm", "--cpu", "max,phys-bits=36"], &["-b", "svm-npt"]),
    (
        "builtin:touch,pte=0x1002000001,access=fetch",
        &["-b", "svm-npt", "--cpu", "max,phys-bits=36"],
        &["-b", "svm"],
    ),
];

fn written(folder: &Path, (guest, machine, other): (&str, &[&str], &[&str])) -> Result<String> {
    let record = [&["record", "-q", "-o", "a.tape"], machine, &[guest]].concat();
    let recorded = vmtape(folder, &record)?;
    ensure!(recorded.status.success(), "{}", tail(&recorded));
    let export = [&["export", "a.tape", "--reproducer", "-o", "test.c"], other].concat();
    let exported = vmtape(folder, &export)?;
    ensure!(exported.status.success(), "{guest}: {}", tail(&exported));
    Ok(fs::read_to_string(folder.join("test.c"))?)
}

#[test]
fn a_test_says_what_it_needs_and_expects() -> Result<()> {
    let folder = tempfile::tempdir()?;
    for case in CASES {
        let text = written(folder.path(), case)?;
        for part in [
            "#include \"libcflat.h\"",
            "int main(void)",
            "return report_summary();",
            "#define GUEST_WIDTH\t36",
        ] {
            assert!(text.contains(part), "{}: no {part} in\n{text}", case.0);
        }
        assert!(text.contains("expected_vector = 0xe;"), "{}:\n{text}", case.0);
        assert!(!text.contains('@'), "a place is left:\n{text}");
        assert_eq!(text.matches('{').count(), text.matches('}').count(), "{text}");
    }
    Ok(())
}

#[test]
fn there_is_no_test_where_nothing_differs() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let error = written(folder.path(), ("builtin:hello", &["-b", "vmx"], &["-b", "svm"]))
        .expect_err("they are alike");
    assert!(error.to_string().contains("nothing differs"), "{error:#}");
    Ok(())
}

/// Builds within the suite, whose tree is left as it was.
#[test]
#[ignore = "needs kvm-unit-tests: VMTAPE_KUT=FOLDER, its x86, built"]
fn it_passes_there_and_fails_elsewhere() -> Result<()> {
    let suite = kvm_unit_tests()?;
    let folder = tempfile::tempdir()?;
    for (number, case) in CASES.into_iter().enumerate() {
        let text = written(folder.path(), case)?;
        let name = format!("vmtape_reproducer_{}_{number}", std::process::id());
        fs::write(suite.join(format!("{name}.c")), text)?;
        let root = suite.parent().context("the suite's root")?;
        let built = Command::new("make").current_dir(root).arg(format!("x86/{name}.flat")).output()?;
        let image = folder.path().join("test.flat");
        let copied = fs::copy(suite.join(format!("{name}.flat")), &image);
        for end in ["c", "o", "elf", "flat", "aux.o"] {
            let _ = fs::remove_file(suite.join(format!("{name}.{end}")));
        }
        ensure!(built.status.success() && copied.is_ok(), "{}", tail(&built));
        let (_, machine, other) = case;
        let cpu = ["--cpu", "max,phys-bits=36"];
        let image = image.to_string_lossy().into_owned();
        for (machine, verdict) in [(machine, "PASS: "), (other, "unexpected failure")] {
            let with_cpu =
                if machine.contains(&"--cpu") { machine.to_vec() } else { [machine, &cpu].concat() };
            let ran = vmtape(folder.path(), &[&["run"], &with_cpu[..], &[&image]].concat())?;
            let text = String::from_utf8_lossy(&ran.stdout).into_owned();
            ensure!(text.contains(verdict), "{}: {machine:?}: {text}", case.0);
            ensure!(verdict != "PASS: " || !text.contains("FAIL"), "{}: {text}", case.0);
        }
    }
    Ok(())
}
