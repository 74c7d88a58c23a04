//! `vmtape host from`: the passport of a machine elsewhere, from what people paste of it.

mod cpuid;
mod cpuinfo;
mod evidence;
mod libvirt;
mod templates;
mod vmm;

use crate::{
    files,
    output::{ExitCode, usage},
};
use anyhow::{Context, Result, bail, ensure};
use clap::ValueHint;
use evidence::Evidence;
use std::{
    io::{self, Read, Write},
    path::{Path, PathBuf},
};
use vmtape_arch::host::Vendor;

/// Write the passport of another machine, from what it told
///
/// Read are, recognised by what is in them: /proc/cpuinfo; `cpuid -r` and `cpuid -1 -r`; `virsh domcapabilities` and `virsh
/// capabilities`; QEMU's answer to query-cpu-model-expansion; Firecracker's CPU templates; Cloud Hypervisor's configuration and
/// CPU profiles. What such a source cannot tell is named in the passport's remarks and left as hosts of that vendor have it.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// What describes the machine; `-` is standard input
    #[arg(value_name = "FILE", value_hint = ValueHint::FilePath)]
    file: PathBuf,
    /// The passport (default: standard output)
    #[arg(short, long, value_name = "TOML", value_hint = ValueHint::FilePath)]
    output: Option<PathBuf>,
    /// Its name (default: the file's)
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Its vendor (intel, amd), where the file does not tell
    #[arg(long, value_name = "VENDOR", value_parser = vendor)]
    vendor: Option<Vendor>,
}

/// Such files are far smaller; devices have no end.
const LARGEST: u64 = 16 << 20;

pub fn run(args: &Args) -> Result<ExitCode> {
    let shown = args.file.display();
    let text = files::unquoted(&read(&args.file)?);
    let evidence = recognise(&text).with_context(|| shown.to_string())?;
    let Some(vendor) = evidence.vendor.or(args.vendor) else {
        return Err(usage(format!(
            "{shown}: {} tells no vendor: --vendor intel or amd is needed",
            evidence.what
        )));
    };
    let stem = args.file.file_stem().unwrap_or_default().to_string_lossy();
    let name = args.name.as_deref().unwrap_or(if stem == "-" { "host" } else { &stem });
    let (passport, remarks) = evidence.passport(name, vendor);
    let mut out: String = remarks.iter().map(|remark| format!("# {remark}\n")).collect();
    out += &passport.to_toml()?;
    // Nothing is written that nobody could read again.
    vmtape_machine::Passport::parse(name, &out)
        .map_err(anyhow::Error::msg)
        .with_context(|| shown.to_string())?;
    match &args.output {
        Some(path) => files::write(path, |file| Ok(file.write_all(out.as_bytes())?))?,
        None => io::stdout().lock().write_all(out.as_bytes())?,
    }
    Ok(ExitCode::SAME)
}

fn vendor(text: &str) -> Result<Vendor, String> {
    Vendor::from_name(text).ok_or_else(|| format!("vendor '{text}' is neither intel nor amd"))
}

fn read(path: &Path) -> Result<String> {
    if path.as_os_str() != "-" {
        return files::text(path, LARGEST);
    }
    let mut bytes = Vec::new();
    let read = io::stdin().take(LARGEST + 1).read_to_end(&mut bytes);
    let length = read.with_context(|| path.display().to_string())? as u64;
    ensure!(
        length <= LARGEST,
        "{}: more than {} MiB: no description of a CPU",
        path.display(),
        LARGEST >> 20
    );
    files::decode(bytes).with_context(|| format!("{}: no text", path.display()))
}

