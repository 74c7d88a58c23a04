//! The state of a vCPU: one structure that the interpreter runs on and that every backend sees.

use crate::{
    event::Event, flag::Flag, fpu::Fpu, layout, open_enum, paging::PagingMode, regs::*,
    sensitive::SensitiveKind,
};
use bitfield_struct::bitfield;
use serde::{Deserialize, Serialize};
use zerocopy::{Immutable, IntoBytes};

/// General registers by their encoding number.
pub mod gpr {
    pub const RAX: usize = 0;
    pub const RCX: usize = 1;
    pub const RDX: usize = 2;
    pub const RBX: usize = 3;
    pub const RSP: usize = 4;
    pub const RBP: usize = 5;
    pub const RSI: usize = 6;
    pub const RDI: usize = 7;
}

/// Segment registers by their encoding number; LDTR and TR follow.
pub mod seg {
    pub const ES: usize = 0;
    pub const CS: usize = 1;
    pub const SS: usize = 2;
    pub const DS: usize = 3;
    pub const FS: usize = 4;
    pub const GS: usize = 5;
    pub const LDTR: usize = 6;
    pub const TR: usize = 7;
}

/// A segment register with its hidden part. A null selector has `present` clear.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, IntoBytes, Immutable)]
pub struct Segment {
    pub base: u64,
    /// Byte-granular limit.
    pub limit: u32,
    pub selector: u16,
    pub attr: SegAttr,
}

layout!(Segment: 16, limit: 8, selector: 12, attr: 14);

/// GDTR or IDTR.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, IntoBytes, Immutable)]
pub struct TableReg {
    pub base: u64,
    pub limit: u16,
    pub pad: [u16; 3],
}

layout!(TableReg: 16, limit: 8);

/// What holds back interrupts after the current instruction.
#[bitfield(u32)]
#[derive(PartialEq, Eq, Serialize, Deserialize, IntoBytes, Immutable)]
pub struct Interruptibility {
    pub sti: bool,
    pub mov_ss: bool,
    /// SMIs wait: SMM is active, GIF is clear, or something else comes first. Written by the backend.
    pub smi: bool,
    /// NMIs are blocked until IRET.
    pub nmi: bool,
    /// INIT and SIPI wait: SMM is active, AMD's global interrupt flag is clear, or L1 wants to hear of INIT. Written by the backend.
    pub init: bool,
    /// Interrupts wait whatever RFLAGS.IF says. Written by the backend.
    pub interrupts: bool,
    /// Interrupts do not wait for RFLAGS.IF: a guest's guest runs, and they are for the guest. Written by the backend.
    pub ignores_if: bool,
    /// CR8 is V_TPR, a guest's guest's own, and not the local APIC's. Written by the backend.
    pub virtual_tpr: bool,
    /// V_GIF, where silicon executes STGI and CLGI by itself. Written by the backend.
    pub virtual_gif: bool,
    /// V_NMI_PENDING, where silicon delivers NMIs by itself. Written by the backend.
    pub virtual_nmi: bool,
    /// V_IRQ: a guest's guest has a virtual interrupt that silicon has not delivered. Written by the backend.
    pub virtual_irq: bool,
    #[bits(21)]
    __: u32,
}

impl Interruptibility {
    /// Without what is in the VMCB rather than in a register.
    pub const fn without_silicons_own(self) -> Self {
        self.with_virtual_gif(false).with_virtual_nmi(false).with_virtual_irq(false)
    }
}

open_enum! {
    /// Whether the vCPU executes. See: SDM vol. 3C 25.4.2 Guest Non-Register State
    #[derive(IntoBytes, Immutable)]
    pub struct Activity(u32) {
        ACTIVE = 0 => "active",
        HLT = 1 => "halted",
        SHUTDOWN = 2 => "shutdown",
        WAIT_FOR_SIPI = 3 => "wait for SIPI",
    }
}

/// What the backend wants to hear of. Published by the backend, read by the interpreter at every sensitive
/// instruction: what is clear here never crosses the boundary.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, IntoBytes, Immutable)]
pub struct Intercepts {
    /// Bit `SensitiveKind`.
    pub sensitive: u64,
    /// Bit per exception vector; `exception()` has the last word (a #PF may be taken by error code).
    pub exceptions: u32,
    /// Bits of CR0-CR15 whose reads and writes are offered; low half writes, high half reads.
    pub cr: u32,
    /// Interrupts are delivered by virtual-interrupt delivery: no exit, straight from the local APIC.
    pub virtual_interrupts: Flag,
    pub pad: [u8; 7],
}

layout!(Intercepts: 24, exceptions: 8, cr: 12, virtual_interrupts: 16);

