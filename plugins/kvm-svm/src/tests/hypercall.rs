//! VMCALL on AMD's silicon, under nested and under shadow paging. See: KVM x86.c emulator_fix_hypercall()

use super::bench::*;
use vmtape_abi::{Backend, Host};
use vmtape_arch::{
    access::Verdict,
    exception::{Exception, Vector},
    exit::Exit,
};
use vmtape_testing::{VMCALL, VMMCALL};

/// Handles the #UD of a VMCALL in the page with this entry: the exception that the guest takes, and the code then.
fn vmcall(npt: bool, pte: u64, user: bool, options: &[(&str, &str)]) -> (Option<(Vector, u32)>, [u8; 3]) {
    let mut bench = Setup { npt, options, pte, ..Default::default() }.build();
    bench.state().rip = GVA;
    bench.state().cpl = if user { 3 } else { 0 };
    let cr0 = bench.state().cr0().with_wp(true);
    bench.state().cr0 = cr0.into_bits();
    bench.host.insn = VMCALL;
    bench.host.write(DATA, VMCALL);
    let mut exit = Exit::default();
    let Bench { vm, states, host } = &mut bench;
    let verdict = vm.exception(0, &mut states[0], &Exception::ud(), host, &mut exit);
    assert_eq!(verdict, Verdict::EXIT);
    vm.handle_exit(0, &mut states[0], &exit, host);
    bench.enter(0);
    let event = bench.state().inject;
    assert_eq!(bench.state().rip, GVA, "nothing retires");
    let mut code = [0; 3];
    bench.host.read(DATA, &mut code);
    (event.valid.is_set().then_some((Vector(event.vector), event.error_code)), code)
}

#[test]
fn it_becomes_a_vmmcall() {
    for npt in [false, true] {
        for options in [&[][..], &[("kvm", "v5.6")], &[("kvm", "v5.18"), ("fix_hypercall_insn", "off")]] {
            assert_eq!(vmcall(npt, DATA | 7, false, options), (None, *VMMCALL.first_chunk().unwrap()));
        }
    }
}

#[test]
fn otherwise_the_guest_takes_an_exception() {
    let off = &[("fix_hypercall_insn", "off")][..];
    for npt in [false, true] {
        for (pte, user, options, exception) in [
            // The quirk is disabled.
            (DATA | 7, false, off, (Vector::UD, 0)),
            // The page is not the guest's to write.
            (DATA | 5, false, &[], (Vector::PF, 3)),
            // To KVM's emulator VMCALL is privileged, which comes first.
            (DATA | 7, true, &[], (Vector::GP, 0)),
            (DATA | 7, true, off, (Vector::GP, 0)),
        ] {
            let expected = (Some(exception), *VMCALL.first_chunk().unwrap());
            assert_eq!(vmcall(npt, pte, user, options), expected, "npt={npt} {exception:?}");
        }
    }
}
