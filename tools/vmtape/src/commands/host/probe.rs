use super::sources::Sources;
use crate::{commands::replay::Plugins, files, machine_args::PluginArgs, output::ExitCode};
use anyhow::Result;
use std::{
    io::{self, Write},
    path::PathBuf,
};
use vmtape_arch::{cpuid::find, host::Vendor};
use vmtape_machine::{
    Passport, hosts,
    model::{FEATURES, guest_phys_bits},
};
use vmtape_replay::check::rules::has;

const KEYS: &str = "\
A passport is TOML; every key but `vendor` (or `base`, a named host to start from) may be missing:
  name, vendor = \"intel\" | \"amd\"
  phys-bits         MAXPHYADDR, as CPUID 0x80000008 says it on the host
  encryption-bits   address bits that memory encryption takes from the kernel (SME, TME)
  guest-phys-bits   the guest physical width that the host maps, where paging levels do not tell
  guest-levels      5: guests may have LA57
  ept-levels, npt-levels, host-levels   of EPT, of NPT (those of the host's kernel), of the kernel
  iommu-bits        the address width of devices
  phys-bits-limit   the widest guest that the VMM starts there
  reserved          addresses that devices do not reach: [\"0xfd00000000-0xffffffffff HyperTransport\"]; by default
                    those of the vendor
  without           features that the host lacks, by QEMU's names: [\"pku\", \"vmx-rdrand-exit\"]
  backend, kvm      what virtualizes like its KVM: kvm = \"v6.12,allow_smaller_maxphyaddr=on\"
  gbpages, ept-ad, ept-advanced, apicv, nrips, decode-assists, vgif, vls, vnmi, backing   details of its silicon";

/// Write the passport of this machine, as `check` and `--host` read it
#[derive(Debug, clap::Args)]
#[command(after_help = KEYS)]
pub struct Args {
    /// The passport (default: standard output)
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Its name (default: this machine's)
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    #[command(flatten)]
    plugins: PluginArgs,
}

/// What a VMM adds, and what has a key of its own in a passport.
const NOT_LISTED: [&str; 3] = ["hypervisor", "tsc-deadline", "la57"];
/// Module parameters of KVM that change what a guest sees.
const PARAMETERS: [&str; 3] = ["allow_smaller_maxphyaddr", "ept", "npt"];

pub fn run(args: &Args) -> Result<ExitCode> {
    let sources = Sources::of_this_machine();
    let plugins = Plugins::new(&args.plugins);
    let releases = |backend: &str| -> Vec<String> {
        let plugin = plugins.get(backend).ok();
        plugin.map_or_else(Vec::new, |p| p.description.profiles.iter().map(|row| row.name.clone()).collect())
    };
    let (mut passport, remarks) = probe(&sources, &releases);
    if let Some(name) = &args.name {
        passport.name.clone_from(name);
    }
    let mut text = String::new();
    for remark in &remarks {
        text += &format!("# {remark}\n");
    }
    text += &passport.to_toml()?;
    match &args.output {
        Some(path) => files::write(path, |out| Ok(out.write_all(text.as_bytes())?))?,
        None => io::stdout().lock().write_all(text.as_bytes())?,
    }
    Ok(ExitCode::SAME)
}

/// The passport, and where its values come from. `releases`: profiles that a backend knows, oldest first.
fn probe(sources: &Sources, releases: &dyn Fn(&str) -> Vec<String>) -> (Passport, Vec<String>) {
    let mut remarks = vec![format!("{}, Linux {}", sources.model, sources.release)];
    let vendor = sources.vendor();
    let mut passport = Passport::new(sources.name.clone(), hosts::of_today(vendor));
    let silicon = &mut passport.silicon;
    silicon.phys_bits = sources.phys_bits().clamp(32, 52);
    remarks.push(format!("CPUID 0x80000008: {} physical address bits", sources.phys_bits()));
    let most = silicon.phys_bits - 32;
    match (sources.cpuinfo_bits(), sources.encryption_takes()) {
        (Some(bits), _) if bits < silicon.phys_bits => {
            silicon.encryption_bits = (silicon.phys_bits - bits).min(most);
            remarks.push(format!("/proc/cpuinfo: the kernel uses {bits}: memory encryption takes the rest"));
        }
        (Some(_), 0) => {}
        (Some(_), bits) => {
            remarks.push(format!("memory encryption is off: on, it would take {bits} address bits"));
        }
        (None, bits) => {
            silicon.encryption_bits = bits.min(most);
            remarks.push(format!(
                "/proc/cpuinfo cannot be read: its kernel is taken to have paging of 4 levels, and memory encryption, if \
                 there is any, to be on (CPUID 0x8000001f: {bits} address bits)"
            ));
        }
    }
    silicon.host_levels = if sources.cpu_flag("la57") { 5 } else { 4 };
    silicon.gbpages = (sources.cpuid(0x8000_0001, 0).edx >> 26 & 1 != 0).into();
    if vendor == Vendor::AMD {
        let features = sources.cpuid(0x8000_000a, 0).edx;
        silicon.nrips = (features >> 3 & 1 != 0).into();
        silicon.decode_assists = (features >> 7 & 1 != 0).into();
        silicon.vls = (features >> 15 & 1 != 0).into();
        silicon.vgif = (features >> 16 & 1 != 0).into();
        silicon.vnmi = (features >> 25 & 1 != 0).into();
    }
    let told = sources.supported.as_deref().map_or(0, guest_phys_bits);
    passport.guest_phys_bits = (32..=52).contains(&told).then_some(told);
    ept(sources, &mut passport, &mut remarks);
    let table = sources.supported.clone().unwrap_or_else(|| sources.raw.clone());
    if sources.supported.is_none() {
        remarks.push("/dev/kvm cannot be asked: features are those of the CPU, not of KVM".into());
    }
    let la57 = find(&table, 7, 0).is_some_and(|leaf| leaf.ecx >> 16 & 1 != 0);
    passport.guest_levels = if la57 { 5 } else { 4 };
    let expected = passport.cpuid();
    let listed = FEATURES.iter().filter(|feature| !NOT_LISTED.contains(&feature.name));
    let lacking = listed.filter(|feature| has(&expected, feature) && !has(&table, feature));
    passport.without = lacking.map(|feature| feature.name.to_owned()).collect();
    passport.iommu_bits = sources.iommu_bits();
    if passport.iommu_bits.is_none() {
        remarks.push("no IOMMU says how many address bits devices reach".into());
    }
    let mut reserved = passport.reserved();
    let own = sources.reserved(&reserved);
    if !own.is_empty() {
        reserved.extend(own);
        passport.reserved = Some(reserved);
    }
    kvm(sources, &mut passport, &mut remarks, releases);
    (passport, remarks)
}

/// What the kernel's "vmx flags" say of EPT.
fn ept(sources: &Sources, passport: &mut Passport, remarks: &mut Vec<String>) {
    if passport.silicon.vendor != Vendor::INTEL {
        return;
    }
    let silicon = &mut passport.silicon;
    match sources.vmx_flags() {
        Some(flags) => {
            let flag = |name: &str| flags.split_whitespace().any(|flag| flag == name);
            silicon.ept_levels = if flag("ept_5level") { 5 } else { 4 };
            (silicon.ept_ad, silicon.apicv) = (flag("ept_ad").into(), flag("apicv").into());
        }
        None => {
            remarks.push("/proc/cpuinfo has no vmx flags: EPT's levels are taken from GuestPhysBits".into())
        }
    }
    // A kernel that does not know the flag may still have KVM tell it.
    if silicon.phys_bits > 48 && passport.guest_phys_bits == Some(silicon.phys_bits) {
        silicon.ept_levels = 5;
    }
}

/// Backend and profile: by the module that is loaded, its parameters, and the kernel's release.
fn kvm(
    sources: &Sources,
    passport: &mut Passport,
    remarks: &mut Vec<String>,
    releases: &dyn Fn(&str) -> Vec<String>,
) {
    let module = sources.module.as_deref();
    let shadow = |parameter: &str| sources.parameter(parameter) == Some(false);
    let backend = match (module, passport.silicon.vendor) {
        (Some("kvm_intel"), _) => "vmx",
        (Some("kvm_amd"), _) if shadow("npt") => "svm",
        (Some("kvm_amd"), _) => "svm-npt",
        (_, Vendor::AMD) if sources.hides_width == Some(true) => "svm",
        (_, Vendor::AMD) => "svm-npt",
        _ => "vmx",
    };
    if !matches!(module, Some("kvm_intel" | "kvm_amd")) {
        let name = module.unwrap_or("none");
        remarks.push(format!("KVM's module here is {name}: {backend} is the backend that comes closest"));
    }
    let mut words: Vec<String> = nearest(&sources.release, &releases(backend)).into_iter().collect();
    if backend == "vmx" {
        for name in PARAMETERS.into_iter().filter(|name| *name != "npt") {
            let value = sources.parameter(name);
            words.extend(value.map(|on| format!("{name}={}", if on { "on" } else { "off" })));
        }
        if sources.hides_width == Some(true) && sources.parameter(PARAMETERS[0]).is_none() {
            words.push(format!("{}=on", PARAMETERS[0]));
        }
    }
    let nested = if backend == "vmx" { "vmx" } else { "svm" };
    if sources.parameter("nested") == Some(false) && !passport.without.iter().any(|name| name == nested) {
        passport.without.push(nested.to_owned());
    }
    if let Some(hides) = sources.hides_width {
        remarks.push(format!("KVM_CAP_SMALLER_MAXPHYADDR is {}", u8::from(hides)));
    }
    passport.backend = Some(backend.to_owned());
    passport.kvm = (!words.is_empty()).then(|| words.join(","));
}

/// The newest profile that is no newer than a kernel's release.
fn nearest(release: &str, profiles: &[String]) -> Option<String> {
    let number = |text: &str| -> Option<(u32, u32)> {
        let mut parts = text.trim_start_matches('v').split(['.', '-']);
        Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
    };
    let wanted = number(release)?;
    let numbered = profiles.iter().filter_map(|name| Some((number(name)?, name)));
    let known = numbered.filter(|(n, name)| *n <= wanted && !name.contains("-rc"));
    known.max_by_key(|(n, _)| *n).map(|(_, name)| name.clone())
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmtape_arch::cpuid::CpuidEntry;

    fn ice_lake() -> Sources {
        let entry = |function, registers: [u32; 4]| CpuidEntry {
            function,
            eax: registers[0],
            ebx: registers[1],
            ecx: registers[2],
            edx: registers[3],
            ..CpuidEntry::default()
        };
        Sources {
            name: "node1".into(),
            model: "Xeon".into(),
            release: "6.14.0-21-generic".into(),
            raw: vec![
                entry(0, [0x1b, 0x756e_6547, 0x6c65_746e, 0x4965_6e69]),
                entry(7, [0, 0, 1 << 16, 0]),
                entry(0x8000_0000, [0x8000_0008, 0, 0, 0]),
                entry(0x8000_0001, [0, 0, 0, 1 << 26]),
                entry(0x8000_0008, [0x3934, 0, 0, 0]),
            ],
            cpuinfo: Some(
                "flags\t\t: fpu la57 lm\nvmx flags\t: ept ept_ad ept_5level apicv\n\
                 address sizes\t: 46 bits physical, 57 bits virtual\n"
                    .into(),
            ),
            module: Some("kvm_intel".into()),
            parameters: vec![
                ("allow_smaller_maxphyaddr".into(), "Y\n".into()),
                ("nested".into(), "0\n".into()),
            ],
            vtd_capabilities: vec!["2f0000\n".into(), "260000\n".into()],
            amd_features: Vec::new(),
            reserved_regions: Vec::new(),
            supported: None,
            hides_width: None,
        }
    }

    fn probed(sources: &Sources) -> Passport {
        let releases = |_: &str| ["v5.6", "v6.12", "v7.2"].map(String::from).to_vec();
        probe(sources, &releases).0
    }

    #[test]
    fn every_source_is_used() {
        let passport = probed(&ice_lake());
        let silicon = passport.silicon;
        assert_eq!((silicon.vendor, silicon.phys_bits, silicon.encryption_bits), (Vendor::INTEL, 52, 6));
        assert_eq!((silicon.host_levels, silicon.ept_levels, passport.guest_levels), (5, 5, 5));
        assert_eq!(passport.iommu_bits, Some(39));
        assert_eq!(passport.kvm.as_deref(), Some("v6.12,allow_smaller_maxphyaddr=on"));
        assert!(passport.without.contains(&"pku".into()) && passport.without.contains(&"vmx".into()));
        assert_eq!(Passport::parse("", &passport.to_toml().unwrap()), Ok(passport));
    }

    #[test]
    fn an_old_kernel_says_less() {
        let sources = Sources { cpuinfo: None, vtd_capabilities: vec![], ..ice_lake() };
        let passport = probed(&sources);
        assert_eq!((passport.silicon.ept_levels, passport.silicon.encryption_bits), (4, 0));
        assert_eq!(passport.iommu_bits, None);
    }

    /// A server of AMD's with memory encryption, as CPUID describes it whether firmware has switched it on or not.
    fn milan() -> Sources {
        let mut sources = ice_lake();
        sources.raw[0].ebx = 0x6874_7541;
        sources.raw[4].eax = 0x3030;
        sources.raw.push(CpuidEntry {
            function: 0x8000_001f,
            eax: 0x3f,
            ebx: 5 << 6 | 51,
            ..CpuidEntry::default()
        });
        let address_sizes =
            |bits| Some(format!("flags\t: fpu\naddress sizes\t: {bits} bits physical, 48 bits virtual\n"));
        Sources {
            cpuinfo: address_sizes(43),
            module: Some("kvm_amd".into()),
            parameters: vec![("npt".into(), "1\n".into())],
            vtd_capabilities: Vec::new(),
            amd_features: vec!["58f77ef22294ade:0\n".into()],
            ..sources
        }
    }

    #[test]
    fn memory_encryption_takes_bits_where_it_is_on() {
        let bits = |sources: &Sources| probed(sources).silicon.encryption_bits;
        assert_eq!(bits(&milan()), 5);
        let off = milan().cpuinfo.map(|text| text.replace("43 bits", "48 bits"));
        assert_eq!(bits(&Sources { cpuinfo: off, ..milan() }), 0);
        assert_eq!(bits(&Sources { cpuinfo: None, ..milan() }), 5, "nobody says: the narrower");
        let absurd = milan().cpuinfo.map(|text| text.replace("43 bits", "8 bits"));
        let absurd = probed(&Sources { cpuinfo: absurd, ..milan() });
        assert_eq!(Passport::parse("", &absurd.to_toml().unwrap()), Ok(absurd));
        let passport = probed(&milan());
        assert_eq!((passport.backend.as_deref(), passport.iommu_bits), (Some("svm-npt"), Some(64)));
        assert_eq!(Passport::parse("", &passport.to_toml().unwrap()), Ok(passport));
    }

    #[test]
    fn features_are_those_that_kvm_gives() {
        let lacks =
            |sources: &Sources, name: &str| probed(sources).without.iter().filter(|n| *n == name).count();
        let given = |ecx, edx| {
            let mut table = milan().raw;
            (table[3].ecx, table[3].edx) = (ecx, edx);
            Sources { supported: Some(table), ..milan() }
        };
        // CPUID 0x80000001: ECX[2] SVM, EDX[26] pages of 1 GiB.
        assert_eq!((lacks(&given(4, 1 << 26), "svm"), lacks(&given(4, 1 << 26), "pdpe1gb")), (0, 0));
        assert_eq!((lacks(&given(0, 0), "svm"), lacks(&given(0, 0), "pdpe1gb")), (1, 1));
        let nested = vec![("nested".into(), "0".into())];
        assert_eq!(lacks(&Sources { parameters: nested, ..given(0, 0) }, "svm"), 1, "said once");
    }

    #[test]
    fn releases_are_numbers() {
        let known = ["v5.9-rc1", "v5.9", "v5.10", "v1-series"].map(String::from);
        assert_eq!(nearest("5.9.16", &known).as_deref(), Some("v5.9"));
        assert_eq!(nearest("6.1.0", &known).as_deref(), Some("v5.10"));
        assert_eq!(nearest("4.19", &known), None);
    }
}
