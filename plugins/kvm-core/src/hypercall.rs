//! VMCALL and VMMCALL: the hypercall itself, and what KVM does about the other vendor's instruction.
//!
//! See: KVM arch/x86/kvm/x86.c kvm_emulate_hypercall(), emulator_fix_hypercall(); emulate.c em_hypercall()

use crate::{
    Kvm, events,
    profile::{Options, Switch},
    pv,
    tracer::Tracer,
    vcpu::{Vcpu, clear_shadow},
};
use vmtape_abi::{BusOp, BusSpace, EmulatorMmu, Host};
use vmtape_arch::{
    PAGE_SIZE,
    access::{Access, AccessKind},
    exception::Exception,
    exit::{Resume, ResumeKind},
    host::Vendor,
    note::Note,
    vcpu::{VcpuState, gpr},
};
use vmtape_kvm_mmu::insn;

/// Results of hypercalls. See: include/uapi/linux/kvm_para.h
const KVM_ENOSYS: i64 = -1000;
const KVM_EPERM: i64 = -1;
const KVM_EINVAL: i64 = -22;
pub(crate) const KVM_EFAULT: i64 = -14;
pub(crate) const KVM_EOPNOTSUPP: i64 = -95;
const KVM_HC_VAPIC_POLL_IRQ: u64 = 1;
const KVM_HC_KICK_CPU: u64 = 5;
const KVM_HC_CLOCK_PAIRING: u64 = 9;
const KVM_HC_SEND_IPI: u64 = 10;
const KVM_HC_SCHED_YIELD: u64 = 11;
/// APIC_DEST_MASK and APIC_SHORT_MASK of an ICR: a logical destination, a shorthand.
const ICR_DESTINATION: u64 = 0xc_0800;
/// APIC_DM_REMRD.
const ICR_REMOTE_READ: u64 = 0x300;
/// `kind` of a `kvm_mmio` note: a write.
const MMIO_WRITE: u8 = 2;

/// `kvm_emulate_hypercall`.
pub fn hypercall(
    kvm: &mut Kvm,
    vcpu: &mut Vcpu,
    state: &mut VcpuState,
    insn_len: u8,
    host: &mut dyn Host,
) -> Resume {
    answer(kvm, vcpu, state, host);
    vcpu.skip(state, insn_len);
    Resume::GUEST
}

/// The hypercall without the skip.
pub fn answer(kvm: &mut Kvm, vcpu: &Vcpu, state: &mut VcpuState, host: &mut dyn Host) {
    let long = state.is_64bit_code();
    let arg = |reg: usize| if long { state.gpr[reg] } else { state.gpr[reg] & 0xffff_ffff };
    let nr = arg(gpr::RAX);
    let args = [gpr::RBX, gpr::RCX, gpr::RDX, gpr::RSI].map(arg);
    vcpu.note(Note::Hypercall { nr, args }, host);
    let result = match nr {
        _ if state.cpl != 0 => KVM_EPERM,
        // To yield to another vCPU is the host's affair: they take turns anyway.
        KVM_HC_VAPIC_POLL_IRQ | KVM_HC_SCHED_YIELD => 0,
        KVM_HC_KICK_CPU => {
            interrupt(vcpu.id, args[1], ICR_REMOTE_READ, host);
            0
        }
        KVM_HC_CLOCK_PAIRING => pv::pair(kvm, vcpu.id, state, args[0], args[1], host),
        KVM_HC_SEND_IPI => send_ipi(vcpu.id, args, long, host),
        _ => KVM_ENOSYS,
    };
    state.gpr[gpr::RAX] = if long { result as u64 } else { result as u64 & 0xffff_ffff };
}

/// `kvm_pv_send_ipi`: an interrupt for up to 128 local APICs, or 64 of 32-bit code: two bitmaps, the first one's lowest identifier, and
/// the ICR. How many have accepted it.
fn send_ipi(vcpu: u32, [low, high, first, icr]: [u64; 4], long: bool, host: &mut dyn Host) -> i64 {
    if icr & ICR_DESTINATION != 0 {
        return KVM_EINVAL;
    }
    let (first, cluster) = (first as u32, if long { 64 } else { 32 });
    let mut send = |bitmap: u64, first: u32| {
        let named = (0..u64::from(u64::BITS)).filter(|bit| bitmap >> bit & 1 != 0);
        named.filter(|bit| interrupt(vcpu, u64::from(first) + bit, icr & 0xffff_ffff, host)).count() as i64
    };
    send(low, first) + send(high, first.wrapping_add(cluster))
}

