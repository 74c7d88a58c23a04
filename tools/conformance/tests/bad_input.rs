//! Bad input gets a clear error that names the file and the cause, and exit code 125 (2 for usage). No panic, no hang.

use anyhow::Result;
use std::{
    fs,
    path::Path,
    process::{Command, Output},
};
use vmtape_conformance::{tail, vmtape};

const COULD_NOT_TEST: i32 = 125;
const USAGE: i32 = 2;

/// A small tape of a built-in guest.
fn tape(folder: &Path) -> Result<Vec<u8>> {
    let recorded = vmtape(folder, &["record", "-b", "vmx", "-o", "good.tape", "builtin:hello"])?;
    assert!(recorded.status.success(), "{}", tail(&recorded));
    Ok(fs::read(folder.join("good.tape"))?)
}

fn assert_refused(output: &Output, code: i32, mentions: &str, what: &str) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{what}: {}", tail(output));
    assert!(!stderr.contains("panicked"), "{what}: {stderr}");
    assert!(stderr.contains(mentions), "{what}: the message must mention {mentions}: {stderr}");
}

#[test]
fn a_cut_tape_says_so() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let whole = tape(folder.path())?;
    for tenth in 0..10 {
        let cut = whole.len() * tenth / 10;
        fs::write(folder.path().join("cut.tape"), &whole[..cut])?;
        let replayed = vmtape(folder.path(), &["replay", "cut.tape"])?;
        assert_refused(&replayed, COULD_NOT_TEST, "cut.tape", &format!("cut at {cut} of {}", whole.len()));
    }
    Ok(())
}

#[test]
fn a_changed_byte_is_noticed() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let whole = tape(folder.path())?;
    for step in 0..24 {
        let at = whole.len() * step / 24;
        let mut bent = whole.clone();
        bent[at] ^= 0x10;
        fs::write(folder.path().join("bent.tape"), &bent)?;
        let replayed = vmtape(folder.path(), &["replay", "bent.tape"])?;
        assert_refused(&replayed, COULD_NOT_TEST, "bent.tape", &format!("byte {at} changed"));
    }
    Ok(())
}

/// A checkpoint is nothing that these commands read.
#[test]
fn damage_of_what_is_passed_over_is_told() -> Result<()> {
    use vmtape_traces::{
        Tape,
        format::header::{ChunkHeader, ChunkKind},
    };
    let folder = tempfile::tempdir()?;
    let record = ["record", "-b", "vmx", "--checkpoint-every", "10", "-o", "good.tape", "builtin:hello"];
    assert!(vmtape(folder.path(), &record)?.status.success());
    let good = folder.path().join("good.tape");
    let tape = Tape::open_whole(&good)?;
    let is_checkpoint = |kind: u32| ChunkKind(kind) == ChunkKind::CHECKPOINT;
    let chunk = tape.chunks().iter().find(|chunk| is_checkpoint(chunk.kind)).expect("a checkpoint");
    let mut bent = fs::read(&good)?;
    bent[chunk.offset as usize + size_of::<ChunkHeader>() + 5] ^= 0x10;
    fs::write(folder.path().join("bent.tape"), bent)?;
    for line in [
        "stat bent.tape",
        "stat bent.tape --json",
        "show bent.tape",
        "show bent.tape --rip 0x10a06c",
        "show bent.tape --reason IO_INSTRUCTION",
        "export bent.tape -o out.json",
        "export bent.tape --format csv -o out.csv",
    ] {
        let output = vmtape(folder.path(), &line.split(' ').collect::<Vec<_>>())?;
        let told = tail(&output);
        assert_eq!(output.status.code(), Some(COULD_NOT_TEST), "{line}: {told}");
        let text = [&output.stdout[..], &output.stderr].concat();
        let text = String::from_utf8_lossy(&text);
        assert!(text.contains("bent.tape") && text.contains("checkpoint"), "{line}: {told}");
    }
    Ok(())
}

#[test]
fn what_is_no_file_is_no_tape() -> Result<()> {
    let folder = tempfile::tempdir()?;
    fs::write(folder.path().join("empty.tape"), "")?;
    let made = Command::new("mkfifo").arg("pipe.tape").current_dir(folder.path()).status()?;
    assert!(made.success());
    let refused = [
        ("empty.tape", "not a tape"),
        ("pipe.tape", "no regular file"),
        (".", "directory"),
        ("absent.tape", "No such"),
    ];
    for command in ["replay", "show", "stat"] {
        for (tape, why) in refused {
            let output = vmtape(folder.path(), &[command, tape])?;
            assert_refused(&output, COULD_NOT_TEST, why, &format!("{command} {tape}"));
            assert_refused(&output, COULD_NOT_TEST, tape, &format!("{command} {tape}"));
        }
    }
    let imported = vmtape(folder.path(), &["import", "-o", "a.tape", "pipe.tape"])?;
    assert_refused(&imported, COULD_NOT_TEST, "no regular file", "import of a pipe");
    Ok(())
}

