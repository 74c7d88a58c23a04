//! Everything that determines a run.

use serde::{Deserialize, Serialize};
use vmtape_arch::{cpuid::CpuidEntry, host::Silicon};

/// Local APIC identifiers must fit xAPIC mode's eight bits, without the broadcast.
pub const MAX_VCPUS: u32 = 254;

/// The guest image. Its bytes are part of the specification, so that a tape needs no file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestImage {
    /// As the user gave it; the first word of a multiboot command line.
    pub name: String,
    pub bytes: Vec<u8>,
}

/// Where RAM lies in the guest physical address space.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Layout {
    /// One range from zero up to 3 GiB (VGA text memory is RAM), the rest from 4 GiB up.
    #[default]
    Flat,
    /// The two ranges of the recordings' small VMM: without 0xa0000-0xbffff.
    VgaHole,
}

/// A machine and the guest it starts with. Serialized into a tape, it is all that a replay needs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineSpec {
    pub image: GuestImage,
    /// Arguments, without the image's name.
    pub cmdline: String,
    pub initrd: Option<Vec<u8>>,
    /// Bytes of RAM.
    pub memory: u64,
    pub vcpus: u32,
    pub layout: Layout,
    /// The CPU model in QEMU's syntax, as the user gave it.
    pub cpu: String,
    /// The guest's CPUID of vCPU 0, resolved from the model or given.
    pub cpuid: Vec<CpuidEntry>,
    /// The host's name, as the user gave it.
    pub host: String,
    pub silicon: Silicon,
    /// The name of the backend and its options, resolved.
    pub backend: String,
    pub options: Vec<(String, String)>,
    /// Seeds every random input of a live run.
    pub seed: u64,
    /// Exits between two checkpoints; zero: none. The machine drops its TLBs there, so this is part of the run.
    pub checkpoint_every: u64,
}
