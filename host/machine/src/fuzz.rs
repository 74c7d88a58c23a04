//! What the fuzz target runs, kept here so that the ordinary tests run it too.

use crate::{GuestImage, MachineSpec, Memory, hosts, load_image};

const MEMORY: u64 = 16 << 20;

/// Any bytes as a guest's image: a loaded guest or an error, never a panic.
pub fn image(bytes: &[u8]) {
    let Ok(silicon) = hosts::find("intel-46") else { return };
    let mut spec = MachineSpec {
        cmdline: "console=ttyS0".to_owned(),
        memory: MEMORY,
        cpu: "max".to_owned(),
        host: "intel-46".to_owned(),
        ..MachineSpec::new(GuestImage { name: "fuzz".to_owned(), bytes: bytes.to_vec() }, silicon)
    };
    for initrd in [None, Some(b"initrd".to_vec())] {
        spec.initrd = initrd;
        if let Ok(memory) = Memory::new(MEMORY, spec.layout, silicon.backing_shift, &[]) {
            let _ = load_image(&spec, &memory);
        }
    }
}
