//! FXSAVE and the XSAVE family.
// See: SDM vol. 1 chapter 13, Managing State Using the XSAVE Feature Set

use super::{Done, MXCSR_MASK, x87};
use crate::{
    core::{Core, fault, gp, ud},
    env::Interrupted,
    insn::{Handler, Insn},
};
use iced_x86::{
    Instruction,
    Mnemonic::{self, *},
};
use vmtape_arch::{exception::Vector, vcpu::gpr};

/// One state component of the extended region. Its number is its bit in XCR0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct XsaveComponent {
    pub number: u32,
    pub size: u32,
    /// In the standard format.
    pub offset: u32,
}

/// The extended components that exist here, as CPUID leaf 0xD enumerates them. All are user components.
pub const XSAVE_COMPONENTS: &[XsaveComponent] = &[
    XsaveComponent { number: AVX, size: 256, offset: 576 },
    XsaveComponent { number: PKRU, size: 8, offset: 2688 },
];

const X87: u32 = 0;
const SSE: u32 = 1;
const AVX: u32 = 2;
const PKRU: u32 = 9;

/// The legacy region and its parts.
const LEGACY: usize = 512;
const MXCSR_AT: usize = 24;
const ST_AT: usize = 32;
const XMM_AT: usize = 160;
const XMM_END: usize = 416;
/// Legacy region and header.
const EXTENDED: usize = 576;
/// The end of the last component, in either format.
const MAX_AREA: usize = 2696;

type Area = [u8; MAX_AREA];

pub fn handler(i: &Instruction) -> Option<Handler> {
    Some(match i.mnemonic() {
        Fxsave | Fxsave64 => fxsave,
        Fxrstor | Fxrstor64 => fxrstor,
        Xsave | Xsave64 | Xsaveopt | Xsaveopt64 => xsave,
        Xsavec | Xsavec64 | Xsaves | Xsaves64 => xsave_compacted,
        Xrstor | Xrstor64 | Xrstors | Xrstors64 => xrstor,
        _ => return None,
    })
}

/// The legacy region.
impl Core<'_> {
    /// Bytes 0 to 23 and the x87 registers.
    fn store_x87(&self, area: &mut Area, wide: bool) {
        let fpu = &self.state.fpu;
        area[0..2].copy_from_slice(&fpu.fcw.to_le_bytes());
        area[2..4].copy_from_slice(&fpu.fsw.to_le_bytes());
        area[4] = fpu.ftw;
        area[5] = 0;
        area[6..8].copy_from_slice(&fpu.fop.to_le_bytes());
        // Selectors are not kept, as processors that deprecate FPU CS and DS do.
        let mask = if wide { u64::MAX } else { u32::MAX.into() };
        area[8..16].copy_from_slice(&(fpu.fip & mask).to_le_bytes());
        area[16..24].copy_from_slice(&(fpu.fdp & mask).to_le_bytes());
        for i in 0..8 {
            let top = (fpu.fsw & x87::TOP) >> x87::TOP.trailing_zeros();
            let register = fpu.st[(usize::from(top) + i) % 8];
            let at = ST_AT + 16 * i;
            area[at..at + 10].copy_from_slice(&register[..10]);
            area[at + 10..at + 16].fill(0);
        }
    }

    fn load_x87(&mut self, area: &Area, wide: bool) {
        let word = |at: usize| u16::from_le_bytes([area[at], area[at + 1]]);
        let mask = if wide { u64::MAX } else { u32::MAX.into() };
        let fpu = &mut self.state.fpu;
        fpu.fcw = word(0) & 0x1f3f | 0x40;
        fpu.fsw = word(2);
        fpu.ftw = area[4];
        fpu.fop = word(6) & 0x7ff;
        fpu.fip = quad(area, 8) & mask;
        fpu.fdp = quad(area, 16) & mask;
        let top = usize::from((fpu.fsw & x87::TOP) >> x87::TOP.trailing_zeros());
        for i in 0..8 {
            let mut register = [0; 16];
            register[..10].copy_from_slice(&area[ST_AT + 16 * i..ST_AT + 16 * i + 10]);
            fpu.st[(top + i) % 8] = register;
        }
        // ES follows flags and masks, whatever the image says.
        let masks = fpu.fcw as u8 & 0x3f;
        self.set_summary(masks);
    }

    fn store_mxcsr(&self, area: &mut Area) {
        area[MXCSR_AT..MXCSR_AT + 4].copy_from_slice(&self.state.fpu.mxcsr.to_le_bytes());
        area[MXCSR_AT + 4..MXCSR_AT + 8].copy_from_slice(&MXCSR_MASK.to_le_bytes());
    }

    fn store_xmm(&self, area: &mut Area) {
        for i in 0..self.vector_registers() {
            put_vector(area, XMM_AT + 16 * i, self.state.fpu.xmm[i]);
        }
    }

    fn load_xmm(&mut self, area: &Area) {
        for i in 0..self.vector_registers() {
            self.state.fpu.xmm[i] = vector(area, XMM_AT + 16 * i);
        }
    }

    /// XMM8 to XMM15 exist in 64-bit mode only.
    fn vector_registers(&self) -> usize {
        if self.state.is_64bit_code() { 16 } else { 8 }
    }
}

