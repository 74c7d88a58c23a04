//! QEMU's single-dash spellings, so that a command line can be carried over.

use std::ffi::OsString;

/// Options of ours that QEMU spells with one dash.
const RENAMED: [(&str, &str); 4] =
    [("-cpu", "--cpu"), ("-smp", "--smp"), ("-append", "--append"), ("-initrd", "--initrd")];
/// Options of QEMU that say what is so here anyway; with an argument, and without.
const IGNORED_WITH_VALUE: [&str; 7] = ["-machine", "-M", "-accel", "-display", "-serial", "-device", "-vnc"];
const IGNORED: [&str; 5] = ["-nographic", "-no-reboot", "-nodefaults", "-enable-kvm", "-S"];

/// Rewrites QEMU's spellings after `run` and `record`; everything else stays as it is.
pub fn normalize(arguments: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
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
    use super::normalize;

    fn rewritten(line: &str) -> String {
        let words = normalize(line.split(' ').map(Into::into));
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
