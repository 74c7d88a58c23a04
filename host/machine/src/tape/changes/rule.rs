//! What the digest of an exit's changes has, by what the exit was.

use super::{
    emulation::Emulation,
    rest,
    words::{Place, Words},
};
use crate::tape::{
    fpu,
    registers::{self as bit, Values},
};
use vmtape_arch::{
    exception::Vector,
    exit::{Exit, StimulusKind},
    level::Level,
    msr::Msr,
    regs::Rflags,
    sensitive::SensitiveKind,
    vcpu::{VcpuState, gpr, seg},
};

/// An exit of the guest itself that leads to no guest of its own: who switches between guests exchanges all registers.
pub(super) fn is_plain(exit: &Exit) -> bool {
    exit.level == Level::L1
        && !(exit.stimulus == StimulusKind::SENSITIVE && exit.insn.kind == SensitiveKind::SVM)
}

/// What the digest has.
pub(super) struct Rule<'a> {
    /// Registers whose value before is known.
    known: u32,
    /// Those that are written whatever they were.
    written: u32,
    /// The register besides that an instruction wrote.
    msr: Option<u64>,
    /// Those whose value before is not known, and which nobody changes. Of RFLAGS what instructions compute.
    others: u32,
    /// No segment, table, debug register or MSR may change.
    rest: bool,
    /// Nor a register of the FPU, ...
    fpu: bool,
    /// ... but these are known.
    numbers: &'a [usize],
    /// The event that is injected has its part.
    inject: bool,
    /// What was added to the rest with chained digests, and DR6 of it, which a debug exception sets.
    later: bool,
    dr6: bool,
}

const GPRS: u32 = 0xffff;

/// Registers that only instructions of [`sets_system_registers`] change, the emulator, and page faults.
const QUIET: u32 = bit::CR2 | bit::XCR0 | bit::DR7;
const MODE: u32 = bit::CR0 | bit::CR3 | bit::CR4 | bit::EFER | bit::CPL;

/// Flags that instructions compute.
const ARITHMETIC: u64 = Rflags::new()
    .with_cf(true)
    .with_pf(true)
    .with_af(true)
    .with_zf(true)
    .with_sf(true)
    .with_df(true)
    .with_of(true)
    .into_bits();

impl<'a> Rule<'a> {
    pub(super) const ENTRY: Self = Self {
        known: 0,
        written: 0,
        msr: None,
        others: GPRS | MODE | bit::XCR0 | bit::PKRU,
        rest: true,
        fpu: true,
        numbers: &[],
        inject: false,
        later: false,
        dr6: false,
    };

    /// Everything.
    #[cfg(test)]
    pub(super) const ALL: Self = Self { known: u32::MAX, later: true, dr6: true, ..Self::ENTRY };

    /// As digests have it that are chained: registers that were left out before.
    pub(super) fn chained(self, exit: Option<&Exit>, before: &VcpuState, after: &VcpuState) -> Self {
        let injects = after.inject.valid.is_set() && after.inject.vector == Vector::DB.0;
        let raises = exit.is_some_and(|exit| exit.stimulus == StimulusKind::EXCEPTION);
        // Behind a single step KVM adds to what the guest has in it, which nobody who is fed knows.
        let dr6 = !injects && !raises && !before.rflags().tf();
        Self { later: true, dr6, inject: exit.is_none_or(is_plain), ..self }
    }

    pub(super) fn of(exit: &Exit, emulation: &'a Emulation, before: &VcpuState, after: &VcpuState) -> Self {
        let known = bit::ALWAYS | bit::used(exit) | emulation.read;
        let sensitive = exit.stimulus == StimulusKind::SENSITIVE;
        let kind = exit.insn.kind;
        let plain = is_plain(exit) && (!sensitive || leaves_others_alone(kind));
        let done = plain && sensitive && after.rip != before.rip;
        let rest = plain && !emulation.asked && !(sensitive && sets_system_registers(kind));
        Self {
            known,
            written: emulation.written | if done { written_by(kind) } else { 0 },
            msr: (done && kind == SensitiveKind::WRMSR)
                .then(|| plain_msr(after, before.gpr[gpr::RCX] as u32))
                .flatten(),
            others: match (plain, emulation.asked) {
                (false, _) => 0,
                (true, true) => GPRS & !emulation.perhaps,
                (true, false) => GPRS | bit::RFLAGS | if rest { QUIET } else { 0 },
            },
            rest,
            fpu: plain && !emulation.asked,
            numbers: &emulation.fpu,
            inject: false,
            later: false,
            dr6: false,
        }
    }

