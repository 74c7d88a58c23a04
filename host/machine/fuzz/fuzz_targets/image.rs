//! Any bytes as a guest image: a loaded guest or an error, never a panic.
#![no_main]

use libfuzzer_sys::fuzz_target;
use vmtape_machine::{GuestImage, Layout, MachineSpec, Memory, hosts, load_image};

const MEMORY: u64 = 16 << 20;

fuzz_target!(|bytes: &[u8]| {
    let silicon = hosts::find("intel-46").expect("a named host");
    let spec = MachineSpec {
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
    };
    let memory = Memory::new(MEMORY, spec.layout, silicon.backing_shift).expect("16 MiB");
    let _ = load_image(&spec, &memory);
});
