//! Passports: hosts described as data, in TOML.

use super::{
    named::{self, Host, PHYS_BITS},
    reserved::{self, Reserved},
};
use crate::model::{self, Feature};
use serde::{Deserialize, Serialize};
use vmtape_arch::{
    cpuid::CpuidEntry,
    host::{Silicon, Vendor},
};

/// Features of nested virtualization, by QEMU's names: bits of the VMX capability MSRs, which no CPUID leaf shows.
const VMX_CAPABILITY: &str = "vmx-";

/// A host: its silicon, and what KVM and the VMM make of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Passport {
    pub name: String,
    pub silicon: Silicon,
    /// The guest physical width that the host can map, where that is known otherwise than from its paging levels.
    pub guest_phys_bits: Option<u8>,
    /// Paging levels that a guest may use: 5 with LA57.
    pub guest_levels: u8,
    /// The width of addresses for devices.
    pub iommu_bits: Option<u8>,
    /// The widest guest that the VMM starts there (QEMU's `host-phys-bits-limit`).
    pub phys_bits_limit: Option<u8>,
    /// Addresses that no device reaches; `None`: what silicon of this kind is known to keep.
    pub reserved: Option<Vec<Reserved>>,
    /// Features by QEMU's names that other hosts of this vendor have and this one does not.
    pub without: Vec<String>,
    /// The backend that virtualizes like this host.
    pub backend: Option<String>,
    /// Its KVM: release, patches and parameters.
    pub kvm: Option<String>,
}

impl Passport {
    /// The passport of a host about which nothing is known but its silicon.
    pub fn new(name: impl Into<String>, silicon: Silicon) -> Self {
        Self {
            name: name.into(),
            silicon,
            guest_phys_bits: None,
            guest_levels: silicon.host_levels,
            iommu_bits: None,
            phys_bits_limit: None,
            reserved: None,
            without: Vec::new(),
            backend: None,
            kvm: None,
        }
    }

    /// What CPUID says on this host.
    pub fn cpuid(&self) -> Vec<CpuidEntry> {
        let la57 = model::named("la57").ok().map(|feature| (feature, self.guest_levels == 5));
        let without = self.without.iter().filter_map(|name| model::named(name).ok());
        let changes: Vec<(&Feature, bool)> = la57.into_iter().chain(without.map(|f| (f, false))).collect();
        model::silicon_cpuid_with(&self.silicon, &changes)
    }

    /// Addresses that no device of this host reaches.
    pub fn reserved(&self) -> Vec<Reserved> {
        self.reserved.clone().unwrap_or_else(|| reserved::of_silicon(&self.silicon))
    }

    /// Missing features that are bits of the VMX capability MSRs.
    pub fn without_vmx_capabilities(&self) -> impl Iterator<Item = &str> {
        self.without.iter().map(String::as_str).filter(|name| name.starts_with(VMX_CAPABILITY))
    }

    /// The width that the host's page tables below the guest reach: 48 bits with four levels.
    // See: KVM commit b628cb523c65 ("Advertise max mappable GPA in CPUID.0x80000008.GuestPhysBits")
    pub fn mappable_bits(&self) -> u8 {
        const FOUR_LEVELS: u8 = 48;
        let silicon = &self.silicon;
        let levels = if silicon.vendor == Vendor::INTEL { silicon.ept_levels } else { silicon.host_levels };
        let reach = if levels == 5 { silicon.phys_bits } else { silicon.phys_bits.min(FOUR_LEVELS) };
        self.guest_phys_bits.unwrap_or(reach)
    }

    /// Reads a passport. `name` is for one that has none itself.
    pub fn parse(name: &str, text: &str) -> Result<Self, String> {
        let file: File = toml::from_str(text).map_err(|cause| cause.to_string())?;
        let passport = file.passport(name)?;
        check(&passport)?;
        Ok(passport)
    }

    /// The passport as [`Passport::parse`] reads it.
    pub fn to_toml(&self) -> Result<String, toml::ser::Error> {
        toml::to_string(&File::of(self))
    }
}

