//! `ud2; .ascii "kvm"` before an instruction asks for its emulation, where the parameter `force_emulation_prefix` allows it.
//!
//! See: KVM arch/x86/kvm/x86.c handle_ud(), kvm_vcpu_check_code_breakpoint(); emulate.c x86_emulate_insn()

use crate::{
    Kvm, cpuid, cr, emulate,
    hypercall::{self, Hypercall},
    io, msr, pmu,
    profile::Switch,
    smm,
    vm::{Ops, VendorVcpu},
};
use vmtape_abi::{EmulateRequest, EmulateStatus, Emulated, EmulatorMmu, Host, emultype};
use vmtape_arch::{
    PAGE_SIZE,
    access::{Access, AccessKind},
    exception::{Exception, Vector},
    exit::Resume,
    host::Vendor,
    regs::Dr7,
    sensitive::{Sensitive, SensitiveKind as K},
    vcpu::{Intercepts, VcpuState, gpr, seg},
};
use vmtape_kvm_mmu::insn;

/// __KVM_EMULATE_PREFIX.
const PREFIX: [u8; 5] = *b"\x0f\x0bkvm";

/// What the emulator asks KVM for, or cannot do at all: whoever executes it, it is not the interpreter.
const OWN: &[K] = &[
    K::CPUID,
    K::RDMSR,
    K::WRMSR,
    K::CR_WRITE,
    K::CLTS,
    K::LMSW,
    K::INVLPG,
    K::XSETBV,
    K::RDPMC,
    K::HLT,
    K::INTN,
    K::IRET,
    K::RSM,
    K::MONITOR,
    K::MWAIT,
    K::RDTSCP,
    K::SVM,
];
/// Writes of CR0, CR3 and CR4 in `Intercepts.cr`.
const CR_WRITES: u32 = 1 << 0 | 1 << 3 | 1 << 4;

/// `handle_ud`: a #UD of an instruction that KVM's emulator may execute all the same, or of the prefix.
pub fn handle_ud<O: Ops>(ops: &mut O, v: &mut O::Vcpu, state: &mut VcpuState, host: &mut dyn Host) -> Resume {
    if v.core().smm.active && is_rsm(ops.kvm_mut(), v.core().id, state, host) {
        return smm::rsm(ops, v, state, host);
    }
    if !is_prefixed(ops.kvm_mut(), v.core().id, state, host) {
        return ops.kvm_mut().handle_ud(v.core_mut(), state, host);
    }
    if ops.kvm().options.on(Switch::FEP_CLEAR_RFLAGS_RF) {
        state.rflags = state.rflags().with_rf(false).into_bits();
    }
    state.rip = state.rip.wrapping_add(PREFIX.len() as u64);
    v.core_mut().events.clear_exceptions();
    if let Some(trap) = code_breakpoint(ops.kvm(), state) {
        v.core_mut().inject(state, &trap);
        return Resume::GUEST;
    }
    let wanted = if v.core().guest_mode { v.core().l1_intercepts } else { Intercepts::default() };
    execute(ops, v, state, wanted, host)
}

/// RSM, which silicon that is not in SMM does not know, and the emulator does.
fn is_rsm(kvm: &mut Kvm, vcpu: u32, state: &VcpuState, host: &mut dyn Host) -> bool {
    insn::is_rsm(&kvm.mmu.peek_instruction(vcpu, state, host))
}

/// `kvm_read_guest_virt` of the bytes at RIP, and whether they are the prefix.
fn is_prefixed(kvm: &mut Kvm, vcpu: u32, state: &VcpuState, host: &mut dyn Host) -> bool {
    if !kvm.options.on(Switch::FORCE_EMULATION_PREFIX) {
        return false;
    }
    let base = if state.is_64bit_code() { 0 } else { state.seg[seg::CS].base };
    let gva = state.rip.wrapping_add(base);
    let mut found = [0; PREFIX.len()];
    let first = found.len().min((PAGE_SIZE - gva % PAGE_SIZE) as usize);
    let mut emulator = kvm.mmu.emulator(vcpu, None);
    let mut at = gva;
    let (head, tail) = found.split_at_mut(first);
    for part in [head, tail].into_iter().filter(|part| !part.is_empty()) {
        let access = Access {
            gva: at,
            kind: AccessKind::READ,
            user: (state.cpl == 3).into(),
            size: part.len() as u8,
            ..Default::default()
        };
        let Ok(to) = emulator.translate(state, &access, host) else { return false };
        if !to.ram.is_set() || !host.read(to.hpa, part) {
            return false;
        }
        at = at.wrapping_add(part.len() as u64);
    }
    found == PREFIX
}

/// `kvm_vcpu_check_code_breakpoint`: silicon looked at the prefix, not at what is behind it. The shadow of MOV SS holds a
/// breakpoint back on Intel's processors only, which releases before 6.1 do not know.
fn code_breakpoint(kvm: &Kvm, state: &VcpuState) -> Option<Exception> {
    let dr7 = Dr7::from_bits(state.dr7);
    let shadowed = kvm.silicon.vendor == Vendor::INTEL && state.interruptibility.mov_ss();
    if state.rflags().rf() || shadowed && kvm.options.on(Switch::CODE_BREAKPOINTS_INHIBITED) {
        return None;
    }
    let base = if state.is_64bit_code() { 0 } else { state.seg[seg::CS].base };
    let gva = state.rip.wrapping_add(base);
    let hits = (0..4).filter(|n| dr7.is_enabled(*n) && dr7.rw(*n) == 0 && state.dr[*n as usize] == gva);
    let payload = hits.fold(0, |bits, n| bits | 1 << n);
    (payload != 0).then(|| Exception { payload, ..Exception::new(Vector::DB) })
}

