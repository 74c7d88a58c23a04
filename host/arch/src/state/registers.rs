//! The registers of a vCPU one by one: what comparisons name, and what digests of a run are made of.

use super::StateKind;
use crate::{
    event::Event,
    fpu::Fpu,
    vcpu::{Intercepts, Segment, VcpuState},
};
use core::fmt;

/// What people call a register, or a part of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RegisterName {
    file: &'static str,
    number: Option<u8>,
    part: &'static str,
}

impl RegisterName {
    const fn one(file: &'static str) -> Self {
        Self::part(file, "")
    }

    const fn part(file: &'static str, part: &'static str) -> Self {
        Self { file, number: None, part }
    }

    const fn numbered(file: &'static str, number: usize, part: &'static str) -> Self {
        Self { file, number: Some(number as u8), part }
    }
}

impl fmt::Display for RegisterName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.file)?;
        if let Some(number) = self.number {
            write!(f, "{number}")?;
        }
        f.write_str(self.part)
    }
}

const GPR: [&str; 16] = [
    "RAX", "RCX", "RDX", "RBX", "RSP", "RBP", "RSI", "RDI", "R8", "R9", "R10", "R11", "R12", "R13", "R14",
    "R15",
];
const SEG: [&str; 8] = ["ES", "CS", "SS", "DS", "FS", "GS", "LDTR", "TR"];

impl VcpuState {
    /// The state as far as every backend has it alike after an instruction; the rest is zero. That is all that
    /// [`Self::each_register`] tells, and padding.
    pub fn observable(&self) -> Self {
        Self {
            // The host's clocks, and how far it got.
            icount: 0,
            tsc: 0,
            // Events on their way, and what the backend wants to hear of.
            inject: Event::default(),
            delivering: Event::default(),
            intercepts: Intercepts::default(),
            // They follow from CR3 and memory.
            pdptr: [0; 4],
            // They are there where silicon has them, whatever the guest does.
            interruptibility: self.interruptibility.without_silicons_own(),
            ..*self
        }
    }

    /// All registers: by which part of the state they move, what they are called, and what they hold.
    #[inline]
    pub fn each_register(&self, mut see: impl FnMut(StateKind, RegisterName, u64)) {
        self.each_register_but_fpu(&mut see);
        self.fpu.each_register(|name, value| see(StateKind::XSAVE, name, value));
    }

    /// As [`Self::each_register`], without those of the FPU.
    #[inline(always)]
    pub fn each_register_but_fpu(&self, mut see: impl FnMut(StateKind, RegisterName, u64)) {
        use StateKind as K;
        // All fields, so that one that is added does not compile before somebody says what it is.
        let Self {
            gpr,
            rip,
            rflags,
            seg,
            gdtr,
            idtr,
            cr0,
            cr2,
            cr3,
            cr4,
            cr8,
            xcr0,
            efer,
            dr,
            dr6,
            dr7,
            pdptr: _,
            pkru,
            interruptibility,
            activity,
            cpl,
            sysenter_cs,
            sysenter_esp,
            sysenter_eip,
            star,
            lstar,
            cstar,
            sfmask,
            kernel_gs_base,
            tsc_aux,
            pat,
            xss,
            spec_ctrl,
            debugctl,
            tsc_offset,
            tsc_adjust,
            icount: _,
            tsc: _,
            inject: _,
            delivering: _,
            pending_debug,
            intercepts: _,
            fpu: _,
            nested_tsc_offset,
            nested_tsc_ratio,
            last_branch,
            last_exception,
        } = self;
        let held = interruptibility.without_silicons_own();
        let singles = [
            (K::REGS, "RIP", *rip),
            (K::REGS, "RFLAGS", *rflags),
            (K::SREGS2, "CR0", *cr0),
            (K::SREGS2, "CR2", *cr2),
            (K::SREGS2, "CR3", *cr3),
            (K::SREGS2, "CR4", *cr4),
            (K::SREGS2, "CR8", *cr8),
            (K::SREGS2, "EFER", *efer),
            (K::XCRS, "XCR0", *xcr0),
            (K::SREGS2, "CPL", (*cpl).into()),
            (K::XSAVE, "PKRU", (*pkru).into()),
            (K::DEBUGREGS, "DR6", *dr6),
            (K::DEBUGREGS, "DR7", *dr7),
            (K::MP_STATE, "activity", activity.0.into()),
            (K::VCPU_EVENTS, "interruptibility", held.into_bits().into()),
            (K::VCPU_EVENTS, "pending debug exceptions", *pending_debug),
            (K::MSRS, "SYSENTER_CS", *sysenter_cs),
            (K::MSRS, "SYSENTER_ESP", *sysenter_esp),
            (K::MSRS, "SYSENTER_EIP", *sysenter_eip),
            (K::MSRS, "STAR", *star),
            (K::MSRS, "LSTAR", *lstar),
            (K::MSRS, "CSTAR", *cstar),
            (K::MSRS, "SFMASK", *sfmask),
            (K::MSRS, "KERNEL_GS_BASE", *kernel_gs_base),
            (K::MSRS, "TSC_AUX", *tsc_aux),
            (K::MSRS, "PAT", *pat),
            (K::MSRS, "XSS", *xss),
            (K::MSRS, "SPEC_CTRL", *spec_ctrl),
            (K::MSRS, "DEBUGCTL", *debugctl),
            (K::MSRS, "LASTBRANCHFROMIP", last_branch[0]),
            (K::MSRS, "LASTBRANCHTOIP", last_branch[1]),
            (K::MSRS, "LASTINTFROMIP", last_exception[0]),
            (K::MSRS, "LASTINTTOIP", last_exception[1]),
            (K::TSC_OFFSET, "TSC offset", *tsc_offset),
            (K::TSC_OFFSET, "nested TSC offset", *nested_tsc_offset),
            (K::TSC_OFFSET, "nested TSC ratio", *nested_tsc_ratio),
            (K::MSRS, "TSC_ADJUST", *tsc_adjust),
            (K::SREGS2, "GDTR base", gdtr.base),
            (K::SREGS2, "GDTR limit", gdtr.limit.into()),
            (K::SREGS2, "IDTR base", idtr.base),
            (K::SREGS2, "IDTR limit", idtr.limit.into()),
        ];
        for (kind, name, value) in singles {
            see(kind, RegisterName::one(name), value);
        }
        for (name, value) in GPR.iter().zip(gpr) {
            see(K::REGS, RegisterName::one(name), *value);
        }
        for (n, value) in dr.iter().enumerate() {
            see(K::DEBUGREGS, RegisterName::numbered("DR", n, ""), *value);
        }
        for (name, Segment { base, limit, selector, attr }) in SEG.iter().zip(seg) {
            see(K::SREGS2, RegisterName::part(name, " selector"), (*selector).into());
            see(K::SREGS2, RegisterName::part(name, " base"), *base);
            see(K::SREGS2, RegisterName::part(name, " limit"), (*limit).into());
            see(K::SREGS2, RegisterName::part(name, " attributes"), attr.into_bits().into());
        }
    }
}

