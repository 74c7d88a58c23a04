//! What a source tells of a host, and the passport that this makes.

use std::collections::{BTreeMap, BTreeSet};
use vmtape_arch::{
    cpuid::{CpuidEntry, find},
    host::{Silicon, Vendor},
};
use vmtape_machine::{
    Passport, hosts,
    model::{FEATURES, Feature, plain_name},
};
use vmtape_replay::check::rules::has;

/// What a VMM adds, and what has a key of its own in a passport.
const NOT_LISTED: [&str; 3] = ["hypervisor", "tsc-deadline", "la57"];

/// Address bits that processors have.
pub const WIDTHS: std::ops::RangeInclusive<u8> = 32..=52;

/// What was read. Names of features are QEMU's first ones.
#[derive(Clone, Debug, Default)]
pub struct Evidence {
    /// What the source is, for people.
    pub what: &'static str,
    pub vendor: Option<Vendor>,
    /// The processor's own name.
    pub brand: Option<String>,
    pub phys_bits: Option<u8>,
    pub guest_phys_bits: Option<u8>,
    /// The widest guest that its VMM starts.
    pub phys_bits_limit: Option<u8>,
    /// Paging levels of its kernel.
    pub host_levels: Option<u8>,
    pub ept_levels: Option<u8>,
    pub ept_ad: Option<bool>,
    pub apicv: Option<bool>,
    pub features: BTreeMap<String, bool>,
    /// Features that are not named are not there.
    pub complete: bool,
    /// Names that such a source never has, though the feature may be there.
    pub hidden: &'static [&'static str],
    pub remarks: Vec<String>,
}

impl Evidence {
    pub fn of(what: &'static str) -> Self {
        Self { what, ..Self::default() }
    }

    /// A feature that is there or not.
    pub fn feature(&mut self, name: &str, on: bool) {
        self.features.insert(plain_name(name), on);
    }

    /// Everything that whole leaves say. A leaf that is missing among those that the processor has says nothing.
    pub fn leaves(&mut self, table: &[CpuidEntry]) {
        let has_leaf = |leaf: u32| find(table, leaf & 0x8000_0000, 0).is_some_and(|first| leaf <= first.eax);
        let untold = |feature: &Feature| {
            has_leaf(feature.leaf)
                && find(table, feature.leaf, feature.subleaf).is_none()
                && feature.subleaf == 0
        };
        for feature in FEATURES.iter().filter(|feature| !untold(feature)) {
            self.feature(feature.name, has(table, feature));
        }
    }

    /// What another processor of the same machine has, too.
    pub fn and(&mut self, other: &Self) {
        for (name, on) in &mut self.features {
            *on &= other.features.get(name).copied().unwrap_or(*on);
        }
        self.phys_bits = self.phys_bits.into_iter().chain(other.phys_bits).min();
        self.guest_phys_bits = self.guest_phys_bits.into_iter().chain(other.guest_phys_bits).min();
    }

    /// Whether the feature is there; `None`: nobody tells.
    fn tells(&self, name: &str) -> Option<bool> {
        let name = plain_name(name);
        let absent = self.complete && !self.hidden.contains(&name.as_str());
        self.features.get(&name).copied().or(absent.then_some(false))
    }

    /// The passport, and what is to be said of it.
    pub fn passport(&self, name: &str, vendor: Vendor) -> (Passport, Vec<String>) {
        let base = hosts::of_today(vendor);
        let silicon = self.silicon(base);
        let mut passport = Passport::new(printable(name), silicon);
        passport.guest_phys_bits = self.guest_phys_bits.filter(|bits| (32..=52).contains(bits));
        passport.phys_bits_limit = self.phys_bits_limit.map(|bits| bits.clamp(32, 52));
        if let Some(la57) = self.tells("la57") {
            passport.guest_levels = if la57 { 5 } else { 4 };
        }
        let expected = passport.cpuid();
        let listed = || FEATURES.iter().filter(|f| !NOT_LISTED.contains(&f.name) && has(&expected, f));
        let named =
            |features: &mut dyn Iterator<Item = &Feature>| features.map(|f| f.name.to_owned()).collect();
        passport.without = named(&mut listed().filter(|f| self.tells(f.name) == Some(false)));
        // Features that are not modelled are named only where somebody took them away.
        let modelled: BTreeSet<String> = FEATURES.iter().map(|f| plain_name(f.name)).collect();
        let others = self.features.iter().filter(|(name, on)| !**on && !modelled.contains(*name));
        passport.without.extend(others.map(|(name, _)| name.clone()));
        let mut remarks =
            vec![format!("{}: {}", self.what, self.brand.as_deref().unwrap_or("a CPU without a name"))];
        remarks.extend(self.remarks.iter().cloned());
        let untold: Vec<String> = named(&mut listed().filter(|f| self.tells(f.name).is_none()));
        let mut open = self.open(&passport);
        if !untold.is_empty() {
            open.push(format!("features, taken to be there: {}", untold.join(" ")));
        }
        remarks.extend(open.into_iter().map(|text| format!("left open: {text}")));
        (passport, remarks.iter().map(|remark| printable(remark)).collect())
    }

    fn silicon(&self, base: Silicon) -> Silicon {
        let flag = |name: &str, base| self.tells(name).map_or(base, Into::into);
        let amd = base.vendor == Vendor::AMD;
        let mut silicon = Silicon { gbpages: flag("pdpe1gb", base.gbpages), ..base };
        silicon.phys_bits = self.phys_bits.unwrap_or(base.phys_bits).clamp(32, 52);
        silicon.host_levels = self.host_levels.unwrap_or(base.host_levels);
        if amd {
            silicon.nrips = flag("nrip-save", base.nrips);
            silicon.decode_assists = flag("decodeassists", base.decode_assists);
            silicon.vgif = flag("vgif", base.vgif);
            silicon.vls = flag("v-vmsave-vmload", base.vls);
            silicon.vnmi = flag("vnmi", base.vnmi);
        } else {
            silicon.ept_levels = self.ept_levels.unwrap_or(base.ept_levels);
            silicon.ept_ad = self.ept_ad.map_or(base.ept_ad, Into::into);
            silicon.apicv = self.apicv.map_or(base.apicv, Into::into);
        }
        silicon
    }

    /// What such a source cannot tell, and what was taken instead.
    fn open(&self, passport: &Passport) -> Vec<String> {
        let silicon = &passport.silicon;
        let mut open = Vec::new();
        if self.phys_bits.is_none() {
            open.push(format!("phys-bits, taken to be {}", silicon.phys_bits));
        }
        if self.host_levels.is_none() {
            open.push(format!("host-levels (of its kernel), taken to be {}", silicon.host_levels));
        }
        if silicon.vendor == Vendor::INTEL && self.ept_levels.is_none() {
            open.push(format!("ept-levels, taken to be {}", silicon.ept_levels));
        }
        open.push("iommu-bits: no IOMMU says how many address bits devices reach".to_owned());
        open.push("kvm: its release and parameters".to_owned());
        open
    }
}

/// Remarks and names are printed on terminals, a line each.
fn printable(text: &str) -> String {
    let text: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    if text.trim().is_empty() { "host".to_owned() } else { text }
}
