//! Segment loads, events and far transfers, against the rules of the manual.
#![allow(dead_code, reason = "no test file uses all of `common`")]

mod common;

use common::{CODE, Machine};
use iced_x86::code_asm::*;
use vmtape_arch::{
    descriptor::{Descriptor, Gate, SystemType, tss32, tss64},
    event::{Event, EventKind},
    exception::{Exception, Vector},
    regs::{Cr0, Rflags, SegAttr},
    sensitive::{SensitiveKind, svm},
    vcpu::{Activity, Segment, TableReg, seg},
};
use vmtape_cpu::Stop;

const GDT: u64 = 0x2000;
const IDT: u64 = 0x3000;
const TSS: u64 = 0x5000;
const HANDLER: u64 = 0x6000;
const INNER_STACK: u64 = 0x8000;
const USER_STACK: u64 = 0xa000;

const CODE0: u16 = 0x08;
const DATA0: u16 = 0x10;
const CODE3: u16 = 0x18;
const DATA3: u16 = 0x20;
const ABSENT: u16 = 0x28;
const CONFORMING: u16 = 0x30;
const EXECUTE_ONLY: u16 = 0x38;
const READ_ONLY: u16 = 0x40;
const TASK: u16 = 0x48;
const GATE: u16 = 0x58;
const BEYOND: u16 = 0x68;

fn descriptor(typ: u8, dpl: u8, bits: u32) -> Descriptor {
    Descriptor::new()
        .with_limit_low(0xffff)
        .with_limit_high(0xf)
        .with_g(true)
        .with_typ(typ)
        .with_s(true)
        .with_dpl(dpl)
        .with_present(true)
        .with_l(bits == 64 && typ & 8 != 0)
        .with_db(bits != 64 || typ & 8 == 0)
}

fn gate(typ: SystemType, selector: u16, dpl: u8, count_or_ist: u8) -> Gate {
    Gate::new()
        .with_offset_low(HANDLER as u16)
        .with_selector(selector)
        .with_typ(typ.0)
        .with_dpl(dpl)
        .with_present(true)
        .with_count_or_ist(count_or_ist)
}

fn write(machine: &Machine, at: u64, value: u64) {
    assert!(machine.env.ram.write(at, &value.to_le_bytes()));
}

/// Code at CPL 0 on tables with one descriptor of each kind; every vector has an interrupt gate to `HANDLER`.
fn machine(bits: u32, code: impl FnOnce(&mut CodeAssembler) -> Result<(), iced_x86::IcedError>) -> Machine {
    let mut machine = Machine::assemble(bits, code);
    let table = [
        (CODE0, descriptor(0xa, 0, bits)),
        (DATA0, descriptor(2, 0, bits)),
        (CODE3, descriptor(0xa, 3, bits)),
        (DATA3, descriptor(2, 3, bits)),
        (ABSENT, descriptor(2, 0, bits).with_present(false)),
        (CONFORMING, descriptor(0xe, 0, bits)),
        (EXECUTE_ONLY, descriptor(8, 0, bits)),
        (READ_ONLY, descriptor(0, 0, bits)),
    ];
    for (selector, descriptor) in table {
        write(&machine, GDT + selector as u64, descriptor.into_bits());
    }
    let tss = Descriptor::new()
        .with_limit_low(0x67)
        .with_base_low(TSS as u32)
        .with_typ(SystemType::TSS_AVAILABLE.0)
        .with_present(true);
    write(&machine, GDT + TASK as u64, tss.into_bits());
    write(&machine, GDT + TASK as u64 + 8, 0);
    write(&machine, GDT + GATE as u64, gate(SystemType::CALL_GATE, CODE0, 3, 2).into_bits());
    write(&machine, GDT + GATE as u64 + 8, 0);
    let entry = if bits == 64 { 16 } else { 8 };
    for vector in 0..=255u64 {
        let gate = gate(SystemType::INTERRUPT_GATE, CODE0, 3, 0);
        write(&machine, IDT + vector * entry, gate.into_bits());
    }
    if bits == 64 {
        write(&machine, TSS + tss64::rsp(0) as u64, INNER_STACK);
        write(&machine, TSS + tss64::ist(3) as u64, INNER_STACK + 0x808);
    } else {
        write(&machine, TSS + tss32::esp(0) as u64, INNER_STACK | (DATA0 as u64) << 32);
    }
    let state = &mut machine.state;
    state.gdtr = TableReg { base: GDT, limit: BEYOND - 1, ..TableReg::default() };
    state.idtr = TableReg { base: IDT, limit: (256 * entry - 1) as u16, ..TableReg::default() };
    state.seg[seg::TR] = Segment {
        base: TSS,
        limit: 0x67,
        selector: TASK,
        attr: SegAttr::new().with_typ(SystemType::TSS_BUSY.0).with_present(true),
    };
    state.seg[seg::CS].selector = CODE0;
    for n in [seg::ES, seg::SS, seg::DS, seg::FS, seg::GS] {
        state.seg[n].selector = DATA0;
    }
    machine
}

