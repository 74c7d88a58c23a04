//! Everything that determines a run.

use crate::{Error, memory::Layout, vmm::Step};
use bitfield_struct::bitfield;
use serde::{Deserialize, Serialize};
use vmtape_abi::{Description, NESTED_PAGING};
use vmtape_arch::{cpuid::CpuidEntry, host::Silicon};
use vmtape_cpu::Engine;
use xxhash_rust::xxh3::xxh3_64;

/// The guest image. Its bytes are part of the specification, so that a tape needs no file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestImage {
    /// As the user gave it; the first word of a multiboot command line.
    pub name: String,
    pub bytes: Vec<u8>,
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
    // Tapes of the first release end here. What follows may only grow at its end, and is zeros there.
    /// What the VMM does beside running the guest.
    pub script: Vec<Step>,
    /// Instructions between two milestones; zero: none. The block of code that goes on there ends, so this is part of the run.
    pub milestone_every: u64,
    /// The interpreter's own part in the run: see [`vmtape_cpu::revision`].
    pub cpu_revision: u32,
    /// Numbers and names of the fault points that may answer; none in a run without faults.
    pub fault_points: Vec<(u32, String)>,
    /// Physical CPUs that vCPUs move between; 0 and 1: one.
    pub pcpus: u32,
    /// How often the VMM calls KVM_RUN again that has failed with an errno.
    pub retries: u32,
    pub platform: Platform,
    /// The option that says whether silicon walks the guest's own tables. Empty: its backend, or an older tape, does not say.
    pub nested_paging: String,
    /// What a tape tells of what each exit changed in registers.
    pub register_changes: ChangesTold,
    /// How instructions are executed. No tape has it: the run is the same.
    #[serde(skip)]
    pub engine: Engine,
}

/// What a board has beside the devices of every tape's machine: a byte of a tape's description.
#[bitfield(u8)]
#[derive(PartialEq, Eq, Serialize, Deserialize)]
pub struct Platform {
    /// A high-precision event timer.
    pub hpet: bool,
    /// VMware's backdoor port.
    pub vmport: bool,
    /// Power management of ACPI, and its tables.
    pub acpi: bool,
    #[bits(5)]
    reserved: u8,
}

impl Platform {
    /// That of new machines.
    pub const CURRENT: Self = Self::new().with_hpet(true).with_vmport(true).with_acpi(true);
}

/// What a tape tells of what exits and entries changed in registers (`RegisterChanges` of the tape).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum ChangesTold {
    #[default]
    Nothing,
    /// Of each exit, and of the entry that follows another one at once.
    Each,
    /// Of all entries as well, and of more registers; now and then what all of them make together.
    Chained,
}

/// Instructions between two milestones, unless somebody asks for more or fewer: a hundredth of a second or so.
pub const MILESTONE_EVERY: u64 = 1 << 20;

/// More zeros than all fields that a tape's description may lack.
const ABSENT: [u8; 64] = [0; 64];

impl MachineSpec {
    /// One vCPU and 128 MiB without a backend or CPUID; the rest as new machines have it.
    pub fn new(image: GuestImage, silicon: Silicon) -> Self {
        Self {
            image,
            cmdline: String::new(),
            initrd: None,
            memory: 128 << 20,
            vcpus: 1,
            layout: Layout::default(),
            cpu: String::new(),
            cpuid: Vec::new(),
            host: String::new(),
            silicon,
            backend: String::new(),
            options: Vec::new(),
            seed: 0,
            checkpoint_every: 0,
            script: Vec::new(),
            milestone_every: 0,
            cpu_revision: crate::CPU_REVISION,
            fault_points: Vec::new(),
            nested_paging: String::new(),
            pcpus: 0,
            retries: 0,
            platform: Platform::CURRENT,
            register_changes: ChangesTold::Chained,
            engine: Engine::default(),
        }
    }

