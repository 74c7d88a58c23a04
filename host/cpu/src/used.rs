//! Which registers an instruction uses: what a recorder stores as the stimulus of its emulation.

use iced_x86::{Decoder, DecoderOptions, InstructionInfoFactory, OpAccess, Register};
use vmtape_arch::vcpu::{VcpuState, seg};

/// Bit of RFLAGS in [`used_registers`].
pub const USES_RFLAGS: u32 = 1 << 16;

/// A bit per general register whose value the instruction needs (a partly written register counts), and
/// [`USES_RFLAGS`]. Zero for bytes that are no instruction.
pub fn used_registers(state: &VcpuState, bytes: &[u8]) -> u32 {
    let bits = match (state.is_64bit_code(), state.seg[seg::CS].attr.db()) {
        (true, _) => 64,
        (false, true) => 32,
        (false, false) => 16,
    };
    let insn = Decoder::new(bits, bytes, DecoderOptions::FORCE_RESERVED_NOP).decode();
    if insn.is_invalid() {
        return 0;
    }
    let mut factory = InstructionInfoFactory::new();
    let registers = factory.info(&insn).used_registers();
    let general = registers
        .iter()
        .filter(|used| used.register().is_gpr())
        .filter(|used| needs_old_value(used.register(), used.access()))
        .fold(0, |mask, used| mask | 1 << used.register().full_register().number());
    let flags = insn.rflags_read() | insn.rflags_modified();
    if flags != 0 { general | USES_RFLAGS } else { general }
}

/// 32- and 64-bit writes replace the whole register, narrower ones keep the rest.
fn needs_old_value(register: Register, access: OpAccess) -> bool {
    match access {
        OpAccess::Write => register.size() < 4,
        OpAccess::None | OpAccess::NoMemAccess => false,
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_addresses_and_partial_writes_count() {
        let state = VcpuState::reset();
        // MOV AL, [BX+SI] reads BX and SI, and keeps the rest of AX.
        assert_eq!(used_registers(&state, &[0x8a, 0x00]), 1 << 0 | 1 << 3 | 1 << 6);
        // ADC ECX, EDX.
        assert_eq!(used_registers(&state, &[0x66, 0x11, 0xd1]), 1 << 1 | 1 << 2 | USES_RFLAGS);
    }
}
