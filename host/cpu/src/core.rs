//! What a handler works on: the vCPU state, the environment, the TLB, and what is cached of the state.

use crate::{
    env::{Decision, Env, Interrupted},
    insn::Insn,
    mem::Ahead,
    ram::Ram,
    system::model::Model,
    tlb::{Context, Tlb},
};
use vmtape_arch::{
    exception::{Exception, Vector},
    regs::{Rflags, SegAttr},
    sensitive::{Sensitive, SensitiveKind},
    vcpu::{Interruptibility, Segment, VcpuState, seg},
};

/// A segment as the hot path sees it: `end` values are exclusive, and zero sends every access to the slow path.
#[derive(Clone, Copy, Default)]
pub(crate) struct FastSegment {
    pub(crate) base: u64,
    pub(crate) read_end: u64,
    pub(crate) write_end: u64,
}

/// Why the block is left after the current instruction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Leave {
    #[default]
    No,
    /// Code was overwritten, or events are to be looked at: the next block is looked up anew.
    Relook,
    /// An exit was recorded that lets the instruction complete first.
    Exit,
}

/// A running vCPU.
pub struct Core<'a> {
    pub state: &'a mut VcpuState,
    pub env: &'a mut dyn Env,
    /// Where the instruction goes on: branches change it, and instructions that stay where they are (REP, HLT woken
    /// later) set it back to `state.rip`.
    pub next_rip: u64,
    /// What the silicon can do, where the checks of system instructions depend on it.
    pub(crate) model: Model,
    pub(crate) ram: Ram,
    /// [`Ram::keep_changes`] was called.
    pub(crate) keeps_changes: bool,
    pub(crate) tlb: &'a mut Tlb,
    pub(crate) segments: [FastSegment; 8],
    /// Linear addresses are cut to 32 bits outside 64-bit mode.
    pub(crate) linear_mask: u64,
    pub(crate) rip_mask: u64,
    /// All ones of the stack's address size.
    pub(crate) stack_mask: u64,
    canonical_shift: u32,
    /// First offset beyond the code segment.
    pub(crate) code_end: u64,
    /// The context of explicit accesses, and the one that the hot path may look in.
    pub(crate) context: Context,
    pub(crate) fast_context: Context,
    pub(crate) check_alignment: bool,
    pub(crate) leave: Leave,
    /// [`Env::outcome`] is to be told of the current instruction.
    pub(crate) outcome: bool,
    /// Interrupts, windows or traps may have become due: looked at before the next block.
    pub(crate) check_events: bool,
    /// Decoding parameters of the code segment: see [`crate::block`].
    pub(crate) mode: u8,
    /// KVM's emulator: nothing is cached, and exceptions are returned rather than delivered.
    pub(crate) emulating: bool,
    /// What the current instruction's handler need not ask for again.
    pub(crate) ahead: Option<Ahead>,
    /// It leaves the rest of an instruction that repeats to the guest: see [`Env::leaves_repeat`].
    pub(crate) repeats: bool,
    /// Events delivered since the instruction count last changed, and that count.
    pub(crate) deliveries: (u32, u64),
    /// RFLAGS.TF was set when the instruction began, and the instruction does not say otherwise.
    pub(crate) single_step: bool,
    /// #DB conditions that the current instruction met, in DR6's layout; taken after it.
    pub debug_traps: u64,
}

impl<'a> Core<'a> {
    pub(crate) fn new(
        tlb: &'a mut Tlb,
        model: Model,
        state: &'a mut VcpuState,
        env: &'a mut dyn Env,
    ) -> Self {
        let ram = env.ram().clone();
        let (next_rip, keeps_changes) = (state.rip, ram.keeps_changes());
        let mut core = Self {
            state,
            env,
            next_rip,
            model,
            ram,
            keeps_changes,
            tlb,
            segments: [FastSegment::default(); 8],
            linear_mask: 0,
            rip_mask: 0,
            stack_mask: 0,
            canonical_shift: 0,
            code_end: 0,
            context: Context::Supervisor,
            fast_context: Context::Slow,
            check_alignment: false,
            leave: Leave::No,
            outcome: false,
            check_events: true,
            mode: 0,
            emulating: false,
            ahead: None,
            repeats: false,
            deliveries: (0, 0),
            single_step: false,
            debug_traps: 0,
        };
        core.refresh();
        core
    }

