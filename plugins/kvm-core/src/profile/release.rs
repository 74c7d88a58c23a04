//! Releases, and the names under which options ask for them.

use super::{Entry, Switch};

/// Kernel releases that the registry may refer to, oldest first. Each is a profile.
pub const RELEASES: [&str; 39] = [
    "v5.6", "v5.7", "v5.8", "v5.9-rc1", "v5.9-rc7", "v5.9", "v5.10", "v5.11", "v5.12", "v5.13", "v5.14",
    "v5.15", "v5.16", "v5.17", "v5.18", "v5.19", "v6.0", "v6.1", "v6.2", "v6.3", "v6.4", "v6.5", "v6.6",
    "v6.7", "v6.8", "v6.9", "v6.10", "v6.11", "v6.12", "v6.13", "v6.14", "v6.15", "v6.16", "v6.17", "v6.18",
    "v6.19", "v7.0", "v7.1", "v7.2",
];

/// The profile of a machine that names none.
pub const DEFAULT: &str = "v6.12";
/// The newest release, under any name it may get.
const LATEST: &str = "latest";
/// A release with patches that were posted for it.
struct Series {
    name: &'static str,
    base: &'static str,
    patches: &'static [Switch],
    text: &'static str,
}

const SERIES: &[Series] = &[
    Series {
        name: "v1-series",
        base: "v5.6",
        patches: &[
            Switch::V1_RSVD_PF,
            Switch::V1_EPT_VIOLATION_CHECK,
            Switch::V1_EPT_MISCONFIG_CHECK,
            Switch::V1_NPF_CHECK,
            Switch::V1_TRANSLATE_GPA_CHECK,
        ],
        text: "v5.6 with the series of 27 Feb 2020 as posted, its two mistakes included",
    },
    Series {
        name: "gpat-v1-series",
        base: "v6.19",
        patches: &[
            Switch::V3_GPAT_CHECKED,
            Switch::V3_GPAT_IN_VMCB02,
            Switch::V3_GPAT_MSR,
            Switch::V3_GPAT_STORED,
            Switch::V1_GPAT_STATE,
        ],
        text: "v6.19 with the series of 13 Jan 2026 that gives L2 a PAT of its own",
    },
    Series {
        name: "gpat-v2-series",
        base: "v6.19",
        patches: &[
            Switch::V3_GPAT_CHECKED,
            Switch::V3_GPAT_IN_VMCB02,
            Switch::V3_GPAT_MSR,
            Switch::V3_GPAT_STORED,
            Switch::V2_GPAT_STATE,
        ],
        text: "v6.19 with its second version, of 15 Jan 2026",
    },
    Series {
        name: "gpat-v3-series",
        base: "v6.19",
        patches: &[
            Switch::GPAT_CLEAN_BIT,
            Switch::V3_GPAT_CHECKED,
            Switch::V3_GPAT_IN_VMCB02,
            Switch::V3_GPAT_MSR,
            Switch::V3_GPAT_STORED,
            Switch::V3_GPAT_STATE,
            Switch::V3_GPAT_LEGACY,
            Switch::PAT_ACCESS_WARNS,
        ],
        text: "v6.19 with its third version, of 5 Feb 2026",
    },
];

/// What a profile's name stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Profile {
    /// As a tape keeps it.
    pub name: &'static str,
    /// The release that it is, or is built upon.
    pub release: &'static str,
    /// Patches on top, on unless the options say otherwise.
    patches: &'static [Switch],
}

impl Profile {
    /// Finds a profile; an alias gives what it stands for.
    pub fn find(name: &str) -> Option<Self> {
        let newest = RELEASES[RELEASES.len() - 1];
        match name {
            LATEST => Self::find(newest),
            _ => {
                let release = RELEASES.iter().find(|release| **release == name);
                let series = SERIES.iter().find(|series| series.name == name);
                let of = |s: &Series| Self { name: s.name, release: s.base, patches: s.patches };
                release.map(|release| Self { name: release, release, patches: &[] }).or(series.map(of))
            }
        }
    }

    /// A switch's value in this profile.
    pub fn default(&self, entry: &Entry) -> bool {
        entry.default(self.release) || self.patches.contains(&entry.switch)
    }
}

/// Where a release stands in [`RELEASES`].
pub fn position(release: &str) -> Option<usize> {
    RELEASES.iter().position(|known| *known == release)
}

/// A row of the profiles' table: name, kind, release, sentence.
pub struct Row(pub &'static str, pub &'static str, pub &'static str, pub String);

/// All profiles: releases oldest first, then what is built upon them.
pub fn rows() -> impl Iterator<Item = Row> {
    let newest = RELEASES[RELEASES.len() - 1];
    let release = |name: &'static str| Row(name, "release", name, sentence(name));
    let alias = Row(LATEST, "alias", newest, format!("The newest release, {newest}"));
    let series = SERIES.iter().map(|s| Row(s.name, "series", s.base, s.text.into()));
    RELEASES.into_iter().map(release).chain([alias]).chain(series)
}

fn sentence(release: &str) -> String {
    let known = match release {
        "v5.9-rc1" => ": guests narrower than their host are new, and always on under VMX",
        "v5.9-rc7" => ": guests narrower than their host become a parameter, off",
        "v5.10" => ": for nested SVM 5.10.262",
        "v5.14" => ": KVM_SET_CPUID2 after KVM_RUN warns",
        "v5.15" => ": translate_gpa() checks no widths any more",
        "v5.16" => ": KVM_SET_CPUID2 after KVM_RUN fails",
        "v5.17" => ": KVM_SET_CPUID2 after KVM_RUN takes the same table again",
        "v5.19" => ": userspace may forbid that the other vendor's hypercall instruction is overwritten",
        "v6.1" => ": for nested SVM 6.1.192",
        "v6.8" => ": KVM_EXIT_MEMORY_FAULT is new",
        "v6.9" => ": /proc/cpuinfo says whether silicon has five-level EPT",
        "v6.10" => ": KVM_GET_SUPPORTED_CPUID has GuestPhysBits",
        "v6.12" => {
            ", for nested SVM 6.12.117, which the recordings of the real KVM show; what no switch is about is as here in all \
             profiles"
        }
        "v7.2" => ": for nested SVM 7.2.13; L2 may have a PAT of its own",
        _ => "",
    };
    format!("Linux {}{known}", release.trim_start_matches('v'))
}