/// The same at CPL 3.
fn to_user(machine: &mut Machine, bits: u32) {
    let state = &mut machine.state;
    state.cpl = 3;
    state.seg[seg::CS] = descriptor(0xb, 3, bits).segment(CODE3 | 3);
    for n in [seg::ES, seg::SS, seg::DS, seg::FS, seg::GS] {
        state.seg[n] = descriptor(3, 3, bits).segment(DATA3 | 3);
    }
    state.gpr[4] = USER_STACK;
}

fn stack<const N: usize>(machine: &Machine, size: u64) -> [u64; N] {
    let mask = u64::MAX >> (64 - 8 * size);
    std::array::from_fn(|n| machine.read_u64(machine.state.gpr[4] + n as u64 * size) & mask)
}

/// See: SDM vol. 2B MOV, Protected Mode Exceptions
#[test]
fn segment_loads_fault_as_the_manual_says() {
    let none = None;
    let gp = |code| Some(Exception::gp(code as u32));
    let np = |code| Some(Exception::with_code(Vector::NP, code as u32));
    let stack_fault = |code| Some(Exception::with_code(Vector::SS, code as u32));
    // Selector, what loading DS gives, what loading SS gives.
    let rows = [
        (0, none, gp(0)),
        (3, none, gp(0)),
        (DATA0, none, none),
        (DATA0 | 3, gp(DATA0), gp(DATA0)),
        (CODE0, none, gp(CODE0)),
        (DATA3, none, gp(DATA3)),
        (DATA3 | 3, none, gp(DATA3)),
        (ABSENT, np(ABSENT), stack_fault(ABSENT)),
        (CONFORMING | 3, none, gp(CONFORMING)),
        (EXECUTE_ONLY, gp(EXECUTE_ONLY), gp(EXECUTE_ONLY)),
        (READ_ONLY, none, gp(READ_ONLY)),
        (TASK, gp(TASK), gp(TASK)),
        (BEYOND, gp(BEYOND), gp(BEYOND)),
        (4, gp(4), gp(4)),
    ];
    for (selector, for_ds, for_ss) in rows {
        for (register, expected) in [(ds, for_ds), (ss, for_ss)] {
            let mut machine = machine(32, |a| a.mov(register, ax));
            machine.state.gpr[0] = selector as u64;
            let before = machine.state;
            machine.run(1);
            assert_eq!(machine.env.fault, expected, "{selector:#x} into {register:?}");
            if expected.is_some() {
                assert_eq!(machine.state, before);
            } else if selector > 3 {
                let descriptor = Descriptor::from_bits(machine.read_u64(GDT + (selector & !7) as u64));
                assert!(descriptor.seg_type().accessed(), "{selector:#x}");
            }
        }
    }
}

