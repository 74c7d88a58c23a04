//! What a tape says of itself before its first event: the recorded machine.

use rkyv::{Archive, Deserialize, Serialize};
use vmtape_arch::{
    cpuid::CpuidEntry,
    host::{Silicon, Vendor},
};

use crate::flat::{cpuid_bytes, cpuid_entry};

/// How the notes begin that name the backend's rules.
const RULE: &str = "rule ";
/// The note that says which build of the backend recorded.
const BUILD: &str = "backend-build";
/// How the notes begin that name fault points.
const FAULT_POINT: &str = "fault-point ";

/// The recorded machine, as far as the format knows it. `machine` is the host's own full description, which the format
/// carries without looking into it.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Metadata {
    /// Who made the tape: `vmtape` and its version, or `ftrace` for an imported trace.
    pub origin: String,
    /// The backend's name.
    pub backend: String,
    /// Options as resolved: profile, every patch and parameter. Never a name like `latest`.
    pub options: Vec<(String, String)>,
    pub silicon: Option<Silicon>,
    /// The guest as the user named it.
    pub guest: String,
    pub command_line: String,
    pub memory: u64,
    pub vcpus: u32,
    /// The guest's CPUID table (of vCPU 0).
    pub cpuid: Vec<CpuidEntry>,
    /// The host's own description of the machine.
    pub machine: Vec<u8>,
    /// Anything else worth knowing, by name.
    pub notes: Vec<(String, String)>,
}

/// The archived form: words that no other crate can change under the format.
#[derive(Archive, Serialize, Deserialize)]
pub(crate) struct Stored {
    origin: String,
    backend: String,
    options: Vec<(String, String)>,
    silicon: Option<[u8; 16]>,
    guest: String,
    command_line: String,
    memory: u64,
    vcpus: u32,
    cpuid: Vec<[u8; 32]>,
    machine: Vec<u8>,
    notes: Vec<(String, String)>,
}

impl From<&Metadata> for Stored {
    fn from(m: &Metadata) -> Self {
        let m = m.clone();
        Self {
            silicon: m.silicon.as_ref().map(silicon_bytes),
            cpuid: m.cpuid.iter().map(cpuid_bytes).collect(),
            origin: m.origin,
            backend: m.backend,
            options: m.options,
            guest: m.guest,
            command_line: m.command_line,
            memory: m.memory,
            vcpus: m.vcpus,
            machine: m.machine,
            notes: m.notes,
        }
    }
}

impl From<Stored> for Metadata {
    fn from(s: Stored) -> Self {
        Self {
            silicon: s.silicon.map(silicon),
            cpuid: s.cpuid.iter().map(cpuid_entry).collect(),
            origin: s.origin,
            backend: s.backend,
            options: s.options,
            guest: s.guest,
            command_line: s.command_line,
            memory: s.memory,
            vcpus: s.vcpus,
            machine: s.machine,
            notes: s.notes,
        }
    }
}

fn silicon_bytes(s: &Silicon) -> [u8; 16] {
    [
        s.vendor.0,
        s.phys_bits,
        s.host_levels,
        s.ept_levels,
        s.gbpages.into(),
        s.ept_ad.into(),
        s.ept_advanced.into(),
        s.apicv.into(),
        s.nrips.into(),
        s.decode_assists.into(),
        s.backing_shift,
        s.rmw_reads_first.into(),
        s.encryption_bits,
        s.vgif.into(),
        s.vls.into(),
        s.vnmi.into(),
    ]
}

fn silicon(b: [u8; 16]) -> Silicon {
    Silicon {
        vendor: Vendor(b[0]),
        phys_bits: b[1],
        host_levels: b[2],
        ept_levels: b[3],
        gbpages: (b[4] != 0).into(),
        ept_ad: (b[5] != 0).into(),
        ept_advanced: (b[6] != 0).into(),
        apicv: (b[7] != 0).into(),
        nrips: (b[8] != 0).into(),
        decode_assists: (b[9] != 0).into(),
        backing_shift: b[10],
        rmw_reads_first: (b[11] != 0).into(),
        encryption_bits: b[12],
        vgif: (b[13] != 0).into(),
        vls: (b[14] != 0).into(),
        vnmi: (b[15] != 0).into(),
    }
}

impl Metadata {
    /// The note that names a fault point.
    pub fn fault_point_note(number: u32, name: &str) -> (String, String) {
        (format!("{FAULT_POINT}{number:#x}"), name.to_owned())
    }

    /// The name of a fault point: tapes that have faults have the names of all points that the machine knew.
    pub fn fault_point(&self, number: u32) -> Option<&str> {
        self.note(&format!("{FAULT_POINT}{number:#x}"))
    }

    /// The note that names a rule of the backend's.
    pub fn rule_note(number: u32, name: &str) -> (String, String) {
        (format!("{RULE}{number:#x}"), name.to_owned())
    }

    /// The name of a rule, as the build that recorded has it.
    pub fn rule(&self, number: u32) -> Option<&str> {
        self.note(&format!("{RULE}{number:#x}"))
    }

    /// Without the names of rules, which no text keeps.
    pub fn forget_rules(&mut self) {
        self.notes.retain(|(name, _)| !name.starts_with(RULE));
    }

    /// Whether the tape names its backend's rules.
    pub fn names_rules(&self) -> bool {
        self.notes.iter().any(|(name, _)| name.starts_with(RULE))
    }

    /// The note of which build of the backend recorded.
    pub fn build_note(build: &str) -> (String, String) {
        (BUILD.to_owned(), build.to_owned())
    }

    /// Which build of the backend recorded: its name, version and commit.
    pub fn build(&self) -> Option<&str> {
        self.note(BUILD)
    }

    fn note(&self, key: &str) -> Option<&str> {
        self.notes.iter().find(|(name, _)| name == key).map(|(_, value)| value.as_str())
    }

    /// The value of an option.
    pub fn option(&self, name: &str) -> Option<&str> {
        self.options.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}
