//! Stores where all changes of memory are counted: the sum of `vmtape_cpu`'s `changes`, kept in the frame while code runs.
//!
//! What a store changes is seen in the aligned quadwords that it touches, before it and after it. One that is not within them is the
//! interpreter's.

use super::code::{Code, SlowPath};
use crate::{
    frame::{BEFORE, CHANGES, CHANGES_HIGH, PLACE, RAM, RAM_START, SPILL, UNTIL},
    interface::WEIGHTS,
};
use dynasmrt::{DynasmApi, DynasmLabelApi, dynasm};

const WORD: u8 = 8;
const WORD_SHIFT: i8 = WORD.trailing_zeros() as i8;

/// Displacement of a word.
fn of(word: u8) -> i32 {
    i32::from(word * WORD)
}

impl Code {
    /// Leaves a store of `size` bytes to the linear address in R14 to the interpreter if it crosses quadwords. Destroys RAX and flags.
    pub(super) fn count_within_words(&mut self, slow: &SlowPath, size: u8) {
        if !self.counts || size == 1 {
            return;
        }
        let (label, last) = (slow.label, i32::from(WORD.saturating_sub(size)));
        dynasm!(self.ops
            ; .arch x64
            ; mov eax, r14d
            ; and eax, i32::from(WORD - 1)
            ; cmp eax, last
            ; ja =>label
        );
    }

    /// Keeps what is there before a store to the host's address in R14. Destroys RAX, R15 and flags.
    pub(super) fn count_before(&mut self, size: u8) {
        if !self.counts {
            return;
        }
        dynasm!(self.ops
            ; .arch x64
            ; mov r15, r14
            ; sub r15, [BYTE rbp + RAM]
            ; and r15, -i32::from(WORD)
            ; mov [rbp + PLACE], r15
            ; add r15, [BYTE rbp + RAM]
        );
        for word in 0..size.div_ceil(WORD) {
            dynasm!(self.ops ; .arch x64 ; mov rax, [r15 + of(word)] ; mov [rbp + BEFORE + of(word)], rax);
        }
    }

    /// Counts what the store has changed, with flags saved. Destroys RAX, R14, R15 and flags.
    pub(super) fn count_after(&mut self, size: u8) {
        if !self.counts {
            return;
        }
        self.save_flags();
        self.forget_flags();
        for word in 0..size.div_ceil(WORD) {
            self.count_word(word);
        }
    }

    fn count_word(&mut self, word: u8) {
        let (insn_weight, word_weight) = (WEIGHTS[1] as i64, WEIGHTS[0] as i64);
        let to_come = self.to_come();
        dynasm!(self.ops
            ; .arch x64
            ; mov r15, [rbp + PLACE]
            ; add r15, [BYTE rbp + RAM]
            ; mov r14, [r15 + of(word)]
            ; cmp r14, [rbp + BEFORE + of(word)]
            ; je >same
            ; mov [rbp + SPILL], rdx
            // The weight of the word and of the instruction, into R15.
            ; mov r15, [rbp + PLACE]
            ; sub r15, [rbp + RAM_START]
            ; shr r15, WORD_SHIFT
            ; add r15, i32::from(word)
            ; mov rax, QWORD word_weight
            ; xor r15, rax
            ; mov rax, [rbp + UNTIL]
            ; sub rax, r13
            ; sub rax, to_come
            ; mov rdx, QWORD insn_weight
            ; xor rax, rdx
            ; mul r15
            ; xor rax, rdx
            ; mov r15, rax
            ; mul r14
            ; add [rbp + CHANGES], rax
            ; adc [rbp + CHANGES_HIGH], rdx
            ; mov rax, r15
            ; mul QWORD [rbp + BEFORE + of(word)]
            ; sub [rbp + CHANGES], rax
            ; sbb [rbp + CHANGES_HIGH], rdx
            ; mov rdx, [rbp + SPILL]
            ; same:
        );
    }
}
