//! MSRs, control registers, port I/O and events against what KVM does with them.

use crate::{
    Vcpu,
    cpuid::{indexed, plain},
    cr,
    events::Windows,
    io, msr,
    profile::{Options, Scope},
    pv::Paravirtual,
    slots::Slots,
};
use vmtape_abi::{Errno, MemoryRegion};
use vmtape_arch::{
    cpuid::CpuidEntry,
    event::{Event, EventKind},
    exception::{Exception, Vector},
    exit::ResumeKind,
    note::Note,
    regs::{Cr0, Cr4, Efer},
    vcpu::{VcpuState, gpr},
};
use vmtape_testing::TestHost;

const UCODE_REV: u64 = 0x1_0000_0000;

fn cpuid() -> Vec<CpuidEntry> {
    const PCID_X2APIC_XSAVE: u32 = 1 << 17 | 1 << 21 | 1 << 26;
    vec![
        plain(0, [0xd, 0x756e_6547, 0x6c65_746e, 0x4965_6e69]),
        plain(1, [0, 0, PCID_X2APIC_XSAVE, 0]),
        indexed(7, 0, [0, 1 << 1 | 1 << 7, 0, 0]),
        indexed(0xd, 0, [7, 0, 0, 0]),
        indexed(0xd, 2, [256, 576, 0, 0]),
        plain(0x8000_0000, [0x8000_0008, 0, 0, 0]),
        plain(0x8000_0001, [0, 0, 0, 1 << 20 | 1 << 29]),
        plain(0x8000_0008, [0x3028, 0, 0, 0]),
    ]
}

fn guest() -> (Vcpu, VcpuState, TestHost) {
    let mut vcpu = Vcpu::new(0, UCODE_REV);
    let state = VcpuState::reset();
    let options = Options::parse(Scope::VMX, "", &[]).unwrap();
    vcpu.set_cpuid(&options, &state, &cpuid()).unwrap();
    vcpu.pv = Paravirtual::new(&options);
    (vcpu, state, TestHost::new(0x2000))
}

/// Writes, and what a read gives afterwards; `None`: #GP. From kvm-unit-tests x86/msr.c and the kernel's mtrr.c.
#[test]
fn guest_writes() {
    const NON_CANONICAL: u64 = 0x8000_0000_0000_0000;
    for (index, data, read) in [
        (0x174, 0x1234, Some(0x1234)),
        (0x175, 0x1234_5678_9abc, Some(0x1234_5678_9abc)),
        // KVM sign-extends these two instead of a #GP.
        (0x176, 0x8000_0000_0000, Some(0xffff_8000_0000_0000)),
        (0x1a0, 0x4_00c5_1889, Some(0x4_00c5_1809)),
        (0x1a0, 0x0, None),
        (0x277, 0x0707_0707, Some(0x0707_0707)),
        (0x277, 0x0808_0808, None),
        (0xc000_0102, NON_CANONICAL, None),
        (0xc000_0082, 0x1234_5678_9abc, Some(0x1234_5678_9abc)),
        (0xc000_0084, 0xffff_ffff, Some(0xffff_ffff)),
        (0x400, u64::MAX, Some(u64::MAX)),
        (0x400, 1 << 63, None),
        (0x401, 1, None),
        (0x402, u64::MAX, Some(u64::MAX)),
        (0x480, 0, None),
        (0x200, 6, Some(6)),
        (0x200, 2, None),
        (0x201, 1 << 41, None),
        (0x2ff, 0xc06, Some(0xc06)),
        (0xfe, 0, None),
        (0x10a, 0, None),
        (0x48, 0, None),
        (0x8b, 5, Some(UCODE_REV)),
        (0x1234, 0, None),
        // KVM's own. See: KVM x86.c kvm_pv_enable_async_pf(), KVM_STEAL_RESERVED_MASK
        (0x4b56_4d00, 0x1234_5678, Some(0x1234_5678)),
        (0x12, 0x1001, Some(0x1001)),
        (0x4b56_4d02, 0x1009, Some(0x1009)),
        (0x4b56_4d02, 0x1011, None),
        (0x4b56_4d03, 0x1041, Some(0x1041)),
        (0x4b56_4d03, 0x1003, None),
        (0x4b56_4d04, 0x1002, None),
        (0x4b56_4d05, 2, None),
        (0x4b56_4d06, 0x100, None),
        (0x4b56_4d07, 1, Some(0)),
        (0x4b56_4d08, 1, None),
    ] {
        let (mut vcpu, mut state, mut host) = guest();
        let written = msr::set_common(&mut vcpu, &mut state, index, data, false, &mut host);
        assert_eq!(written.is_ok(), read.is_some(), "write {data:#x} to {index:#x}");
        if let Some(expected) = read {
            let value = msr::get_common(&mut vcpu, &state, index, false, &mut host);
            assert_eq!(value, Ok(expected), "{index:#x}");
        }
    }
}

