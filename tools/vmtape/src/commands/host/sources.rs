//! Where a machine tells what it is: CPUID, /proc, /sys, and /dev/kvm.

use super::kvm;
use std::{fs, path::Path};
use vmtape_arch::{
    cpuid::{CPUID_FLAG_SIGNIFICANT_INDEX, CpuidEntry, find},
    host::Vendor,
};
use vmtape_machine::hosts::Reserved;

/// Leaves that a passport is made from.
const LEAVES: [(u32, Option<u32>); 9] = [
    (0, None),
    (1, None),
    (7, Some(0)),
    (0xd, Some(1)),
    (0x8000_0000, None),
    (0x8000_0001, None),
    (0x8000_0008, None),
    (0x8000_000a, None),
    (0x8000_001f, None),
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
    /// What sysfs shows of the IOMMUs: Intel's capability registers, AMD's extended features.
    pub vtd_capabilities: Vec<String>,
    pub amd_features: Vec<String>,
    /// What their groups of devices do not reach, as sysfs shows it.
    pub reserved_regions: Vec<String>,
    /// KVM_GET_SUPPORTED_CPUID and KVM_CAP_SMALLER_MAXPHYADDR, where /dev/kvm opens.
    pub supported: Option<Vec<CpuidEntry>>,
    pub hides_width: Option<bool>,
}