fn recognise(text: &str) -> Result<Evidence> {
    let start = text.trim_start_matches('\u{feff}').trim_start();
    if start.starts_with('<') {
        return libvirt::read(text);
    }
    if start.starts_with('{') {
        return vmm::read(text);
    }
    if cpuid::is_one(text) {
        return cpuid::read(text);
    }
    if cpuinfo::is_one(text) {
        return cpuinfo::read(text);
    }
    bail!(
        "neither /proc/cpuinfo, nor `cpuid -r`, nor libvirt's XML, nor the JSON of QEMU, Firecracker or Cloud Hypervisor"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmtape_machine::Passport;

    fn passport(text: &str) -> (Passport, String) {
        let evidence = recognise(text).expect("a description");
        let (passport, remarks) = evidence.passport("x", evidence.vendor.unwrap_or(Vendor::INTEL));
        assert_eq!(Passport::parse("x", &passport.to_toml().expect("TOML")), Ok(passport.clone()));
        (passport, remarks.join("\n"))
    }

    /// A client of 39 bits, as its flags are written there.
    const CPUINFO: &str = "processor\t: 0\nvendor_id\t: GenuineIntel\nmodel name\t: Intel(R) Core(TM) i7-8650U\n\
        flags\t\t: fpu vme de pse tsc msr pae mce cx8 apic sep mtrr pge mca cmov pat pse36 clflush mmx fxsr sse sse2 ht \
        syscall nx pdpe1gb rdtscp lm pni monitor vmx ssse3 cx16 pcid sse4_1 sse4_2 x2apic movbe popcnt \
        tsc_deadline_timer aes xsave avx rdrand lahf_lm abm 3dnowprefetch fsgsbase tsc_adjust bmi1 avx2 smep bmi2 erms \
        invpcid rdseed adx smap clflushopt xsaveopt xsavec xgetbv1 xsaves\n\
        vmx flags\t: vnmi preemption_timer invvpid ept_x_only ept_ad ept_1gb flexpriority tsc_offset vtpr mtf vapic ept vpid \
        unrestricted_guest ple\naddress sizes\t: 39 bits physical, 48 bits virtual\n\n";

    #[test]
    fn cpuinfo_tells_width_and_features() {
        let (passport, remarks) = passport(CPUINFO);
        assert_eq!((passport.silicon.vendor, passport.silicon.phys_bits), (Vendor::INTEL, 39));
        assert_eq!((passport.guest_levels, passport.silicon.ept_levels), (4, 4));
        assert!(passport.silicon.ept_ad.is_set() && !passport.silicon.apicv.is_set());
        for (name, lacks) in [("umip", true), ("pku", true), ("clwb", true), ("pcid", false), ("abm", false)]
        {
            assert_eq!(passport.without.iter().any(|n| n == name), lacks, "{name}");
        }
        assert!(remarks.contains("left open") && remarks.contains("IOMMU"), "{remarks}");
    }

    /// Of several processors the narrowest counts.
    #[test]
    fn cpuinfo_of_unequal_processors() {
        let other = CPUINFO
            .replace("processor\t: 0", "processor\t: 1")
            .replace(" aes ", " ")
            .replace("39 bits", "36 bits");
        let (passport, remarks) = passport(&format!("{CPUINFO}{other}"));
        assert_eq!(passport.silicon.phys_bits, 36);
        assert!(passport.without.iter().any(|name| name == "aes"));
        assert!(remarks.contains("differ"), "{remarks}");
    }

    #[test]
    fn raw_leaves_tell_width_features_and_vendor() {
        let text = "CPU 0:\n   0x00000000 0x00: eax=0x00000010 ebx=0x68747541 ecx=0x444d4163 edx=0x69746e65\n   \
            0x00000001 0x00: eax=0x00830f10 ebx=0x00100800 ecx=0x7ed8320b edx=0x178bfbff\n   \
            0x00000007 0x00: eax=0x00000000 ebx=0x219c91a9 ecx=0x00400004 edx=0x00000000\n   \
            0x80000000 0x00: eax=0x80000020 ebx=0x68747541 ecx=0x444d4163 edx=0x69746e65\n   \
            0x80000001 0x00: eax=0x00830f10 ebx=0x40000000 ecx=0x75c237ff edx=0x2fd3fbff\n   \
            0x80000008 0x00: eax=0x00003030 ebx=0x010eb757 ecx=0x0000707f edx=0x00010000\n   \
            0x8000000a 0x00: eax=0x00000001 ebx=0x00008000 ecx=0x00000000 edx=0x0013bcff\n   \
            0x8000001f 0x00: eax=0x0001000f ebx=0x0000016f ecx=0x000001fd edx=0x00000001\nCPU 1:\n   \
            0x00000000 0x00: eax=0x00000001 ebx=0x00000000 ecx=0x00000000 edx=0x00000000\n";
        for text in [text.to_owned(), text.replace("CPU 0:", "CPU:").replace("CPU 1:", "CPU:")] {
            let (passport, remarks) = passport(&text);
            assert_eq!((passport.silicon.vendor, passport.silicon.phys_bits), (Vendor::AMD, 48));
            assert!(passport.silicon.nrips.is_set() && passport.silicon.decode_assists.is_set());
            assert!(passport.without.iter().any(|name| name == "pku"));
            assert!(!passport.without.iter().any(|name| name == "svm"));
            assert!(remarks.contains("memory encryption") && remarks.contains('5'), "{remarks}");
        }
    }

    #[test]
    fn libvirt_tells_what_kvm_gives() {
        let caps = "<domainCapabilities><path>/usr/bin/qemu-system-x86_64</path><domain>kvm</domain><arch>x86_64</arch><cpu>\
            <mode name='host-passthrough' supported='yes'/><mode name='maximum' supported='yes'/>\
            <mode name='host-model' supported='yes'><model fallback='forbid'>Skylake-Client-IBRS</model><vendor>Intel</vendor>\
            <maxphysaddr mode='passthrough' limit='39'/><feature policy='require' name='vmx'/>\
            <feature policy='disable' name='adx'/></mode><mode name='custom' supported='yes'><model usable='yes'>EPYC</model>\
            </mode></cpu></domainCapabilities>";
        let (passport, _) = passport(caps);
        assert_eq!((passport.silicon.vendor, passport.silicon.phys_bits), (Vendor::INTEL, 39));
        let lacks = |name: &str| passport.without.iter().any(|n| n == name);
        assert!(lacks("adx") && lacks("umip") && !lacks("smep") && !lacks("vmx"), "{:?}", passport.without);
        let host = "<capabilities><host><uuid>1</uuid><cpu><arch>x86_64</arch><model>EPYC-Rome</model><vendor>AMD</vendor>\
            <maxphysaddr mode='emulate' bits='48'/><feature name='umip'/><feature name='svm'/></cpu></host></capabilities>";
        let (amd, _) = super::tests::passport(host);
        assert_eq!((amd.silicon.vendor, amd.silicon.phys_bits), (Vendor::AMD, 48));
        assert!(!amd.without.iter().any(|name| name == "umip"));
    }

    #[test]
    fn an_expansion_tells_each_property() {
        let text = r#"{"QMP": {"version": {}, "capabilities": []}}
            {"return": {}}
            {"return": {"model": {"name": "max", "props": {"vendor": "AuthenticAMD", "phys-bits": 43, "host-phys-bits": false,
            "pku": false, "smep": true, "la57": true, "svm": true, "nrip-save": false, "avx512f": true}}}}"#;
        let (passport, remarks) = passport(text);
        assert_eq!((passport.silicon.vendor, passport.silicon.phys_bits), (Vendor::AMD, 43));
        assert_eq!((passport.guest_levels, passport.silicon.nrips.is_set()), (5, false));
        assert!(
            passport.without.iter().any(|name| name == "pku")
                && !passport.without.iter().any(|name| name == "smap")
        );
        assert!(remarks.contains("smap"), "not told, so left open: {remarks}");
    }

    #[test]
    fn templates_take_bits_away() {
        let text = r#"{"cpuid_modifiers": [{"leaf": "0x7", "subleaf": "0x0", "flags": 1, "modifiers":
            [{"register": "ecx", "bitmap": "0bxxxxxxxxxxxxxxxxxxxxxxxxxxxx0xxx"}]},
            {"leaf": "0x80000008", "subleaf": "0x0", "flags": 0, "modifiers":
            [{"register": "eax", "bitmap": "0bxxxxxxxxxxxxxxxxxxxxxxxx00101110"}]}], "msr_modifiers": []}"#;
        let (firecracker, _) = passport(text);
        assert_eq!((firecracker.silicon.phys_bits, firecracker.without), (46, vec!["pku".to_owned()]));
        let (cloud, _) = passport(
            r#"{"cpus": {"boot_vcpus": 1, "max_vcpus": 1, "max_phys_bits": 46, "features": {"amx": false}}}"#,
        );
        assert_eq!(cloud.phys_bits_limit, Some(46));
        assert!(cloud.without.iter().any(|name| name == "amx-tile"));
    }

    #[test]
    fn a_mail_may_quote_it() {
        let quoted: String = CPUINFO.lines().map(|line| format!("> {line}\n")).collect();
        assert_eq!(passport(&files::unquoted(&quoted)).0, passport(CPUINFO).0);
        assert_eq!(files::unquoted("<a>\n"), "<a>\n");
    }

    /// Of several processors in `cpuid -r` the narrowest counts, and a leaf that is missing takes no features away.
    #[test]
    fn raw_leaves_of_unequal_processors() {
        let cpu = |seven: &str, width: &str| {
            let leaf = |number: &str, rest: &str| format!("   {number} 0x00: {rest}\n");
            [
                "CPU 0:\n".to_owned(),
                leaf("0x00000000", "eax=0x00000010 ebx=0x756e6547 ecx=0x6c65746e edx=0x49656e69"),
                leaf("0x00000001", "eax=0x00830f10 ebx=0x00100800 ecx=0x7ed8320b edx=0x178bfbff"),
                seven.to_owned(),
                leaf("0x80000000", "eax=0x80000008 ebx=0x00000000 ecx=0x00000000 edx=0x00000000"),
                leaf("0x80000008", &format!("eax={width} ebx=0x00000000 ecx=0x00000000 edx=0x00000000")),
            ]
            .concat()
        };
        let seven = |ebx: &str| {
            format!("   0x00000007 0x00: eax=0x00000000 ebx={ebx} ecx=0x00000004 edx=0x00000000\n")
        };
        let (with, without) = (seven("0x00000080"), seven("0x00000000"));
        let lacks = |text: &str, name: &str| passport(text).0.without.iter().any(|n| n == name);
        let both = cpu(&with, "0x0000302e") + &cpu(&without, "0x00003027");
        assert!(!lacks(&cpu(&with, "0x0000302e"), "smep") && lacks(&both, "smep"));
        let (narrow, remarks) = passport(&both);
        assert_eq!(narrow.silicon.phys_bits, 39);
        assert!(remarks.contains("differ"), "{remarks}");
        let (_, remarks) = passport(&cpu("", "0x0000302e"));
        assert!(!lacks(&cpu("", "0x0000302e"), "smep") && remarks.contains("smep"), "{remarks}");
    }

    /// Bits of a mask stay the host's.
    #[test]
    fn profiles_put_values_in_place_of_the_hosts() {
        let adjustment = |leaf: &str, register: &str, replacements: &str, mask: &str| {
            format!(
                r#"[{{"leaf": "{leaf}", "sub_leaf": {{"start": 0, "end": 0}}, "register": "{register}"}},
                {{"replacements": "{replacements}", "mask": "{mask}"}}]"#
            )
        };
        let text = format!(
            r#"{{"hypervisor": "Kvm", "cpu_vendor": "Intel", "adjustments": [{}, {}, {}]}}"#,
            adjustment("0x00000000", "EBX", "0x756e6547", "0x00000000"),
            adjustment("0x00000007", "ECX", "0x00400000", "0x00000004"),
            adjustment("0x80000008", "EAX", "0x0000002d", "0x0000ff00"),
        );
        assert_eq!(recognise(&text).expect("a profile").vendor, Some(Vendor::INTEL));
        let (profile, _) = passport(&text);
        assert_eq!(profile.silicon.phys_bits, 45);
        let lacks = |name: &str| profile.without.iter().any(|n| n == name);
        assert!(lacks("pku") && !lacks("umip"), "{:?}", profile.without);
    }

    #[test]
    fn what_is_no_description_is_refused() {
        for text in [
            "",
            "hello",
            "{}",
            "{\"return\": 3}",
            "<a/>",
            "<domainCapabilities/>",
            "processor : 0\nmodel : 1\n",
            "{",
        ] {
            let said = recognise(text).map(|evidence| evidence.what);
            assert!(said.is_err(), "{text}: {said:?}");
        }
    }
}