impl Intercepts {
    /// Whether instructions of this kind are offered to the backend.
    pub const fn wants(&self, kind: SensitiveKind) -> bool {
        self.sensitive >> kind.0 & 1 != 0
    }

    /// Asks for, or stops asking for, instructions of this kind.
    pub const fn set(&mut self, kind: SensitiveKind, on: bool) {
        self.sensitive = self.sensitive & !(1 << kind.0) | (on as u64) << kind.0;
    }
}

/// Bits behind the point of a TSC ratio, and the ratio of clocks that are equally fast.
pub const TSC_RATIO_FRACTION: u32 = 32;
pub const TSC_RATIO_ONE: u64 = 1 << TSC_RATIO_FRACTION;

/// Everything that a world switch saves. Values are what the guest sees; what silicon holds instead under a given
/// backend (CR0.NE, CR4.VMXE, shadow CR3) is that backend's own.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, IntoBytes, Immutable)]
pub struct VcpuState {
    pub gpr: [u64; 16],
    pub rip: u64,
    pub rflags: u64,
    /// Indexed by `seg`.
    pub seg: [Segment; 8],
    pub gdtr: TableReg,
    pub idtr: TableReg,
    pub cr0: u64,
    pub cr2: u64,
    pub cr3: u64,
    pub cr4: u64,
    /// The task priority as CR8 shows it; the local APIC's TPR is the same value shifted.
    pub cr8: u64,
    pub xcr0: u64,
    pub efer: u64,
    pub dr: [u64; 4],
    pub dr6: u64,
    pub dr7: u64,
    /// PAE page-directory pointers, as loaded at the last MOV CR3.
    pub pdptr: [u64; 4],
    pub pkru: u32,
    pub interruptibility: Interruptibility,
    pub activity: Activity,
    /// CPL. Kept apart from SS.DPL because real-mode segments have no meaningful DPL.
    pub cpl: u32,
    // MSRs that silicon lets through or that a world switch loads.
    pub sysenter_cs: u64,
    pub sysenter_esp: u64,
    pub sysenter_eip: u64,
    pub star: u64,
    pub lstar: u64,
    pub cstar: u64,
    pub sfmask: u64,
    pub kernel_gs_base: u64,
    pub tsc_aux: u64,
    pub pat: u64,
    pub xss: u64,
    pub spec_ctrl: u64,
    pub debugctl: u64,
    /// Added to the host's virtual time-stamp counter.
    pub tsc_offset: u64,
    pub tsc_adjust: u64,
    /// Retired instructions: the virtual clock. Written by the host only.
    pub icount: u64,
    /// The host's virtual TSC at this crossing. Written by the host only.
    pub tsc: u64,
    /// To be delivered at the next entry. Written by the backend, consumed by the host.
    pub inject: Event,
    /// The event in delivery while the backend is asked about an access, exception or condition that the delivery met;
    /// not valid at any other time. Written by the host only.
    pub delivering: Event,
    /// Debug exceptions recognized but not yet delivered, as bits of DR6, in a shadow of MOV SS or behind an exit.
    /// See: SDM vol. 3C Table 25-4. Format of Pending-Debug-Exceptions
    pub pending_debug: u64,
    pub intercepts: Intercepts,
    pub fpu: Fpu,
    /// Added to `tsc_offset` while a guest's guest runs.
    pub nested_tsc_offset: u64,
    /// How fast the clock of a guest's guest goes by the host's, a fixed-point number of 8.32 bits, less [`TSC_RATIO_ONE`]; zero
    /// while the guest itself runs.
    pub nested_tsc_ratio: u64,
    /// While DEBUGCTL.LBR is set, the last branch, interrupt or exception that was taken: from where, and to where.
    pub last_branch: [u64; 2],
    /// What `last_branch` was before the last interrupt or exception.
    pub last_exception: [u64; 2],
}

layout!(VcpuState: 1376, rip: 128, seg: 144, cr0: 304, pdptr: 408, interruptibility: 444, pat: 528, icount: 576, inject: 592, intercepts: 632, fpu: 656);