#[test]
fn an_interrupt_from_user_mode_switches_stacks_and_iret_goes_back() {
    for (bits, size) in [(32, 4), (64, 8)] {
        let mut machine = machine(bits, |a| a.int(0x80));
        assert!(machine.env.ram.write(HANDLER, if bits == 64 { &[0x48, 0xcf] } else { &[0xcf] }));
        to_user(&mut machine, bits);
        let flags = Rflags::new().with_always_one(true).with_intr(true).with_iopl(3);
        machine.state.rflags = flags.into_bits();
        let before = machine.state;
        machine.run(1);
        assert_eq!(machine.env.fault, None);
        let state = machine.state;
        assert_eq!((state.rip, state.cpl, state.seg[seg::CS].selector), (HANDLER, 0, CODE0));
        assert_eq!(state.gpr[4], INNER_STACK - 5 * size);
        assert!(!state.rflags().intr());
        let frame = [CODE + 2, CODE3 as u64 | 3, flags.into_bits(), USER_STACK, DATA3 as u64 | 3];
        assert_eq!(stack::<5>(&machine, size), frame);
        machine.run(1);
        let after = machine.state;
        assert_eq!((after.rip, after.cpl, after.rflags), (CODE + 2, 3, before.rflags));
        assert_eq!((after.gpr, after.seg[seg::SS].selector), (before.gpr, DATA3 | 3));
        assert_eq!(after.icount, before.icount + 2);
    }
}

#[test]
fn error_codes_name_gates_and_say_what_was_delivered() {
    // INT n through an absent gate: no EXT bit. The same through an injected interrupt: EXT.
    let mut machine = machine(64, |a| a.int(0x80));
    let absent = gate(SystemType::INTERRUPT_GATE, CODE0, 3, 0).with_present(false);
    write(&machine, IDT + 0x80 * 16, absent.into_bits());
    machine.run(1);
    assert_eq!(machine.env.fault, Some(Exception::with_code(Vector::NP, 0x80 << 3 | 2)));
    machine.state.inject =
        Event { valid: true.into(), kind: EventKind::EXTERNAL_INTERRUPT, vector: 0x80, ..Event::default() };
    machine.run(1);
    assert_eq!(machine.env.fault, Some(Exception::with_code(Vector::NP, 0x80 << 3 | 3)));
    // A gate that the program may not use.
    to_user(&mut machine, 64);
    write(&machine, IDT + 0x80 * 16, absent.with_present(true).with_dpl(0).into_bits());
    machine.run(1);
    assert_eq!(machine.env.fault, Some(Exception::gp(0x80 << 3 | 2)));
}

#[test]
fn the_interrupt_stack_table_is_aligned() {
    let mut machine = machine(64, |a| a.ud2());
    write(&machine, IDT + 6 * 16, gate(SystemType::INTERRUPT_GATE, CODE0, 0, 3).into_bits());
    machine.state.intercepts.exceptions = 0;
    machine.run(0);
    machine.run(1);
    // The handler's page is zero: ADD [RAX], AL, which retires.
    let frame: [u64; 5] = stack(&machine, 8);
    assert_eq!(machine.state.gpr[4], INNER_STACK + 0x800 - 40);
    assert_eq!((frame[0], frame[1], frame[3]), (CODE, CODE0 as u64, common::STACK));
    assert!(Rflags::from_bits(frame[2]).rf(), "a fault saves RF");
}

#[test]
fn an_exit_in_delivery_names_the_event_and_leaves_it_to_the_backend() {
    let mut machine = machine(64, |a| a.int(0x80));
    machine.env.exits.push(TSS >> 12);
    to_user(&mut machine, 64);
    let before = machine.state;
    assert_eq!(machine.run(1), Stop::Exit);
    let event = machine.env.delivering.expect("an event");
    assert_eq!(machine.state, before);
    assert_eq!((event.kind, event.vector, event.insn_len), (EventKind::SOFTWARE_INTERRUPT, 0x80, 2));
    // The backend injects it again: the instruction retires with its delivery.
    machine.env.exits.clear();
    machine.state.inject = event;
    assert_eq!(machine.run(1), Stop::Budget);
    assert_eq!((machine.state.rip, machine.state.icount), (HANDLER, before.icount + 1));
    assert_eq!(machine.read_u64(machine.state.gpr[4]), CODE + 2);
}