#[test]
fn images_that_are_none() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let exported = vmtape(folder.path(), &["guests", "--export", "hello", "-o", "hello.flat"])?;
    assert!(exported.status.success(), "{}", tail(&exported));
    let image = fs::read(folder.path().join("hello.flat"))?;
    let mut far = image.clone();
    // e_phoff is at 0x1c; p_paddr is the fourth word of a program header: beyond every memory that the guest has.
    let header = u32::from_le_bytes(image[0x1c..0x20].try_into()?) as usize;
    far[header + 12..header + 16].copy_from_slice(&0xf000_0000u32.to_le_bytes());
    let bad: [(&str, &[u8]); 4] = [
        ("empty.flat", &[]),
        ("short.flat", &image[..40]),
        ("half.flat", &image[..image.len() / 2]),
        ("far.flat", &far),
    ];
    for (name, bytes) in bad {
        fs::write(folder.path().join(name), bytes)?;
        let run = vmtape(folder.path(), &["run", "-b", "vmx", name])?;
        assert_refused(&run, COULD_NOT_TEST, name, name);
    }
    let run = vmtape(folder.path(), &["run", "-b", "vmx", "absent.flat"])?;
    assert_refused(&run, COULD_NOT_TEST, "absent.flat", "a file that is not there");
    Ok(())
}

/// A device that never ends, where a file is expected.
#[test]
fn a_file_without_end_is_no_hang() -> Result<()> {
    let folder = tempfile::tempdir()?;
    tape(folder.path())?;
    // A name that a host, an image and a plan may have.
    let made = Command::new("mkfifo").args(["pipe.toml", "pipe.xml"]).current_dir(folder.path()).status()?;
    assert!(made.success());
    std::os::unix::fs::symlink("/dev/zero", folder.path().join("zero.toml"))?;
    for name in ["pipe.toml", "zero.toml"] {
        for line in [
            "run -b vmx NAME",
            "run -b vmx --initrd NAME builtin:hello",
            "run -b vmx --host NAME builtin:hello",
            "run -b vmx --qemu-args NAME",
            "run -b vmx --cpu libvirt:NAME builtin:hello",
            "inject NAME -b vmx builtin:hello",
            "campaign plan NAME -o y.toml",
            "campaign run NAME --shard 0 -o results",
            "scenarios NAME",
            "replay good.tape --host NAME",
            "check good.tape --to NAME",
            "check --fleet intel-46 --guest NAME",
            "migrate good.tape --at start --to vmx --plan NAME",
            "host show NAME",
            "host from NAME",
            "import NAME -o x.tape",
            "repair NAME -o x.tape",
            "diff NAME good.tape",
            "export NAME -o x.json",
            "report NAME -o x.html",
        ] {
            let line = line.replace("NAME", name);
            let output = vmtape(folder.path(), &line.split(' ').collect::<Vec<_>>())?;
            assert_refused(&output, COULD_NOT_TEST, "no regular file", &line);
            assert_refused(&output, COULD_NOT_TEST, name, &line);
        }
    }
    Ok(())
}

#[test]
fn plugins_that_are_none() -> Result<()> {
    let folder = tempfile::tempdir()?;
    fs::write(folder.path().join("libtext.so"), "not a library")?;
    let run = vmtape(folder.path(), &["run", "--plugin", "libtext.so", "-b", "text", "builtin:hello"])?;
    assert_refused(&run, COULD_NOT_TEST, "libtext.so", "a text file as plugin");
    let run = vmtape(folder.path(), &["run", "-b", "no-such-backend", "builtin:hello"])?;
    assert_ne!(run.status.code(), Some(0));
    assert!(String::from_utf8_lossy(&run.stderr).contains("no-such-backend"), "{}", tail(&run));
    Ok(())
}

