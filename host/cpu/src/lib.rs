//! The x86-64 interpreter: decoder cache, instruction families, flags, TLB. It knows no page walk and no device.
//!
//! [`Cpu::run`] executes a [`VcpuState`](vmtape_arch::vcpu::VcpuState) and leaves through [`Env`]. How instructions are
//! plugged in is told in [`dispatch`].
#![forbid(unsafe_code)]

mod block;
mod changes;
mod compiled;
pub mod core;
mod cpu;
pub mod dispatch;
mod emulate;
mod env;
mod execute;
mod features;
pub mod flags;
mod fp;
pub mod insn;
mod integer;
mod mem;
pub mod operand;
mod ram;
pub mod revision;
pub mod silicon;
mod system;
mod tlb;
mod used;

pub use core::Core;
pub use cpu::{Cpu, CpuConfig, Emulation, Engine, Step, Stop};
pub use emulate::decode_as_kvm;
pub use env::{Decision, Env, Interrupted, OperandPart};
pub use features::Features;
pub use fp::{MXCSR_MASK, XSAVE_COMPONENTS, XsaveComponent};
pub use mem::Privilege;
pub use ram::{Mark, Ram};
pub use silicon::Rules;
pub use system::{event::fault_in_delivery, model::Model};
pub use tlb::{Flush, FlushHandle, Geometry};
pub use used::{USES_RFLAGS, used_registers};
