//! Ports and memory-mapped registers that every PC has.

use crate::{
    apic,
    kernel::{Kernel, SERIAL_PORT},
    parameters::Values,
};
use iced_x86::{IcedError, code_asm::*};

const CMOS_INDEX: u8 = 0x70;
const CMOS_DATA: u8 = 0x71;
/// A byte of battery-backed memory that nothing else uses, with NMIs left enabled.
const CMOS_SCRATCH: i32 = 0x5c;
const IO_APIC_INDEX: u32 = 0xfec0_0000;
const IO_APIC_DATA: u32 = 0xfec0_0010;
/// Redirection entry 5, low half; masked, vector 0x55.
const IO_APIC_ENTRY: i32 = 0x1a;
const IO_APIC_VALUE: i32 = 0x1_0055;

const STRING: &str = "string I/O: one instruction, many bytes\n";

pub fn program(k: &mut Kernel, _: &Values) -> Result<(), IcedError> {
    let mut wrong = k.a.create_label();
    // REP OUTSB to the serial port.
    let text = k.string(STRING);
    k.a.lea(rsi, ptr(text))?;
    k.a.mov(ecx, STRING.len() as u32)?;
    k.a.mov(edx, SERIAL_PORT)?;
    k.a.rep().outsb()?;

    // CMOS memory keeps what is written.
    k.a.mov(eax, CMOS_SCRATCH)?;
    k.a.out(u32::from(CMOS_INDEX), al)?;
    k.a.mov(eax, 0x5a)?;
    k.a.out(u32::from(CMOS_DATA), al)?;
    k.a.xor(eax, eax)?;
    k.a.in_(al, u32::from(CMOS_DATA))?;
    k.print("cmos ")?;
    k.print_hex()?;
    k.print("\n")?;
    k.a.cmp(eax, 0x5a)?;
    k.a.jne(wrong)?;

    // The local APIC: an integrated one has version 0x1X. The task priority keeps its value.
    k.a.mov(ebx, apic::VERSION)?;
    k.a.mov(eax, dword_ptr(rbx))?;
    k.a.and(eax, 0xf0)?;
    k.a.cmp(eax, 0x10)?;
    k.a.jne(wrong)?;
    k.a.mov(ebx, apic::TPR)?;
    k.a.mov(dword_ptr(rbx), 0x20)?;
    k.a.mov(eax, dword_ptr(rbx))?;
    k.print("tpr ")?;
    k.print_hex()?;
    k.print("\n")?;
    k.a.cmp(eax, 0x20)?;
    k.a.jne(wrong)?;
    k.a.mov(dword_ptr(rbx), 0)?;

    // The I/O APIC, by index and data register, with a read-modify-write among them.
    k.a.mov(ebx, IO_APIC_INDEX)?;
    k.a.mov(dword_ptr(rbx), IO_APIC_ENTRY)?;
    k.a.mov(ebx, IO_APIC_DATA)?;
    k.a.mov(dword_ptr(rbx), IO_APIC_VALUE)?;
    k.a.or(dword_ptr(rbx), 0x8000)?;
    k.a.mov(eax, dword_ptr(rbx))?;
    k.print("ioapic ")?;
    k.print_hex()?;
    k.print("\n")?;
    k.a.cmp(eax, IO_APIC_VALUE | 0x8000)?;
    k.a.jne(wrong)?;
    k.print("PASS\nSUMMARY: 4 tests\n")?;
    k.a.xor(eax, eax)?;
    k.exit()?;
    k.here(&mut wrong)?;
    k.print("FAIL\nSUMMARY: 4 tests, 1 unexpected failures\n")?;
    k.a.mov(eax, 1)?;
    k.exit()
}
