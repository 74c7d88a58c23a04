//! A whole command line of QEMU's in a file, as a script, a bug report or libvirt's log has it: what a guest is made of is taken.

use crate::files;
use anyhow::{Context, Result, ensure};
use std::path::Path;

/// Options without an argument, of those that people write. See: QEMU qemu-options.hx
const WITHOUT_VALUE: [&str; 20] = [
    "nographic",
    "no-reboot",
    "no-shutdown",
    "nodefaults",
    "enable-kvm",
    "S",
    "s",
    "daemonize",
    "snapshot",
    "usb",
    "no-user-config",
    "no-hpet",
    "no-acpi",
    "full-screen",
    "no-fd-bootchk",
    "preconfig",
    "only-migratable",
    "mem-prealloc",
    "singlestep",
    "old-param",
];
/// `-global x86_64-cpu.PROPERTY=VALUE`, and of the type of every CPU.
const CPU_GLOBALS: [&str; 2] = ["x86_64-cpu.", "host-x86_64-cpu."];

/// What a command line says of a guest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Line {
    pub cpu: Option<String>,
    pub smp: Option<String>,
    pub memory: Option<String>,
    pub kernel: Option<String>,
    pub append: Option<String>,
    pub initrd: Option<String>,
    /// Names of options that have no meaning here, each once.
    pub ignored: Vec<String>,
}

/// Reads a file with a command line.
pub fn read(path: &Path) -> Result<Line> {
    let shown = || path.display().to_string();
    let text = files::text(path, files::BY_HAND)?;
    let words = shlex::split(&text).with_context(|| format!("{}: a quote has no end", path.display()))?;
    parse(&words).with_context(shown)
}

/// The last command in these words; without a program's name all of them are its options.
fn parse(words: &[String]) -> Result<Line> {
    let is_program = |word: &str| {
        let name = word.rsplit('/').next().unwrap_or(word);
        name == "kvm" || name == "qemu-kvm" || (name.starts_with("qemu-system-") && !name.ends_with(':'))
    };
    let start = words.iter().rposition(|word| is_program(word)).map_or(0, |at| at + 1);
    let mut line = Line::default();
    let mut globals = Vec::new();
    let mut options = words[start..].iter().peekable();
    let mut known = false;
    while let Some(word) = options.next() {
        // Anything else is an image of a disk.
        let Some(name) = word.strip_prefix("--").or(word.strip_prefix('-')).filter(|name| !name.is_empty())
        else {
            continue;
        };
        known = true;
        if WITHOUT_VALUE.contains(&name) {
            continue;
        }
        let value =
            options.next_if(|next| takes(name) || !next.starts_with('-')).cloned().unwrap_or_default();
        match name {
            "cpu" => line.cpu = Some(value),
            "smp" => line.smp = Some(processors(&value)?),
            "m" => line.memory = Some(memory(&value).to_owned()),
            "kernel" => line.kernel = Some(value),
            "append" => line.append = Some(value),
            "initrd" => line.initrd = Some(value),
            "global" => match CPU_GLOBALS.iter().find_map(|start| value.strip_prefix(start)) {
                Some(property) => globals.push(property.to_owned()),
                None => line.ignore(name),
            },
            _ => line.ignore(name),
        }
    }
    ensure!(known, "no option of QEMU's is in it");
    if let (Some(cpu), false) = (&mut line.cpu, globals.is_empty()) {
        // What is said of this CPU comes after what is said of all.
        let at = cpu.find(',').unwrap_or(cpu.len());
        cpu.insert_str(at, &format!(",{}", globals.join(",")));
    }
    Ok(line)
}

/// Options whose value may begin with a dash.
fn takes(name: &str) -> bool {
    matches!(name, "append" | "cpu")
}

/// `4G,slots=2,maxmem=8G`, or with `size=`.
fn memory(value: &str) -> &str {
    let mut parts = value.split(',');
    let first = parts.next().unwrap_or_default();
    parts.chain([first]).find_map(|part| part.strip_prefix("size=")).unwrap_or(first)
}

/// The number of CPUs: said, or what the topology makes.
fn processors(value: &str) -> Result<String> {
    let mut product = 1u32;
    for (at, part) in value.split(',').enumerate() {
        let (key, number) = part.split_once('=').unwrap_or(if at == 0 { ("cpus", part) } else { (part, "") });
        match key {
            "cpus" => return Ok(number.to_owned()),
            "sockets" | "dies" | "modules" | "clusters" | "cores" | "threads" => {
                let number: u32 = number.parse().with_context(|| format!("-smp {value}"))?;
                product = product.saturating_mul(number);
            }
            _ => {}
        }
    }
    Ok(product.to_string())
}

impl Line {
    fn ignore(&mut self, name: &str) {
        let name = format!("-{name}");
        if !self.ignored.contains(&name) {
            self.ignored.push(name);
        }
    }

    /// The same in our options, without those that `given` has.
    pub fn options(&self, given: impl Fn(&str) -> bool) -> Vec<String> {
        let options = [
            ("--cpu", &self.cpu),
            ("--smp", &self.smp),
            ("--memory", &self.memory),
            ("--kernel", &self.kernel),
            ("--append", &self.append),
            ("--initrd", &self.initrd),
        ];
        let there = options.into_iter().filter(|(name, _)| !given(name));
        there.filter_map(|(name, value)| Some(format!("{name}={}", value.as_ref()?))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(text: &str) -> String {
        parse(&shlex::split(text).expect(text)).expect(text).options(|_| false).join(" ")
    }

    /// As libvirt's log, a bug report and a script of kvm-unit-tests have them.
    #[test]
    fn lines_from_logs_reports_and_scripts() {
        assert_eq!(
            options(
                "2024-05-01 10:00:00.000+0000: starting up libvirt version: 10.0.0, qemu version: 8.2.2, kernel: 6.8\n\
                 LC_ALL=C \\\nPATH=/usr/bin \\\n/usr/bin/qemu-system-x86_64 \\\n-name guest=a,debug-threads=on \\\n-S \\\n\
                 -object '{\"qom-type\":\"secret\",\"id\":\"masterKey0\"}' \\\n-machine pc-q35-8.2,accel=kvm \\\n\
                 -cpu EPYC-Rome,x2apic=on \\\n-global x86_64-cpu.guest-phys-bits=40 \\\n-m size=1048576k \\\n\
                 -smp 2,sockets=2,cores=1 \\\n-device '{\"driver\":\"virtio-blk\"}' \\\n-msg timestamp=on\n\
                 char device redirected to /dev/pts/0 (label charserial0)\n"
            ),
            "--cpu=EPYC-Rome,guest-phys-bits=40,x2apic=on --smp=2 --memory=1048576k"
        );
        assert_eq!(
            options(
                "qemu-kvm -enable-kvm -m 4G,slots=2,maxmem=8G --smp sockets=2,cores=3 -kernel bzImage -append '-x y' d.img"
            ),
            "--smp=6 --memory=4G --kernel=bzImage --append=-x y"
        );
        assert_eq!(options("-cpu host -nographic -m 2048 -hda disk"), "--cpu=host --memory=2048");
    }

    #[test]
    fn what_has_no_meaning_is_named_once_and_ours_wins() {
        let words = shlex::split("qemu-system-x86_64 -device a -device b -cpu max -m 64 -netdev user")
            .expect("words");
        let line = parse(&words).expect("a line");
        assert_eq!(line.ignored, ["-device", "-netdev"]);
        assert_eq!(line.options(|name| name == "--memory"), ["--cpu=max"]);
        assert!(parse(&["disk.img".to_owned()]).is_err() && parse(&[]).is_err());
    }
}
