//! A mapping under test: one linear address with tables and a data page of its own.

use crate::kernel::Kernel;
use iced_x86::{IcedError, code_asm::*};

/// The address under test, in a top-level slot that nothing else uses.
pub const GVA: u64 = 0xffff_9234_0000_0000;
/// Index of `GVA` in the PML4.
const GVA_PML4_INDEX: u64 = 292;
/// Index of `GVA` in its PDPT.
const GVA_PDPT_INDEX: u64 = 208;
/// The tables of the mapping; the entries for `GVA` in the last two are the first ones.
pub const PDPT: u64 = 0x210_0000;
pub const PDE: u64 = 0x210_1000;
pub const PTE: u64 = 0x210_2000;
/// The data page. It starts with a `ret`, so that it can be called.
pub const DATA: u64 = 0x200_0000;
/// What the data page starts with: c3 is `ret`.
pub const SIGNATURE: u64 = 0x1122_3344_5566_77c3;

/// Present, writable, user.
pub const P_W_U: u64 = 7;

/// Builds the upper levels and the data page. The PDE and PTE are the program's own. Clobbers RAX.
pub fn prepare(k: &mut Kernel) -> Result<(), IcedError> {
    let a = &mut k.a;
    for (address, value) in [
        (crate::boot::layout::PML4 + 8 * GVA_PML4_INDEX, PDPT | P_W_U),
        (PDPT + 8 * GVA_PDPT_INDEX, PDE | P_W_U),
        (DATA, SIGNATURE),
    ] {
        a.mov(rax, value)?;
        a.mov(qword_ptr(address), rax)?;
    }
    Ok(())
}

/// Writes an entry.
pub fn set_entry(k: &mut Kernel, address: u64, value: u64) -> Result<(), IcedError> {
    k.a.mov(rax, value)?;
    k.a.mov(qword_ptr(address), rax)
}

/// Leaves the guest's MAXPHYADDR in EAX and GuestPhysBits in EDX (0 where CPUID does not say). Clobbers RBX and RCX.
/// See: APM vol. 3 E.4.7 Function 8000_0008h
pub fn address_widths(k: &mut Kernel) -> Result<(), IcedError> {
    let (mut absent, mut done) = (k.a.create_label(), k.a.create_label());
    k.a.mov(eax, 0x8000_0000u32)?;
    k.a.cpuid()?;
    k.a.cmp(eax, 0x8000_0008u32 as i32)?;
    k.a.jb(absent)?;
    k.a.mov(eax, 0x8000_0008u32)?;
    k.a.cpuid()?;
    k.a.mov(edx, eax)?;
    k.a.shr(edx, 16)?;
    k.a.and(edx, 0xff)?;
    k.a.and(eax, 0xff)?;
    k.a.jmp(done)?;
    k.here(&mut absent)?;
    k.a.mov(eax, 36)?;
    k.a.xor(edx, edx)?;
    k.here(&mut done)
}