/// `kvm_apic_set_irq` of the local APIC with this identifier. Whether there is one, and it has accepted.
pub(crate) fn interrupt(vcpu: u32, apic: u64, icr: u64, host: &mut dyn Host) -> bool {
    let mut op = BusOp {
        space: BusSpace::INTERRUPT,
        write: true.into(),
        size: 4,
        address: apic,
        data: icr,
        ..Default::default()
    };
    host.bus(vcpu, &mut op)
}

/// A vendor's hypercall instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hypercall {
    Vmcall,
    Vmmcall,
}

impl Hypercall {
    /// The one that this silicon has.
    pub fn of(vendor: Vendor) -> Self {
        if vendor == Vendor::AMD { Self::Vmmcall } else { Self::Vmcall }
    }

    /// Which of the two an instruction is. With a LOCK prefix it is neither.
    pub fn decode(insn: &[u8]) -> Option<Self> {
        match insn::opcode(insn) {
            _ if insn::is_locked(insn) => None,
            [0x0f, 0x01, 0xc1, ..] => Some(Self::Vmcall),
            [0x0f, 0x01, 0xd9, ..] => Some(Self::Vmmcall),
            _ => None,
        }
    }

    /// `patch_hypercall`.
    fn bytes(self) -> [u8; 3] {
        match self {
            Self::Vmcall => [0x0f, 0x01, 0xc1],
            Self::Vmmcall => [0x0f, 0x01, 0xd9],
        }
    }

    /// What the emulator's tables say before it executes one: VMCALL is privileged, VMMCALL needs protected mode.
    fn check(self, state: &VcpuState) -> Result<(), Exception> {
        match self {
            Self::Vmcall if state.cpl != 0 => Err(Exception::gp(0)),
            Self::Vmmcall if !state.cr0().pe() || state.rflags().vm() => Err(Exception::ud()),
            _ => Ok(()),
        }
    }
}

/// `em_hypercall`: a hypercall instruction that raised #UD is replaced by the one that this silicon has, and the guest executes
/// it again. Whether it was replaced.
pub fn fix(
    found: Hypercall,
    own: Hypercall,
    vcpu: &mut Vcpu,
    state: &mut VcpuState,
    options: &Options,
    mmu: &mut dyn EmulatorMmu,
    host: &mut dyn Host,
) -> bool {
    let allowed = if options.on(Switch::FIX_HYPERCALL_INSN) { Ok(()) } else { Err(Exception::ud()) };
    let written =
        found.check(state).and(allowed).and_then(|()| write(vcpu.tracer(), state, own.bytes(), mmu, host));
    if let Err(exception) = written {
        vcpu.inject(state, &exception);
        return false;
    }
    // To the emulator it is an instruction like any other, though none has retired.
    clear_shadow(state);
    if let Some(trap) = events::single_step(state.rflags().tf()) {
        vcpu.inject(state, &trap);
    }
    state.rflags = state.rflags().with_rf(false).into_bits();
    true
}

/// `emulator_write_emulated` at RIP, taken for a linear address whatever the base of CS. On a page that the guest may not write
/// that is the guest's #PF.
fn write(
    tracer: Tracer,
    state: &VcpuState,
    bytes: [u8; 3],
    mmu: &mut dyn EmulatorMmu,
    host: &mut dyn Host,
) -> Result<(), Exception> {
    let first = bytes.len().min((PAGE_SIZE - state.rip % PAGE_SIZE) as usize);
    let mut gva = state.rip;
    for part in [&bytes[..first], &bytes[first..]].into_iter().filter(|part| !part.is_empty()) {
        let size = part.len() as u8;
        let access = Access {
            gva,
            kind: AccessKind::WRITE,
            user: (state.cpl == 3).into(),
            size,
            ..Default::default()
        };
        let to = mmu.translate(state, &access, host)?;
        if to.ram.is_set() {
            host.write(to.hpa, part);
            mmu.wrote(to.gpa, size, host);
        } else {
            // A read-only slot: the VMM sees a write that changes nothing, and the guest comes back with the same #UD.
            let value = part.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte));
            tracer.note(Note::Mmio { kind: MMIO_WRITE, len: size, gpa: to.gpa, value }, host);
            tracer.note(Note::UserspaceExit { reason: ResumeKind::MMIO.0, errno: 0 }, host);
        }
        gva = gva.wrapping_add(part.len() as u64);
    }
    Ok(())
}
