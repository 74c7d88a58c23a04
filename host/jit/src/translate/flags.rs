//! Status flags: in the host's flags, in the frame, or of no interest.
//!
//! What the manuals leave undefined is what the interpreter says, and not what this host does.

use super::{
    code::Code,
    state::{Flags, Producer},
};
use crate::frame::{FLAGS, OVERFLOW};
use dynasmrt::{DynasmApi, dynasm};

impl Code {
    /// The instruction has set all status flags.
    pub(super) fn flags_set(&mut self, producer: Producer) {
        self.flags = Flags { host: Some(producer), saved: !self.live_after };
    }

    /// The host's flags are no longer the guest's, or nobody wants them.
    pub(super) fn forget_flags(&mut self) {
        self.flags = Flags::in_frame();
    }

    /// Puts flags into the frame that are in the host's only. Those may be lost over it.
    pub(super) fn save_flags(&mut self) {
        if let Some(producer) = self.flags.unsaved() {
            self.emit_save_flags(producer);
            let host = self.flags.host.filter(|producer| *producer == Producer::Exact);
            self.flags = Flags { host, saved: true };
        }
    }

    /// Saves flags that may be wanted, since the host's are about to be lost.
    pub(super) fn give_up_flags(&mut self) {
        if self.live_before {
            self.save_flags();
        }
        self.forget_flags();
    }

    /// Has the flags in the host's, but for AF and, unless `overflow` is set, OF.
    pub(super) fn need_flags(&mut self, overflow: bool) {
        let shifted = matches!(
            self.flags.host,
            Some(Producer::ShiftLeft | Producer::ShiftRight | Producer::ShiftArithmetic)
        );
        if shifted && overflow {
            self.need_all_flags();
        } else {
            self.load_flags();
        }
    }

    /// Has all flags in the host's.
    pub(super) fn need_all_flags(&mut self) {
        if self.flags.host.is_some_and(|producer| producer != Producer::Exact) {
            self.save_flags();
            self.forget_flags();
        }
        self.load_flags();
    }

    fn load_flags(&mut self) {
        if !self.flags.are_in_host() {
            self.emit_load_flags();
            self.flags = Flags { host: Some(Producer::Exact), saved: true };
        }
    }

    pub(super) fn emit_load_flags(&mut self) {
        dynasm!(self.ops
            ; .arch x64
            ; movzx eax, WORD [BYTE rbp + FLAGS]
            ; add al, 0x7f
            ; sahf
        );
    }

    pub(super) fn emit_save_flags(&mut self, producer: Producer) {
        const WITHOUT_AF: i8 = !0x10;
        dynasm!(self.ops ; .arch x64 ; lahf);
        match producer {
            Producer::Exact => dynasm!(self.ops ; .arch x64 ; seto al),
            Producer::Logic => dynasm!(self.ops ; .arch x64 ; seto al ; and ah, BYTE WITHOUT_AF),
            // SF and CF are bits 7 and 0 of AH.
            Producer::ShiftLeft => dynasm!(self.ops
                ; .arch x64
                ; and ah, BYTE WITHOUT_AF
                ; mov al, ah
                ; shr al, 7
                ; xor al, ah
                ; and al, 1
            ),
            Producer::ShiftRight => {
                dynasm!(self.ops ; .arch x64 ; and ah, BYTE WITHOUT_AF ; mov al, BYTE [BYTE rbp + OVERFLOW])
            }
            Producer::ShiftArithmetic => {
                dynasm!(self.ops ; .arch x64 ; and ah, BYTE WITHOUT_AF ; xor al, al)
            }
        }
        dynasm!(self.ops ; .arch x64 ; mov [BYTE rbp + FLAGS], ax);
    }

    /// Replaces in the frame the flags of a mask, in the frame's form, by the host's.
    pub(super) fn merge_flags(&mut self, mask: u16) {
        let (new, old) = (i32::from(mask), i32::from(!mask));
        dynasm!(self.ops
            ; .arch x64
            ; lahf
            ; seto al
            ; and eax, new
            ; movzx r14d, WORD [BYTE rbp + FLAGS]
            ; and r14d, old
            ; or eax, r14d
            ; mov [BYTE rbp + FLAGS], ax
        );
        self.forget_flags();
    }
}
