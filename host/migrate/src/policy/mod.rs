//! Who refuses what: width and CPUID of a guest against a destination, as different management software judges them.

mod cpuid;
mod state;
mod vendor;
mod width;

use crate::stream::Offer;
use schemars::JsonSchema;
use serde::Serialize;
use std::{fmt, str::FromStr};
use vmtape_arch::{cpuid::CpuidEntry, host::Silicon};
use vmtape_machine::{Machine, model::silicon_cpuid};

/// Whose rules.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Policy {
    /// A guest is refused where its width exceeds the destination's, and where a CPUID bit of it is not there.
    #[default]
    Strict,
    Qemu,
    Libvirt,
    Ch,
}

/// A destination, as a policy looks at it.
#[derive(Clone, Debug)]
pub struct Ground {
    pub silicon: Silicon,
    /// What KVM_GET_SUPPORTED_CPUID says there.
    pub supported: Vec<CpuidEntry>,
}

impl Ground {
    pub fn of(machine: &Machine) -> Self {
        let silicon = machine.spec().silicon;
        Self { silicon, supported: machine.backend().supported_cpuid(&silicon_cpuid(&silicon)) }
    }
}

/// What a policy has to say.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Finding {
    pub rule: &'static str,
    /// The guest does not move.
    pub refuses: bool,
    pub text: String,
}

impl Finding {
    fn new(rule: &'static str, refuses: bool, text: String) -> Self {
        Self { rule, refuses, text }
    }
}

impl Policy {
    pub const ALL: [Self; 4] = [Self::Strict, Self::Qemu, Self::Libvirt, Self::Ch];

    /// What it says of a guest, with the CPUID of its first vCPU.
    pub fn judge(self, offer: &Offer, cpuid: &[CpuidEntry], ground: &Ground) -> Vec<Finding> {
        let mut findings = Vec::new();
        findings.extend(width::judge(self, offer, cpuid, ground));
        findings.extend(cpuid::judge(self, cpuid, &ground.supported));
        findings.extend(vendor::judge(offer, cpuid, ground));
        findings.extend(state::judge(cpuid));
        findings
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::Strict => "strict",
            Self::Qemu => "qemu",
            Self::Libvirt => "libvirt",
            Self::Ch => "ch",
        }
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Policy {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let named = Self::ALL.into_iter().find(|policy| policy.name() == text);
        named.ok_or_else(|| format!("`{text}` is none of {}", Self::ALL.map(Self::name).join(", ")))
    }
}