    /// Of what it has of two states; `None`: of nothing.
    pub(super) fn digest(&self, before: &VcpuState, after: &VcpuState, words: &mut Words) -> Option<u64> {
        let mut changed = 0;
        // Entries change none.
        if before.gpr != after.gpr {
            for (n, (a, b)) in before.gpr.iter().zip(&after.gpr).enumerate() {
                changed |= u32::from(a != b) << n;
            }
        }
        let valued = self.written & GPRS | changed & self.known;
        let mut told = valued | changed & self.others;
        while told != 0 {
            let n = told.trailing_zeros();
            told &= told - 1;
            let (was, is) = (before.gpr[n as usize], after.gpr[n as usize]);
            match valued >> n & 1 != 0 {
                true => words.push(Place::Value, n as usize, is),
                false => words.push(Place::Change, n as usize, was ^ is),
            }
        }
        if let Some(value) = self.msr {
            words.push(Place::Msr, 0, value);
        }
        if rest::differs(before, after) {
            self.beyond_gprs(before, after, words);
        }
        if rest::fpu_differs(before, after) {
            self.of_fpu(before, after, words);
        }
        if self.inject && after.inject.valid.is_set() && after.inject != before.inject {
            words.push_event(&after.inject);
        }
        words.take_digest()
    }

    #[cold]
    fn of_fpu(&self, before: &VcpuState, after: &VcpuState, words: &mut Words) {
        // MMX instructions mark all registers as used, which is nothing new to some.
        let changed = |number: &&usize| fpu::get(&before.fpu, **number) != fpu::get(&after.fpu, **number);
        for &number in self.numbers.iter().filter(changed) {
            let [low, high] = fpu::get(&after.fpu, number);
            words.push(Place::Fpu, number, low);
            words.push(Place::Fpu, number, high);
        }
        if self.fpu {
            let mut was = Vec::new();
            before.fpu.each_register(|_, value| was.push(value));
            let mut was = was.into_iter().enumerate();
            after.fpu.each_register(|_, value| {
                if let Some((n, was)) = was.next() {
                    words.push_change(Place::FpuChange, n, was ^ value);
                }
            });
        }
    }

    #[cold]
    pub(super) fn beyond_gprs(&self, before: &VcpuState, after: &VcpuState, words: &mut Words) {
        let (was, is): (Values, Values) = (bit::values(before), bit::values(after));
        let mut told = (self.known | self.others) & !GPRS & !bit::FPU;
        while told != 0 {
            let n = told.trailing_zeros();
            told &= told - 1;
            let computed = if 1 << n == bit::RFLAGS { ARITHMETIC } else { u64::MAX };
            for place in (n as usize..n as usize + 1).chain(bit::more_places(n)) {
                let change = was[place] ^ is[place];
                match self.known >> n & 1 != 0 {
                    true if change != 0 => words.push(Place::Value, place, is[place]),
                    true => {}
                    false => words.push_change(Place::Change, place, change & computed),
                }
            }
        }
        if self.rest {
            let has = |n: usize| n < rest::LATER || self.later && (n != rest::DR6 || self.dr6);
            let pairs = rest::words(before).into_iter().zip(rest::words(after)).enumerate();
            for (n, (was, is)) in pairs.filter(|(n, _)| has(*n)) {
                words.push_change(Place::Rest, n, was ^ is);
            }
        }
    }
}

/// Instructions that write no register but those of [`written_by`] and [`sets_system_registers`], and those that they read.
fn leaves_others_alone(kind: SensitiveKind) -> bool {
    use SensitiveKind as K;
    matches!(
        kind,
        K::CPUID
            | K::RDMSR
            | K::WRMSR
            | K::CR_WRITE
            | K::CR_READ
            | K::CLTS
            | K::LMSW
            | K::DR_WRITE
            | K::DR_READ
            | K::INVLPG
            | K::INVPCID
            | K::HLT
            | K::IN
            | K::OUT
            | K::RDPMC
            | K::WBINVD
            | K::INVD
            | K::MONITOR
            | K::MWAIT
            | K::PAUSE
            | K::VMCALL
            | K::VMMCALL
            | K::XSETBV
            | K::INTERRUPT_WINDOW
            | K::NMI_WINDOW
            | K::APIC_WRITE
            | K::IMMEDIATE_EXIT
    )
}

/// Instructions that also write segments, tables, debug registers or MSRs, or may make KVM do so.
fn sets_system_registers(kind: SensitiveKind) -> bool {
    use SensitiveKind as K;
    matches!(kind, K::WRMSR | K::CR_WRITE | K::CLTS | K::LMSW | K::DR_WRITE | K::XSETBV)
}

/// General registers that an instruction has written once it is done, whatever was in them.
fn written_by(kind: SensitiveKind) -> u32 {
    match kind {
        SensitiveKind::CPUID => 1 << gpr::RAX | 1 << gpr::RBX | 1 << gpr::RCX | 1 << gpr::RDX,
        SensitiveKind::RDMSR | SensitiveKind::RDPMC => 1 << gpr::RAX | 1 << gpr::RDX,
        _ => 0,
    }
}

/// The register that WRMSR sets to its operand, for those that have no rule of their own.
fn plain_msr(state: &VcpuState, index: u32) -> Option<u64> {
    Some(match Msr(index) {
        Msr::STAR => state.star,
        Msr::LSTAR => state.lstar,
        Msr::SYSCALL_MASK => state.sfmask,
        Msr::FS_BASE => state.seg[seg::FS].base,
        Msr::GS_BASE => state.seg[seg::GS].base,
        Msr::KERNEL_GS_BASE => state.kernel_gs_base,
        Msr::IA32_PAT => state.pat,
        _ => return None,
    })
}
