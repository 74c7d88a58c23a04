//! `struct kvm_xsave`: the standard format of XSAVE, as far as the modelled silicon's CPUID leaf 0xD goes.
//!
//! See: SDM vol. 1 13.4 XSAVE Area

use crate::{fpu::Fpu, vcpu::VcpuState};
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// State components: bits of XCR0 and XSTATE_BV. See: SDM vol. 1 13.1
pub mod xfeature {
    pub const FP: u64 = 1;
    pub const SSE: u64 = 1 << 1;
    pub const YMM: u64 = 1 << 2;
    pub const PKRU: u64 = 1 << 9;
}

/// MXCSR bits that exist, which the legacy region shows.
const MXCSR_MASK: u32 = 0xffff;
/// Bytes of a register that hold its value.
const ST_BYTES: usize = 10;
/// FCW after FNINIT, and MXCSR after reset: the initial configuration of the two components.
const FCW_INIT: u16 = 0x37f;
const MXCSR_INIT: u32 = 0x1f80;

/// `struct kvm_xsave`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
pub struct Xsave {
    pub fcw: u16,
    pub fsw: u16,
    pub ftw: u8,
    pub pad: u8,
    pub fop: u16,
    pub fip: u64,
    pub fdp: u64,
    pub mxcsr: u32,
    pub mxcsr_mask: u32,
    /// ST0 to ST7: relative to the top of the stack.
    pub st: [[u8; 16]; 8],
    pub xmm: [[u64; 2]; 16],
    pub unused: [u64; 12],
    pub xstate_bv: u64,
    pub xcomp_bv: u64,
    pub reserved: [u64; 6],
    pub ymm_hi: [[u64; 2]; 16],
    pub absent: [u64; 232],
    pub pkru: u32,
    pub pkru_pad: u32,
    pub rest: [u64; 175],
}

const _: () = assert!(size_of::<Xsave>() == 4096);
const _: () = assert!(std::mem::offset_of!(Xsave, xstate_bv) == 512);
const _: () = assert!(std::mem::offset_of!(Xsave, ymm_hi) == 576);
const _: () = assert!(std::mem::offset_of!(Xsave, pkru) == 2688);

/// Where ST(i) is among the physical registers.
fn physical(fsw: u16, i: usize) -> usize {
    (usize::from(fsw >> 11) + i) & 7
}

impl Xsave {
    /// With the components of `xcr0`, which is what the guest may have.
    pub fn of(state: &VcpuState, xcr0: u64) -> Self {
        let fpu = &state.fpu;
        let has = |component: u64| xcr0 & component != 0;
        Self {
            fcw: fpu.fcw,
            fsw: fpu.fsw,
            ftw: fpu.ftw,
            pad: 0,
            fop: fpu.fop,
            fip: fpu.fip,
            fdp: fpu.fdp,
            mxcsr: fpu.mxcsr,
            mxcsr_mask: MXCSR_MASK,
            st: std::array::from_fn(|i| fpu.st[physical(fpu.fsw, i)]),
            xmm: fpu.xmm,
            unused: [0; 12],
            xstate_bv: xfeature::FP | xfeature::SSE | xcr0 & (xfeature::YMM | xfeature::PKRU),
            xcomp_bv: 0,
            reserved: [0; 6],
            ymm_hi: if has(xfeature::YMM) { fpu.ymm_hi } else { [[0; 2]; 16] },
            absent: [0; 232],
            pkru: if has(xfeature::PKRU) { state.pkru } else { 0 },
            pkru_pad: 0,
            rest: [0; 175],
        }
    }

    /// Whether KVM_SET_XSAVE takes it where the host saves these components.
    /// See: arch/x86/kernel/fpu/xstate.c validate_user_xstate_header(), core.c fpu_copy_uabi_to_guest_fpstate()
    pub fn is_valid(&self, host_xcr0: u64) -> bool {
        let has_mxcsr = self.xstate_bv & (xfeature::SSE | xfeature::YMM) != 0;
        self.xstate_bv & !host_xcr0 == 0
            && self.xcomp_bv == 0
            && self.reserved == [0; 6]
            && !(has_mxcsr && self.mxcsr & !MXCSR_MASK != 0)
    }

    /// A component that XSTATE_BV does not name goes to its initial configuration; PKRU stays.
    pub fn apply(&self, state: &mut VcpuState) {
        let has = |component: u64| self.xstate_bv & component != 0;
        let mut fpu = Fpu { fcw: FCW_INIT, mxcsr: MXCSR_INIT, ..Fpu::RESET };
        if has(xfeature::FP) {
            (fpu.fcw, fpu.fsw, fpu.ftw, fpu.fop) = (self.fcw, self.fsw, self.ftw, self.fop);
            (fpu.fip, fpu.fdp) = (self.fip, self.fdp);
            for (i, value) in self.st.into_iter().enumerate() {
                fpu.st[physical(self.fsw, i)][..ST_BYTES].copy_from_slice(&value[..ST_BYTES]);
            }
        }
        if has(xfeature::SSE) {
            fpu.xmm = self.xmm;
        }
        if has(xfeature::SSE | xfeature::YMM) {
            fpu.mxcsr = self.mxcsr;
        }
        if has(xfeature::YMM) {
            fpu.ymm_hi = self.ymm_hi;
        }
        state.fpu = fpu;
        if has(xfeature::PKRU) {
            state.pkru = self.pkru;
        }
    }
}