#[test]
fn faults_in_delivery_become_double_and_triple_faults() {
    let mut machine = machine(64, |a| a.ud2());
    machine.state.intercepts.exceptions = 1 << Vector::DF.0;
    // #UD is benign, so #NP is delivered instead; its own gate makes it a double fault.
    for vector in [6, 11] {
        let absent = gate(SystemType::INTERRUPT_GATE, CODE0, 0, 0).with_present(false);
        write(&machine, IDT + vector * 16, absent.into_bits());
    }
    assert_eq!(machine.run(1), Stop::Exit);
    assert_eq!(machine.env.fault, Some(Exception::with_code(Vector::DF, 0)));
    machine.state.intercepts.exceptions = 0;
    machine.state.idtr.limit = 0;
    assert_eq!(machine.run(1), Stop::TripleFault);
    assert_eq!(machine.state.activity, Activity::SHUTDOWN);
}

#[test]
fn a_call_gate_copies_parameters_and_ret_releases_them() {
    let mut machine = machine(32, CodeAssembler::nop);
    // CALL GATE:0; the handler is RET 8.
    assert!(machine.env.ram.write(CODE, &[0x9a, 0, 0, 0, 0, GATE as u8 | 3, 0]));
    assert!(machine.env.ram.write(HANDLER, &[0xca, 8, 0]));
    to_user(&mut machine, 32);
    machine.state.gpr[4] = USER_STACK - 8;
    write(&machine, USER_STACK - 8, 0x2222_2222_1111_1111);
    machine.run(1);
    assert_eq!(machine.env.fault, None);
    assert_eq!((machine.state.rip, machine.state.cpl), (HANDLER, 0));
    let user = DATA3 as u64 | 3;
    let frame = [CODE + 7, CODE3 as u64 | 3, 0x1111_1111, 0x2222_2222, USER_STACK - 8, user];
    assert_eq!(stack::<6>(&machine, 4), frame);
    // Level 0's segments may not be kept.
    machine.state.seg[seg::FS] = descriptor(3, 0, 32).segment(DATA0);
    machine.run(1);
    assert_eq!(machine.env.fault, None);
    assert_eq!((machine.state.rip, machine.state.cpl, machine.state.gpr[4]), (CODE + 7, 3, USER_STACK));
    assert_eq!(machine.state.seg[seg::FS].selector, 0);
    assert_eq!(machine.state.seg[seg::DS].selector, DATA3 | 3);
}

#[test]
fn virtual_8086_mode_and_back() {
    let mut machine = machine(32, |a| a.iretd());
    let vm = Rflags::new().with_always_one(true).with_vm(true).with_iopl(3).with_intr(true);
    let frame = [0x10, 0x100, vm.into_bits(), 0x80, 0x200, 0x300, 0x400, 0x500, 0x600u64];
    for (n, value) in frame.iter().enumerate() {
        write(&machine, common::STACK + 4 * n as u64, *value);
    }
    // INT 80h in the program at 0100:0010.
    assert!(machine.env.ram.write(0x1010, &[0xcd, 0x80]));
    machine.run(1);
    assert_eq!(machine.env.fault, None);
    let state = machine.state;
    assert_eq!((state.rip, state.cpl, state.gpr[4]), (0x10, 3, 0x80));
    assert_eq!((state.seg[seg::CS].base, state.seg[seg::GS].base), (0x1000, 0x6000));
    machine.run(1);
    assert_eq!(machine.env.fault, None);
    assert_eq!((machine.state.rip, machine.state.cpl), (HANDLER, 0));
    assert!(!machine.state.rflags().vm());
    let saved = [0x12, 0x100, vm.into_bits(), 0x80, 0x200, 0x300, 0x400, 0x500, 0x600];
    assert_eq!(stack::<9>(&machine, 4), saved);
    assert!(!machine.state.seg[seg::DS].attr.present());
}

#[test]
fn real_mode_events_use_the_interrupt_vector_table() {
    let mut machine = Machine::assemble(16, |a| a.int(0x21));
    machine.state.cr0 = Cr0::new().with_et(true).into_bits();
    machine.state.idtr = TableReg { base: 0, limit: 0x3ff, ..TableReg::default() };
    for n in 0..6 {
        machine.state.seg[n].attr = SegAttr::new().with_typ(3).with_s(true).with_present(true);
        machine.state.seg[n].limit = 0xffff;
        machine.state.seg[n].selector = 0;
    }
    write(&machine, 0x21 * 4, 0x0700_0042);
    machine.state.rflags = Rflags::new().with_always_one(true).with_intr(true).into_bits();
    machine.run(1);
    assert_eq!((machine.state.rip, machine.state.seg[seg::CS].base), (0x42, 0x7000));
    assert_eq!(stack::<3>(&machine, 2), [CODE + 2, 0, 0x202]);
    assert!(!machine.state.rflags().intr());
}