/// The emulation itself. `wanted`: what L1 intercepts of L2's instructions.
fn execute<O: Ops>(
    ops: &mut O,
    v: &mut O::Vcpu,
    state: &mut VcpuState,
    wanted: Intercepts,
    host: &mut dyn Host,
) -> Resume {
    let mut intercepts = Intercepts { cr: wanted.cr | CR_WRITES, ..wanted };
    OWN.iter().for_each(|kind| intercepts.set(*kind, true));
    intercepts.set(K::IRET, wanted.wants(K::IRET) || state.cr0().pe());
    let before = state.rflags();
    let (kvm, vcpu) = (ops.kvm_mut(), v.core_mut());
    let flags = emultype::TRAP_UD_FORCED | emulate::always(&kvm.options);
    let request = EmulateRequest { flags, intercepts, ..Default::default() };
    let mut emulator = kvm.mmu.emulator(vcpu.id, None).forced();
    emulator.in_mode_of(state);
    let result = host.emulate(vcpu.id, state, &request, &mut emulator);
    let bytes = &result.insn[..result.insn_len.into()];
    match (result.status, Hypercall::decode(bytes)) {
        (EmulateStatus::DONE, _) => {
            emulate::single_step(vcpu, state, before, &result);
            Resume::GUEST
        }
        (EmulateStatus::SENSITIVE, _) => {
            let insn = emulator.taken().unwrap_or_default();
            own(ops, v, state, &insn, wanted, host)
        }
        (EmulateStatus::UNHANDLEABLE, Some(found)) => {
            let hypercall = Hypercall::of(kvm.silicon.vendor);
            hypercall::fix(found, hypercall, vcpu, state, &kvm.options, &mut emulator, host);
            Resume::GUEST
        }
        // INT3 and INTO, which the emulator knows and does not execute.
        (EmulateStatus::UNHANDLEABLE, None) if insn::is_software_interrupt(bytes) => {
            emulate::failure(vcpu, state, &result, &kvm.options, host)
        }
        (EmulateStatus::FAULT, _) if !bytes.is_empty() => {
            emulate::fault(vcpu, state, &result.fault, &mut emulator);
            Resume::GUEST
        }
        _ => {
            vcpu.inject(state, &Exception::ud());
            Resume::GUEST
        }
    }
}

/// The emulator's way into KVM (`emulate_ops`), once L1 has been asked. RIP is behind the prefix.
fn own<O: Ops>(
    ops: &mut O,
    v: &mut O::Vcpu,
    state: &mut VcpuState,
    insn: &Sensitive,
    wanted: Intercepts,
    host: &mut dyn Host,
) -> Resume {
    if ops.check_intercept(v, state, insn, host) {
        return Resume::GUEST;
    }
    if !OWN.contains(&insn.kind) || insn.kind == K::CR_WRITE && CR_WRITES >> insn.number & 1 == 0 {
        // L1 was asked, and does not want it.
        debug_assert_ne!(wanted, Intercepts::default());
        return execute(ops, v, state, Intercepts::default(), host);
    }
    let old = state.rflags();
    state.rflags = old.with_rf(false).into_bits();
    if insn.kind == K::RSM {
        return smm::rsm(ops, v, state, host);
    }
    if insn.kind == K::HLT {
        return io::halt(v.core_mut(), state, insn.len);
    }
    match act(ops, v, state, insn, host) {
        Ok(true) => v.core_mut().skip(state, insn.len),
        Ok(false) => {
            state.rflags = old.into_bits();
            let result =
                Emulated { insn_len: insn.len, insn: insn.bytes, fetched: insn.len, ..Default::default() };
            return emulate::failure(v.core_mut(), state, &result, &ops.kvm().options, host);
        }
        Err(exception) => {
            state.rflags = old.into_bits();
            v.core_mut().inject(state, &exception);
        }
    }
    Resume::GUEST
}

/// False: the emulator's tables have the instruction, and nothing that executes it.
fn act<O: Ops>(
    ops: &mut O,
    v: &mut O::Vcpu,
    state: &mut VcpuState,
    insn: &Sensitive,
    host: &mut dyn Host,
) -> Result<bool, Exception> {
    let effect = match insn.kind {
        K::CPUID => {
            cpuid::emulate(v.core(), state, host);
            return Ok(true);
        }
        K::RDMSR => {
            msr::emulate_rdmsr(ops, v, state, host)?;
            return Ok(true);
        }
        K::XSETBV => {
            let value = state.gpr[gpr::RAX] & 0xffff_ffff | state.gpr[gpr::RDX] << 32;
            cr::xsetbv(v.core_mut(), state, state.gpr[gpr::RCX] as u32, value)?;
            return Ok(true);
        }
        K::INVLPG => {
            let id = v.core().id;
            ops.kvm_mut().mmu.invlpg(id, insn.address, host);
            return Ok(true);
        }
        K::RDPMC => {
            pmu::rdpmc(ops.kvm().silicon.vendor, v.core(), state)?;
            return Ok(true);
        }
        K::WRMSR => msr::emulate_wrmsr(ops, v, state, host)?,
        K::CR_WRITE => ops.kvm().set_cr(v.core_mut(), state, insn.number, insn.value, host)?,
        K::CLTS | K::LMSW => {
            let value = match insn.kind {
                K::CLTS => state.cr0().with_ts(false).into_bits(),
                _ => cr::lmsw(state.cr0, insn.value),
            };
            ops.kvm().set_cr(v.core_mut(), state, 0, value, host)?
        }
        _ => return Ok(false),
    };
    ops.apply(v, state, effect, host);
    Ok(true)
}