    /// Recomputes what is cached of the state. To be called after a change of segments, CR0, CR4, EFER, CPL, RFLAGS.AC
    /// or DR7; the run loop does so after every instruction of `system/` and after every call of the environment that
    /// may change state.
    pub fn refresh(&mut self) {
        let long = self.state.is_64bit_code();
        let cs = &self.state.seg[seg::CS];
        self.linear_mask = if long { u64::MAX } else { u64::from(u32::MAX) };
        self.rip_mask = self.linear_mask;
        self.code_end = if long { u64::MAX } else { u64::from(cs.limit) + 1 };
        self.mode = if long { 2 } else { u8::from(cs.attr.db()) };
        self.stack_mask = match (long, self.state.seg[seg::SS].attr.db()) {
            (true, _) => u64::MAX,
            (false, true) => u64::from(u32::MAX),
            (false, false) => u64::from(u16::MAX),
        };
        self.canonical_shift = if self.state.cr4().la57() { 64 - 57 } else { 64 - 48 };
        if long {
            self.segments[..seg::FS].fill(FastSegment::flat(0));
            self.segments[seg::FS] = FastSegment::flat(self.state.seg[seg::FS].base);
            self.segments[seg::GS] = FastSegment::flat(self.state.seg[seg::GS].base);
        } else {
            let real = self.in_real_mode();
            for (fast, segment) in self.segments.iter_mut().zip(&self.state.seg).take(6) {
                *fast = FastSegment::legacy(segment, real);
            }
        }
        self.refresh_context();
    }

    fn refresh_context(&mut self) {
        let flags = self.state.rflags();
        let user = self.state.cpl == 3;
        self.context = match (user, flags.ac()) {
            (true, _) => Context::User,
            (false, false) => Context::Supervisor,
            (false, true) => Context::SupervisorAc,
        };
        self.check_alignment = user && flags.ac() && self.state.cr0().am();
        let watched = crate::system::debug::watches_data(self.state);
        let slow = self.check_alignment || watched || self.emulating;
        self.fast_context = if slow { Context::Slow } else { self.context };
    }

    /// Asks for the events to be looked at before the next instruction: for whatever may make an interrupt deliverable.
    pub fn recheck_events(&mut self) {
        self.check_events = true;
        self.look_again();
    }

    /// Leaves the block after the current instruction.
    #[inline(always)]
    pub(crate) fn look_again(&mut self) {
        if self.leave == Leave::No {
            self.leave = Leave::Relook;
        }
    }

    /// The linear address of RIP.
    #[inline(always)]
    pub(crate) fn code_address(&self) -> u64 {
        self.state.rip.wrapping_add(self.segments[seg::CS].base) & self.linear_mask
    }

    /// Checks that the first `len` bytes at RIP lie within the code segment.
    pub(crate) fn check_code_limit(&self, len: u64) -> Result<(), Interrupted> {
        if self.state.rip.wrapping_add(len) > self.code_end { gp(0) } else { Ok(()) }
    }

    /// How many of these instructions at RIP lie within the code segment; none is a fault.
    #[cold]
    pub(crate) fn insns_within_limit(&self, insns: &[Insn]) -> Result<usize, Interrupted> {
        let mut end = self.state.rip;
        let fits = |insn: &&Insn| {
            end += u64::from(insn.len);
            end <= self.code_end
        };
        let count = insns.iter().take_while(fits).count();
        if count == 0 { gp(0) } else { Ok(count) }
    }

    /// Holds back interrupts until after the next instruction (STI, MOV SS, POP SS).
    pub fn block_interrupts(&mut self, by: Interruptibility) {
        self.state.interruptibility =
            Interruptibility::from_bits(self.state.interruptibility.into_bits() | by.into_bits());
        self.recheck_events();
    }

