//! How the second processor comes up: INIT, SIPI, and a trampoline from real mode to 64-bit code.

use crate::{
    apic,
    boot::{self, layout, selector},
    kernel::{IPI_VECTOR, Kernel, vars},
};
use iced_x86::{IcedError, code_asm::*};

/// The page at which a SIPI with vector 8 starts the other processor.
const TRAMPOLINE: u32 = 0x8000;
/// Where the trampoline's 32-bit half lies in that page.
const PROTECTED_MODE_OFFSET: u32 = 0x80;

const PIC_MASTER_MASK: u8 = 0x21;
const PIC_SLAVE_MASK: u8 = 0xa1;
/// Enabled, spurious vector 0x4f.
const SPURIOUS_ENABLED: i32 = 0x14f;
// All excluding self. See: SDM vol. 3A 11.6.1 Interrupt Command Register (ICR)
const ICR_INIT: i32 = 0xc_4500;
const ICR_STARTUP: i32 = 0xc_4600 | (TRAMPOLINE >> 12) as i32;
const ICR_NMI: i32 = 0xc_4400;
const ICR_FIXED: i32 = 0xc_4000 | IPI_VECTOR as i32;

/// Starts the other processor and waits until it has reached 64-bit code. Clobbers RAX and RBX.
pub fn start_other(k: &mut Kernel) -> Result<(), IcedError> {
    mask_pics(k)?;
    enable_apic(k)?;
    place_trampoline(k)?;
    k.a.mov(ebx, apic::ICR_LOW)?;
    k.a.mov(dword_ptr(rbx), ICR_INIT)?;
    k.a.mov(dword_ptr(rbx), ICR_STARTUP)?;
    wait_until(k, vars::PROCESSORS, 2)
}

/// Firmware may have left the timer ticking behind the PIC. Clobbers RAX.
pub fn mask_pics(k: &mut Kernel) -> Result<(), IcedError> {
    k.a.mov(al, -1)?;
    k.a.out(u32::from(PIC_MASTER_MASK), al)?;
    k.a.out(u32::from(PIC_SLAVE_MASK), al)
}

/// Interrupts the other processor. Clobbers RBX.
pub fn interrupt_other(k: &mut Kernel) -> Result<(), IcedError> {
    k.a.mov(ebx, apic::ICR_LOW)?;
    k.a.mov(dword_ptr(rbx), ICR_FIXED)
}

/// Sends the other processor an NMI. Clobbers RBX.
pub fn send_nmi(k: &mut Kernel) -> Result<(), IcedError> {
    k.a.mov(ebx, apic::ICR_LOW)?;
    k.a.mov(dword_ptr(rbx), ICR_NMI)
}

/// Clobbers RAX and RBX.
pub fn enable_apic(k: &mut Kernel) -> Result<(), IcedError> {
    k.a.mov(ebx, apic::SPURIOUS)?;
    k.a.mov(dword_ptr(rbx), SPURIOUS_ENABLED)?;
    k.a.mov(ebx, apic::ID)?;
    k.a.mov(eax, dword_ptr(rbx))
}

/// Spins until a variable has a value.
pub fn wait_until(k: &mut Kernel, address: u64, value: i32) -> Result<(), IcedError> {
    let mut again = k.a.create_label();
    k.here(&mut again)?;
    k.a.pause()?;
    k.a.cmp(dword_ptr(address), value)?;
    k.a.jne(again)
}

/// Copies the trampoline: real mode, then the same switch to 64-bit code that the boot processor took.
fn place_trampoline(k: &mut Kernel) -> Result<(), IcedError> {
    let mut page = real_mode_code();
    page.resize(PROTECTED_MODE_OFFSET as usize, 0x90);
    let mut flat = CodeAssembler::new(32)?;
    flat.mov(eax, u32::from(selector::DATA))?;
    for segment in [ds, es, ss] {
        flat.mov(segment, eax)?;
    }
    let address = u64::from(TRAMPOLINE + PROTECTED_MODE_OFFSET);
    page.extend(flat.assemble(address)?);
    let switch = boot::switch_to_64bit(u64::from(TRAMPOLINE) + page.len() as u64)?;
    page.extend(switch);
    for (i, chunk) in page.chunks(8).enumerate() {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        k.a.mov(rax, u64::from_le_bytes(word))?;
        k.a.mov(qword_ptr(u64::from(TRAMPOLINE) + 8 * i as u64), rax)?;
    }
    Ok(())
}

/// CLI; LGDT; set CR0.PE; JMP FAR to the 32-bit half. 16-bit forms that the assembler library does not offer.
fn real_mode_code() -> Vec<u8> {
    let gdtr = TRAMPOLINE + 0x40;
    let mut code = vec![0xfa, 0x31, 0xc0, 0x8e, 0xd8]; // cli; xor ax, ax; mov ds, ax
    code.extend([0x66, 0x0f, 0x01, 0x16]); // lgdt [gdtr], 32-bit base
    code.extend((gdtr as u16).to_le_bytes());
    code.extend([0x0f, 0x20, 0xc0, 0x66, 0x83, 0xc8, 0x01, 0x0f, 0x22, 0xc0]); // mov eax, cr0; or eax, 1; mov cr0, eax
    code.extend([0x66, 0xea]); // jmp far CODE32:protected mode
    code.extend((TRAMPOLINE + PROTECTED_MODE_OFFSET).to_le_bytes());
    code.extend(selector::CODE32.to_le_bytes());
    code.resize(0x40, 0x90);
    code.extend(63u16.to_le_bytes());
    code.extend((layout::GDT as u32).to_le_bytes());
    code
}
