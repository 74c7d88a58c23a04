//! Segment registers as boot protocols want them: flat, with given selectors.

use vmtape_arch::{
    regs::SegAttr,
    vcpu::{Segment, VcpuState, seg},
};

const CODE: u8 = 0xb;
const DATA: u8 = 3;
const TSS_BUSY: u8 = 0xb;

fn flat(selector: u16, typ: u8, long: bool) -> Segment {
    let attr = SegAttr::new().with_typ(typ).with_s(true).with_present(true).with_g(true);
    Segment { base: 0, limit: u32::MAX, selector, attr: attr.with_l(long).with_db(!long) }
}

/// Flat protected-mode or 64-bit segments.
pub fn set_flat(state: &mut VcpuState, code: u16, data: u16, long: bool) {
    for register in [seg::ES, seg::SS, seg::DS, seg::FS, seg::GS] {
        state.seg[register] = flat(data, DATA, false);
    }
    state.seg[seg::CS] = flat(code, CODE, long);
    state.seg[seg::TR] = Segment {
        limit: 0x67,
        attr: SegAttr::new().with_typ(TSS_BUSY).with_present(true),
        ..Default::default()
    };
}
