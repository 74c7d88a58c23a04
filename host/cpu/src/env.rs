//! The one way out of the interpreter.

use crate::ram::Ram;
use vmtape_arch::{
    access::{Access, Mapping},
    exception::Exception,
    sensitive::Sensitive,
    vcpu::VcpuState,
};

/// Why an instruction could not go on. It has had no effect and is restarted later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interrupted {
    /// The guest takes this exception.
    Fault(Exception),
    /// The environment has recorded an exit: leave [`crate::Cpu::run`] with [`crate::Stop::Exit`].
    Exit,
}

/// How the environment answers at a sensitive instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Execute it as silicon without virtualization would.
    Native,
    /// As [`Interrupted`].
    Interrupted(Interrupted),
    /// The instruction completes, then [`crate::Cpu::run`] leaves with [`crate::Stop::Exit`].
    TrapAfter,
}

/// The part of an operand that lies on one page.
pub struct OperandPart<'a> {
    /// The guest physical address where it is not RAM. RAM has been copied.
    pub device: Option<u64>,
    pub bytes: &'a mut [u8],
}

/// Everything the interpreter cannot do alone. Implemented by the machine around a backend, and by KVM's emulator. What has
/// an answer here is a processor with memory and nothing else around it.
pub trait Env {
    /// Guest RAM, addressed by host physical address.
    fn ram(&self) -> &Ram;

    /// Translates an access that missed the TLB.
    fn access(&mut self, state: &mut VcpuState, access: &Access) -> Result<Mapping, Interrupted>;

    /// Called for a sensitive instruction or condition that `state.intercepts` asks for.
    fn sensitive(&mut self, _state: &mut VcpuState, _insn: &Sensitive) -> Decision {
        Decision::Native
    }

    /// Called for an exception whose bit is set in `state.intercepts.exceptions`, before its delivery.
    /// `None`: deliver it natively. `Some(())`: an exit was recorded.
    fn exception(&mut self, state: &mut VcpuState, exception: &Exception) -> Option<()>;

    /// Reads (`write` is `None`) or writes `size` bytes on a mapping that is not RAM. For APIC pages
    /// [`Env::sensitive`] was asked first.
    fn device(
        &mut self,
        _state: &mut VcpuState,
        _gpa: u64,
        _size: u8,
        _write: Option<u64>,
    ) -> Result<u64, Interrupted> {
        Ok(0)
    }

    /// Whether [`crate::Cpu::step_emulated`] asks [`Env::read_operand`] and [`Env::write_operand`] in place of [`Env::device`]: KVM's
    /// emulator has operands as a whole.
    fn takes_operands(&self) -> bool {
        false
    }

    /// Reads what of an operand is not RAM. Its parts are in order.
    fn read_operand(&mut self, _parts: &mut [OperandPart<'_>]) -> Result<(), Interrupted> {
        Ok(())
    }

    /// Writes what of an operand is not RAM.
    fn write_operand(&mut self, _parts: &[OperandPart<'_>]) -> Result<(), Interrupted> {
        Ok(())
    }

    /// Port input (`write` is `None`) or output that was not intercepted.
    fn port(&mut self, _state: &mut VcpuState, _port: u16, _size: u8, _write: Option<u32>) -> u32 {
        0
    }

    /// Whether a port is open at every CPL, whatever IOPL and the task-state segment say.
    fn opens_port(&self, _port: u16) -> bool {
        false
    }

    /// Whether RDPMC reads this counter at every CPL, whatever CR4.PCE says.
    fn opens_counter(&self, _number: u32) -> bool {
        false
    }

    /// CPUID that was not intercepted: EAX, EBX, ECX, EDX.
    fn cpuid(&mut self, _state: &mut VcpuState, _function: u32, _index: u32) -> [u32; 4] {
        [0; 4]
    }

    /// RDMSR (`write` is `None`) or WRMSR of an MSR that the vCPU state does not hold, not intercepted.
    fn msr(&mut self, _state: &mut VcpuState, _index: u32, _write: Option<u64>) -> Result<u64, Exception> {
        Err(Exception::gp(0))
    }

    /// The virtual time-stamp counter, offset not applied.
    fn tsc(&mut self, state: &VcpuState) -> u64 {
        state.icount
    }

    /// 64 random bits for RDRAND and RDSEED, from the machine's inputs.
    fn random(&mut self) -> u64 {
        0
    }

    /// MOV CR8 that was not intercepted changed the task priority (`state.cr8` holds it).
    fn tpr_changed(&mut self, _state: &mut VcpuState) {}

    /// Takes the highest pending interrupt where `state.intercepts.virtual_interrupts` lets silicon deliver it. Asked
    /// when a run begins and when interrupts become deliverable (RFLAGS.IF set, shadow over): a device that raises an
    /// interrupt in between says so through [`Env::kicked`].
    fn virtual_interrupt(&mut self, _state: &mut VcpuState) -> Option<u8> {
        None
    }

    /// The guest has got what its surroundings decide: an instruction whose kind [has an outcome] retired, whether or not it was
    /// offered, or an event was delivered. The state is the one after it.
    ///
    /// [has an outcome]: vmtape_arch::sensitive::SensitiveKind::has_outcome
    fn outcome(&mut self, _state: &VcpuState) {}

    /// Asked by [`crate::Cpu::step_emulated`] after each iteration of an instruction that repeats, `left` of which are to come:
    /// whether it leaves the rest of them, be it none, to the guest, which executes the instruction again. `read_ahead`: of INS,
    /// those whose input was read already.
    fn leaves_repeat(&mut self, _left: u64, _read_ahead: Option<u64>) -> bool {
        false
    }

    /// Said by an instruction that repeats INS before its first iteration: KVM's emulator takes so many elements from the port at once.
    fn reads_ahead(&mut self, _elements: u64) {}

    /// Whether [`crate::Cpu::run`] must return at the next instruction boundary, although its budget is not used up: a
    /// device access raised an interrupt, moved a timer or ended the run. Asked after each instruction that called
    /// [`Env::sensitive`], [`Env::device`], [`Env::port`], [`Env::msr`] or [`Env::tpr_changed`].
    fn kicked(&mut self) -> bool {
        false
    }
}