#[test]
fn interrupts_wait_for_the_instruction_after_sti() {
    let mut machine = machine(64, |a| {
        a.sti()?;
        a.nop()?;
        a.nop()
    });
    machine.state.rflags = 2;
    machine.run(1);
    assert!(machine.state.interruptibility.sti() && machine.state.rflags().intr());
    machine.run(1);
    assert!(!machine.state.interruptibility.sti());
}

/// What a backend is asked about an SVM instruction, and which faults come before. A backend without SVM has none.
#[test]
fn svm_instructions_are_offered_after_mode_and_level() {
    let wants = 1 << SensitiveKind::SVM.0;
    type Emit = fn(&mut CodeAssembler) -> Result<(), iced_x86::IcedError>;
    let all: [(Emit, u32); 7] = [
        (|a| a.vmrun(), svm::VMRUN),
        (|a| a.vmload(), svm::VMLOAD),
        (|a| a.vmsave(), svm::VMSAVE),
        (|a| a.stgi(), svm::STGI),
        (|a| a.clgi(), svm::CLGI),
        (|a| a.skinit(), svm::SKINIT),
        (|a| a.invlpga(), svm::INVLPGA),
    ];
    for (emit, number) in all {
        for (bits, user, sensitive, expected) in [
            (64, false, wants, None),
            (32, false, wants, None),
            (16, false, wants, Some(Vector::UD)),
            (64, true, wants, Some(Vector::GP)),
            (64, true, 0, Some(Vector::UD)),
            (64, false, 0, Some(Vector::UD)),
        ] {
            let mut machine = machine(bits, emit);
            machine.state.cr0 = Cr0::from_bits(machine.state.cr0).with_pe(bits != 16).into_bits();
            if user {
                to_user(&mut machine, bits);
            }
            machine.state.intercepts.sensitive = sensitive;
            machine.state.gpr[0] = 0x1_2345_6000;
            machine.state.gpr[1] = 0x7_0000_0005;
            machine.run(1);
            let fault = machine.env.fault.map(|fault| fault.vector);
            assert_eq!(fault, expected, "{number:#x}, {bits} bits, user {user}, wanted {}", sensitive != 0);
            let asked = machine.env.asked.map(|what| (what.number, what.value, what.aux));
            // STGI and CLGI have no operand; SKINIT's is EAX.
            let wide = matches!(number, svm::STGI | svm::CLGI) || bits == 64 && number != svm::SKINIT;
            let address = if wide { 0x1_2345_6000u64 } else { 0x2345_6000 };
            assert_eq!(asked, expected.is_none().then_some((number, address, 5)), "{number:#x}, {bits} bits");
        }
    }
}

/// Instructions that SVM intercepts before their own checks.
#[test]
fn flags_and_software_interrupts_are_offered_first() {
    type Emit = fn(&mut CodeAssembler) -> Result<(), iced_x86::IcedError>;
    let all: [(Emit, SensitiveKind, u32); 4] = [
        (|a| a.pushfd(), SensitiveKind::PUSHF, 0),
        (|a| a.popfd(), SensitiveKind::POPF, 0),
        (|a| a.int(0x21), SensitiveKind::INTN, 0x21),
        (|a| a.int1(), SensitiveKind::ICEBP, 0),
    ];
    for (emit, kind, number) in all {
        let mut machine = machine(32, emit);
        // No gate is within the limit, and the stack has no page: whatever came first would fault.
        machine.state.idtr.limit = 0;
        machine.state.gpr[4] = common::RAM_SIZE as u64 + 0x100;
        machine.state.intercepts.sensitive = 1 << kind.0;
        machine.run(1);
        let asked = machine.env.asked.expect("offered");
        assert_eq!((asked.kind, asked.number), (kind, number));
    }
}