/// The file: a named host to start from, and what differs.
#[derive(Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct File {
    name: Option<String>,
    base: Option<String>,
    vendor: Option<String>,
    /// MAXPHYADDR.
    #[serde(alias = "maxphyaddr")]
    phys_bits: Option<u8>,
    guest_phys_bits: Option<u8>,
    guest_levels: Option<u8>,
    host_levels: Option<u8>,
    ept_levels: Option<u8>,
    /// Those of the host's kernel, on AMD.
    npt_levels: Option<u8>,
    iommu_bits: Option<u8>,
    encryption_bits: Option<u8>,
    phys_bits_limit: Option<u8>,
    reserved: Option<Vec<Reserved>>,
    gbpages: Option<bool>,
    ept_ad: Option<bool>,
    ept_advanced: Option<bool>,
    apicv: Option<bool>,
    nrips: Option<bool>,
    decode_assists: Option<bool>,
    vgif: Option<bool>,
    vls: Option<bool>,
    vnmi: Option<bool>,
    rmw_reads_first: Option<bool>,
    /// `4K`, `2M` or `1G`.
    backing: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    without: Vec<String>,
    backend: Option<String>,
    kvm: Option<String>,
}

impl File {
    fn passport(self, name: &str) -> Result<Passport, String> {
        let base = self.base()?;
        let silicon = self.silicon(base)?;
        let name = self.name.unwrap_or_else(|| name.to_owned());
        Ok(Passport {
            guest_phys_bits: self.guest_phys_bits,
            guest_levels: self.guest_levels.unwrap_or(silicon.host_levels),
            iommu_bits: self.iommu_bits,
            phys_bits_limit: self.phys_bits_limit,
            reserved: self.reserved,
            without: self.without,
            backend: self.backend,
            kvm: self.kvm,
            ..Passport::new(name, silicon)
        })
    }

    fn base(&self) -> Result<Silicon, String> {
        match (&self.base, &self.vendor) {
            (Some(name), _) => named::ALL
                .iter()
                .find(|host| host.name == *name)
                .map(|Host { silicon, .. }| *silicon)
                .ok_or_else(|| format!("no host is named '{name}'")),
            (None, Some(vendor)) => Ok(named::of_today(named_vendor(vendor)?)),
            (None, None) => Err("a host needs `vendor` or `base`".into()),
        }
    }

    fn silicon(&self, base: Silicon) -> Result<Silicon, String> {
        let vendor = self.vendor.as_deref().map_or(Ok(base.vendor), named_vendor)?;
        let host_levels = match (self.npt_levels, self.host_levels) {
            (Some(npt), Some(host)) if npt != host => {
                return Err(format!(
                    "npt-levels={npt} contradicts host-levels={host}: NPT has the levels of the host's kernel"
                ));
            }
            (Some(_), _) if vendor != Vendor::AMD => return Err("npt-levels is for vendor amd".into()),
            (npt, host) => npt.or(host).unwrap_or(base.host_levels),
        };
        Ok(Silicon {
            vendor,
            phys_bits: self.phys_bits.unwrap_or(base.phys_bits),
            host_levels,
            ept_levels: self.ept_levels.unwrap_or(base.ept_levels),
            gbpages: self.gbpages.unwrap_or(base.gbpages.is_set()).into(),
            ept_ad: self.ept_ad.unwrap_or(base.ept_ad.is_set()).into(),
            ept_advanced: self.ept_advanced.unwrap_or(base.ept_advanced.is_set()).into(),
            apicv: self.apicv.unwrap_or(base.apicv.is_set()).into(),
            nrips: self.nrips.unwrap_or(base.nrips.is_set()).into(),
            decode_assists: self.decode_assists.unwrap_or(base.decode_assists.is_set()).into(),
            vgif: self.vgif.unwrap_or(base.vgif.is_set()).into(),
            vls: self.vls.unwrap_or(base.vls.is_set()).into(),
            vnmi: self.vnmi.unwrap_or(base.vnmi.is_set()).into(),
            backing_shift: self.backing.as_deref().map_or(Ok(base.backing_shift), backing_shift)?,
            rmw_reads_first: self.rmw_reads_first.unwrap_or(base.rmw_reads_first.is_set()).into(),
            encryption_bits: self.encryption_bits.unwrap_or(base.encryption_bits),
        })
    }