/// xAPIC to x2APIC and off again, but not back to xAPIC, and not from off to x2APIC.
#[test]
fn apic_base_transitions() {
    const BASE: u64 = 0xfee0_0100;
    const ENABLED: u64 = BASE | 1 << 11;
    const X2APIC: u64 = ENABLED | 1 << 10;
    let (mut vcpu, mut state, mut host) = guest();
    let mut write = |data| msr::set_common(&mut vcpu, &mut state, 0x1b, data, false, &mut host).is_ok();
    for (data, legal) in [
        (X2APIC, true),
        (ENABLED, false),
        (BASE, true),
        (X2APIC, false),
        (BASE | 1 << 10, false),
        (ENABLED, true),
        (ENABLED | 1 << 40, false),
        (ENABLED | 1, false),
    ] {
        assert_eq!(write(data), legal, "{data:#x}");
    }
    assert_eq!(host.apic_base, ENABLED);
}

#[test]
fn a_written_tsc_moves_tsc_adjust() {
    let (mut vcpu, mut state, mut host) = guest();
    state.tsc = 1000;
    msr::set_common(&mut vcpu, &mut state, 0x10, 5000, false, &mut host).unwrap();
    assert_eq!(msr::get_common(&mut vcpu, &state, 0x10, false, &mut host), Ok(5000));
    assert_eq!(state.tsc_adjust, 4000);
    msr::set_common(&mut vcpu, &mut state, 0x3b, 0, false, &mut host).unwrap();
    assert_eq!(msr::get_common(&mut vcpu, &state, 0x10, false, &mut host), Ok(1000));
}

/// KVM's table of what MOV to CR0 and CR4 may not do.
#[test]
fn illegal_control_registers() {
    let (mut vcpu, mut state, mut host) = guest();
    let slots = Slots::default();
    let cr0 = Cr0::new().with_pe(true);
    for illegal in [1 << 32, cr0.with_nw(true).into_bits(), Cr0::new().with_pg(true).into_bits()] {
        assert!(cr::set_cr0(&vcpu, &mut state, &slots, illegal, true, &mut host).is_err(), "{illegal:#x}");
    }
    let cr4 = Cr4::new().with_pae(true);
    for illegal in [
        cr4.with_smap(true).into_bits(),
        cr4.with_la57(true).into_bits(),
        cr4.with_vmxe(true).into_bits(),
        cr4.with_pcide(true).into_bits(),
        1 << 15,
    ] {
        assert!(
            cr::set_cr4(&mut vcpu, &mut state, &slots, illegal, true, &mut host).is_err(),
            "{illegal:#x}"
        );
    }
    assert!(
        cr::set_cr4(&mut vcpu, &mut state, &slots, cr4.with_smep(true).into_bits(), true, &mut host).is_ok()
    );
    assert!(cr::set_cr3(&vcpu, &mut state, &slots, 1 << 40, &mut host).is_err());
}

