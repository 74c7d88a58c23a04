//! The run loop.

use crate::{
    block::Blocks,
    compiled::{self, Compiled},
    core::{Core, Leave},
    env::{Env, Interrupted},
    execute::execute,
    features::Features,
    flags::{IF, TF},
    system::{self, model::Model},
    tlb::{Flush, FlushHandle, Geometry, Tlb},
};
use vmtape_arch::{
    exception::Exception,
    regs::{Dr6, Rflags},
    sensitive::SensitiveKind,
    vcpu::{Activity, Interruptibility, VcpuState},
};

/// How a vCPU is set up.
#[derive(Clone, Copy, Debug, Default)]
pub struct CpuConfig {
    /// Instruction-set extensions that exist; others raise #UD (or decode as their ancestors).
    pub features: Features,
    /// The silicon below: what bounds control registers, MSRs and addresses where nothing is intercepted.
    pub model: Model,
    /// What the TLB holds.
    pub tlb: Geometry,
    pub engine: Engine,
}

/// How blocks are executed. No guest can tell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Engine {
    /// One handler after the other.
    #[default]
    Interpreter,
    /// Hot blocks of 64-bit code as host code, where the host is x86-64; the interpreter has the rest.
    Compiler,
}

/// Why [`Cpu::run`] came back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// `until_icount` instructions have retired, or [`Env::kicked`].
    Budget,
    /// The environment recorded an exit.
    Exit,
    /// HLT that was not intercepted, or another activity than running: see `state.activity`.
    Halted,
    /// A triple fault that was not intercepted.
    TripleFault,
}

/// How [`Cpu::step_emulated`] ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Done; registers, RIP, memory and the instruction count are updated.
    Executed,
    /// The guest is to take this; nothing has changed.
    Fault(Exception),
    /// The instruction is unknown, or the environment gave no bytes.
    Unhandleable,
}

/// What [`Cpu::step_emulated`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Emulation {
    pub step: Step,
    /// Instruction length and bytes, zero where it was not decoded.
    pub len: u8,
    pub bytes: [u8; 15],
}

/// The software CPU behind one vCPU: what can be thrown away at any time without the guest noticing.
pub struct Cpu {
    tlb: Tlb,
    blocks: Blocks,
    compiled: Option<Compiled>,
    model: Model,
    /// Where [`Cpu::run`] stops before any event.
    pause: u64,
    deliveries: (u32, u64),
}

impl Cpu {
    pub fn new(config: CpuConfig) -> Self {
        Self {
            tlb: Tlb::new(config.tlb),
            blocks: Blocks::new(config.features),
            compiled: Compiled::new(config.engine, config.tlb),
            model: config.model,
            pause: u64::MAX,
            deliveries: (0, 0),
        }
    }

    /// Events delivered since the instruction count last changed, and that count, as the last run left them.
    pub fn deliveries(&self) -> (u32, u64) {
        self.deliveries
    }

    /// Lets the next run go on counting where another one was stopped, so that no guest can tell that it was.
    pub fn count_on(&mut self, deliveries: (u32, u64)) {
        self.deliveries = deliveries;
    }

    /// At this instruction count a run that ends there leaves traps and interrupts to the next one: the state is the
    /// instruction's own outcome.
    pub fn pause_at(&mut self, icount: u64) {
        self.pause = icount;
    }

    /// Knows no translation and has fetched no code, as a CPU that was just made. What it has decoded stays: that cannot be seen.
    pub fn forget_translations(&mut self) {
        self.tlb.forget();
        self.pause = u64::MAX;
    }

    /// Changes the instruction-set extensions (KVM_SET_CPUID2).
    pub fn set_features(&mut self, features: Features) {
        self.blocks.set_features(features);
        if let Some(compiled) = &mut self.compiled {
            compiled.clear();
        }
    }

    /// How many blocks were compiled, and how often one was entered other than from another one.
    pub fn compiled(&self) -> (u64, u64) {
        self.compiled.as_ref().map_or((0, 0), Compiled::counts)
    }

    /// Drops translations.
    pub fn flush_tlb(&mut self, what: Flush) {
        self.tlb.flush(what);
    }

