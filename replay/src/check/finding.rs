//! What a check finds, and what would help.

use super::footprint::Place;
use schemars::JsonSchema;
use serde::Serialize;
use std::fmt;
use vmtape_traces::hex;

pub(crate) const DMA: &str = "Linux drivers/vfio/vfio_iommu_type1.c vfio_iommu_iova_dma_valid()";

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Severity {
    /// Nothing on this tape shows that the guest minds, but another guest, or this one later, might.
    Caution,
    /// The guest sees it, because it relies on address bits that its width reserves and the host does not.
    Conditional,
    /// The guest sees it.
    Breaks,
    /// The guest cannot be there at all.
    Refuses,
}

/// What a finding is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Subject {
    /// MAXPHYADDR of the guest, against what the host gives.
    Width,
    /// A memory slot that the host or the guest does not reach.
    Slot,
    /// What the levels of the host's page tables reach (GuestPhysBits).
    Mappable,
    /// Bits that are reserved for the guest and not for the host.
    ReservedBits,
    /// What CPUID promises and the host does not have.
    Feature,
    /// Extended state that the host cannot save and restore.
    State,
    /// Addresses that devices cannot reach.
    Iommu,
    /// Addresses that the host keeps for something else.
    Reserved,
    Vendor,
    /// Nested virtualization, which is not judged.
    Nested,
    /// What running the guest there showed.
    Replay,
}

/// A setting that takes a finding away.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Pin {
    /// The guest's MAXPHYADDR, no more than this.
    PhysBits(u8),
    /// The guest's MAXPHYADDR, no less than this.
    AtLeastPhysBits(u8),
    /// The guest's GuestPhysBits, no more than this.
    GuestPhysBits(u8),
    /// Without CPUID features, by QEMU's names.
    Without(Vec<String>),
    /// Memory and BARs lie outside of these addresses, both ends included.
    KeepOut {
        #[serde(serialize_with = "hex::word")]
        #[schemars(with = "String")]
        first: u64,
        #[serde(serialize_with = "hex::word")]
        #[schemars(with = "String")]
        last: u64,
    },
    /// KVM on this host has to hide its width from narrower guests (KVM_CAP_SMALLER_MAXPHYADDR).
    HideWidth(String),
}

/// One thing that a check found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Finding {
    pub severity: Severity,
    pub subject: Subject,
    pub sentence: String,
    /// The address, entry, or slot that breaks first.
    pub place: Option<Place>,
    /// The first exit that shows it or would differ.
    pub exit: Option<u64>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub pins: Vec<Pin>,
    pub source: &'static str,
}

impl Finding {
    pub fn new(
        severity: Severity,
        subject: Subject,
        sentence: impl Into<String>,
        source: &'static str,
    ) -> Self {
        Self {
            severity,
            subject,
            sentence: sentence.into(),
            place: None,
            exit: None,
            pins: Vec::new(),
            source,
        }
    }

    /// With the place that breaks first, whose exit is the finding's.
    pub fn at(self, place: Option<&Place>) -> Self {
        Self { place: place.cloned(), exit: place.and_then(|place| place.exit).or(self.exit), ..self }
    }

    pub fn at_exit(self, exit: Option<u64>) -> Self {
        Self { exit, ..self }
    }

    pub fn pin(mut self, pin: Pin) -> Self {
        self.pins.push(pin);
        self
    }
}

impl Severity {
    pub fn text(self) -> &'static str {
        match self {
            Self::Caution => "caution",
            Self::Conditional => "conditional",
            Self::Breaks => "breaks",
            Self::Refuses => "refused",
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.sentence)?;
        match (&self.place, self.exit) {
            (Some(place), _) => write!(f, "; first: {place}"),
            (None, Some(exit)) => write!(f, "; first at exit {exit}"),
            (None, None) => Ok(()),
        }
    }
}
