//! VMCBs near the border of what VMRUN takes: a valid one with up to three things changed, again and again. What a round does
//! follows from the seed and is part of the image.

use super::{
    hypervisor::{self, Hypervisor, at, layout, set},
    report,
    vmcb::{self, Field},
};
use crate::{
    kernel::{Kernel, vars},
    parameters::{Kind, Parameter, Values},
};
use iced_x86::{IcedError, code_asm::*};
use rand::{RngExt, SeedableRng, seq::IndexedRandom};
use rand_pcg::Pcg64;

pub const PARAMETERS: &[Parameter] = &[
    Parameter::new("seed", Kind::Number, "0", "which VMCBs"),
    Parameter::new("rounds", Kind::Number, "100", "how many, up to 200"),
    Parameter::new("npt", Kind::Flag, "1", "nested paging, unless a round changes it"),
];

/// What a field may become.
enum Change {
    /// One bit the other way, out of so many.
    Flip(u32),
    /// One of these values.
    Values(&'static [u64]),
    /// Any value.
    Any,
}
use Change::*;

/// Where addresses become illegal or leave RAM, and where maps of two and three pages do.
const ADDRESSES: &[u64] = &[
    0,
    1,
    0xfff,
    0x27f_f000,
    0x3ff_e000,
    0x3ff_f000,
    0x400_0000,
    0xfee0_0000,
    1 << 36,
    (1 << 46) - 0x1000,
    (1 << 48) - 0x3000,
    (1 << 48) - 0x2000,
    (1 << 48) - 0x1000,
    1 << 48,
    (1 << 52) - 0x1000,
    1 << 52,
    1 << 62,
    u64::MAX,
];
const NOT_CANONICAL: &[u64] = &[0x8000_0000_0000, 0xffff_7fff_ffff_ffff, 1 << 57, 0xdead_beef_dead_beef];
// Valid events of each type, one with a reserved type, some with vectors that no exception has.
const EVENTS: &[u64] = &[
    0x8000_0020,
    0x8000_0202,
    0x8000_0b0d,
    0x8000_0300,
    0x8000_0302,
    0x8000_030f,
    0x8000_03ff,
    0x8000_0421,
    0x8000_0121,
    0x8000_0720,
    0xffff_ffff,
    0x8000_0b08,
    0x8000_0301,
];

const CHANGES: &[(Field, Change)] = &[
    (vmcb::EFER, Flip(64)),
    (vmcb::EFER, Flip(16)),
    (vmcb::CR0, Flip(64)),
    (vmcb::CR0, Flip(32)),
    (vmcb::CR4, Flip(64)),
    (vmcb::CR4, Flip(24)),
    (vmcb::CR3, Flip(64)),
    (vmcb::CR3, Values(ADDRESSES)),
    (vmcb::DR6, Flip(64)),
    (vmcb::DR7, Flip(64)),
    (vmcb::RFLAGS, Flip(64)),
    (vmcb::RFLAGS, Flip(22)),
    (vmcb::CS_ATTRIB, Flip(12)),
    (vmcb::CPL, Values(&[1, 2, 3, 4, 255])),
    (vmcb::RIP, Values(NOT_CANONICAL)),
    (vmcb::RSP, Values(NOT_CANONICAL)),
    (vmcb::IDTR_BASE, Values(NOT_CANONICAL)),
    (vmcb::IDTR_LIMIT, Values(&[0, 0x10, 0xffff_ffff])),
    (vmcb::GUEST_ASID, Values(&[0, 2, 8, 0xffff_ffff])),
    (vmcb::TLB_CONTROL, Values(&[0, 2, 3, 4, 7, 255])),
    (vmcb::MSRPM_BASE_PA, Values(ADDRESSES)),
    (vmcb::IOPM_BASE_PA, Values(ADDRESSES)),
    (vmcb::N_CR3, Values(ADDRESSES)),
    (vmcb::N_CR3, Flip(64)),
    (vmcb::NP_ENABLE, Values(&[0, 1, 2, 4, 8, u64::MAX])),
    (vmcb::INT_CTL, Any),
    (vmcb::INT_CTL, Values(&[0x100, 0x010f_0100, 0x0100_000f, 0x0010_0100, 0x0400_0000, 0x8000_0000])),
    (vmcb::INT_VECTOR, Any),
    (vmcb::INT_STATE, Values(&[1, 2, 3, u64::MAX])),
    (vmcb::EVENTINJ, Values(EVENTS)),
    (vmcb::EVENTINJ, Any),
    (vmcb::VIRT_EXT, Values(&[1, 2, 3, u64::MAX])),
    (vmcb::CLEAN, Any),
    (vmcb::G_PAT, Any),
    (vmcb::G_PAT, Flip(64)),
    (vmcb::intercept(0x00).0, Any),
    (vmcb::intercept(0x20).0, Any),
    (vmcb::intercept(0x40).0, Any),
    (vmcb::intercept(0x60).0, Any),
    (vmcb::intercept(0x80).0, Any),
    (vmcb::intercept(0xa0).0, Any),
];

/// Addresses for VMRUN itself.
const VMCBS: &[u64] = &[layout::VMCB + 8, 0x400_0000, 1 << 48, 1 << 52, 0xfee0_0000, !0xfff];

pub fn program(k: &mut Kernel, values: &Values) -> Result<(), IcedError> {
    let mut random = Pcg64::seed_from_u64(values.number("seed").unwrap_or(0));
    let hypervisor = Hypervisor::start(k, values.flag("npt"))?;
    let entry = hypervisor::guest(k, guest)?;
    let leave = hypervisor::guest(k, |_| Ok(()))?;
    for round in 0..values.number("rounds").unwrap_or(1).clamp(1, 200) {
        k.print(&format!("{round}:"))?;
        hypervisor.reset(k, entry)?;
        for _ in 0..random.random_range(1..=3) {
            change(k, &mut random)?;
        }
        match random.random_ratio(1, 50).then(|| VMCBS.choose(&mut random)).flatten() {
            None => {
                k.attempt(|k| {
                    // Exceptions of the guest's guest lead to its VMMCALL.
                    k.a.lea(rax, ptr(leave))?;
                    k.a.mov(qword_ptr(vars::FIXUP_RIP), rax)?;
                    k.a.mov(qword_ptr(vars::FIXUP_RSP), layout::STACK_TOP as i32)?;
                    hypervisor.run(k)
                })?;
                report::print_exit(k)?;
            }
            Some(address) => k.attempt(|k| {
                k.a.mov(rax, *address)?;
                k.a.vmrun()
            })?,
        }
        k.a.stgi()?;
        report::print_vector(k)?;
        k.print("\n")?;
    }
    k.a.xor(eax, eax)?;
    k.exit()
}

/// Changes a field of the VMCB in memory.
fn change(k: &mut Kernel, random: &mut Pcg64) -> Result<(), IcedError> {
    let Some((field, change)) = CHANGES.choose(random) else { return Ok(()) };
    match change {
        Flip(bits) => {
            let bit = random.random_range(0..(*bits).min(8 * field.size as u32));
            let byte = at(*field) + u64::from(bit / 8);
            k.a.xor(byte_ptr(byte), 1 << (bit % 8))
        }
        Values(values) => set(k, *field, cut(*field, values.choose(random).copied().unwrap_or(0))),
        Any => set(k, *field, cut(*field, random.random())),
    }
}

/// As much of a value as a field holds.
fn cut(field: Field, value: u64) -> u64 {
    value & (u64::MAX >> (64 - 8 * field.size))
}

/// What the guest's guest does where it gets so far.
fn guest(k: &mut Kernel) -> Result<(), IcedError> {
    k.a.xor(eax, eax)?;
    k.a.xor(ecx, ecx)?;
    k.a.cpuid()?;
    k.a.rdtsc()?;
    k.a.mov(rax, cr0)?;
    k.a.pushfq()?;
    k.a.popfq()
}
