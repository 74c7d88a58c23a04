//! What the fuzz target runs, kept here so that the ordinary tests run it too.

use crate::{GuestImage, Layout, MachineSpec, Memory, hosts, load_image};

const MEMORY: u64 = 16 << 20;

/// Any bytes as a guest's image: a loaded guest or an error, never a panic.
pub fn image(bytes: &[u8]) {
    let Ok(silicon) = hosts::find("intel-46") else { return };
    let mut spec = MachineSpec {
        image: GuestImage { name: "fuzz".to_owned(), bytes: bytes.to_vec() },
        cmdline: "console=ttyS0".to_owned(),
        initrd: None,
        memory: MEMORY,
        vcpus: 1,
        layout: Layout::Flat,
        cpu: "max".to_owned(),
        cpuid: Vec::new(),
        host: "intel-46".to_owned(),
        silicon,
        backend: String::new(),
        options: Vec::new(),
        seed: 0,
        checkpoint_every: 0,
        script: Vec::new(),
        milestone_every: 0,
        cpu_revision: vmtape_cpu::revision::REVISION,
        fault_points: Vec::new(),
        nested_paging: String::new(),
        pcpus: 0,
        retries: 0,
        platform: crate::Platform::CURRENT,
        register_changes: true,
        engine: Default::default(),
    };
    for initrd in [None, Some(b"initrd".to_vec())] {
        spec.initrd = initrd;
        if let Ok(memory) = Memory::new(MEMORY, spec.layout, silicon.backing_shift, &[]) {
            let _ = load_image(&spec, &memory);
        }
    }
}
