//! What an exit changed in its vCPU's registers, as a digest: no other event tells what a handler left there.
//!
//! The machine that records and one that is fed the tape take it by one rule, over what both know. Registers that the handling
//! uses are told with the exit: of those that changed it has the value. A register that the handling writes whatever was in it
//! has its value too. Of the others nobody who is fed knows what was there before: for them it has what changed, which is
//! nothing where the handler is KVM's. Left out are registers that KVM changes by a state that the tape does not tell.

use super::{
    fpu,
    registers::{self as bit, Values},
};
use serde::{Deserialize, Serialize};
use vmtape_arch::{
    exit::{Exit, StimulusKind},
    level::Level,
    msr::Msr,
    regs::Rflags,
    sensitive::SensitiveKind,
    vcpu::{Activity, VcpuState, gpr, seg},
};
use vmtape_traces::event::RegisterChanges;
use xxhash_rust::xxh3::xxh3_64;

/// What KVM's emulator did in the exit that is being handled, as masks of the tape's registers.
#[derive(Clone, Debug, Default)]
pub(crate) struct Emulation {
    /// It was asked.
    pub(crate) asked: bool,
    /// Registers that it read, which were told.
    pub(crate) read: u32,
    /// General registers that it wrote whole, whatever was in them.
    pub(crate) written: u32,
    /// Those that it may have written otherwise.
    pub(crate) perhaps: u32,
    /// Registers of the FPU that were told.
    pub(crate) fpu: Vec<usize>,
}

impl Emulation {
    /// Another exit begins.
    pub(crate) fn begin(&mut self) {
        (self.asked, self.read, self.written, self.perhaps) = (false, 0, 0, 0);
        self.fpu.clear();
    }
}

/// What is to be told of the entries of a vCPU, with its next exit.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
struct Entered {
    /// The entry that comes next follows an exit of the guest itself, at once.
    follows: bool,
    changes: u16,
}

/// What was not told yet, by vCPU.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Changes {
    entered: Vec<Entered>,
}

impl Changes {
    pub(crate) fn new(vcpus: u32) -> Self {
        Self { entered: vec![Entered::default(); vcpus as usize] }
    }

    /// What the handling of an exit changed, and the entry before it.
    pub(crate) fn of_handling(
        &mut self,
        vcpu: u32,
        exit: &Exit,
        emulation: &Emulation,
        before: &VcpuState,
        after: &VcpuState,
    ) -> RegisterChanges {
        let entry = self.entered.get_mut(vcpu as usize).map_or(0, |entered| {
            entered.follows = is_plain(exit);
            std::mem::take(&mut entered.changes)
        });
        RegisterChanges { handling: Rule::of(exit, emulation, before, after).digest(before, after), entry }
    }

    /// Whether the entry that begins follows an exit at once: then what it changes is told. A vCPU that waits enters for what
    /// others did.
    pub(crate) fn begin_entry(&mut self, vcpu: u32) -> bool {
        self.entered.get_mut(vcpu as usize).is_some_and(|entered| std::mem::take(&mut entered.follows))
    }

    /// The exit has been acted on.
    pub(crate) fn end_exit(&mut self, vcpu: u32, activity: Activity) {
        if let Some(entered) = self.entered.get_mut(vcpu as usize) {
            entered.follows &= activity == Activity::ACTIVE;
        }
    }

    /// Such an entry is over.
    pub(crate) fn end_entry(&mut self, vcpu: u32, before: &VcpuState, after: &VcpuState) {
        if let Some(entered) = self.entered.get_mut(vcpu as usize) {
            entered.changes = Rule::ENTRY.digest(before, after);
        }
    }
}

/// An exit of the guest itself that leads to no guest of its own: who switches between guests exchanges all registers.
fn is_plain(exit: &Exit) -> bool {
    exit.level == Level::L1
        && !(exit.stimulus == StimulusKind::SENSITIVE && exit.insn.kind == SensitiveKind::SVM)
}

/// What the digest has.
struct Rule {
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
    numbers: Vec<usize>,
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

impl Rule {
    const ENTRY: Self = Self {
        known: 0,
        written: 0,
        msr: None,
        others: GPRS | MODE | bit::XCR0 | bit::PKRU,
        rest: true,
        fpu: true,
        numbers: Vec::new(),
    };

    fn of(exit: &Exit, emulation: &Emulation, before: &VcpuState, after: &VcpuState) -> Self {
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
            numbers: emulation.fpu.clone(),
        }
    }

