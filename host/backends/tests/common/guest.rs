//! A guest under a backend in C.

use crate::common::intel;
use std::{cell::RefCell, io::Write, path::Path, rc::Rc};
use vmtape_abi::VmConfig;
use vmtape_backends::LoadedPlugin;
use vmtape_machine::{
    GuestImage, Limits, Live, Machine, MachineSpec,
    model::{CpuOption, silicon_cpuid},
    vmm::Step,
};
use vmtape_traces::event::End;

#[derive(Clone, Default)]
struct Serial(Rc<RefCell<Vec<u8>>>);

impl Write for Serial {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.borrow_mut().extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Runs a guest under a library to its end and gives that and what it printed.
pub fn run(library: &Path, name: &str, bytes: Vec<u8>) -> (End, String) {
    run_scripted(library, name, bytes, Vec::new())
}

/// As [`run`], with what the VMM does meanwhile.
pub fn run_scripted(library: &Path, name: &str, bytes: Vec<u8>, script: Vec<Step>) -> (End, String) {
    let plugin = LoadedPlugin::load(library).unwrap();
    let silicon = intel();
    let backend = plugin.create(&VmConfig { silicon, options: Vec::new() }).unwrap();
    let supported = backend.supported_cpuid(&silicon_cpuid(&silicon));
    let cpuid = CpuOption::parse("max").unwrap().cpuid(&silicon, &supported);
    let spec = MachineSpec {
        cpu: "max".into(),
        cpuid,
        host: "intel-46".into(),
        backend: "identity".into(),
        script,
        ..MachineSpec::new(GuestImage { name: name.into(), bytes }, silicon)
    };
    let mut machine = Machine::new(spec, backend, Box::new(Live::new(0)), None).unwrap();
    let serial = Serial::default();
    machine.set_serial(Box::new(serial.clone()));
    let end = machine.run(&Limits { instructions: 100_000_000, ..Limits::default() });
    let text = String::from_utf8_lossy(&serial.0.borrow()).into_owned();
    (end, text)
}
