//! The run loop: budgets, blocks, and what ends them.
#![allow(dead_code, reason = "no test file uses all of `common`")]

mod common;

use common::{CODE, DATA, Machine};
use iced_x86::code_asm::*;
use vmtape_arch::{exception::Vector, host::Vendor};
use vmtape_cpu::{Cpu, CpuConfig, Model, Stop};

#[test]
fn stops_after_exactly_the_budget() {
    let mut machine = Machine::assemble(64, |a| {
        let mut top = a.create_label();
        a.set_label(&mut top)?;
        a.add(rax, 1)?;
        a.add(rbx, rax)?;
        a.cmp(rax, 1000)?;
        a.jb(top)
    });
    for count in [1, 2, 3, 5, 7, 100, 1001] {
        let before = machine.state.icount;
        assert_eq!(machine.run(count), Stop::Budget);
        assert_eq!(machine.state.icount, before + count);
    }
    let icount = machine.state.icount;
    assert_eq!(machine.state.gpr[0], icount.div_ceil(4));
}

#[test]
fn code_that_overwrites_what_follows_runs_the_new_code() {
    let mut machine = Machine::assemble(64, |a| {
        let mut patched = a.create_label();
        a.mov(byte_ptr(CODE + 9), 0x2a)?;
        a.set_label(&mut patched)?;
        // The store is 8 bytes long, so this immediate is the one that it overwrites.
        a.mov(al, 1)?;
        a.jmp(patched)
    });
    machine.run(2);
    assert_eq!(machine.state.gpr[0], 0x2a);
}

#[test]
fn a_fault_on_the_second_page_leaves_everything_alone() {
    let mut machine = Machine::assemble(64, |a| a.add(qword_ptr(rdi), rax));
    machine.state.gpr[0] = 0x1111;
    machine.state.gpr[7] = DATA + 0xffc;
    machine.env.absent.push(((DATA >> 12) + 1, vmtape_arch::access::AccessKind::WRITE));
    let before = machine.state;
    assert_eq!(machine.run(1), Stop::Exit);
    let fault = machine.env.fault.expect("#PF");
    assert_eq!((fault.vector, fault.payload), (Vector::PF, DATA + 0x1000));
    assert_eq!(machine.state, before);
    assert_eq!(machine.read_u64(DATA + 0xff8), 0);
}

#[test]
fn an_instruction_across_pages_faults_when_it_is_reached() {
    let mut machine = Machine::new(64, &[]);
    // A MOV that does nothing, then a five-byte MOV EAX, imm32 of which two bytes are on the next page.
    machine.env.ram.write(0x2ffb, &[0x89, 0xc0, 0xb8, 1, 2, 3, 4]);
    machine.env.absent.push((3, vmtape_arch::access::AccessKind::FETCH));
    machine.state.rip = 0x2ffb;
    assert_eq!(machine.run(2), Stop::Exit);
    assert_eq!(machine.state.icount, 1);
    assert_eq!(machine.env.fault.expect("#PF").payload, 0x3000);
    machine.env.absent.clear();
    assert_eq!(machine.run(1), Stop::Budget);
    assert_eq!((machine.state.gpr[0], machine.state.rip), (0x0403_0201, 0x3002));
    // Decoded once, it is decoded anew when either page changes.
    machine.env.ram.write(0x3001, &[5]);
    machine.state.rip = 0x2ffd;
    assert_eq!(machine.run(1), Stop::Budget);
    assert_eq!(machine.state.gpr[0], 0x0503_0201);
}

#[test]
fn a_two_byte_opcode_may_be_cut_after_its_escape() {
    let mut machine = Machine::new(16, &[]);
    machine.env.ram.write(0x8fff, &[0x0f, 0x94, 0xc1]);
    machine.state.rip = 0x8fff;
    machine.state.gpr[1] = 0xffff;
    assert_eq!(machine.run(1), Stop::Budget, "{:?}", machine.env.fault);
    assert_eq!((machine.state.gpr[1], machine.state.rip), (0xff00, 0x9002));
}

#[test]
fn fifteen_bytes_are_the_limit() {
    for (prefixes, vector) in [(14, None), (15, Some(Vector::GP)), (16, Some(Vector::GP))] {
        let mut code = vec![0x66; prefixes];
        code.extend([0x90, 0x90]);
        let mut machine = Machine::new(64, &code);
        machine.run(1);
        assert_eq!(machine.env.fault.map(|fault| fault.vector), vector, "{prefixes} prefixes");
    }
}