    /// For dropping translations while the CPU runs: from inside [`Env`].
    pub fn flush_handle(&self) -> FlushHandle {
        self.tlb.handle()
    }

    /// Delivers `state.inject` if it is valid, and runs until `state.icount` reaches `until_icount` or something stops
    /// the guest.
    pub fn run(&mut self, state: &mut VcpuState, env: &mut dyn Env, until_icount: u64) -> Stop {
        let mut core = Core::new(&mut self.tlb, self.model, state, env);
        core.deliveries = self.deliveries;
        core.tlb.sync(core.ram.epoch());
        let ran = run(&mut core, &mut self.blocks, self.compiled.as_mut(), until_icount, self.pause, false);
        self.deliveries = core.deliveries;
        match ran {
            Ok(never) => match never {},
            Err(stop) => stop,
        }
    }

    /// As [`Cpu::run`], for at most one block: for a comparison after each.
    pub fn run_block(&mut self, state: &mut VcpuState, env: &mut dyn Env, until_icount: u64) -> Stop {
        let mut core = Core::new(&mut self.tlb, self.model, state, env);
        core.deliveries = self.deliveries;
        core.tlb.sync(core.ram.epoch());
        let ran = run(&mut core, &mut self.blocks, self.compiled.as_mut(), until_icount, self.pause, true);
        self.deliveries = core.deliveries;
        match ran {
            Ok(never) => match never {},
            Err(stop) => stop,
        }
    }

    /// Executes one instruction as KVM's emulator does, from `bytes` or from memory: every access goes to the
    /// environment, nothing is cached, and exceptions are returned. Counts as one retired instruction, unless the environment has
    /// it left to the guest ([`Env::leaves_repeat`]).
    pub fn step_emulated(
        &mut self,
        state: &mut VcpuState,
        env: &mut dyn Env,
        bytes: Option<&[u8]>,
    ) -> Emulation {
        let mut core = Core::new(&mut self.tlb, self.model, state, env);
        core.emulating = true;
        core.refresh();
        crate::emulate::step(&mut core, &self.blocks, bytes)
    }

    /// Decodes one instruction as [`Cpu::step_emulated`] does, and goes on behind it (EMULTYPE_SKIP).
    pub fn skip_emulated(
        &mut self,
        state: &mut VcpuState,
        env: &mut dyn Env,
        bytes: Option<&[u8]>,
    ) -> Emulation {
        let mut core = Core::new(&mut self.tlb, self.model, state, env);
        core.emulating = true;
        crate::emulate::skip(&mut core, &self.blocks, bytes)
    }
}

/// Runs until something stops it, which is the error.
fn run(
    core: &mut Core<'_>,
    blocks: &mut Blocks,
    mut compiled: Option<&mut Compiled>,
    until: u64,
    pause: u64,
    one_block: bool,
) -> Result<std::convert::Infallible, Stop> {
    inject(core)?;
    loop {
        let mut one_by_one = false;
        if core.check_events {
            if core.state.icount == pause {
                core.state.pending_debug |= std::mem::take(&mut core.debug_traps);
                return Err(Stop::Budget);
            }
            one_by_one = events(core)?;
        }
        let left = until.saturating_sub(core.state.icount);
        if left == 0 {
            return Err(Stop::Budget);
        }
        let done = if one_by_one {
            core.check_events = true;
            step(core, blocks)
        } else if let Some(compiled) = &mut compiled {
            compiled::execute(core, blocks, compiled, left, !one_block)
        } else if let Some(block) = blocks.recent(core) {
            execute(core, &blocks.insns, block, left)
        } else {
            blocks.find(core).and_then(|block| execute(core, &blocks.insns, &block, left))
        };
        match done {
            Ok(()) if core.leave == Leave::Exit => return Err(Stop::Exit),
            Ok(()) if one_block && !core.check_events => return Err(Stop::Budget),
            Ok(()) => {}
            Err(Interrupted::Exit) => return Err(Stop::Exit),
            Err(Interrupted::Fault(exception)) => {
                system::event::exception(core, exception)?;
            }
        }
    }
}