    fn of(passport: &Passport) -> Self {
        let s = &passport.silicon;
        let intel = s.vendor == Vendor::INTEL;
        Self {
            name: Some(passport.name.clone()),
            vendor: Some(s.vendor.to_string()),
            phys_bits: Some(s.phys_bits),
            guest_phys_bits: passport.guest_phys_bits,
            guest_levels: Some(passport.guest_levels),
            host_levels: intel.then_some(s.host_levels),
            ept_levels: intel.then_some(s.ept_levels),
            npt_levels: (!intel).then_some(s.host_levels),
            iommu_bits: passport.iommu_bits,
            encryption_bits: Some(s.encryption_bits),
            phys_bits_limit: passport.phys_bits_limit,
            reserved: passport.reserved.clone(),
            gbpages: Some(s.gbpages.is_set()),
            ept_ad: intel.then_some(s.ept_ad.is_set()),
            ept_advanced: intel.then_some(s.ept_advanced.is_set()),
            apicv: intel.then_some(s.apicv.is_set()),
            nrips: (!intel).then_some(s.nrips.is_set()),
            decode_assists: (!intel).then_some(s.decode_assists.is_set()),
            vgif: (!intel).then_some(s.vgif.is_set()),
            vls: (!intel).then_some(s.vls.is_set()),
            vnmi: (!intel).then_some(s.vnmi.is_set()),
            without: passport.without.clone(),
            backend: passport.backend.clone(),
            kvm: passport.kvm.clone(),
            ..Self::default()
        }
    }
}

fn named_vendor(name: &str) -> Result<Vendor, String> {
    Vendor::from_name(name).ok_or_else(|| format!("vendor '{name}' is neither intel nor amd"))
}

/// Refuses what no host can be.
pub(crate) fn check(passport: &Passport) -> Result<(), String> {
    let silicon = &passport.silicon;
    // Names are printed, on terminals too.
    if passport.name.is_empty() || passport.name.contains(char::is_control) {
        return Err(format!("name {:?} is empty or has control characters", passport.name));
    }
    let widths = [
        ("phys-bits", Some(silicon.phys_bits)),
        ("guest-phys-bits", passport.guest_phys_bits),
        ("iommu-bits", passport.iommu_bits),
        ("phys-bits-limit", passport.phys_bits_limit),
    ];
    for (what, bits) in widths {
        // An IOMMU may be wider than any processor.
        let most = if what == "iommu-bits" { 64 } else { *PHYS_BITS.end() };
        if let Some(bits) = bits
            && !(*PHYS_BITS.start()..=most).contains(&bits)
        {
            return Err(format!("{what}={bits} is not within 32..{most}"));
        }
    }
    if silicon.phys_bits.saturating_sub(silicon.encryption_bits) < *PHYS_BITS.start() {
        return Err(format!("encryption-bits={} leave less than 32", silicon.encryption_bits));
    }
    let levels = [
        ("host-levels", silicon.host_levels),
        ("ept-levels", silicon.ept_levels),
        ("guest-levels", passport.guest_levels),
    ];
    for (what, levels) in levels {
        if !(4..=5).contains(&levels) {
            return Err(format!("{what}={levels} is neither 4 nor 5"));
        }
    }
    let unknown = passport.without.iter().find(|name| !model::is_feature(name));
    unknown.map_or(Ok(()), |name| Err(format!("without: no feature is named '{name}'")))
}