fn quad(area: &Area, at: usize) -> u64 {
    area[at..].first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes))
}

fn put_quad(area: &mut Area, at: usize, value: u64) {
    area[at..at + 8].copy_from_slice(&value.to_le_bytes());
}

fn vector(area: &Area, at: usize) -> [u64; 2] {
    [quad(area, at), quad(area, at + 8)]
}

fn put_vector(area: &mut Area, at: usize, value: [u64; 2]) {
    put_quad(area, at, value[0]);
    put_quad(area, at + 8, value[1]);
}

/// The MXCSR of an image; #GP(0) if it sets reserved bits.
fn image_mxcsr(area: &Area) -> Result<u32, Interrupted> {
    let value = quad(area, MXCSR_AT) as u32;
    if value & !MXCSR_MASK != 0 { gp(0) } else { Ok(value) }
}

/// Whether pointers are saved with 64 bits (REX.W).
fn is_wide(op: Mnemonic) -> bool {
    matches!(op, Fxsave64 | Fxrstor64 | Xsave64 | Xsaveopt64 | Xsavec64 | Xsaves64 | Xrstor64 | Xrstors64)
}

fn check_fxsave(core: &Core<'_>, insn: &Insn) -> Done {
    let cr0 = core.state.cr0();
    if cr0.em() {
        return ud();
    }
    if cr0.ts() {
        return fault(Vector::NM);
    }
    core.check_boundary(insn, 16)
}

fn fxsave(core: &mut Core<'_>, insn: &Insn) -> Done {
    check_fxsave(core, insn)?;
    let at = insn.address(core);
    let mut area = [0; MAX_AREA];
    // What is not saved stays as it is in memory, but the whole region is written to.
    core.probe_write(insn.seg, at, LEGACY as u64)?;
    core.read_bytes(insn.seg, at, &mut area[..LEGACY])?;
    core.store_x87(&mut area, is_wide(insn.code.mnemonic()));
    if core.state.cr4().osfxsr() {
        core.store_mxcsr(&mut area);
        core.store_xmm(&mut area);
    }
    core.write_bytes(insn.seg, at, &area[..XMM_END])
}

fn fxrstor(core: &mut Core<'_>, insn: &Insn) -> Done {
    check_fxsave(core, insn)?;
    let mut area = [0; MAX_AREA];
    core.read_bytes(insn.seg, insn.address(core), &mut area[..LEGACY])?;
    let sse = core.state.cr4().osfxsr();
    let mxcsr = image_mxcsr(&area)?;
    core.load_x87(&area, is_wide(insn.code.mnemonic()));
    if sse {
        core.state.fpu.mxcsr = mxcsr;
        core.load_xmm(&area);
    }
    Ok(())
}

/// A set of state components: bits of XCR0 and IA32_XSS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Components(u64);

impl Components {
    fn has(self, component: u32) -> bool {
        self.0 >> component & 1 != 0
    }

    fn and(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// Where a component begins in the compacted format whose XCOMP_BV is `self`.
    fn compacted_offset(self, component: u32) -> usize {
        let before = XSAVE_COMPONENTS.iter().filter(|c| c.number < component && self.has(c.number));
        EXTENDED + before.map(|c| c.size as usize).sum::<usize>()
    }

    /// Bytes up to the end of the last component.
    fn area_len(self, compacted: bool) -> usize {
        let ends = XSAVE_COMPONENTS.iter().filter(|c| self.has(c.number)).map(|c| {
            let start = if compacted { self.compacted_offset(c.number) } else { c.offset as usize };
            start + c.size as usize
        });
        ends.max().unwrap_or(EXTENDED)
    }
}

const XSTATE_BV_AT: usize = LEGACY;
const XCOMP_BV_AT: usize = LEGACY + 8;
const COMPACTED: u64 = 1 << 63;

impl Core<'_> {
    fn check_xsave(&self, insn: &Insn, supervisor: bool) -> Done {
        if !self.state.cr4().osxsave() {
            return ud();
        }
        if self.state.cr0().ts() {
            return fault(Vector::NM);
        }
        if supervisor && self.state.cpl != 0 {
            return gp(0);
        }
        self.check_boundary(insn, 64)
    }

