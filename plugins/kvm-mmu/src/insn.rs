//! What KVM's instruction emulator makes of an instruction, by its first bytes.
//!
//! See: KVM arch/x86/kvm/emulate.c opcode_table, twobyte_table, as of 6.12

fn is_prefix(byte: &u8) -> bool {
    matches!(byte, 0x26 | 0x2e | 0x36 | 0x3e | 0x40..=0x4f | 0x64..=0x67 | 0xf0 | 0xf2 | 0xf3)
}

/// Legacy and REX prefixes, and what comes after them.
fn split(insn: &[u8]) -> (&[u8], &[u8]) {
    insn.split_at(insn.iter().position(|b| !is_prefix(b)).unwrap_or(insn.len()))
}

/// The instruction from its opcode on.
pub fn opcode(insn: &[u8]) -> &[u8] {
    split(insn).1
}

/// Whether it has a LOCK prefix.
pub fn is_locked(insn: &[u8]) -> bool {
    split(insn).0.contains(&0xf0)
}

/// Whether its operand in memory is exchanged as a whole: a LOCK prefix, or XCHG, which implies it.
pub fn is_atomic(insn: &[u8]) -> bool {
    is_locked(insn) || matches!(opcode(insn), [0x86 | 0x87, ..])
}

/// `emulator_can_use_gpa`, inverted: repeated string instructions, and those with the TwoMemOp flag.
pub fn has_two_operands_in_memory(insn: &[u8]) -> bool {
    let (prefixes, opcode) = split(insn);
    let rep = prefixes.iter().any(|b| matches!(b, 0xf2 | 0xf3));
    match opcode {
        // MOVS, CMPS
        [0xa4..=0xa7, ..] => true,
        // INS, OUTS, STOS, LODS, SCAS
        [0x6c..=0x6f | 0xaa..=0xaf, ..] => rep,
        // CALL, PUSH of a memory operand
        [0xff, modrm, ..] => matches!(modrm >> 3 & 7, 2 | 3 | 6),
        // POP to memory
        [0x8f, ..] => true,
        _ => false,
    }
}

/// Instructions whose destination in memory is an operand too: those without the emulator's Mov flag.
pub fn reads_before_write(insn: &[u8]) -> bool {
    match opcode(insn) {
        // ADD, OR, ADC, SBB, AND, SUB, XOR
        [op @ 0x00..=0x31, ..] if op & 7 < 2 => true,
        [0x80..=0x83, modrm, ..] => modrm >> 3 & 7 != 7,
        // XCHG, shifts
        [0x86 | 0x87 | 0xc0 | 0xc1 | 0xd0..=0xd3, ..] => true,
        // NOT, NEG; INC, DEC
        [0xf6 | 0xf7, modrm, ..] => matches!(modrm >> 3 & 7, 2 | 3),
        [0xfe | 0xff, modrm, ..] => modrm >> 3 & 7 < 2,
        // BTS, BTR, BTC, SHLD, SHRD, CMPXCHG, XADD
        [0x0f, 0xab | 0xb3 | 0xbb | 0xa4 | 0xa5 | 0xac | 0xad | 0xb0 | 0xb1 | 0xc0 | 0xc1, ..] => true,
        [0x0f, 0xba, modrm, ..] => modrm >> 3 & 7 > 4,
        [0x0f, 0xc7, modrm, ..] => modrm >> 3 & 7 == 1,
        _ => false,
    }
}

/// `x86_page_table_writing_insn`: instructions with the PageTable flag of KVM's emulator.
pub fn writes_page_tables(insn: &[u8]) -> bool {
    match opcode(insn) {
        // OR, AND, XCHG, MOV
        [0x08 | 0x09 | 0x20 | 0x21 | 0x86 | 0x87 | 0x88 | 0x89 | 0xa2 | 0xa3 | 0xc6 | 0xc7, ..] => true,
        [0x80..=0x83, modrm, ..] => matches!(modrm >> 3 & 7, 1 | 4),
        // BTS, CMPXCHG, CMPXCHG8B, BTS imm
        [0x0f, 0xab | 0xb0 | 0xb1, ..] => true,
        [0x0f, 0xba, modrm, ..] => modrm >> 3 & 7 == 5,
        [0x0f, 0xc7, modrm, ..] => modrm >> 3 & 7 == 1,
        _ => false,
    }
}

