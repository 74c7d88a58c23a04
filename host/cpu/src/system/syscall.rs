//! SYSCALL, SYSRET, SYSENTER and SYSEXIT, where the vendors differ.
//!
//! See: SDM vol. 2B SYSCALL, SYSENTER, SYSEXIT, SYSRET; APM vol. 3 chapter 4

use super::descriptor::Mode;
use crate::{
    core::{Core, ud},
    env::Interrupted,
    insn::Insn,
};
use iced_x86::Code;
use vmtape_arch::{
    descriptor::Selector,
    host::Vendor,
    regs::{Dr6, Rflags, SegAttr},
    vcpu::{Segment, gpr, seg},
};

const R11: usize = 11;

/// Selectors in STAR.
const STAR_SYSCALL: u32 = 32;
const STAR_SYSRET: u32 = 48;

/// A flat code segment.
fn code(selector: u16, cpl: u8, long: bool) -> Segment {
    let attr = flat(cpl).with_typ(0xb).with_l(long).with_db(!long);
    Segment { base: 0, limit: u32::MAX, selector, attr }
}

/// A flat stack segment.
fn stack(selector: u16, cpl: u8) -> Segment {
    Segment { base: 0, limit: u32::MAX, selector, attr: flat(cpl).with_typ(3).with_db(true) }
}

fn flat(cpl: u8) -> SegAttr {
    SegAttr::new().with_s(true).with_present(true).with_g(true).with_dpl(cpl)
}

fn level0(selector: u64) -> u16 {
    Selector::from_bits(selector as u16).with_rpl(0).into_bits()
}

fn level3(selector: u64) -> u16 {
    selector as u16 | 3
}

impl Core<'_> {
    fn enter(&mut self, cs: Segment, ss: Segment, cpl: u32, rip: u64) {
        self.state.seg[seg::CS] = cs;
        self.state.seg[seg::SS] = ss;
        self.state.cpl = cpl;
        self.next_rip = rip;
    }

    /// SYSCALL and SYSRET step if TF is set when they end, rather than when they begin.
    fn step_if_tf(&mut self) {
        self.single_step = false;
        if self.flags().tf() {
            self.debug_traps |= Dr6::new().with_bs(true).into_bits();
            self.recheck_events();
        }
    }

    /// Intel's processors know SYSCALL and SYSRET in 64-bit mode only.
    fn check_syscall(&self, insn: &Insn) -> Result<(), Interrupted> {
        let here = insn.is_64bit() || self.model.vendor == Vendor::AMD;
        if here && self.state.efer().sce() { Ok(()) } else { ud() }
    }

    /// AMD's processors know SYSENTER and SYSEXIT in legacy mode only.
    fn check_sysenter(&self) -> Result<(), Interrupted> {
        if self.state.efer().lma() && self.model.vendor == Vendor::AMD {
            return ud();
        }
        self.require_gp0(self.mode() != Mode::Real && self.state.sysenter_cs & 0xfffc != 0)
    }
}

pub(super) fn syscall(core: &mut Core<'_>, insn: &Insn) -> Result<(), Interrupted> {
    core.check_syscall(insn)?;
    let long = core.state.efer().lma();
    let selector = core.state.star >> STAR_SYSCALL;
    let flags = core.flags().with_rf(false);
    core.state.gpr[gpr::RCX] = core.next_rip;
    let rip = if !long {
        core.state.rflags = flags.with_intr(false).with_vm(false).into_bits();
        core.state.star & 0xffff_ffff
    } else {
        core.state.gpr[R11] = flags.into_bits();
        let mask = core.state.sfmask;
        core.state.rflags = Rflags::from_bits(flags.into_bits() & !mask).with_always_one(true).into_bits();
        if insn.is_64bit() { core.state.lstar } else { core.state.cstar }
    };
    let cs = code(level0(selector), 0, long);
    core.enter(cs, stack(level0(selector).wrapping_add(8), 0), 0, rip);
    core.step_if_tf();
    Ok(())
}

/// What SYSRET takes from R11. See: SDM vol. 2B SYSRET
const SYSRET_FLAGS: u64 = 0x3c_7fd7;

pub(super) fn sysret(core: &mut Core<'_>, insn: &Insn) -> Result<(), Interrupted> {
    core.check_syscall(insn)?;
    core.require_gp0(core.mode() != Mode::Real && core.cpl() == 0)?;
    let wide = insn.code == Code::Sysretq;
    let rcx = core.state.gpr[gpr::RCX];
    // AMD's processors fault at the target instead.
    if wide && core.model.vendor == Vendor::INTEL {
        core.require_gp0(core.is_canonical(rcx))?;
    }
    let base = core.state.star >> STAR_SYSRET;
    let (selector, rip) = if wide { (base.wrapping_add(16), rcx) } else { (base, rcx & 0xffff_ffff) };
    core.state.rflags = if core.state.efer().lma() {
        Rflags::from_bits(core.state.gpr[R11] & SYSRET_FLAGS)
    } else {
        core.flags().with_intr(true)
    }
    .with_always_one(true)
    .into_bits();
    let cs = code(level3(selector), 3, wide);
    core.enter(cs, stack(level3(base.wrapping_add(8)), 3), 3, rip);
    core.step_if_tf();
    Ok(())
}

pub(super) fn sysenter(core: &mut Core<'_>, _: &Insn) -> Result<(), Interrupted> {
    core.check_sysenter()?;
    let long = core.state.efer().lma();
    let cut = |value: u64| if long { value } else { value & 0xffff_ffff };
    let selector = level0(core.state.sysenter_cs);
    let (rip, rsp) = (cut(core.state.sysenter_eip), cut(core.state.sysenter_esp));
    core.state.rflags = core.flags().with_vm(false).with_intr(false).with_rf(false).into_bits();
    core.state.gpr[gpr::RSP] = rsp;
    core.enter(code(selector, 0, long), stack(selector.wrapping_add(8), 0), 0, rip);
    Ok(())
}

pub(super) fn sysexit(core: &mut Core<'_>, insn: &Insn) -> Result<(), Interrupted> {
    core.check_sysenter()?;
    core.require_cpl0()?;
    let wide = insn.code == Code::Sysexitq;
    let (rip, rsp) = (core.state.gpr[gpr::RDX], core.state.gpr[gpr::RCX]);
    if wide {
        core.require_gp0(core.is_canonical(rip) && core.is_canonical(rsp))?;
    }
    let cut = |value: u64| if wide { value } else { value & 0xffff_ffff };
    let selector = core.state.sysenter_cs.wrapping_add(if wide { 32 } else { 16 });
    core.state.gpr[gpr::RSP] = cut(rsp);
    core.enter(code(level3(selector), 3, wide), stack(level3(selector.wrapping_add(8)), 3), 3, cut(rip));
    Ok(())
}
