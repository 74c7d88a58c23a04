//! System instructions, segmentation, far transfers, flags that need privilege (PUSHF, POPF, CLI, STI), event delivery
//! and debug. Each of them ends its block, but for the quiet ones.

pub(crate) mod debug;
pub(crate) mod event;
pub(crate) mod model;

mod control;
mod deliver;
mod descriptor;
mod flags;
mod io;
mod iret;
mod misc;
mod msr;
mod registers;
mod segment;
mod stack;
mod syscall;
mod tables;
mod task;
mod transfer;
mod trap;

use crate::insn::Handler;
use iced_x86::{Code, Instruction, Mnemonic};

/// The handler of a system instruction.
pub(crate) fn handler(i: &Instruction) -> Option<Handler> {
    by_code(i.code()).or_else(|| by_mnemonic(i.mnemonic()))
}

/// Instructions that change nothing that is cached of the state, so that they need not end their block.
pub(crate) fn is_quiet(mnemonic: Mnemonic) -> bool {
    use Mnemonic::*;
    matches!(
        mnemonic,
        Pause
            | Rdtsc
            | Rdtscp
            | Rdpid
            | Rdrand
            | Rdseed
            | Cpuid
            | Pushf
            | Pushfd
            | Pushfq
            | Cli
            | Sti
            | Sgdt
            | Sidt
            | Sldt
            | Str
            | Smsw
            | Xgetbv
            | Rdfsbase
            | Rdgsbase
            | Lar
            | Lsl
            | Verr
            | Verw
    )
}

/// Mnemonics that mean several things.
fn by_code(code: Code) -> Option<Handler> {
    use Code::*;
    Some(match code {
        Mov_r32_cr | Mov_r64_cr => registers::mov_from,
        Mov_cr_r32 | Mov_cr_r64 => registers::mov_to,
        Mov_r32_dr | Mov_r64_dr => debug::mov_from,
        Mov_dr_r32 | Mov_dr_r64 => debug::mov_to,
        Mov_rm16_Sreg | Mov_r32m16_Sreg | Mov_r64m16_Sreg => segment::mov_from,
        Mov_Sreg_rm16 | Mov_Sreg_r32m16 | Mov_Sreg_r64m16 => segment::mov_to,
        Pushw_ES | Pushw_CS | Pushw_SS | Pushw_DS | Pushw_FS | Pushw_GS | Pushd_ES | Pushd_CS | Pushd_SS
        | Pushd_DS | Pushd_FS | Pushd_GS | Pushq_FS | Pushq_GS => segment::push,
        Popw_ES | Popw_SS | Popw_DS | Popw_FS | Popw_GS | Popd_ES | Popd_SS | Popd_DS | Popd_FS | Popd_GS
        | Popq_FS | Popq_GS => segment::pop,
        Jmp_ptr1616 | Jmp_ptr1632 | Jmp_m1616 | Jmp_m1632 | Jmp_m1664 => transfer::jmp_far,
        Call_ptr1616 | Call_ptr1632 | Call_m1616 | Call_m1632 | Call_m1664 => transfer::call_far,
        _ => return None,
    })
}

fn by_mnemonic(mnemonic: Mnemonic) -> Option<Handler> {
    use Mnemonic::*;
    Some(match mnemonic {
        Retf => transfer::ret_far,
        Iret | Iretd | Iretq => iret::iret,
        Int => trap::int,
        Int3 => trap::int3,
        Into => trap::into,
        Int1 => debug::icebp,
        Pushf | Pushfd | Pushfq => flags::pushf,
        Popf | Popfd | Popfq => flags::popf,
        Cli => flags::cli,
        Sti => flags::sti,
        Clac | Stac => flags::set_ac,
        Lds | Les | Lfs | Lgs | Lss => segment::load_far_pointer,
        Lar | Lsl => segment::lar_lsl,
        Verr | Verw => segment::verify,
        Arpl => segment::arpl,
        Swapgs => segment::swapgs,
        Rdfsbase | Rdgsbase | Wrfsbase | Wrgsbase => segment::fsgs_base,
        Lgdt | Lidt => tables::load_table,
        Sgdt | Sidt => tables::store_table,
        Lldt | Ltr => tables::load_system,
        Sldt | Str => tables::store_system,
        Clts => registers::clts,
        Lmsw => registers::lmsw,
        Smsw => registers::smsw,
        Xgetbv => registers::xgetbv,
        Xsetbv => registers::xsetbv,
        Rdpkru | Wrpkru => registers::pkru,
        Rdmsr => msr::rdmsr,
        Wrmsr => msr::wrmsr,
        In => io::input,
        Out => io::output,
        Insb | Insw | Insd | Outsb | Outsw | Outsd => io::string,
        Syscall => syscall::syscall,
        Sysret | Sysretq => syscall::sysret,
        Sysenter => syscall::sysenter,
        Sysexit | Sysexitq => syscall::sysexit,
        Cpuid => misc::cpuid,
        Rdtsc | Rdtscp => misc::rdtsc,
        Rdpmc => misc::rdpmc,
        Rdpid => misc::rdpid,
        Rdrand | Rdseed => misc::random,
        Hlt => misc::hlt,
        Pause => misc::pause,
        Monitor => misc::monitor,
        Mwait => misc::mwait,
        Invd | Wbinvd | Wbnoinvd => misc::cache,
        Clflush | Clflushopt | Clwb | Cldemote => misc::cache_line,
        Invlpg => misc::invlpg,
        Invpcid => misc::invpcid,
        Vmrun | Vmload | Vmsave | Stgi | Clgi | Skinit | Invlpga => misc::svm,
        Vmcall | Vmmcall | Rsm | Getsec | Encls | Rdpru | Vmclear | Vmfunc | Vmlaunch | Vmptrld | Vmptrst
        | Vmread | Vmresume | Vmwrite | Vmxoff | Vmxon | Invept | Invvpid => misc::virtualization,
        _ => return None,
    })
}
