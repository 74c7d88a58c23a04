//! A backend to begin from. Copy the folder, rename the crate, take `[lib] name` out of its manifest, and give [`NAME`] another
//! value; then `vmtape scenarios --kit -b NAME` says what holds and what does not.
//!
//! Guest physical memory is where the slots say, and the guest's page tables are walked without anything below them. What is in
//! no slot is a device: the access exits, and the host's emulator makes it. CPUID and HLT exit too.
#![forbid(unsafe_op_in_unsafe_fn)]

mod slots;
mod vm;
mod walk;

use vmtape_abi::{Description, Plugin, TableRow, VmConfig};
use vmtape_arch::{exit::Isa, host::Vendor};

/// By what `-b` calls it.
const NAME: &str = "template";

/// The plugin.
#[derive(Debug)]
pub struct Template;

impl Plugin for Template {
    type Vm = vm::Vm;

    fn describe() -> Description {
        let rule = TableRow {
            id: vm::RULE_IN_SLOT,
            name: "in-slot".into(),
            text: "A guest physical address is memory where a slot has it".into(),
            source: "plugins/template/src/slots.rs, Slots::find()".into(),
            ..TableRow::default()
        };
        Description {
            name: NAME.into(),
            summary: "the least that runs guests: slots, and the guest's own page tables".into(),
            // Whose numbers its exits have.
            isa: Isa::VMX,
            vendor: Vendor::INTEL,
            rules: vec![rule],
            ..Description::default()
        }
    }

    /// What does not fit is refused with a sentence, and so is every option that no table has: a tape with it means something
    /// that this backend does not know of.
    fn create(config: &VmConfig) -> Result<vm::Vm, String> {
        if config.silicon.vendor != Vendor::INTEL {
            return Err(format!("{NAME} reports exits with Intel's numbers: it needs an Intel host"));
        }
        match config.options.iter().find(|(key, value)| (key.as_str(), value.as_str()) != vm::RESOLVED) {
            Some((key, _)) => Err(format!("{NAME} has no option `{key}`")),
            None => Ok(vm::Vm::default()),
        }
    }
}

vmtape_abi::export_backend!(Template);