    /// EDX:EAX.
    fn requested(&self) -> Components {
        Components(self.state.gpr[gpr::RDX] << 32 | self.state.gpr[gpr::RAX] as u32 as u64)
    }

    fn enabled(&self, supervisor: bool) -> Components {
        Components(self.state.xcr0 | if supervisor { self.state.xss } else { 0 })
    }

    /// XINUSE: the components that are not in their initial configuration.
    fn in_use(&self) -> Components {
        let fpu = &self.state.fpu;
        let mut initial = *fpu;
        x87::fninit(&mut initial);
        initial.st = [[0; 16]; 8];
        let nonzero = |registers: &[[u64; 2]; 16]| registers.iter().any(|r| *r != [0, 0]);
        let bits = [
            (X87, *fpu != initial),
            (SSE, nonzero(&fpu.xmm)),
            (AVX, nonzero(&fpu.ymm_hi)),
            (PKRU, self.state.pkru != 0),
        ];
        Components(bits.iter().fold(0, |set, (component, used)| set | u64::from(*used) << component))
    }

    fn store_extended(&self, area: &mut Area, component: u32, at: usize) {
        if component == AVX {
            for i in 0..self.vector_registers() {
                put_vector(area, at + 16 * i, self.state.fpu.ymm_hi[i]);
            }
        } else {
            put_quad(area, at, self.state.pkru.into());
        }
    }

    /// Loads a component, or puts it into its initial configuration.
    fn load_extended(&mut self, component: u32, from: Option<(&Area, usize)>) {
        if component == AVX {
            for i in 0..self.vector_registers() {
                self.state.fpu.ymm_hi[i] = from.map_or([0, 0], |(area, at)| vector(area, at + 16 * i));
            }
        } else {
            self.state.pkru = from.map_or(0, |(area, at)| quad(area, at) as u32);
            // Protection keys are part of what translations were checked against.
            self.tlb.flush(crate::tlb::Flush::All);
        }
    }
}

/// XSAVE and XSAVEOPT: the standard format. XSAVEOPT leaves out what is in its initial configuration.
fn xsave(core: &mut Core<'_>, insn: &Insn) -> Done {
    core.check_xsave(insn, false)?;
    let op = insn.code.mnemonic();
    let rfbm = core.requested().and(core.enabled(false));
    let in_use = core.in_use();
    let optimized = matches!(op, Xsaveopt | Xsaveopt64);
    let saved = if optimized { rfbm.and(in_use) } else { rfbm };
    let at = insn.address(core);
    let len = rfbm.area_len(false);
    let mut area = [0; MAX_AREA];
    core.probe_write(insn.seg, at, len as u64)?;
    core.read_bytes(insn.seg, at, &mut area[..len])?;
    let header = Components(quad(&area, XSTATE_BV_AT) & !rfbm.0 | rfbm.and(in_use).0);
    put_quad(&mut area, XSTATE_BV_AT, header.0);
    if saved.has(X87) {
        core.store_x87(&mut area, is_wide(op));
    }
    if rfbm.has(SSE) || rfbm.has(AVX) {
        core.store_mxcsr(&mut area);
    }
    if saved.has(SSE) {
        core.store_xmm(&mut area);
    }
    for component in XSAVE_COMPONENTS.iter().filter(|c| saved.has(c.number)) {
        core.store_extended(&mut area, component.number, component.offset as usize);
    }
    core.write_bytes(insn.seg, at, &area[..len])
}