pub(crate) fn backing_shift(text: &str) -> Result<u8, String> {
    match text {
        "4K" => Ok(12),
        "2M" => Ok(21),
        "1G" => Ok(30),
        _ => Err(format!("backing '{text}' is none of 4K, 2M, 1G")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmtape_arch::cpuid::{find, maxphyaddr};

    fn parse(text: &str) -> Passport {
        Passport::parse("file", text).expect(text)
    }

    #[test]
    fn a_file_changes_what_it_names() {
        let passport = parse("base = 'intel-52'\nept-levels = 4\nbacking = '4K'");
        let silicon = passport.silicon;
        assert_eq!((silicon.phys_bits, silicon.ept_levels, silicon.backing_shift), (52, 4, 12));
        assert_eq!((passport.name.as_str(), passport.mappable_bits()), ("file", 48));
        assert_eq!(parse("base = 'amd-52'\nnpt-levels = 4").silicon.host_levels, 4);
    }

    #[test]
    fn a_passport_is_read_as_it_was_written() {
        for host in named::ALL {
            let mut passport = Passport::new(host.name, host.silicon);
            // How memory is backed and a software CPU's habit are no property of a host that travels.
            (passport.silicon.backing_shift, passport.silicon.rmw_reads_first) = (21, false.into());
            if passport.silicon.vendor == Vendor::AMD {
                passport.silicon.ept_levels = 4;
            }
            passport.iommu_bits = Some(39);
            passport.without = vec!["pku".into(), "vmx-rdrand-exit".into()];
            passport.kvm = Some("v6.12".into());
            passport.reserved = Some(vec!["0x7b800000-0x7fffffff RMRR".parse().unwrap()]);
            assert_eq!(
                Passport::parse("", &passport.to_toml().unwrap()),
                Ok(passport.clone()),
                "{}",
                host.name
            );
        }
    }

    #[test]
    fn nonsense_is_refused_with_its_name() {
        for (text, mentions) in [
            ("vendor = 'via'", "via"),
            ("phys-bits = 40", "vendor"),
            ("vendor = 'amd'\nphys-bits = 99", "99"),
            ("base = 'intel-9000'", "intel-9000"),
            ("vendor = 'amd'\nwidth = 3", "width"),
            ("vendor = 'amd'\nbacking = '3M'", "3M"),
            ("vendor = 'amd'\nnpt-levels = 4\nhost-levels = 5", "contradicts"),
            ("vendor = 'intel'\nnpt-levels = 4", "amd"),
            ("vendor = 'intel'\nwithout = ['warp']", "warp"),
            ("vendor = 'amd'\nencryption-bits = 40", "encryption-bits=40"),
            ("vendor = 'amd'\nname = \"a\\u001b[31m\"", "control"),
            ("vendor = 'amd'\nname = ''", "empty"),
            ("vendor = 'amd'\nreserved = ['1T']", "1T"),
        ] {
            let cause = Passport::parse("file", text).expect_err(text);
            assert!(cause.contains(mentions), "{text}: {cause}");
        }
    }

    #[test]
    fn a_host_lacks_what_its_passport_says() {
        let ecx = |text| find(&parse(text).cpuid(), 7, 0).expect("leaf 7").ecx;
        let (pku, la57) = (1 << 3, 1 << 16);
        assert_eq!(ecx("base = 'intel-52'") & (pku | la57), pku | la57);
        assert_eq!(ecx("base = 'intel-52'\nguest-levels = 4\nwithout = ['pku']") & (pku | la57), 0);
        assert_eq!(ecx("base = 'intel-52'\nhost-levels = 4\nguest-levels = 5") & la57, la57);
        for name in ["avx512f", "amx-tile", "sse4_1", "PKU", "lzcnt", "vmx-ept-uc", "arch-capabilities"] {
            assert_eq!(parse(&format!("vendor = 'intel'\nwithout = ['{name}']")).without, [name]);
        }
        let upper = find(&parse("vendor = 'intel'\nwithout = ['PKU']").cpuid(), 7, 0).expect("leaf 7").ecx;
        assert_eq!(upper & pku, 0);
        assert_eq!(maxphyaddr(&parse("vendor = 'amd'\nmaxphyaddr = 44").cpuid()), 44);
    }
}