impl Sources {
    pub fn of_this_machine() -> Self {
        let line = |path: &str| fs::read_to_string(path).map(|text| text.trim().to_owned()).ok();
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").ok();
        let module = module();
        let (supported, hides_width) = kvm::ask();
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
            vtd_capabilities: iommus("intel-iommu/cap"),
            amd_features: iommus("amd-iommu/features"),
            reserved_regions: files("/sys/kernel/iommu_groups", "reserved_regions"),
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

    /// Address bits that memory encryption takes away where firmware has switched it on, which is another matter.
    // See: APM vol. 3 E.4.17 Function 8000_001Fh, EBX[11:6] PhysAddrReduction
    pub fn encryption_takes(&self) -> u8 {
        (self.cpuid(0x8000_001f, 0).ebx >> 6 & 0x3f) as u8
    }

    /// The narrowest of the IOMMUs.
    pub fn iommu_bits(&self) -> Option<u8> {
        let intel = self.vtd_capabilities.iter().filter_map(|text| vtd_bits(hex(text)?));
        let amd = self.amd_features.iter().filter_map(|text| amd_bits(text));
        intel.chain(amd).min().filter(|bits| *bits >= 32)
    }

    /// Ranges that some device does not reach, beside those that every host of this kind has.
    // See: Linux Documentation/ABI/testing/sysfs-kernel-iommu_groups
    pub fn reserved(&self, known: &[Reserved]) -> Vec<Reserved> {
        let lines = self.reserved_regions.iter().flat_map(|text| text.lines());
        let mut ranges: Vec<Reserved> = lines.filter_map(region).collect();
        ranges.sort_by_key(|range| (range.first, range.last));
        ranges.dedup_by_key(|range| (range.first, range.last));
        ranges.retain(|range| !known.iter().any(|k| k.first <= range.first && range.last <= k.last));
        ranges
    }
}

/// `0x000000007b800000 0x000000007fffffff direct`; VFIO lets go of what is relaxable.
fn region(line: &str) -> Option<Reserved> {
    let mut words = line.split_whitespace();
    let (first, last, what) = (hex(words.next()?)?, hex(words.next()?)?, words.next()?);
    (what != "direct-relaxable" && first <= last).then(|| Reserved { first, last, what: what.to_owned() })
}

fn hex(text: &str) -> Option<u64> {
    u64::from_str_radix(text.trim().trim_start_matches("0x"), 16).ok()
}

/// The width of a VT-d unit: no wider than its registers, nor than its deepest page table, which translates 9 bits more
/// per level.
// See: Intel Virtualization Technology for Directed I/O, 11.4.2 Capability Register, MGAW (bits 21:16), SAGAW (bits 12:8)
fn vtd_bits(capability: u64) -> Option<u8> {
    const TWO_LEVELS: u8 = 30;
    let mgaw = (capability >> 16 & 0x3f) as u8 + 1;
    let deepest = (0..5u8).rev().find(|bit| capability >> (8 + bit) & 1 != 0);
    Some(deepest.map_or(mgaw, |bit| mgaw.min(TWO_LEVELS + 9 * bit)))
}

/// The width of an AMD IOMMU: what the deepest of its host page tables translates. `EFR:EFR2` in today's kernels, `EFR2:EFR`
/// in some before, `EFR` alone at first; only the extended feature register has bits above its 32nd.
// See: AMD I/O Virtualization Technology (IOMMU) Specification 48882, MMIO Offset 0030h, HATS (bits 11:10); Linux
// drivers/iommu/amd/init.c amd_iommu_show_features(), early_amd_iommu_init() (commit 025d1371cc8c), amd_iommu_types.h
// PM_LEVEL_SIZE()
fn amd_bits(features: &str) -> Option<u8> {
    let efr = features.trim().split(':').filter_map(hex).max()?;
    match efr >> 10 & 3 {
        0 => Some(48),
        1 => Some(57),
        2 => Some(64),
        _ => None,
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

/// One file of every IOMMU that has it.
fn iommus(file: &str) -> Vec<String> {
    files("/sys/class/iommu", file)
}

/// A file of every folder that has it.
fn files(folder: &str, file: &str) -> Vec<String> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let read = |entry: fs::DirEntry| fs::read_to_string(entry.path().join(file)).ok();
    let mut found: Vec<_> = entries.flatten().filter_map(read).collect();
    found.sort_unstable();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn iommu(intel: &[&str], amd: &[&str]) -> Option<u8> {
        let owned = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
        let sources =
            Sources { vtd_capabilities: owned(intel), amd_features: owned(amd), ..Sources::default() };
        sources.iommu_bits()
    }

    /// As sysfs of a client, of a server, and of a unit whose tables are less deep than its registers are wide.
    #[test]
    fn a_vtd_unit_reaches_what_its_registers_and_its_tables_do() {
        assert_eq!(iommu(&["1c0000c40660462\n"], &[]), Some(39));
        assert_eq!(iommu(&["8d2008c10ef0466\n"], &[]), Some(48));
        assert_eq!(iommu(&["38040c"], &[]), Some(48), "57 bits, tables of four levels");
        assert_eq!(iommu(&["38080c"], &[]), Some(57));
        assert_eq!(iommu(&["8d2008c10ef0466", "1c0000c40660462"], &[]), Some(39), "the narrowest");
        assert_eq!(iommu(&["none"], &[]), None);
    }

    /// As a server shows it whose firmware keeps memory for its graphics device, in two groups.
    #[test]
    fn regions_of_sysfs_are_reserved_once() {
        let group =
            "0x000000007b800000 0x000000007fffffff direct\n0x00000000fee00000 0x00000000feefffff msi\n";
        let relaxed = "0x0000000000001000 0x0000000000001fff direct-relaxable\nnonsense\n";
        let sources = Sources {
            reserved_regions: [group, relaxed, group].map(String::from).to_vec(),
            ..Sources::default()
        };
        let msi: Reserved = "0xfee00000-0xfeefffff".parse().unwrap();
        let texts =
            |known: &[Reserved]| sources.reserved(known).iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(texts(&[msi]), ["0x7b800000-0x7fffffff direct"]);
        assert_eq!(texts(&[]), ["0x7b800000-0x7fffffff direct", "0xfee00000-0xfeefffff msi"]);
    }

    #[test]
    fn an_amd_iommu_reaches_what_its_tables_do() {
        assert_eq!(iommu(&[], &["58f77ef22294ade\n"]), Some(64), "six levels");
        assert_eq!(iommu(&[], &["58f77ef22294ade:0\n"]), Some(64));
        assert_eq!(iommu(&[], &["20:58f77ef22294ade\n"]), Some(64), "the other order");
        assert_eq!(iommu(&[], &["58f77ef222942de:20"]), Some(48));
        assert_eq!(iommu(&[], &["58f77ef222946de:20"]), Some(57));
        assert_eq!(iommu(&[], &["58f77ef22294ede:20"]), None, "reserved: it translates nothing");
    }
}