    /// Whether a linear address is canonical for the current number of paging levels.
    #[inline(always)]
    pub fn is_canonical(&self, gva: u64) -> bool {
        ((gva << self.canonical_shift) as i64 >> self.canonical_shift) as u64 == gva
    }

    /// The base that offsets in a segment are added to: zero in 64-bit mode but for FS and GS.
    #[inline(always)]
    pub fn segment_base(&self, segment: u8) -> u64 {
        self.segments[(segment & 7) as usize].base
    }

    /// Real or virtual-8086 mode: segments have no types.
    pub fn in_real_mode(&self) -> bool {
        !self.state.cr0().pe() || self.state.rflags().vm()
    }

    /// Offers an instruction to the backend if it wants it. `Ok`: execute it natively.
    #[inline]
    pub fn sensitive(&mut self, insn: &Sensitive) -> Result<(), Interrupted> {
        if insn.kind.has_outcome() {
            self.tell_outcome();
        }
        if !self.state.intercepts.wants(insn.kind) {
            return Ok(());
        }
        let decision = self.env.sensitive(self.state, insn);
        // Nobody looks at the rest of this after an exit.
        if !matches!(decision, Decision::Interrupted(Interrupted::Exit)) {
            self.after_env();
        }
        self.decide(decision)
    }

    /// Tells the environment once the current instruction has retired, which ends its block for that.
    pub(crate) fn tell_outcome(&mut self) {
        self.outcome = true;
        self.look_again();
    }

    fn decide(&mut self, decision: Decision) -> Result<(), Interrupted> {
        match decision {
            Decision::Native => Ok(()),
            Decision::Interrupted(why) => Err(why),
            Decision::TrapAfter => {
                self.leave = Leave::Exit;
                Ok(())
            }
        }
    }

    /// As [`Core::sensitive`] for a condition that has no operands.
    pub fn condition(&mut self, kind: SensitiveKind) -> Result<(), Interrupted> {
        self.sensitive(&Sensitive { kind, ..Sensitive::default() })
    }

    /// The environment had the state: takes over what it may have changed.
    pub(crate) fn after_env(&mut self) {
        self.tlb.sync(self.ram.epoch());
        self.refresh();
    }

    pub fn flags(&self) -> Rflags {
        self.state.rflags()
    }
}

impl FastSegment {
    /// 64-bit mode.
    const fn flat(base: u64) -> Self {
        Self { base, read_end: u64::MAX, write_end: u64::MAX }
    }

    /// Real, virtual-8086 and protected mode. Expand-down segments take the slow path.
    fn legacy(segment: &Segment, real: bool) -> Self {
        let end = u64::from(segment.limit) + 1;
        let (readable, writable) = rights(segment.attr);
        let plain = !is_expand_down(segment.attr);
        let end_if = |allowed: bool| if real || allowed && plain { end } else { 0 };
        Self { base: segment.base, read_end: end_if(readable), write_end: end_if(writable) }
    }
}

/// Whether a segment may be read and written through. See: SDM vol. 3A Table 3-1. Code- and Data-Segment Types
pub(crate) fn rights(attr: SegAttr) -> (bool, bool) {
    let code = attr.typ() & 8 != 0;
    let bit1 = attr.typ() & 2 != 0;
    let usable = attr.present() && attr.s();
    (usable && (!code || bit1), usable && !code && bit1)
}

/// Whether the valid offsets lie above the limit.
pub(crate) fn is_expand_down(attr: SegAttr) -> bool {
    attr.typ() & 0xc == 4
}

/// `#UD`.
pub fn ud<T>() -> Result<T, Interrupted> {
    Err(Interrupted::Fault(Exception::ud()))
}

/// `#GP(code)`.
pub fn gp<T>(code: u32) -> Result<T, Interrupted> {
    Err(Interrupted::Fault(Exception::gp(code)))
}

/// An exception without an error code, or with the error code zero where it has one.
pub fn fault<T>(vector: Vector) -> Result<T, Interrupted> {
    let exception =
        if vector.has_error_code() { Exception::with_code(vector, 0) } else { Exception::new(vector) };
    Err(Interrupted::Fault(exception))
}