/// Long mode as kvm-unit-tests' cstart64.S enters it, and what may not change once there.
#[test]
fn the_way_into_long_mode() {
    let (mut vcpu, mut state, mut host) = guest();
    let slots = Slots::default();
    state.cr4 = Cr4::new().with_pae(true).into_bits();
    cr::set_efer(&vcpu, &mut state, Efer::new().with_lme(true).into_bits(), false).unwrap();
    let paged = Cr0::new().with_pe(true).with_pg(true).into_bits();
    let effect = cr::set_cr0(&vcpu, &mut state, &slots, paged, true, &mut host).unwrap();
    assert!(effect.reset && state.efer().lma() && state.cr0().et());
    assert!(cr::set_efer(&vcpu, &mut state, 0, false).is_err(), "LME while paging");
    assert!(cr::set_cr4(&mut vcpu, &mut state, &slots, 0, true, &mut host).is_err(), "PAE in long mode");
}

/// PAE pointers are read and checked with the guest's width.
#[test]
fn page_directory_pointers() {
    let (vcpu, mut state, mut host) = guest();
    let mut slots = Slots::default();
    let region = MemoryRegion { slot: 0, flags: 0, gpa: 0, size: 0x2000, hpa: 0 };
    slots.set(&region, 0xf_ffff).unwrap();
    state.cr4 = Cr4::new().with_pae(true).into_bits();
    host.memory[0x1000] = 1;
    let paged = Cr0::new().with_pe(true).with_pg(true).into_bits();
    state.cr3 = 0x1000;
    assert!(cr::set_cr0(&vcpu, &mut state, &slots, paged, true, &mut host).is_ok());
    assert_eq!(state.pdptr, [1, 0, 0, 0]);
    host.memory[0x1005] = 1;
    assert!(cr::set_cr3(&vcpu, &mut state, &slots, 0x1000, &mut host).is_err(), "bit 40 of a 40-bit guest");
}

/// XCR0 in the order of __kvm_set_xcr's checks.
#[test]
fn xcr0() {
    let (mut vcpu, mut state, _) = guest();
    for (value, legal) in [(1, true), (3, true), (7, true), (5, false), (2, false), (0x207, false)] {
        assert_eq!(cr::xsetbv(&mut vcpu, &mut state, 0, value).is_ok(), legal, "{value:#x}");
    }
    state.cpl = 3;
    assert!(cr::xsetbv(&mut vcpu, &mut state, 0, 3).is_err());
}

/// The order of notes that the recordings show: an OUT is traced before it leaves for userspace, an IN after.
#[test]
fn port_notes() {
    let (mut vcpu, mut state, mut host) = guest();
    state.gpr[gpr::RAX] = 0x1122_3344_5566_7788;
    let pio = io::Pio { port: 0x3fd, size: 1, input: true, insn_len: 1 };
    io::fast_pio(&mut vcpu, &mut state, &pio, &mut host);
    assert_eq!(state.gpr[gpr::RAX], 0x1122_3344_5566_77ff);
    let exit = Note::UserspaceExit { reason: ResumeKind::IO.0, errno: 0 };
    assert_eq!(host.notes[0], exit);
    assert!(matches!(host.notes[1], Note::Pio { write: false, value: 0xff, .. }));
    host.notes.clear();
    let pio = io::Pio { port: 0x3f8, size: 4, input: false, insn_len: 1 };
    io::fast_pio(&mut vcpu, &mut state, &pio, &mut host);
    assert!(matches!(host.notes[0], Note::Pio { write: true, value: 0x5566_77ff, .. }));
    assert_eq!(host.notes[1], exit);
    host.notes.clear();
    let pio = io::Pio { port: 0x20, size: 4, input: true, insn_len: 1 };
    io::fast_pio(&mut vcpu, &mut state, &pio, &mut host);
    assert_eq!(state.gpr[gpr::RAX], 0x5a, "a 32-bit IN clears the upper half");
    assert_eq!(host.notes.len(), 1);
    assert_eq!(state.rip, 0xfff0 + 3);
}

