//! What the manuals say of Intel's and AMD's processors where they differ. The clauses stand in `src/silicon.rs`.
#![allow(dead_code, reason = "no test file uses all of `common`")]
mod common;

use common::{Machine, STACK};
use vmtape_arch::{
    host::Vendor,
    vcpu::gpr::{RCX, RDI, RSI},
};
use vmtape_cpu::{Cpu, CpuConfig, Model, Stop};

fn run(vendor: Vendor, bits: u32, code: &[u8], prepare: impl FnOnce(&mut Machine)) -> Machine {
    let mut machine = Machine::new(bits, code);
    machine.cpu = Cpu::new(CpuConfig { model: Model::of(vendor), ..CpuConfig::default() });
    prepare(&mut machine);
    assert_eq!(machine.run(1), Stop::Budget, "{:?}", machine.env.fault);
    machine
}

/// See: SDM vol. 2B PUSH; APM vol. 3 PUSH
#[test]
fn a_pushed_selector_leaves_the_upper_half_alone_on_intel() {
    const PUSH_DS: &[u8] = &[0x1e];
    for (vendor, upper) in [(Vendor::INTEL, 0xffff), (Vendor::AMD, 0)] {
        let machine = run(vendor, 32, PUSH_DS, |machine| {
            assert!(machine.env.ram.write(STACK - 8, &[0xff; 8]));
        });
        assert_eq!(machine.read_u64(STACK - 8) >> 48, upper, "{vendor:?}");
        assert_eq!(machine.state.gpr[4], STACK - 4);
    }
}

/// See: KVM arch/x86/kvm/emulate.c string_registers_quirk()
#[test]
fn an_empty_repeat_cuts_registers_on_intel() {
    const REP_MOVSB_ADDR32: &[u8] = &[0x67, 0xf3, 0xa4];
    const WIDE: u64 = 0xaaaa_bbbb_0000_0000;
    for (vendor, kept) in [(Vendor::INTEL, 0), (Vendor::AMD, WIDE)] {
        let machine = run(vendor, 64, REP_MOVSB_ADDR32, |machine| {
            for register in [RCX, RSI, RDI] {
                machine.state.gpr[register] = WIDE;
            }
        });
        assert_eq!([RCX, RSI, RDI].map(|register| machine.state.gpr[register]), [kept; 3], "{vendor:?}");
    }
}
