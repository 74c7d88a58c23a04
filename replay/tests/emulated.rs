//! What KVM's emulator makes of an instruction is compared with what silicon makes of it, though nothing is left of it soon.

#[path = "../../host/machine/tests/bare/mod.rs"]
mod bare;

use vmtape_abi::{Backend, Description};
use vmtape_arch::vcpu::{VcpuState, gpr};
use vmtape_machine::{MachineSpec, vmm::When};
use vmtape_replay::{Report, across::Sides, player::Budget, report::Verdict, spec};
use vmtape_traces::{Options, Tape, Writer};

/// Silicon reads the page itself.
const NATIVE: &str = "native";
/// KVM's emulator reads it.
const RIGHT: &str = "right";
const WRONG_GENERAL: &str = "wrong-general";
const WRONG_VECTOR: &str = "wrong-vector";
const PAGE: u64 = 0x20_0000;

fn general(state: &mut VcpuState) {
    state.gpr[gpr::RBX] ^= 1;
}

fn vector(state: &mut VcpuState) {
    state.fpu.xmm[5][1] ^= 1;
}

fn create(machine: &MachineSpec) -> Result<Box<dyn Backend>, vmtape_replay::Error> {
    Ok(Box::new(match machine.backend.as_str() {
        RIGHT => bare::Bare::emulating(PAGE, None),
        WRONG_GENERAL => bare::Bare::emulating(PAGE, Some(general)),
        WRONG_VECTOR => bare::Bare::emulating(PAGE, Some(vector)),
        _ => bare::Bare::default(),
    }))
}

/// Reads the page and forgets at once what it read, and all that could have been changed by it; 32-bit code at 1 MiB.
fn machine(backend: &str) -> MachineSpec {
    // mov eax, cr4; or ah, 2 (OSFXSR); mov cr4, eax; pxor xmm5, xmm5; mov ebx, 0x200000; mov eax, [ebx]
    let mut code =
        b"\x0f\x20\xe0\x80\xcc\x02\x0f\x22\xe0\x66\x0f\xef\xed\xbb\x00\x00\x20\x00\x8b\x03".to_vec();
    // xor eax, eax; xor ebx, ebx; pxor xmm5, xmm5; out 0xf4, eax
    code.extend(b"\x31\xc0\x31\xdb\x66\x0f\xef\xed\xe7\xf4");
    let mut spec = bare::spec("reads", bare::multiboot(&code), 1);
    (spec.memory, spec.backend) = (8 << 20, backend.to_owned());
    spec
}

fn compare(expected: &str, actual: &str) -> Report {
    let folder = tempfile::tempdir().unwrap();
    let (path, budget) = (folder.path().join("a.tape"), Budget::default());
    let expected = machine(expected);
    // Another tape's inputs: this guest takes none.
    let metadata = spec::metadata(&expected, &budget).unwrap();
    Writer::create(&path, &metadata, &[], Options::default()).unwrap().finish().unwrap();
    let nothing = Tape::open(&path).unwrap();
    let tape = spec::record(&expected, &nothing, &budget, &create).unwrap();
    let description = Description::default();
    let sides = Sides {
        way: None,
        tape: &tape,
        actual: machine(actual),
        expected,
        create: &create,
        expected_plugin: &description,
        plugin: &description,
        context: 0,
        at: When::Start,
        explain: false,
        reproduce: String::new(),
        inputs: None,
    };
    let mut report = Report::new("", "", "");
    sides.compare(&mut report, &mut |_| {}).unwrap();
    report
}

#[test]
fn an_emulator_that_is_right_is_silicon() {
    for (expected, actual) in [(NATIVE, RIGHT), (RIGHT, NATIVE), (RIGHT, RIGHT)] {
        let report = compare(expected, actual);
        assert_eq!(report.verdict, Verdict::Same, "{expected}, {actual}: {:?}", report.divergence);
    }
}

#[test]
fn one_that_is_wrong_is_noticed_though_it_heals() {
    for (wrong, register) in [(WRONG_GENERAL, "RBX"), (WRONG_VECTOR, "XMM5 high")] {
        for other in [NATIVE, RIGHT] {
            for (expected, actual) in [(other, wrong), (wrong, other)] {
                let report = compare(expected, actual);
                assert_eq!(report.verdict, Verdict::Different, "{expected}, {actual}");
                let first = report.divergence.unwrap();
                let name = format!("vCPU 0 {register}");
                assert_eq!(first.rows[0].what, name, "{expected}, {actual}: {:?}", first.rows);
            }
        }
    }
}