/// An interrupt waits for its window, and one whose delivery was interrupted comes again, marked so.
#[test]
fn interrupts() {
    let (mut vcpu, mut state, mut host) = guest();
    let tracer = vcpu.tracer();
    host.interrupt = Some(0x20);
    let closed = Windows::default();
    let requests = vcpu.events.check_and_inject(tracer, &mut state, closed, &mut host);
    assert!(requests.interrupt && !state.inject.valid);
    let open = Windows { interrupt: true, ..closed };
    let requests = vcpu.events.check_and_inject(tracer, &mut state, open, &mut host);
    assert!(!requests.interrupt);
    let interrupt =
        Event { valid: true.into(), kind: EventKind::EXTERNAL_INTERRUPT, vector: 0x20, ..Default::default() };
    assert_eq!(state.inject, interrupt);
    vcpu.events.complete(&interrupt);
    vcpu.events.check_and_inject(tracer, &mut state, open, &mut host);
    assert_eq!(state.inject, Event { reinjected: true.into(), ..interrupt });
    assert_eq!(host.notes.last(), Some(&Note::InjVirq { vector: 0x20, soft: false, reinjected: true }));
    vcpu.events.complete(&Event::default());
    vcpu.inject(&mut state, &Exception::gp(0));
    vcpu.events.check_and_inject(tracer, &mut state, open, &mut host);
    assert_eq!(state.inject.vector, Vector::GP.0);
    assert!(state.rflags().rf(), "a fault saves RF");
}

/// With virtual-interrupt delivery only the PIC's interrupts are injected.
#[test]
fn virtual_interrupts_are_silicon_s() {
    let (mut vcpu, mut state, mut host) = guest();
    let windows = Windows { interrupt: true, nmi: true, virtual_interrupts: true, ..Default::default() };
    let tracer = vcpu.tracer();
    host.interrupt = Some(0x30);
    vcpu.events.check_and_inject(tracer, &mut state, windows, &mut host);
    assert!(!state.inject.valid);
    host.interrupt = Some(0);
    vcpu.events.check_and_inject(tracer, &mut state, windows, &mut host);
    assert!(state.inject.valid);
}

#[test]
fn notes_say_who_runs() {
    use vmtape_arch::level::{Level, Place};
    let (mut vcpu, mut state, mut host) = guest();
    for (guest_mode, level) in [(false, Level::L1), (true, Level::L2)] {
        vcpu.guest_mode = guest_mode;
        host.places.clear();
        crate::cpuid::emulate(&vcpu, &mut state, &mut host);
        assert_eq!((vcpu.level(), &host.places[..]), (level, &[Place { level, ..Place::L1 }][..]));
    }
}

/// KVM_SET_CPUID2 of a vCPU that has not run but has L2 active (by KVM_SET_NESTED_STATE).
#[test]
fn cpuid_while_l2_is_active() {
    for (release, changed) in
        [("v5.10", Ok(())), ("v6.1", Ok(())), ("v6.12", Ok(())), ("v7.2", Err(Errno::EINVAL))]
    {
        let options = Options::parse(Scope::NPT, "", &[("kvm".into(), release.into())]).unwrap();
        let mut vcpu = Vcpu::new(0, UCODE_REV);
        let state = VcpuState::reset();
        vcpu.set_cpuid(&options, &state, &cpuid()).unwrap();
        vcpu.guest_mode = true;
        let mut narrow = cpuid();
        narrow.last_mut().unwrap().eax = 0x3024;
        assert_eq!(vcpu.set_cpuid(&options, &state, &narrow).map(|_| ()), changed, "{release}");
        let width = if changed.is_ok() { 36 } else { 40 };
        assert_eq!(vcpu.cpuid.maxphyaddr(), width);
        // What it has already is taken anyhow.
        let same = if changed.is_ok() { narrow } else { cpuid() };
        assert!(vcpu.set_cpuid(&options, &state, &same).is_ok());
    }
}