/// XSAVEC and XSAVES: the compacted format, without what is in its initial configuration.
fn xsave_compacted(core: &mut Core<'_>, insn: &Insn) -> Done {
    let op = insn.code.mnemonic();
    let supervisor = matches!(op, Xsaves | Xsaves64);
    core.check_xsave(insn, supervisor)?;
    let rfbm = core.requested().and(core.enabled(supervisor));
    let mxcsr_in_use = core.state.fpu.mxcsr != vmtape_arch::fpu::Fpu::RESET.mxcsr;
    let in_use = Components(core.in_use().0 | u64::from(mxcsr_in_use) << SSE);
    let saved = rfbm.and(in_use);
    let at = insn.address(core);
    let len = rfbm.area_len(true);
    let mut area = [0; MAX_AREA];
    core.probe_write(insn.seg, at, len as u64)?;
    core.read_bytes(insn.seg, at, &mut area[..len])?;
    put_quad(&mut area, XSTATE_BV_AT, saved.0);
    put_quad(&mut area, XCOMP_BV_AT, rfbm.0 | COMPACTED);
    if saved.has(X87) {
        core.store_x87(&mut area, is_wide(op));
    }
    if saved.has(SSE) {
        core.store_mxcsr(&mut area);
        core.store_xmm(&mut area);
    }
    for component in XSAVE_COMPONENTS.iter().filter(|c| saved.has(c.number)) {
        core.store_extended(&mut area, component.number, rfbm.compacted_offset(component.number));
    }
    core.write_bytes(insn.seg, at, &area[..len])
}

/// XRSTOR and XRSTORS, of either format.
fn xrstor(core: &mut Core<'_>, insn: &Insn) -> Done {
    let op = insn.code.mnemonic();
    let supervisor = matches!(op, Xrstors | Xrstors64);
    core.check_xsave(insn, supervisor)?;
    let enabled = core.enabled(supervisor);
    let rfbm = core.requested().and(enabled);
    let at = insn.address(core);
    let mut area = [0; MAX_AREA];
    core.read_bytes(insn.seg, at, &mut area[..EXTENDED])?;
    let format = check_header(&area, enabled, supervisor)?;
    let present = Components(quad(&area, XSTATE_BV_AT)).and(rfbm);
    let len = match format {
        Some(all) => all.area_len(true),
        None => present.area_len(false),
    };
    core.read_bytes(insn.seg, at, &mut area[..len])?;
    let mxcsr = restored_mxcsr(core, &area, format.is_some(), rfbm, present)?;
    restore(core, &area, format, rfbm, present, is_wide(op));
    core.state.fpu.mxcsr = mxcsr;
    Ok(())
}

/// The components of a compacted image, `None` for the standard format.
/// See: SDM vol. 1 13.8 Operation of XRSTOR
fn check_header(
    area: &Area,
    enabled: Components,
    supervisor: bool,
) -> Result<Option<Components>, Interrupted> {
    let (present, all) = (quad(area, XSTATE_BV_AT), quad(area, XCOMP_BV_AT));
    let zero = |from: usize, to: usize| area[LEGACY + from..LEGACY + to].iter().all(|byte| *byte == 0);
    if all & COMPACTED == 0 {
        let valid = !supervisor && present & !enabled.0 == 0 && zero(8, 24);
        return if valid { Ok(None) } else { gp(0) };
    }
    let all = all & !COMPACTED;
    let valid = all & !enabled.0 == 0 && present & !all == 0 && zero(16, 64);
    if valid { Ok(Some(Components(all))) } else { gp(0) }
}

/// MXCSR after XRSTOR: the standard format holds it whenever SSE or AVX state is asked for.
fn restored_mxcsr(
    core: &Core<'_>,
    area: &Area,
    compacted: bool,
    rfbm: Components,
    present: Components,
) -> Result<u32, Interrupted> {
    match compacted {
        false if rfbm.has(SSE) || rfbm.has(AVX) => image_mxcsr(area),
        true if present.has(SSE) => image_mxcsr(area),
        true if rfbm.has(SSE) => Ok(vmtape_arch::fpu::Fpu::RESET.mxcsr),
        _ => Ok(core.state.fpu.mxcsr),
    }
}

fn restore(
    core: &mut Core<'_>,
    area: &Area,
    format: Option<Components>,
    rfbm: Components,
    present: Components,
    wide: bool,
) {
    if present.has(X87) {
        core.load_x87(area, wide);
    } else if rfbm.has(X87) {
        x87::fninit(&mut core.state.fpu);
        core.state.fpu.st = [[0; 16]; 8];
    }
    if present.has(SSE) {
        core.load_xmm(area);
    } else if rfbm.has(SSE) {
        let count = core.vector_registers();
        core.state.fpu.xmm[..count].fill([0, 0]);
    }
    for component in XSAVE_COMPONENTS.iter().filter(|c| rfbm.has(c.number)) {
        let at = format.map_or(component.offset as usize, |all| all.compacted_offset(component.number));
        core.load_extended(component.number, present.has(component.number).then_some((area, at)));
    }
}