#[test]
fn nonsense_is_a_usage_error() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let nonsense: &[(&[&str], &str)] = &[
        (&["--cpu", "max,phys-bits=99"], "phys-bits"),
        (&["--cpu", "no-such-model"], "no-such-model"),
        (&["--cpu", "max,+no-such-feature"], "no-such-feature"),
        (&["--host", "intel-9000"], "intel-9000"),
        (&["--host", "amd-48"], "amd"),
        (&["--kvm", "v9.99"], "v9.99"),
        (&["--kvm", "6.12"], "did you mean `v6.12`?"),
        (&["--kvm", "v6.12.3"], "did you mean `v6.12`?"),
        (&["--kvm", "v6.12,allow_smaller_maxphyadr=on"], "did you mean `allow_smaller_maxphyaddr`?"),
        (&["--host", "intel-64"], "did you mean `intel-46`?"),
        (&["--kvm", "v6.12,+no-such-patch"], "no-such-patch"),
        (&["-m", "lots"], "lots"),
        (&["--smp", "0"], "smp"),
        (&["--kvm", "v6.12,v5.9"], "v5.9"),
        (&["--cpu", "max,physbits=36"], "phys-bits"),
        (&["--set-cpuid", "physbits=36"], "physbits"),
        (&["--set-cpuid", "exit=20"], "a change is needed"),
        (&["--set-cpuid", "exit=20,insn=20,same"], "one moment"),
        (&["--set-cpuid", "vcpu=7,same"], "vCPU 7"),
        (&["--query", "nothing"], "nothing"),
    ];
    for (arguments, mentions) in nonsense {
        let mut line = vec!["run", "-b", "vmx"];
        line.extend(*arguments);
        line.push("builtin:hello");
        let run = vmtape(folder.path(), &line)?;
        assert_refused(&run, USAGE, mentions, &arguments.join(" "));
    }
    Ok(())
}

/// An option that a tape has and the installed plugin does not know is the build's matter, not the command line's.
#[test]
fn a_tape_of_a_plugin_that_knew_more() -> Result<()> {
    use vmtape_replay::spec::{self, Budget};
    use vmtape_traces::{Options, Tape, Writer};
    let folder = tempfile::tempdir()?;
    tape(folder.path())?;
    fs::write(folder.path().join("plan.toml"), "[[rule]]\nwhen = { point = \"lost-dirty\", n = 1 }\n")?;
    let known = Tape::open_whole(&folder.path().join("good.tape"))?;
    for (name, value) in [("of-tomorrow", "on"), (spec::PROFILE, "v99.1")] {
        let mut machine = spec::machine(&known)?;
        machine.options.retain(|(other, _)| other != name);
        machine.options.push((name.into(), value.into()));
        let path = folder.path().join("newer.tape");
        let metadata = spec::metadata(&machine, &Budget::default())?;
        let mut writer = Writer::create(&path, &metadata, &spec::images(&machine), Options::default())?;
        for event in known.events() {
            writer.push(event?);
        }
        writer.finish()?;
        for line in [
            "replay newer.tape",
            "replay newer.tape --host intel-52",
            "replay newer.tape --mode exits",
            "check newer.tape --to intel-52",
            "migrate newer.tape --at start --to vmx",
            "bisect newer.tape --axis width -b svm",
            "inject on newer.tape plan.toml",
        ] {
            let mentions = if name == spec::PROFILE { value } else { name };
            let output = vmtape(folder.path(), &line.split(' ').collect::<Vec<_>>())?;
            assert_refused(&output, COULD_NOT_TEST, mentions, line);
        }
    }
    Ok(())
}

#[test]
fn a_host_file_that_describes_no_host_is_bad_input_and_an_unknown_name_is_misuse() -> Result<()> {
    let folder = tempfile::tempdir()?;
    tape(folder.path())?;
    fs::write(folder.path().join("odd.toml"), "vendor = 'intel'\nphys-bits = 46\nwheels = 4\n")?;
    for file in ["odd.toml", "nowhere.toml"] {
        for line in [
            &["run", "-b", "vmx", "--host", file, "builtin:hello"][..],
            &["replay", "good.tape", "--host", file],
            &["check", "good.tape", "--to", file],
            &["host", "show", file],
        ] {
            assert_refused(&vmtape(folder.path(), line)?, COULD_NOT_TEST, file, &line.join(" "));
        }
    }
    for line in [&["run", "-b", "vmx", "--host", "pdp-11", "builtin:hello"][..], &["host", "show", "pdp-11"]]
    {
        assert_refused(&vmtape(folder.path(), line)?, USAGE, "pdp-11", &line.join(" "));
    }
    Ok(())
}
