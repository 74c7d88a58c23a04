//! QEMU's single-dash spellings, so that a command line can be carried over.

mod line;

use crate::output::tell;
use anyhow::Result;
use std::{ffi::OsString, path::Path};

/// Options of ours that QEMU spells with one dash.
const RENAMED: [(&str, &str); 4] =
    [("-cpu", "--cpu"), ("-smp", "--smp"), ("-append", "--append"), ("-initrd", "--initrd")];
/// Options of QEMU that say what is so here anyway; with an argument, and without.
const IGNORED_WITH_VALUE: [&str; 7] = ["-machine", "-M", "-accel", "-display", "-serial", "-device", "-vnc"];
const IGNORED: [&str; 5] = ["-nographic", "-no-reboot", "-nodefaults", "-enable-kvm", "-S"];

/// The option that names a file with a whole command line.
const FILE: &str = "--qemu-args";

/// Rewrites QEMU's spellings after `run` and `record`, and puts in what a file has of them; everything else stays as it is.
pub fn normalize(arguments: impl IntoIterator<Item = OsString>) -> Result<Vec<OsString>> {
    let mut own = spell(arguments);
    let takes_a_guest = own.get(1).is_some_and(|command| command == "run" || command == "record");
    let at = own
        .iter()
        .take_while(|word| *word != "--")
        .position(|word| word.to_str().is_some_and(|text| text == FILE || text.starts_with("--qemu-args=")));
    let Some(at) = at.filter(|_| takes_a_guest) else { return Ok(own) };
    let path = match own[at].to_str().and_then(|text| text.split_once('=')) {
        Some((_, path)) => OsString::from(path),
        // Without a name clap says what is missing.
        None if at + 1 == own.len() => return Ok(own),
        None => own.remove(at + 1),
    };
    own.remove(at);
    let line = line::read(Path::new(&path))?;
    if !line.ignored.is_empty() {
        tell(format!("{FILE}: without a meaning here, and ignored: {}", line.ignored.join(" ")));
    }
    let given = |name: &str| own.iter().filter_map(|word| word.to_str()).any(|word| is_given(name, word));
    let options = line.options(given);
    own.splice(2..2, options.into_iter().map(OsString::from));
    Ok(own)
}

/// Whether a word of the command line gives this option, in any spelling.
fn is_given(name: &str, word: &str) -> bool {
    let short = name == "--memory" && word.starts_with("-m") && !word.starts_with("--");
    word == name || word.strip_prefix(name).is_some_and(|rest| rest.starts_with('=')) || short
}

fn spell(arguments: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let mut arguments = arguments.into_iter();
    let mut out: Vec<OsString> = arguments.by_ref().take(2).collect();
    let takes_a_guest = out.get(1).is_some_and(|command| command == "run" || command == "record");
    if !takes_a_guest {
        out.extend(arguments);
        return out;
    }
    let mut verbatim = false;
    while let Some(argument) = arguments.next() {
        let text = argument.to_str().unwrap_or_default();
        verbatim |= text == "--";
        if verbatim {
            out.push(argument);
        } else if let Some((_, ours)) = RENAMED.iter().find(|(theirs, _)| *theirs == text) {
            out.push(ours.into());
            // The value may begin with a dash (`-append "-x"`): joined, so that it is not taken for an option.
            if let Some(value) = arguments.next() {
                let option = out.last_mut().expect("just pushed");
                option.push("=");
                option.push(value);
            }
        } else if text == "-kernel" {
            // The image is our positional argument.
            out.extend(arguments.next());
        } else if IGNORED_WITH_VALUE.contains(&text) {
            arguments.next();
        } else if !IGNORED.contains(&text) {
            out.push(argument);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rewritten(line: &str) -> String {
        let words = spell(line.split(' ').map(Into::into));
        words.iter().map(|word| word.to_str().unwrap()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn a_kvm_unit_tests_line_carries_over() {
        assert_eq!(
            rewritten(
                "vmtape run -b vmx -nodefaults -device pc-testdev -vnc none -serial stdio -machine pc \
                 -kernel access_test.flat -smp 1 -cpu max,-pku -m 256M -append -x -initrd env"
            ),
            "vmtape run -b vmx access_test.flat --smp=1 --cpu=max,-pku -m 256M --append=-x --initrd=env"
        );
    }

    #[test]
    fn a_file_is_put_in_its_place() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let file = folder.path().join("line");
        std::fs::write(
            &file,
            "qemu-kvm -m 1G \\\n -cpu EPYC,+x2apic -device e1000 -kernel a.flat -append 'b c'\n",
        )?;
        let file = file.to_str().expect("UTF-8");
        let words = |line: &str| -> Result<String> {
            let words = normalize(line.split(' ').map(Into::into))?;
            Ok(words.iter().map(|word| word.to_str().expect("UTF-8")).collect::<Vec<_>>().join(" "))
        };
        assert_eq!(
            words(&format!("vmtape run -b svm {FILE} {file} -m 64"))?,
            "vmtape run --cpu=EPYC,+x2apic --kernel=a.flat --append=b c -b svm -m 64"
        );
        assert_eq!(words(&format!("vmtape run {FILE}={file} -cpu max"))?.matches("--cpu").count(), 1);
        assert!(words(&format!("vmtape run {FILE} {file}.not-there")).is_err());
        assert_eq!(words(&format!("vmtape run {FILE}"))?, format!("vmtape run {FILE}"));
        Ok(())
    }

    #[test]
    fn our_own_spellings_stay() {
        for line in [
            "vmtape record -b vmx --cpu max -m 1G -o a.tape builtin:matrix --append x",
            "vmtape show a.tape -cpu",
            "vmtape run -- -kernel",
            "vmtape",
        ] {
            assert_eq!(rewritten(line), line);
        }
    }
}
