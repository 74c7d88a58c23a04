//! The backend in C carries guests: what it lacks is nowhere else either.

mod common;

use std::{cell::RefCell, fs, io::Write, path::PathBuf, rc::Rc};
use vmtape_abi::VmConfig;
use vmtape_arch::exit::ResumeKind;
use vmtape_backends::LoadedPlugin;
use vmtape_machine::{
    GuestImage, Limits, Live, Machine, MachineSpec,
    model::{CpuOption, silicon_cpuid},
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

/// Runs a guest to its end and gives that and what it printed.
fn run(name: &str, bytes: Vec<u8>, defines: &[&str]) -> (End, String) {
    let folder = tempfile::tempdir().unwrap();
    let plugin = LoadedPlugin::load(&common::compile(folder.path(), "libidentity.so", defines)).unwrap();
    let silicon = common::intel();
    let backend = plugin.create(&VmConfig { silicon, options: Vec::new() }).unwrap();
    let supported = backend.supported_cpuid(&silicon_cpuid(&silicon));
    let cpuid = CpuOption::parse("max").unwrap().cpuid(&silicon, &supported);
    let spec = MachineSpec {
        image: GuestImage { name: name.into(), bytes },
        cmdline: String::new(),
        initrd: None,
        memory: 128 << 20,
        vcpus: 1,
        layout: Default::default(),
        cpu: "max".into(),
        cpuid,
        host: "intel-46".into(),
        silicon,
        backend: "identity".into(),
        options: Vec::new(),
        seed: 0,
        checkpoint_every: 0,
        script: Vec::new(),
        milestone_every: 0,
        cpu_revision: vmtape_machine::CPU_REVISION,
    };
    let mut machine = Machine::new(spec, backend, Box::new(Live::new(0)), None).unwrap();
    let serial = Serial::default();
    machine.set_serial(Box::new(serial.clone()));
    let end = machine.run(&Limits { instructions: 100_000_000, ..Limits::default() });
    let text = String::from_utf8_lossy(&serial.0.borrow()).into_owned();
    (end, text)
}

#[test]
fn built_in_guests() {
    for name in ["hello", "io"] {
        let (end, text) = run(name, vmtape_guests::image(name).unwrap(), &[]);
        assert_eq!(end, End::DebugExit { status: 1 }, "{name}: {text}");
    }
}

#[test]
#[ignore = "needs kvm-unit-tests: VMTAPE_KUT=FOLDER, its x86, built"]
fn setjmp_of_kvm_unit_tests() {
    let folder = std::env::var_os("VMTAPE_KUT").expect("VMTAPE_KUT is kvm-unit-tests' x86 folder");
    let (end, text) = run("setjmp.flat", fs::read(PathBuf::from(folder).join("setjmp.flat")).unwrap(), &[]);
    assert_eq!(end, End::DebugExit { status: 1 }, "{text}");
    assert!(text.contains("SUMMARY: 10 tests"), "{text}");
}

#[test]
fn a_backend_that_breaks_ends_the_run() {
    let (end, _) = run("hello", vmtape_guests::image("hello").unwrap(), &["-DVARIANT_PANICS"]);
    let End::Fatal { resume, .. } = end else { panic!("{end:?}") };
    assert_eq!(resume.kind, ResumeKind::BACKEND_FAILED);
}
