//! Exits for control registers, debug registers, MSRs and XCR0.
//!
//! See: KVM arch/x86/kvm/vmx/vmx.c

use super::handlers::Cx;
use vmtape_arch::{
    exception::{Exception, Vector},
    exit::Resume,
    note::Note,
    qualification::{CrQualification, DrQualification},
    regs::{Cr4, Dr6},
    vcpu::{VcpuState, gpr},
};
use vmtape_kvm_core::{cr, msr};

/// DR7.GD.
const DR7_GD: u64 = 1 << 13;

pub fn xsetbv(cx: &mut Cx<'_>) -> Resume {
    let value = cx.state.gpr[gpr::RAX] & 0xffff_ffff | cx.state.gpr[gpr::RDX] << 32;
    let index = cx.state.gpr[gpr::RCX] as u32;
    let result = cr::xsetbv(&mut cx.vcpu.core, cx.state, index, value);
    cx.complete(result)
}

pub fn msr_read(cx: &mut Cx<'_>) -> Resume {
    let result = msr::emulate_rdmsr(cx.shared, cx.vcpu, cx.state, cx.host);
    cx.complete(result)
}

pub fn msr_write(cx: &mut Cx<'_>) -> Resume {
    let outcome = msr::emulate_wrmsr(cx.shared, cx.vcpu, cx.state, cx.host);
    let result = cx.apply(outcome);
    cx.complete(result)
}

/// `handle_cr`.
pub fn cr_access(cx: &mut Cx<'_>) -> Resume {
    let qualification = CrQualification::from_bits(cx.exit.info1);
    let number = qualification.number();
    let register = usize::from(qualification.gpr());
    match qualification.kind() {
        0 => {
            let value = operand(cx.state, register);
            cx.note(Note::Cr { write: true, number, value });
            let result = write_cr(cx, number, value);
            cx.complete(result)
        }
        1 => {
            let value = cx.state.cr3;
            cx.state.gpr[register] = value;
            cx.note(Note::Cr { write: false, number, value });
            cx.skip()
        }
        _ => {
            let source = u64::from(qualification.lmsw_source() & 0xf);
            cx.note(Note::Cr { write: true, number: 0, value: cx.state.cr0 & !0xf | source });
            // The result is ignored, as KVM does: LMSW cannot fault once it exits.
            let _ = write_cr(cx, 0, cr::lmsw(cx.state.cr0, source));
            cx.skip()
        }
    }
}

fn operand(state: &VcpuState, register: usize) -> u64 {
    let value = state.gpr[register];
    if state.is_64bit_code() { value } else { value & 0xffff_ffff }
}

fn write_cr(cx: &mut Cx<'_>, number: u8, value: u64) -> Result<(), Exception> {
    let outcome = cx.shared.kvm.set_cr(&mut cx.vcpu.core, cx.state, number.into(), value, cx.host);
    cx.apply(outcome)
}

/// `handle_dr`: the first access lets all further ones through, until the next exit.
pub fn dr_access(cx: &mut Cx<'_>) -> Resume {
    let number = DrQualification::from_bits(cx.exit.info1).number();
    if matches!(number, 4 | 5) && Cr4::from_bits(cx.state.cr4).de() {
        return cx.inject(Exception::ud());
    }
    if cx.state.cpl != 0 {
        return cx.inject(Exception::gp(0));
    }
    if cx.state.dr7 & DR7_GD != 0 {
        let payload = Dr6::new().with_bd(true).into_bits();
        return cx.inject(Exception { payload, ..Exception::new(Vector::DB) });
    }
    cx.vcpu.vmcs01.set_mov_dr_exiting(false);
    cx.vcpu.debug_registers_owned = true;
    Resume::GUEST
}
