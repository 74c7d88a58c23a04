//! What is known of a plugin before any VM exists.

use crate::contract::Backend;
use vmtape_arch::{
    exit::Isa,
    host::{Silicon, Vendor},
};

/// What a VM is created with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VmConfig {
    pub silicon: Silicon,
    /// Profile, patches and module parameters: `("kvm", "v6.12")`, `("+NAME", "")`, `("-NAME", "")`, `("ept", "on")`, ...
    pub options: Vec<(String, String)>,
}

/// One row of a table that a plugin exports; [`RawRow`](crate::table::RawRow) says what each field holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TableRow {
    pub id: u32,
    pub name: String,
    pub text: String,
    pub source: String,
    pub value: String,
    pub commit: String,
    pub subject: String,
    pub since: String,
    pub until: String,
    pub undone_by: String,
    pub role: String,
}

/// The role of the parameter that says whether silicon walks the guest's own tables.
pub const NESTED_PAGING: &str = "nested-paging";

/// What a plugin says of itself before any VM exists.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Description {
    pub name: String,
    pub summary: String,
    pub isa: Isa,
    pub vendor: Vendor,
    pub rules: Vec<TableRow>,
    pub patches: Vec<TableRow>,
    pub parameters: Vec<TableRow>,
    pub fault_points: Vec<TableRow>,
    /// Profiles known, oldest first.
    pub profiles: Vec<TableRow>,
    /// Capabilities worth showing: id is the KVM_CAP number.
    pub capabilities: Vec<TableRow>,
}

impl Description {
    /// The parameter that has a role, if the backend says so of one.
    pub fn parameter_as(&self, role: &str) -> Option<&str> {
        self.parameters.iter().find(|row| row.role == role).map(|row| row.name.as_str())
    }
}

/// A plugin: what is known before a VM exists, and the way to one.
pub trait Plugin {
    type Vm: Backend;

    fn describe() -> Description;

    /// Creates a VM. The error says which option or which property of the silicon does not fit.
    fn create(config: &VmConfig) -> Result<Self::Vm, String>;
}
