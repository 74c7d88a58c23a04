//! Instructions of L2 that KVM's emulator executes: those that L1 intercepts leave to it, as if silicon had executed them.
//!
//! See: KVM arch/x86/kvm/svm/svm.c svm_check_intercept(), x86_intercept_map

use super::{
    exit,
    intercepts::{self, Cr0Write},
    patches::L1,
    vmcb12::Vmcb12,
};
use crate::{
    kvm::handlers::Cx,
    silicon::{
        exits::{IoInfo, svm_code, table_code},
        vmrun::published,
    },
};
use vmtape_arch::{
    exit::SvmExitCode as C,
    host::Silicon,
    sensitive::{Sensitive, SensitiveKind as K},
    vcpu::{Intercepts, VcpuState},
};

/// The address-size prefix.
const ADDRESS_SIZE: u8 = 0x67;

/// What the emulator asks L1's intercepts about.
pub fn wanted(vmcb12: &Vmcb12, silicon: &Silicon) -> Intercepts {
    // Which of the vectors silicon looks at is not the emulator's affair.
    let silicon = Silicon { rmw_reads_first: false.into(), ..*silicon };
    Intercepts { exceptions: 0, ..published(vmcb12, &silicon) }
}

/// `svm_check_intercept`: true, L1 has got the instruction. What is neither MSR nor I/O keeps the EXITINFO of the last exit.
pub fn check(cx: &mut Cx<'_>, insn: &Sensitive) -> bool {
    if !cx.vcpu.is_guest_mode() {
        return false;
    }
    let Some(code) = code(cx, insn) else { return false };
    let next = cx.state.rip.wrapping_add(insn.len.into());
    let saves_next_rip = cx.shared.kvm.silicon.nrips.is_set();
    let control = &mut cx.vcpu.nested.vmcb02.vmcb.control;
    match code {
        C::MSR => control.exit_info_1 = (insn.kind == K::WRMSR).into(),
        C::IOIO => {
            control.exit_info_1 = io_info(insn, cx.state).into_bits();
            control.exit_info_2 = next;
        }
        _ => {}
    }
    if saves_next_rip {
        control.next_rip = next;
    }
    exit::synthesize(cx, code);
    exit::to_owner(cx)
}

/// The exit code by the instruction, MOV to CR0 being one of two.
fn code(cx: &Cx<'_>, insn: &Sensitive) -> Option<C> {
    let cr0 = |write| {
        let l1 = L1::new(cx.shared, &cx.vcpu.core.cpuid);
        let wanted = intercepts::cr0_write(&l1, &cx.vcpu.nested.vmcb12, write, cx.state.cr0, insn.value);
        wanted.unwrap_or(C::WRITE_CR0)
    };
    Some(match insn.kind {
        K::CR_WRITE if insn.number == 0 => cr0(Cr0Write::Mov),
        K::CLTS => cr0(Cr0Write::Clts),
        K::LMSW => cr0(Cr0Write::Lmsw),
        K::CR_WRITE => C(C::WRITE_CR0.0 + insn.number),
        K::CR_READ => C(C::READ_CR0.0 + insn.number),
        K::SMSW => C::READ_CR0,
        K::DR_READ => C(C::READ_DR0.0 + insn.number),
        K::DR_WRITE => C(C::WRITE_DR0.0 + insn.number),
        K::GDTR_IDTR | K::LDTR_TR => table_code(insn),
        K::SVM => svm_code(insn.number)?,
        K::VMMCALL => C::VMMCALL,
        K::RDTSCP => C::RDTSCP,
        K::MONITOR => C::MONITOR,
        K::MWAIT => C::MWAIT,
        K::INVLPG => C::INVLPG,
        K::INVD => C::INVD,
        K::WBINVD => C::WBINVD,
        K::RDMSR | K::WRMSR => C::MSR,
        K::RDTSC => C::RDTSC,
        K::RDPMC => C::RDPMC,
        K::CPUID => C::CPUID,
        K::RSM => C::RSM,
        K::PAUSE => C::PAUSE,
        K::PUSHF => C::PUSHF,
        K::POPF => C::POPF,
        K::INTN => C::SWINT,
        K::IRET => C::IRET,
        K::ICEBP => C::ICEBP,
        K::HLT => C::HLT,
        K::IN | K::OUT | K::INS | K::OUTS => C::IOIO,
        K::XSETBV => C::XSETBV,
        _ => return None,
    })
}

/// EXITINFO1 of an access to a port, which has an address size whether or not there is an address, and no segment.
fn io_info(insn: &Sensitive, state: &VcpuState) -> IoInfo {
    let prefixed = insn.bytes[..usize::from(insn.len)].iter().take(4).any(|byte| *byte == ADDRESS_SIZE);
    let bytes = match (state.is_64bit_code(), state.seg[vmtape_arch::vcpu::seg::CS].attr.db(), prefixed) {
        (true, _, false) => 8,
        (true, _, true) | (_, true, false) | (_, false, true) => 4,
        (_, true, true) | (_, false, false) => 2,
    };
    IoInfo::new()
        .with_input(matches!(insn.kind, K::IN | K::INS))
        .with_string(matches!(insn.kind, K::INS | K::OUTS))
        .with_rep(insn.rep.is_set())
        .with_size(insn.size.min(4))
        .with_address_size(bytes / 2)
        .with_port(insn.number as u16)
}