    fn digest(&self, before: &VcpuState, after: &VcpuState) -> u16 {
        let mut words = Words::default();
        let mut changed = 0;
        for (n, (a, b)) in before.gpr.iter().zip(&after.gpr).enumerate() {
            changed |= u32::from(a != b) << n;
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
        if differ_beyond_gprs(before, after) {
            self.beyond_gprs(before, after, &mut words);
        }
        if before.fpu != after.fpu {
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
        words.digest()
    }

    /// The rare part.
    #[cold]
    fn beyond_gprs(&self, before: &VcpuState, after: &VcpuState, words: &mut Words) {
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
            for (n, (was, is)) in rest(before).into_iter().zip(rest(after)).enumerate() {
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

/// Whether anything differs but general registers, RIP, the FPU, clocks, and what backends publish.
fn differ_beyond_gprs(a: &VcpuState, b: &VcpuState) -> bool {
    let controls = (a.rflags ^ b.rflags)
        | (a.cr0 ^ b.cr0)
        | (a.cr2 ^ b.cr2)
        | (a.cr3 ^ b.cr3)
        | (a.cr4 ^ b.cr4)
        | (a.cr8 ^ b.cr8)
        | (a.xcr0 ^ b.xcr0)
        | (a.efer ^ b.efer)
        | (a.dr7 ^ b.dr7)
        | u64::from(a.pkru ^ b.pkru)
        | u64::from(a.cpl ^ b.cpl)
        | u64::from(a.interruptibility.into_bits() ^ b.interruptibility.into_bits());
    controls != 0 || rest_differs(a, b)
}

/// Whether [`rest`] differs: asked twice per exit, and nearly always it does not.
#[inline(always)]
fn rest_differs(a: &VcpuState, b: &VcpuState) -> bool {
    let tables = (a.gdtr.base ^ b.gdtr.base)
        | (a.idtr.base ^ b.idtr.base)
        | u64::from((a.gdtr.limit ^ b.gdtr.limit) | (a.idtr.limit ^ b.idtr.limit));
    let msrs = (a.sysenter_cs ^ b.sysenter_cs)
        | (a.sysenter_esp ^ b.sysenter_esp)
        | (a.sysenter_eip ^ b.sysenter_eip)
        | (a.star ^ b.star)
        | (a.lstar ^ b.lstar)
        | (a.cstar ^ b.cstar)
        | (a.sfmask ^ b.sfmask)
        | (a.kernel_gs_base ^ b.kernel_gs_base)
        | (a.tsc_aux ^ b.tsc_aux)
        | (a.pat ^ b.pat)
        | (a.xss ^ b.xss)
        | (a.tsc_adjust ^ b.tsc_adjust);
    (tables | msrs) != 0 || a.dr != b.dr || a.seg != b.seg
}

const REST: usize = 2 * 8 + 4 + 4 + 13;

/// What only the guest changes, but for the instructions of [`sets_system_registers`]: segments, tables, debug registers, MSRs.
fn rest(state: &VcpuState) -> [u64; REST] {
    let mut words = [0; REST];
    for (pair, segment) in words.chunks_exact_mut(2).zip(&state.seg) {
        let attr = u64::from(segment.attr.into_bits());
        pair[0] = segment.base;
        pair[1] = u64::from(segment.limit) | u64::from(segment.selector) << 32 | attr << 48;
    }
    words[16..].copy_from_slice(&[
        state.gdtr.base,
        state.gdtr.limit.into(),
        state.idtr.base,
        state.idtr.limit.into(),
        state.dr[0],
        state.dr[1],
        state.dr[2],
        state.dr[3],
        state.sysenter_cs,
        state.sysenter_esp,
        state.sysenter_eip,
        state.star,
        state.lstar,
        state.cstar,
        state.sfmask,
        state.kernel_gs_base,
        state.tsc_aux,
        state.pat,
        state.xss,
        state.tsc_adjust,
        state.pkru.into(),
    ]);
    words
}

/// What a word of the digest is.
#[derive(Clone, Copy)]
enum Place {
    Value = 1,
    Change,
    Msr,
    Fpu,
    FpuChange,
    Rest,
}

/// Words on their way into a digest: none, for most exits.
#[derive(Default)]
struct Words {
    buffer: Vec<u64>,
}

impl Words {
    fn push(&mut self, place: Place, number: usize, value: u64) {
        self.buffer.extend([(place as u64) << 32 | number as u64, value]);
    }

    fn push_change(&mut self, place: Place, number: usize, change: u64) {
        if change != 0 {
            self.push(place, number, change);
        }
    }

    /// Zero: there were none.
    fn digest(&self) -> u16 {
        if self.buffer.is_empty() {
            return 0;
        }
        let bytes: Vec<u8> = self.buffer.iter().flat_map(|word| word.to_le_bytes()).collect();
        (xxh3_64(&bytes) as u16).max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmtape_arch::sensitive::Sensitive;

    fn exit(kind: SensitiveKind) -> Exit {
        Exit {
            stimulus: StimulusKind::SENSITIVE,
            insn: Sensitive { kind, ..Sensitive::default() },
            ..Exit::default()
        }
    }

    fn digest(exit: &Exit, before: &VcpuState, after: &VcpuState) -> u16 {
        Changes::new(1).of_handling(0, exit, &Emulation::default(), before, after).handling
    }

    /// A recorder and a reader that has other values in registers that no event tells: the same handling has the same digest, and
    /// each register that it changes besides has another one.
    #[test]
    fn it_depends_on_nothing_that_one_side_alone_knows() {
        let cpuid = exit(SensitiveKind::CPUID);
        let recorder = VcpuState { gpr: [7; 16], lstar: 9, ..VcpuState::reset() };
        let mut reader = recorder;
        reader.gpr[gpr::RBX] = 0x1234;
        reader.gpr[8..].fill(55);
        (reader.lstar, reader.rflags) = (1, 0x893);
        reader.fpu.xmm[3] = [4, 4];
        let handled = |before: &VcpuState| {
            let mut after = *before;
            after.rip += 2;
            after.gpr[..4].copy_from_slice(&[1, 2, 3, 7]);
            after
        };
        let expected = digest(&cpuid, &recorder, &handled(&recorder));
        assert_ne!(expected, 0);
        assert_eq!(digest(&cpuid, &reader, &handled(&reader)), expected);
        let wrong: [fn(&mut VcpuState); 9] = [
            |state| state.gpr[gpr::RAX] = 0,
            |state| state.gpr[gpr::RBX] += 1,
            |state| state.gpr[15] ^= 1,
            |state| state.rflags ^= 1,
            |state| state.cr3 += 0x1000,
            |state| state.seg[seg::ES].selector += 8,
            |state| state.lstar ^= 1,
            |state| state.dr[2] ^= 1,
            |state| state.fpu.st[7][9] ^= 1,
        ];
        for (n, change) in wrong.into_iter().enumerate() {
            let mut after = handled(&reader);
            change(&mut after);
            assert_ne!(digest(&cpuid, &reader, &after), expected, "{n}");
        }
    }

    #[test]
    fn what_is_asked_first_is_what_is_told() {
        let state = VcpuState::reset();
        let bytes = postcard::to_stdvec(&state).unwrap();
        let mut seen = 0;
        for n in 0..bytes.len() {
            let mut bytes = bytes.clone();
            bytes[n] ^= 1;
            let Ok(mut other) = postcard::from_bytes::<VcpuState>(&bytes) else { continue };
            other.pkru = state.pkru;
            assert_eq!(rest(&other) != rest(&state), rest_differs(&other, &state), "byte {n}");
            seen += usize::from(rest_differs(&other, &state));
        }
        assert!(seen > 50, "{seen}");
    }

    /// MOVQ of an MMX register to a device: that the x87's registers are in use is news to one side only.
    #[test]
    fn of_the_fpu_an_emulation_changes_what_it_names() {
        let emulation = Emulation { asked: true, fpu: vec![16], ..Emulation::default() };
        let (recorder, mut reader) = (VcpuState::reset(), VcpuState::reset());
        reader.fpu.fsw = 0x3800;
        let after = |before: &VcpuState, mantissa| {
            let mut after = *before;
            after.fpu.fsw = 0;
            after.fpu.st[0][0] = mantissa;
            after
        };
        let digest = |before: &VcpuState, mantissa| {
            let after = after(before, mantissa);
            Changes::new(1).of_handling(0, &Exit::default(), &emulation, before, &after).handling
        };
        assert_eq!([digest(&recorder, 0), digest(&reader, 0)], [0, 0]);
        assert_ne!(digest(&reader, 1), 0);
        assert_eq!(digest(&recorder, 1), digest(&reader, 1));
    }

    #[test]
    fn an_entry_is_told_with_the_next_exit_where_it_follows_one() {
        let (before, hlt) = (VcpuState::reset(), exit(SensitiveKind::HLT));
        let after = VcpuState { gpr: [1; 16], ..before };
        let mut changes = Changes::new(1);
        assert!(!changes.begin_entry(0));
        for activity in [Activity::ACTIVE, Activity::HLT] {
            changes.of_handling(0, &hlt, &Emulation::default(), &before, &before);
            changes.end_exit(0, activity);
            assert_eq!(changes.begin_entry(0), activity == Activity::ACTIVE);
        }
        changes.end_entry(0, &before, &after);
        let told = |changes: &mut Changes| {
            changes.of_handling(0, &hlt, &Emulation::default(), &before, &before).entry
        };
        assert_ne!(told(&mut changes), 0);
        assert_eq!(told(&mut changes), 0);
    }

    #[test]
    fn as_many_words_as_there_are_count() {
        let page_fault = Exit::default();
        let before = VcpuState::reset();
        let mut seen = std::collections::BTreeSet::new();
        for n in 0..16 {
            let mut after = VcpuState { gpr: [1; 16], ..before };
            after.fpu.xmm = [[2; 2]; 16];
            after.fpu.ymm_hi[n] = [3; 2];
            seen.insert(digest(&page_fault, &before, &after));
        }
        assert!(seen.len() > 14, "{seen:x?}");
    }
}