impl VcpuState {
    /// The state after RESET: real mode at F000:FFF0. See: SDM vol. 3A Table 9-1. IA-32 and Intel 64 Processor States
    pub fn reset() -> Self {
        let data = |selector, base| Segment {
            base,
            limit: 0xffff,
            selector,
            attr: SegAttr::new().with_typ(3).with_s(true).with_present(true),
        };
        let mut seg = [data(0, 0); 8];
        seg[seg::CS] = Segment { attr: data(0, 0).attr.with_typ(0xb), ..data(0xf000, 0xffff_0000) };
        seg[seg::LDTR].attr = SegAttr::new().with_typ(2).with_present(true);
        seg[seg::TR].attr = SegAttr::new().with_typ(0xb).with_present(true);
        Self {
            gpr: [0; 16],
            rip: 0xfff0,
            rflags: 2,
            seg,
            gdtr: TableReg { limit: 0xffff, ..Default::default() },
            idtr: TableReg { limit: 0xffff, ..Default::default() },
            cr0: Cr0::new().with_cd(true).with_nw(true).with_et(true).into_bits(),
            cr2: 0,
            cr3: 0,
            cr4: 0,
            cr8: 0,
            xcr0: 1,
            efer: 0,
            dr: [0; 4],
            dr6: DR6_INIT,
            dr7: DR7_INIT,
            pdptr: [0; 4],
            pkru: 0,
            interruptibility: Interruptibility::new(),
            activity: Activity::ACTIVE,
            cpl: 0,
            sysenter_cs: 0,
            sysenter_esp: 0,
            sysenter_eip: 0,
            star: 0,
            lstar: 0,
            cstar: 0,
            sfmask: 0,
            kernel_gs_base: 0,
            tsc_aux: 0,
            pat: crate::msr::PAT_POWER_ON,
            xss: 0,
            spec_ctrl: 0,
            debugctl: 0,
            tsc_offset: 0,
            tsc_adjust: 0,
            icount: 0,
            tsc: 0,
            inject: Event::default(),
            delivering: Event::default(),
            pending_debug: 0,
            intercepts: Intercepts::default(),
            fpu: Fpu::RESET,
            nested_tsc_offset: 0,
            nested_tsc_ratio: 0,
            last_branch: [0; 2],
            last_exception: [0; 2],
        }
    }

    /// The guest's time-stamp counter where the host's virtual one is `host`. The ratio counts for the guest's own offset too,
    /// which is signed. See: APM 15.30.5 TSC Ratio MSR (C000_0104h); KVM x86.c kvm_calc_nested_tsc_offset()
    pub fn guest_tsc(&self, host: u64) -> u64 {
        let (mut tsc, mut offset) = (host, self.tsc_offset);
        if self.nested_tsc_ratio != 0 {
            let ratio = self.nested_tsc_ratio.wrapping_add(TSC_RATIO_ONE);
            tsc = ((u128::from(tsc) * u128::from(ratio)) >> TSC_RATIO_FRACTION) as u64;
            offset = ((i128::from(offset as i64) * i128::from(ratio)) >> TSC_RATIO_FRACTION) as u64;
        }
        tsc.wrapping_add(offset).wrapping_add(self.nested_tsc_offset)
    }

    /// Whether branches are recorded (DEBUGCTL.LBR). See: APM 13.1.1.3 Debug-Control MSR (DebugCtl)
    pub const fn records_branches(&self) -> bool {
        self.debugctl & 1 != 0
    }

    /// Whether the vCPU runs in IA-32e mode with a 64-bit code segment.
    pub fn is_64bit_code(&self) -> bool {
        Efer::from_bits(self.efer).lma() && self.seg[seg::CS].attr.l()
    }

    /// Whether an interrupt ends a halt.
    pub fn takes_interrupts(&self) -> bool {
        let held = self.interruptibility;
        !held.interrupts() && (held.ignores_if() || self.rflags().intr())
    }

    pub fn cr0(&self) -> Cr0 {
        Cr0::from_bits(self.cr0)
    }

    pub fn cr4(&self) -> Cr4 {
        Cr4::from_bits(self.cr4)
    }

    pub fn efer(&self) -> Efer {
        Efer::from_bits(self.efer)
    }

    /// The paging mode that the registers select.
    pub fn paging_mode(&self) -> PagingMode {
        PagingMode::of(self.cr0(), self.cr4(), self.efer())
    }

    pub fn rflags(&self) -> Rflags {
        Rflags::from_bits(self.rflags)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Half as fast, and three times: the guest's own offset is scaled as a signed number, its guest's is not.
    #[test]
    fn the_clock_of_a_guests_guest() {
        let offset = 0_u64.wrapping_sub(100);
        let clock = |ratio: u64, tsc| {
            let nested_tsc_ratio = ratio.wrapping_sub(TSC_RATIO_ONE);
            let state = VcpuState {
                tsc_offset: offset,
                nested_tsc_offset: 7,
                nested_tsc_ratio,
                ..VcpuState::reset()
            };
            state.guest_tsc(tsc)
        };
        assert_eq!(clock(TSC_RATIO_ONE, 1000), 907);
        assert_eq!(clock(TSC_RATIO_ONE / 2, 1000), 457);
        assert_eq!(clock(3 * TSC_RATIO_ONE, 1000), 2707);
        assert_eq!(clock(0, 1000), 7);
    }
}