/// Executes one instruction with everything that may happen around it.
fn step(core: &mut Core<'_>, blocks: &mut Blocks) -> Result<(), Interrupted> {
    let flags = core.flags();
    let shadow = core.state.interruptibility;
    if !flags.rf() {
        system::debug::code_breakpoint(core)?;
    }
    let block = blocks.find(core)?;
    // The instruction may itself set RF or begin a new shadow, so the old ones end before it.
    core.state.rflags = flags.with_rf(false).into_bits();
    core.state.interruptibility = shadow.with_sti(false).with_mov_ss(false);
    core.single_step = flags.tf();
    let next = core.state.rip.wrapping_add(blocks.insns[block.start as usize].len.into()) & core.rip_mask;
    let from = core.state.rip;
    if let Err(why) = execute(core, &blocks.insns, &block, 1) {
        core.state.rflags = Rflags::from_bits(core.state.rflags).with_rf(flags.rf()).into_bits();
        core.state.interruptibility = shadow;
        core.single_step = false;
        return Err(why);
    }
    // An instruction that stays where it is repeats itself, and is no branch.
    if core.state.records_branches() && core.state.rip != next && core.state.rip != from {
        core.state.last_branch = [from, core.state.rip];
    }
    if std::mem::take(&mut core.single_step) {
        core.debug_traps |= Dr6::new().with_bs(true).into_bits();
    }
    Ok(())
}

/// Delivers the event that the backend asks for.
fn inject(core: &mut Core<'_>) -> Result<(), Stop> {
    let event = std::mem::take(&mut core.state.inject);
    if event.valid.is_set() { system::event::inject(core, event) } else { Ok(()) }
}

/// Looks at everything that may happen between two instructions. True: the next instruction is to be executed alone.
// See: SDM vol. 3A Table 6-2. Priority Among Concurrent Events
fn events(core: &mut Core<'_>) -> Result<bool, Stop> {
    core.check_events = false;
    if core.debug_traps | core.state.pending_debug != 0 {
        system::debug::traps(core)?;
        core.after_env();
    }
    if core.state.activity != Activity::ACTIVE {
        return Err(Stop::Halted);
    }
    if core.state.intercepts.wants(SensitiveKind::IMMEDIATE_EXIT) {
        window(core, SensitiveKind::IMMEDIATE_EXIT)?;
    }
    if core.env.kicked() {
        return Err(Stop::Budget);
    }
    let shadow = core.state.interruptibility;
    let shadowed = shadow.sti() || shadow.mov_ss();
    if !shadowed && !shadow.nmi() {
        window(core, SensitiveKind::NMI_WINDOW)?;
        virtual_event(core)?;
    }
    if !shadowed && core.state.rflags & IF != 0 {
        window(core, SensitiveKind::INTERRUPT_WINDOW)?;
        virtual_event(core)?;
        if core.state.intercepts.virtual_interrupts.is_set()
            && let Some(vector) = core.env.virtual_interrupt(core.state)
        {
            core.after_env();
            system::event::interrupt(core, vector)?;
        }
    }
    Ok(needs_single_steps(core))
}

/// A virtual NMI or interrupt that no local APIC knows of.
fn virtual_event(core: &mut Core<'_>) -> Result<(), Stop> {
    if core.state.inject.valid.is_set() {
        inject(core)?;
    }
    Ok(())
}

fn window(core: &mut Core<'_>, kind: SensitiveKind) -> Result<(), Stop> {
    match core.condition(kind) {
        Ok(()) => Ok(()),
        Err(Interrupted::Exit) => Err(Stop::Exit),
        Err(Interrupted::Fault(exception)) => system::event::exception(core, exception),
    }
}

fn needs_single_steps(core: &Core<'_>) -> bool {
    let shadow: Interruptibility = core.state.interruptibility;
    let flags = core.state.rflags;
    shadow.sti()
        || shadow.mov_ss()
        || flags & TF != 0
        || core.flags().rf()
        || core.state.records_branches()
        || system::debug::watches_code(core.state)
}