    /// The description as a tape keeps it.
    pub fn encode(&self) -> postcard::Result<Vec<u8>> {
        postcard::to_stdvec(self)
    }

    /// Takes from its backend's description what no option's name says.
    pub fn describe_by(&mut self, plugin: &Description) {
        self.nested_paging = plugin.parameter_as(NESTED_PAGING).unwrap_or_default().to_owned();
    }

    /// Whether silicon walks the guest's own tables; otherwise the guest runs on tables of KVM's. `None`: nobody says.
    pub fn has_nested_paging(&self) -> Option<bool> {
        let found = self.options.iter().find(|(name, _)| *name == self.nested_paging);
        found.map(|(_, value)| value == "on")
    }

    /// A digest over what the guest was started as, wherever it runs: two machines with the same one run the same guest.
    pub fn identity(&self) -> Result<u64, Error> {
        let words =
            (&self.image, &self.cmdline, &self.initrd, self.memory, self.vcpus, &self.cpuid, self.seed);
        let bytes = postcard::to_stdvec(&words)
            .map_err(|cause| Error::Encode { what: "a guest's identity", cause })?;
        Ok(xxh3_64(&bytes))
    }

    /// The inverse of [`MachineSpec::encode`], of this build or an older one: what an older one did not know is zero.
    pub fn decode(bytes: &[u8]) -> postcard::Result<Self> {
        let padded = [bytes, &ABSENT].concat();
        let (spec, rest) = postcard::take_from_bytes(&padded)?;
        // A description of a later build has fields that would be lost.
        if rest.len() > ABSENT.len() {
            return Err(postcard::Error::DeserializeBadEncoding);
        }
        Ok(spec)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> MachineSpec {
        MachineSpec {
            image: GuestImage { name: "guest".into(), bytes: vec![1, 2] },
            cmdline: "a b".into(),
            initrd: Some(vec![3]),
            memory: 1 << 20,
            vcpus: 2,
            layout: Layout::VgaHole,
            cpu: "max".into(),
            cpuid: vec![CpuidEntry { function: 1, ..Default::default() }],
            host: "intel-46".into(),
            silicon: crate::hosts::find("intel-46").unwrap(),
            backend: "example".into(),
            options: vec![("kvm".into(), "v6.12".into())],
            seed: 7,
            checkpoint_every: 100,
            script: Vec::new(),
            milestone_every: 0,
            cpu_revision: 0,
            fault_points: Vec::new(),
            nested_paging: String::new(),
            pcpus: 0,
            retries: 0,
            platform: Platform::default(),
            register_changes: ChangesTold::default(),
            engine: Default::default(),
        }
    }

    #[test]
    fn what_an_older_tape_lacks_is_zero() {
        let spec = spec();
        let mut first_release = spec.encode().unwrap();
        first_release.truncate(first_release.len() - 9);
        assert_eq!(MachineSpec::decode(&first_release).unwrap(), spec);
    }

    #[test]
    fn a_script_is_kept() {
        use crate::vmm::{Action, When};
        let action = Action::SetCpuid { vcpu: 1, change: "phys-bits=36".into() };
        let spec = MachineSpec { script: vec![Step { at: When::Exit(1000), action }], ..spec() };
        assert_eq!(MachineSpec::decode(&spec.encode().unwrap()).unwrap(), spec);
        assert!(MachineSpec::decode(&[0xff; 200]).is_err());
        assert!(MachineSpec::decode(&[spec.encode().unwrap(), vec![1]].concat()).is_err());
    }

    #[test]
    fn the_interpreters_revision_is_kept() {
        let later = vmtape_cpu::revision::REVISION + 1;
        let bytes = MachineSpec { cpu_revision: later, ..spec() }.encode().unwrap();
        assert_eq!(MachineSpec::decode(&bytes).unwrap().cpu_revision, later);
        let text = crate::Error::CpuRevision(later).to_string();
        assert!(text.contains(&format!("revision {later} of the interpreter")), "{text}");
    }
}