#[test]
fn compatibility_mode_enters_the_upper_half() {
    let mut machine = Machine::assemble(32, |a| a.sysenter());
    machine.state.efer = common::state(64).efer;
    machine.state.cr0 = common::state(64).cr0;
    machine.state.cr4 = common::state(64).cr4;
    machine.state.sysenter_cs = 8;
    machine.state.sysenter_eip = 0xffff_8000_0000_1000;
    assert_eq!(machine.run(1), Stop::Budget, "{:?}", machine.env.fault);
    assert_eq!(machine.state.rip, 0xffff_8000_0000_1000);
}

#[test]
fn a_branch_with_an_operand_size_prefix_is_cut_on_amd() {
    // A near return.
    let code = [0x66, 0xc3];
    for (vendor, rip, popped) in [(Vendor::INTEL, 0x1_2000, 8), (Vendor::AMD, 0x2000, 2)] {
        let mut machine = Machine::new(64, &code);
        let model = Model { vendor, ..Model::default() };
        machine.cpu = Cpu::new(CpuConfig { model, ..CpuConfig::default() });
        machine.env.ram.write(common::STACK, &0x1_2000u64.to_le_bytes());
        assert_eq!(machine.run(1), Stop::Budget);
        assert_eq!((machine.state.rip, machine.state.gpr[4]), (rip, common::STACK + popped));
    }
}

/// Calls, strings, flags and stores beside code, in circles.
fn busy() -> Machine {
    Machine::assemble(64, |a| {
        let [mut again, mut function, mut even] = std::array::from_fn(|_| a.create_label());
        a.set_label(&mut again)?;
        a.call(function)?;
        a.test(al, 1)?;
        a.je(even)?;
        a.pushfq()?;
        a.pop(rdx)?;
        a.add(qword_ptr(CODE + 0x800), rdx)?;
        a.set_label(&mut even)?;
        a.mov(rsi, DATA)?;
        a.lea(rdi, ptr(rsi + rax))?;
        a.mov(ecx, 37)?;
        a.rep().movsb()?;
        a.jmp(again)?;
        a.set_label(&mut function)?;
        a.imul_3(rax, rax, 29)?;
        a.add(rax, 7)?;
        a.and(eax, 0x1fff)?;
        a.mov(byte_ptr(rax + DATA as i32), al)?;
        a.ret()
    })
}

#[test]
fn how_a_run_is_sliced_does_not_matter() {
    const COUNT: u64 = 20_000;
    let mut whole = busy();
    assert_eq!(whole.run(COUNT), Stop::Budget);
    let mut sliced = busy();
    let mut slice = 1;
    while sliced.state.icount < COUNT {
        assert_eq!(sliced.run(slice.min(COUNT - sliced.state.icount)), Stop::Budget);
        slice = slice * 5 % 23 + 1;
    }
    assert_eq!(sliced.state, whole.state);
    let memory = |machine: &Machine| {
        let mut bytes = vec![0; common::RAM_SIZE];
        assert!(machine.env.ram.read(0, &mut bytes));
        bytes
    };
    assert!(memory(&sliced) == memory(&whole));
}

/// DEBUGCTL.LBR: taken branches, but for a repeated string instruction; interrupts move the last branch on.
// See: APM vol. 2 13.1.1.3 Debug-Control MSR (DebugCtl), 13.1.1.4 to 13.1.1.5 Last-Branch and Last-Exception
#[test]
fn last_branches_are_recorded_while_they_are_asked_for() {
    let mut machine = Machine::assemble(64, |a| {
        let (mut over, mut never) = (a.create_label(), a.create_label());
        // CODE: two bytes, two that are jumped over.
        a.jmp(over)?;
        a.nop()?;
        a.nop()?;
        a.set_label(&mut over)?;
        a.test(rax, rax)?;
        a.jnz(never)?;
        a.rep().stosb()?;
        a.set_label(&mut never)?;
        a.nop()
    });
    machine.state.gpr[7] = DATA;
    machine.state.gpr[1] = 3;
    machine.run(1);
    assert_eq!((machine.state.rip, machine.state.last_branch), (CODE + 4, [0; 2]));
    machine.state.rip = CODE;
    machine.state.debugctl = 1;
    machine.run(7);
    assert_eq!(machine.state.last_branch, [CODE, CODE + 4]);
    assert_eq!(machine.state.last_exception, [0; 2]);
}
