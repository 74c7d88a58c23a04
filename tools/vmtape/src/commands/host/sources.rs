//! Where a machine tells what it is: CPUID, /proc, /sys, and /dev/kvm.

use super::probe::ask_kvm;
use std::{fs, path::Path};
use vmtape_arch::{
    cpuid::{CPUID_FLAG_SIGNIFICANT_INDEX, CpuidEntry, find},
    host::Vendor,
};

/// Leaves that a passport is made from.
const LEAVES: [(u32, Option<u32>); 8] = [
    (0, None),
    (1, None),
    (7, Some(0)),
    (0xd, Some(1)),
    (0x8000_0000, None),
    (0x8000_0001, None),
    (0x8000_0008, None),
    (0x8000_000a, None),
];

/// Everything as it was read.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    pub name: String,
    pub model: String,
    /// The kernel's release.
    pub release: String,
    /// The CPU's own leaves.
    pub raw: Vec<CpuidEntry>,
    pub cpuinfo: Option<String>,
    /// KVM's module for this CPU, and its parameters.
    pub module: Option<String>,
    pub parameters: Vec<(String, String)>,
    /// Capability registers of the IOMMUs, as sysfs shows Intel's.
    pub iommu_capabilities: Vec<u64>,
    /// KVM_GET_SUPPORTED_CPUID and KVM_CAP_SMALLER_MAXPHYADDR, where /dev/kvm opens.
    pub supported: Option<Vec<CpuidEntry>>,
    pub hides_width: Option<bool>,
}

impl Sources {
    pub fn of_this_machine() -> Self {
        let line = |path: &str| fs::read_to_string(path).map(|text| text.trim().to_owned()).ok();
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").ok();
        let module = module();
        let (supported, hides_width) = ask_kvm();
        Self {
            name: line("/proc/sys/kernel/hostname").unwrap_or_else(|| "host".into()),
            model: cpuinfo
                .as_deref()
                .and_then(|text| field(text, "model name"))
                .unwrap_or("a CPU")
                .to_owned(),
            release: line("/proc/sys/kernel/osrelease").unwrap_or_default(),
            raw: LEAVES.into_iter().filter_map(leaf).collect(),
            parameters: module.as_deref().map(parameters).unwrap_or_default(),
            module,
            cpuinfo,
            iommu_capabilities: iommu_capabilities(),
            supported,
            hides_width,
        }
    }

    /// A leaf of the CPU's; zeroes where it has none.
    pub fn cpuid(&self, function: u32, index: u32) -> CpuidEntry {
        find(&self.raw, function, index).copied().unwrap_or_default()
    }

    pub fn vendor(&self) -> Vendor {
        /// EBX of leaf 0: "Auth", and "Hygo" of a licensee.
        const AMD: [u32; 2] = [0x6874_7541, 0x6f67_7948];
        if AMD.contains(&self.cpuid(0, 0).ebx) { Vendor::AMD } else { Vendor::INTEL }
    }

    /// MAXPHYADDR as CPUID says it.
    pub fn phys_bits(&self) -> u8 {
        vmtape_arch::cpuid::maxphyaddr(&self.raw)
    }

    /// The width that the kernel uses: without what memory encryption takes.
    pub fn cpuinfo_bits(&self) -> Option<u8> {
        let sizes = field(self.cpuinfo.as_deref()?, "address sizes")?;
        sizes.split_whitespace().next()?.parse().ok()
    }

    pub fn cpu_flag(&self, name: &str) -> bool {
        let flags = self.cpuinfo.as_deref().and_then(|text| field(text, "flags"));
        flags.is_some_and(|flags| flags.split_whitespace().any(|flag| flag == name))
    }

    pub fn vmx_flags(&self) -> Option<&str> {
        field(self.cpuinfo.as_deref()?, "vmx flags")
    }

    /// A boolean module parameter.
    pub fn parameter(&self, name: &str) -> Option<bool> {
        let (_, value) = self.parameters.iter().find(|(key, _)| key == name)?;
        match value.trim() {
            "Y" | "1" => Some(true),
            "N" | "0" => Some(false),
            _ => None,
        }
    }

    /// The narrowest of the IOMMUs.
    // See: Intel Virtualization Technology for Directed I/O, Capability Register, MGAW (bits 21:16)
    pub fn iommu_bits(&self) -> Option<u8> {
        let width = |capability: &u64| (capability >> 16 & 0x3f) as u8 + 1;
        self.iommu_capabilities.iter().map(width).min().filter(|bits| *bits >= 32)
    }
}

/// The value of the first line with this key.
fn field<'t>(text: &'t str, key: &str) -> Option<&'t str> {
    text.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        (name.trim() == key).then_some(value.trim())
    })
}

/// One leaf, if the CPU has it.
fn leaf((function, index): (u32, Option<u32>)) -> Option<CpuidEntry> {
    use std::arch::x86_64::{__cpuid, __cpuid_count};
    if __cpuid(function & 0x8000_0000).eax < function {
        return None;
    }
    let words = __cpuid_count(function, index.unwrap_or(0));
    Some(CpuidEntry {
        function,
        index: index.unwrap_or(0),
        flags: index.map_or(0, |_| CPUID_FLAG_SIGNIFICANT_INDEX),
        eax: words.eax,
        ebx: words.ebx,
        ecx: words.ecx,
        edx: words.edx,
        pad: 0,
    })
}

const MODULES: &str = "/sys/module";

/// The module that runs guests: KVM's for this vendor, or another one that depends on `kvm`.
fn module() -> Option<String> {
    let known = ["kvm_intel", "kvm_amd"].into_iter().find(|name| Path::new(MODULES).join(name).exists());
    let other = || {
        let names =
            fs::read_dir(MODULES).ok()?.flatten().filter_map(|entry| entry.file_name().into_string().ok());
        let mut names: Vec<_> = names.filter(|name| name.starts_with("kvm_")).collect();
        names.sort();
        names.into_iter().next()
    };
    known.map(str::to_owned).or_else(other)
}

fn parameters(module: &str) -> Vec<(String, String)> {
    let folder = Path::new(MODULES).join(module).join("parameters");
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let mut found: Vec<_> = entries
        .flatten()
        .filter_map(|entry| {
            Some((entry.file_name().into_string().ok()?, fs::read_to_string(entry.path()).ok()?))
        })
        .collect();
    found.sort();
    found
}

fn iommu_capabilities() -> Vec<u64> {
    let Ok(entries) = fs::read_dir("/sys/class/iommu") else { return Vec::new() };
    let capability = |path: std::path::PathBuf| -> Option<u64> {
        let text = fs::read_to_string(path.join("intel-iommu/cap")).ok()?;
        u64::from_str_radix(text.trim().trim_start_matches("0x"), 16).ok()
    };
    let mut found: Vec<_> = entries.flatten().filter_map(|entry| capability(entry.path())).collect();
    found.sort_unstable();
    found
}