impl Fpu {
    /// All registers of the FPU. FPR0 to FPR7 are the x87 registers by their physical numbers.
    pub fn each_register(&self, mut see: impl FnMut(RegisterName, u64)) {
        let Self { fcw, fsw, ftw, pad: _, fop, fip, fdp, mxcsr, pad2: _, st, xmm, ymm_hi } = self;
        let singles = [
            ("FCW", u64::from(*fcw)),
            ("FSW", (*fsw).into()),
            ("FTW", (*ftw).into()),
            ("FOP", (*fop).into()),
            ("FIP", *fip),
            ("FDP", *fdp),
            ("MXCSR", (*mxcsr).into()),
        ];
        for (name, value) in singles {
            see(RegisterName::one(name), value);
        }
        for (n, value) in st.iter().enumerate() {
            let value = u128::from_le_bytes(*value);
            see(RegisterName::numbered("FPR", n, " mantissa"), value as u64);
            see(RegisterName::numbered("FPR", n, " sign and exponent"), (value >> 64) as u64);
        }
        for (n, [low, high]) in xmm.iter().enumerate() {
            see(RegisterName::numbered("XMM", n, " low"), *low);
            see(RegisterName::numbered("XMM", n, " high"), *high);
        }
        for (n, [low, high]) in ymm_hi.iter().enumerate() {
            see(RegisterName::numbered("YMM", n, " bits 128 to 191"), *low);
            see(RegisterName::numbered("YMM", n, " bits 192 to 255"), *high);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{Compared, STATE},
        *,
    };
    use std::collections::BTreeSet;

    fn all(state: &VcpuState) -> Vec<(String, u64)> {
        let mut all = Vec::new();
        state.each_register(|_, name, value| all.push((name.to_string(), value)));
        all
    }

    /// Each byte of a state, changed by itself: the registers tell of it where the observable state does, and only there.
    #[test]
    fn registers_are_what_is_observable() {
        let state = VcpuState::reset();
        let bytes = postcard::to_stdvec(&state).unwrap();
        let (mut seen, mut unseen) = (0, 0);
        for n in 0..bytes.len() {
            let mut bytes = bytes.clone();
            bytes[n] ^= 1;
            let Ok(mut other) = postcard::from_bytes::<VcpuState>(&bytes) else { continue };
            if postcard::to_stdvec(&other).unwrap() != bytes {
                continue;
            }
            (other.fpu.pad, other.fpu.pad2) = (state.fpu.pad, state.fpu.pad2);
            (other.gdtr.pad, other.idtr.pad) = (state.gdtr.pad, state.idtr.pad);
            let differs = other.observable() != state.observable();
            assert_eq!(all(&other) != all(&state), differs, "byte {n}: {other:?}");
            if differs { seen += 1 } else { unseen += 1 }
        }
        assert!(seen > 300 && unseen > 10, "{seen}, {unseen}");
    }

    #[test]
    fn names_are_used_once() {
        let names: Vec<String> = all(&VcpuState::reset()).into_iter().map(|(name, _)| name).collect();
        assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), names.len());
    }

    /// A kind of state of which the list says that registers have it is one that registers move by.
    #[test]
    fn the_list_of_kinds_says_what_is_compared() {
        let mut kinds = Vec::new();
        VcpuState::reset().each_register(|kind, _, _| kinds.push(kind));
        for row in STATE {
            let nothing = matches!(row.compared, Compared::Nothing(_));
            assert_eq!(kinds.contains(&row.kind), !nothing, "{:?}", row.kind);
        }
    }
}