/// Whether the emulator's tables have the instruction at all. x87 and vector instructions are missing but for a few moves.
pub fn is_known(insn: &[u8]) -> bool {
    let reg = |modrm: &u8| modrm >> 3 & 7;
    let in_memory = |modrm: &u8| *modrm < 0xc0;
    match opcode(insn) {
        // FNSTCW, FNSTSW, FNINIT
        [0xd9 | 0xdd, modrm, ..] => in_memory(modrm) && reg(modrm) == 7,
        [0xdb, modrm, ..] => *modrm == 0xe3,
        [0xd8 | 0xda | 0xdc | 0xde | 0xdf, ..] => false,
        // VEX, EVEX (in 64-bit code; LES, LDS and BOUND elsewhere are as rare)
        [0x62 | 0xc4 | 0xc5, ..] => false,
        // FXSAVE, FXRSTOR, CLFLUSH
        [0x0f, 0xae, modrm, ..] => in_memory(modrm) && matches!(reg(modrm), 0 | 1 | 7),
        // CMPXCHG8B, RDPID
        [0x0f, 0xc7, modrm, ..] => reg(modrm) == if in_memory(modrm) { 1 } else { 7 },
        // Of group 7 without memory: VMCALL, MONITOR, MWAIT, XSETBV, SVM's, SMSW, LMSW, RDTSCP
        [0x0f, 0x01, modrm @ 0xc0..=0xff, ..] => {
            matches!(modrm, 0xc1 | 0xc8 | 0xc9 | 0xd1 | 0xd8..=0xdf | 0xe0..=0xe7 | 0xf0..=0xf7 | 0xf9)
        }
        // MOVBE
        [0x0f, 0x38, third, ..] => matches!(third, 0xf0 | 0xf1),
        [0x0f, second, ..] => is_known_two_byte(*second),
        _ => true,
    }
}

/// INT3, INT n, INTO: the emulator has them in real mode only. See: KVM emulate.c emulate_int()
pub fn is_software_interrupt(insn: &[u8]) -> bool {
    matches!(opcode(insn), [0xcc..=0xce, ..])
}

/// INT n, the one of them with an intercept.
pub fn is_int_n(insn: &[u8]) -> bool {
    matches!(opcode(insn), [0xcd, ..])
}

/// Instructions with the EmulateOnUD flag: SYSCALL, SYSENTER, SYSEXIT, RSM, VMCALL, VMMCALL, MOVBE, RDPID.
pub fn emulates_on_ud(insn: &[u8]) -> bool {
    match opcode(insn) {
        [0x0f, 0x05 | 0x34 | 0x35 | 0xaa, ..] | [0x0f, 0x01, 0xc1 | 0xd9, ..] => true,
        [0x0f, 0x38, 0xf0 | 0xf1, ..] => true,
        [0x0f, 0xc7, modrm, ..] => modrm >> 3 & 7 == 7,
        _ => false,
    }
}

/// RSM, which is KVM's own to execute.
pub fn is_rsm(insn: &[u8]) -> bool {
    matches!(opcode(insn), [0x0f, 0xaa, ..])
}

fn is_known_two_byte(opcode: u8) -> bool {
    match opcode {
        0x00 | 0x01 | 0x05 | 0x06 | 0x08 | 0x09 | 0x0d => true,
        // MOVUPS, MOVAPS, MOVNTPS, MOVQ and MOVDQA, MOVNTDQ
        0x10 | 0x11 | 0x28 | 0x29 | 0x2b | 0x6f | 0x7f | 0xe7 => true,
        0x18..=0x1f | 0x20..=0x23 | 0x30..=0x35 | 0x40..=0x4f | 0x80..=0x9f => true,
        0xa0..=0xa5 | 0xa8..=0xad | 0xaf..=0xb7 | 0xba..=0xc1 | 0xc3 | 0xc8..=0xcf => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_emulator_knows() {
        for known in
            [&[0x48, 0x89, 0x01][..], &[0xf3, 0xa4], &[0x0f, 0x29, 0x00], &[0xd9, 0x38], &[0x0f, 0xa2]]
        {
            assert!(is_known(known), "{known:x?}");
        }
        // FLDS, VMOVAPS, POPCNT, PADDB
        for unknown in
            [&[0xd9, 0x00][..], &[0xc5, 0xf8, 0x28, 0x00], &[0xf3, 0x0f, 0xb8, 0x00], &[0x0f, 0xfc, 0x00]]
        {
            assert!(!is_known(unknown), "{unknown:x?}");
        }
    }

    #[test]
    fn memory_operands() {
        assert!(reads_before_write(&[0x48, 0x83, 0x20, 0xfb]), "AND");
        assert!(!reads_before_write(&[0x49, 0x89, 0x04, 0x24]), "MOV");
        assert!(writes_page_tables(&[0x49, 0x89, 0x04, 0x24]));
        assert!(!writes_page_tables(&[0x0f, 0x29, 0x00]), "MOVAPS");
        assert!(is_software_interrupt(&[0xcc]) && is_software_interrupt(&[0x66, 0xcd, 0x30]));
        assert!(!is_software_interrupt(&[0xcf]) && !is_software_interrupt(&[]));
        assert!(has_two_operands_in_memory(&[0xa5]), "MOVS");
        assert!(!has_two_operands_in_memory(&[0x89, 0x01]));
    }
}
