//! Signals that reach the processor while its guest runs, or before: SMI, a timer that wakes a halted guest, INIT.

use super::{Step, nothing, step};
use crate::{
    apic::{ICR_LOW, LVT_TIMER, TIMER_DIVIDE, TIMER_INITIAL},
    kernel::{IPI_VECTOR, Kernel},
    programs::{
        nested::{
            hypervisor::{self, Hypervisor, intercept, set},
            report,
            vmcb::{self, exit},
        },
        smm::handler::{self, SMBASE},
        smp,
    },
};
use iced_x86::{IcedError, code_asm::*};

const DIVIDE_BY_ONE: u32 = 0xb;
/// Enough for the guest's guest to be halted by then, on a slow machine too.
const COUNT: u32 = 50_000_000;
// Self; SMI, INIT. See: APM vol. 2 16.5 Interprocessor Interrupts
const SELF_SMI: u32 = 0x4_4200;
const SELF_INIT: u32 = 0x4_4500;

const SMIS: &[Step] =
    &[step("smi", |k| intercept(k, exit::SMI), nothing), step("smi not intercepted", nothing, nothing)];
const HALTED: Step = step("timer interrupt", wanted, |k| k.a.hlt());

/// INIT comes last: it is the end of the hypervisor, once the processor takes it.
pub fn list(k: &mut Kernel, hypervisor: &Hypervisor) -> Result<(), IcedError> {
    smp::mask_pics(k)?;
    smp::enable_apic(k)?;
    handler::place(k, SMBASE)?;
    for smi in SMIS {
        k.a.clgi()?;
        write(k, ICR_LOW, SELF_SMI)?;
        super::run(k, hypervisor, smi)?;
    }
    k.a.mov(dword_ptr(hypervisor::var::TAKES_INTERRUPTS), 1)?;
    start_timer(k)?;
    super::run(k, hypervisor, &HALTED)?;
    k.a.sti()?;
    k.a.nop()?;
    k.a.cli()?;
    k.a.mov(dword_ptr(hypervisor::var::TAKES_INTERRUPTS), 0)?;
    init(k, hypervisor)
}

fn write(k: &mut Kernel, register: u32, value: u32) -> Result<(), IcedError> {
    k.a.mov(ebx, register)?;
    k.a.mov(dword_ptr(rbx), value)
}

/// It comes once.
fn start_timer(k: &mut Kernel) -> Result<(), IcedError> {
    write(k, TIMER_DIVIDE, DIVIDE_BY_ONE)?;
    write(k, LVT_TIMER, IPI_VECTOR.into())?;
    write(k, TIMER_INITIAL, COUNT)
}

fn wanted(k: &mut Kernel) -> Result<(), IcedError> {
    intercept(k, exit::INTR)?;
    set(k, vmcb::INT_CTL, vmcb::V_INTR_MASKING.into())
}

fn init(k: &mut Kernel, hypervisor: &Hypervisor) -> Result<(), IcedError> {
    let entry = hypervisor::guest(k, nothing)?;
    hypervisor.reset(k, entry)?;
    intercept(k, exit::INIT)?;
    k.print("init:")?;
    k.a.clgi()?;
    write(k, ICR_LOW, SELF_INIT)?;
    hypervisor.run(k)?;
    report::print_exit(k)?;
    k.print("\n")
}
