//! KVM's instruction emulator, as a service to backends: a second interpreter that translates every access anew.
//!
//! See: KVM arch/x86/kvm/x86.c x86_emulate_instruction(), emulator_read_write_onepage(), emulator_pio_in_out()

use super::{Services, answers};
use crate::tape::{fpu, registers};
use iced_x86::{DecoderError, DecoderOptions, Instruction, InstructionInfoFactory, OpAccess};
use std::{collections::VecDeque, mem};
use vmtape_abi::{
    BusOp, BusSpace, EmulateRequest, EmulateStatus, Emulated, EmulatorMmu, Host, MemoryStatus, emultype,
};
use vmtape_arch::{
    PAGE_SIZE,
    access::{Access, AccessKind, Mapping, MappingKind},
    exception::Exception,
    exit::ResumeKind,
    note::{EmulateMode, Note, NoteKind},
    sensitive::Sensitive,
    vcpu::{VcpuState, seg},
    vmware::{self, Counter},
};
use vmtape_cpu::{Cpu, CpuConfig, Decision, Env, Interrupted, OperandPart, Ram, Step, decode_as_kvm};

const MAX_INSN: usize = 15;

/// Emulates one instruction.
pub(crate) fn emulate(
    services: &mut Services,
    vcpu: u32,
    state: &mut VcpuState,
    request: &EmulateRequest,
    mmu: &mut dyn EmulatorMmu,
) -> Emulated {
    let mut result = Emulated::default();
    let insn = match fetch(services, state, request, mmu, &mut result) {
        Ok(Some(insn)) => insn,
        Ok(None) => return unhandleable(services, vcpu, state, request, result),
        Err(fault) => {
            trace(services, vcpu, state, &result, false);
            return Emulated { status: EmulateStatus::FAULT, fault, ..result };
        }
    };
    result.insn_len = insn.len() as u8;
    if !mmu.knows(&result.insn[..insn.len()]) {
        return unhandleable(services, vcpu, state, request, result);
    }
    trace(services, vcpu, state, &result, false);
    if request.flags & emultype::SKIP != 0 {
        skip(state, &result);
        services.emulated = true;
        state.icount += 1;
        return result;
    }
    services.emulation.asked = true;
    let mut used = Used::default();
    if services.tape.tells_stimuli() || services.tells_changes() || services.fed.is_some() {
        used = Used::by(&insn);
        services.tape.registers(vcpu, state, used.read);
        let numbers = fpu::used_by(&insn);
        if services.tape.tells_stimuli() {
            numbers.iter().for_each(|number| services.tape.fpu(vcpu, state, *number));
            let segments = registers::segments_used(&insn, state);
            segments.into_iter().for_each(|segment| services.tape.segment(vcpu, state, segment));
        }
        services.emulation.read |= used.read;
        services.emulation.perhaps |= used.written | used.perhaps;
        services.emulation.fpu.extend(numbers);
    }
    let result = execute(services, vcpu, state, request, mmu, (result, used.modifies));
    if result.status == EmulateStatus::DONE && !services.repeats {
        services.emulation.written |= used.written;
    }
    result
}

fn execute(
    services: &mut Services,
    vcpu: u32,
    state: &mut VcpuState,
    request: &EmulateRequest,
    mmu: &mut dyn EmulatorMmu,
    (mut result, modifies): (Emulated, bool),
) -> Emulated {
    let mut cpu = services.emulator.take().unwrap_or_else(|| Cpu::new(CpuConfig::default()));
    let ram = services.ram().clone();
    let mut env = EmulatorEnv {
        services,
        mmu,
        vcpu,
        ram,
        modifies,
        writes: Vec::new(),
        user_writes: 0,
        user_mmio: false,
        user_output: false,
        taken: false,
        ahead: 1,
        input: VecDeque::new(),
        vmware_backdoor: request.flags & emultype::VMWARE_BACKDOOR != 0,
    };
    let guests = std::mem::replace(&mut state.intercepts, request.intercepts);
    let (bytes, icount) = (&result.insn[..usize::from(result.insn_len)], state.icount);
    let emulation = cpu.step_emulated(state, &mut env, Some(bytes));
    let EmulatorEnv { writes, user_writes, user_mmio, taken, .. } = env;
    state.intercepts = guests;
    services.emulator = Some(cpu);
    result.user_mmio = user_mmio.into();
    for (gpa, hpa, len) in writes {
        let mut written = vec![0; usize::from(len)];
        if services.memory.ram().read(hpa, &mut written) {
            services.tape.wrote(hpa, &written);
            if let Some(fed) = &mut services.fed {
                fed.knowledge.memory.learn(hpa, len.into());
            }
        }
        mmu.wrote(gpa, len, services);
    }
    match emulation.step {
        Step::Executed => {
            services.emulated = true;
            services.repeats = state.icount == icount;
            for _ in 0..user_writes {
                services.note(vcpu, Note::UserspaceExit { reason: ResumeKind::MMIO.0, errno: 0 });
            }
            result
        }
        Step::Fault(fault) => Emulated { status: EmulateStatus::FAULT, fault, ..result },
        Step::Unhandleable if taken => Emulated { status: EmulateStatus::SENSITIVE, ..result },
        Step::Unhandleable => {
            if request.flags & emultype::TRAP_UD == 0 {
                trace(services, vcpu, state, &result, true);
            }
            Emulated { status: EmulateStatus::UNHANDLEABLE, ..result }
        }
    }
}

/// The instruction is not emulated: a second trace says so, unless a #UD was expected.
// See: KVM x86.c handle_emulation_failure()
fn unhandleable(
    services: &mut Services,
    vcpu: u32,
    state: &VcpuState,
    request: &EmulateRequest,
    result: Emulated,
) -> Emulated {
    trace(services, vcpu, state, &result, false);
    if request.flags & (emultype::TRAP_UD | emultype::TRAP_UD_FORCED) == 0 {
        trace(services, vcpu, state, &result, true);
    }
    Emulated { status: EmulateStatus::UNHANDLEABLE, ..result }
}

fn bitness(state: &VcpuState) -> u32 {
    match (state.is_64bit_code(), state.seg[seg::CS].attr.db()) {
        (true, _) => 64,
        (_, true) => 32,
        _ => 16,
    }
}

/// Gets and decodes the instruction at RIP. `None`: it cannot be fetched, or is no instruction.
fn fetch(
    services: &mut Services,
    state: &VcpuState,
    request: &EmulateRequest,
    mmu: &mut dyn EmulatorMmu,
    result: &mut Emulated,
) -> Result<Option<Instruction>, Exception> {
    let bytes = &mut result.insn;
    let mut len = 0;
    if request.flags & emultype::HAS_BYTES != 0 {
        len = usize::from(request.insn_len).min(MAX_INSN);
        bytes[..len].copy_from_slice(&request.insn[..len]);
    }
    loop {
        result.fetched = len as u8;
        if len > 0 {
            let (insn, error) = decode_as_kvm(bitness(state), &bytes[..len], state.rip, DecoderOptions::NONE);
            match error {
                DecoderError::None => return Ok(Some(insn)),
                DecoderError::NoMoreBytes if len < MAX_INSN => {}
                _ => return Ok(None),
            }
        }
        let more = fetch_page(services, state, mmu, &mut bytes[len..], len)?;
        if more == 0 {
            return Ok(None);
        }
        len += more;
    }
}

/// Fetches what the page holds of the instruction, `done` bytes after RIP.
// See: KVM emulate.c __do_insn_fetch_bytes()
fn fetch_page(
    services: &mut Services,
    state: &VcpuState,
    mmu: &mut dyn EmulatorMmu,
    bytes: &mut [u8],
    done: usize,
) -> Result<usize, Exception> {
    let mut gva = state.rip.wrapping_add(done as u64);
    if !state.is_64bit_code() {
        gva = gva.wrapping_add(state.seg[seg::CS].base) & u64::from(u32::MAX);
    }
    let len = bytes.len().min((PAGE_SIZE - gva % PAGE_SIZE) as usize);
    let access = Access {
        gva,
        kind: AccessKind::FETCH,
        user: (state.cpl == 3).into(),
        size: len as u8,
        ..Access::default()
    };
    let translation = mmu.translate(state, &access, services)?;
    let fetched = translation.ram.is_set() && services.read(translation.hpa, &mut bytes[..len]);
    Ok(if fetched { len } else { 0 })
}

fn skip(state: &mut VcpuState, result: &Emulated) {
    let rip = state.rip.wrapping_add(result.insn_len.into());
    state.rip = if state.is_64bit_code() { rip } else { rip & u64::from(u32::MAX) };
    state.interruptibility = state.interruptibility.with_sti(false).with_mov_ss(false);
    state.rflags = state.rflags().with_rf(false).into_bits();
}

fn trace(services: &mut Services, vcpu: u32, state: &VcpuState, result: &Emulated, failed: bool) {
    if !services.wants(NoteKind::EMULATE_INSN) {
        return;
    }
    let long = state.is_64bit_code();
    // Of an instruction only its own bytes; of what is none, all that were fetched.
    let len = usize::from(if result.insn_len == 0 { result.fetched } else { result.insn_len });
    let mut insn = [0; 16];
    insn[..len].copy_from_slice(&result.insn[..len]);
    let csbase = if long { 0 } else { state.seg[seg::CS].base as u32 };
    if let Some(fed) = services.fed.as_mut().filter(|_| !failed) {
        fed.emulated = true;
    }
    services.note(
        vcpu,
        Note::EmulateInsn {
            rip: state.rip,
            csbase,
            len: result.insn_len,
            insn: u128::from_le_bytes(insn),
            mode: EmulateMode::of(state).0,
            failed,
        },
    );
}

/// General registers and flags of an instruction, as masks of the tape's register event.
#[derive(Clone, Copy, Debug, Default)]
struct Used {
    read: u32,
    /// Written whole, and always.
    written: u32,
    /// In part, or not always.
    perhaps: u32,
    /// Memory that is written is read first.
    modifies: bool,
}

impl Used {
    fn by(insn: &Instruction) -> Self {
        let mut all = Self { read: registers::RFLAGS, ..Self::default() };
        let mut factory = InstructionInfoFactory::new();
        let info = factory.info(insn);
        let modifies = |access| matches!(access, OpAccess::ReadWrite | OpAccess::ReadCondWrite);
        all.modifies = info.used_memory().iter().any(|memory| modifies(memory.access()));
        for used in info.used_registers() {
            let register = used.register();
            if !register.is_gpr() {
                continue;
            }
            let bit = 1 << register.full_register().number();
            match used.access() {
                OpAccess::Read | OpAccess::CondRead | OpAccess::ReadWrite | OpAccess::ReadCondWrite => {
                    all.read |= bit;
                }
                // A 32-bit result clears the upper half.
                OpAccess::Write if register.size() >= 4 => all.written |= bit,
                _ => all.perhaps |= bit,
            }
        }
        all.written &= !all.perhaps;
        all
    }
}

/// The environment of the emulator.
struct EmulatorEnv<'a> {
    services: &'a mut Services,
    mmu: &'a mut dyn EmulatorMmu,
    vcpu: u32,
    ram: Ram,
    /// What the instruction writes depends on what was there.
    modifies: bool,
    /// RAM that is about to be written: gpa, hpa, bytes.
    writes: Vec<(u64, u64, u8)>,
    /// Writes that go to userspace once the instruction is complete.
    user_writes: u32,
    user_mmio: bool,
    /// A port of userspace's was written to.
    user_output: bool,
    /// The instruction is the backend's.
    taken: bool,
    /// Elements that the next read of a port takes at once, and those that it has taken beyond the first.
    ahead: u64,
    input: VecDeque<u32>,
    /// EMULTYPE's `VMWARE_BACKDOOR`.
    vmware_backdoor: bool,
}

impl EmulatorEnv<'_> {
    fn bus(&mut self, space: BusSpace, address: u64, size: u8, write: Option<u64>) -> (bool, u64) {
        let data = write.unwrap_or(0);
        let mut op = BusOp { space, write: write.is_some().into(), size, pad: 0, address, data };
        let claimed = self.services.bus(self.vcpu, &mut op);
        (claimed, op.data)
    }

    fn write_port(&mut self, port: u16, size: u8, value: u64) -> u32 {
        self.note(Note::Pio { write: true, port, size, count: 1, value });
        let (claimed, mut data) = self.bus(BusSpace::KERNEL_PIO, port.into(), size, Some(value));
        if !claimed {
            self.userspace(ResumeKind::IO);
            self.user_output = true;
            (_, data) = self.bus(BusSpace::USER_PIO, port.into(), size, Some(value));
        }
        data as u32
    }

    /// Who has the port for the first element has it for all of a bunch.
    /// See: KVM x86.c emulator_pio_in_out(), complete_emulator_pio_in()
    fn read_port(&mut self, port: u16, size: u8) -> u32 {
        let count = mem::replace(&mut self.ahead, 1) as u32;
        let (claimed, mut first) = self.bus(BusSpace::KERNEL_PIO, port.into(), size, None);
        let space = if claimed { BusSpace::KERNEL_PIO } else { BusSpace::USER_PIO };
        if !claimed {
            self.userspace(ResumeKind::IO);
            (_, first) = self.bus(space, port.into(), size, None);
        }
        for _ in 1..count {
            let (_, data) = self.bus(space, port.into(), size, None);
            self.input.push_back(data as u32);
        }
        self.note(Note::Pio { write: false, port, size, count, value: first });
        first as u32
    }

    /// `vcpu_mmio_read`: how many of the bytes devices of the kernel's have.
    fn read_kernel_devices(&mut self, gpa: u64, bytes: &mut [u8]) -> usize {
        let mut done = 0;
        for piece in bytes.chunks_mut(PIECE) {
            let (gpa, len) = (gpa + done as u64, piece.len() as u8);
            let (claimed, value) = self.bus(BusSpace::KERNEL_MMIO, gpa, len, None);
            if !claimed {
                break;
            }
            self.note(Note::Mmio { kind: READ, len, gpa, value });
            piece.copy_from_slice(&value.to_le_bytes()[..piece.len()]);
            done += piece.len();
        }
        done
    }

    fn note(&mut self, note: Note) {
        self.services.note(self.vcpu, note);
    }

    /// Whether RAM can be copied from or to, after a wait if need be.
    fn is_there(&mut self, hpa: u64, size: u8) -> bool {
        !self.services.is_sparse() || self.services.fault_in(hpa, size.into()) == MemoryStatus::READY
    }

    fn userspace(&mut self, reason: ResumeKind) {
        self.note(Note::UserspaceExit { reason: reason.0, errno: 0 });
    }
}

/// The most bytes that a device has at once. See: KVM x86.c vcpu_mmio_read(), complete_emulated_mmio()
const PIECE: usize = 8;

/// Up to eight bytes as a number, low byte first.
fn first_word(bytes: impl Iterator<Item = u8>) -> u64 {
    bytes.take(8).enumerate().fold(0, |word, (at, byte)| word | u64::from(byte) << (8 * at))
}

/// `kind` of a `kvm_mmio` note.
const READ_UNSATISFIED: u8 = 0;
const READ: u8 = 1;
const WRITE: u8 = 2;

impl Env for EmulatorEnv<'_> {
    fn ram(&self) -> &Ram {
        &self.ram
    }

    fn access(&mut self, state: &mut VcpuState, access: &Access) -> Result<Mapping, Interrupted> {
        let translation = self.mmu.translate(state, access, self.services).map_err(Interrupted::Fault)?;
        let looked_at = answers::translation(self.services.sound_memory(), &translation, access.size);
        if !self.services.is_right(looked_at) {
            return Err(Interrupted::Exit);
        }
        let page = |address: u64| address & !(PAGE_SIZE - 1);
        // What KVM cannot copy it takes for MMIO. See: KVM x86.c emulator_read_write_onepage()
        let ram = translation.ram.is_set() && self.is_there(translation.hpa, access.size);
        let kind = if ram { MappingKind::RAM } else { MappingKind::DEVICE };
        let writes = access.kind == AccessKind::WRITE;
        if ram && writes {
            self.writes.push((translation.gpa, translation.hpa, access.size));
        }
        if ram && (access.kind == AccessKind::READ || writes && self.modifies) {
            // An operand in memory is part of the exit's stimulus: the tape is told of it, as of a backend's reads.
            let mut operand = [0; 64];
            let len = usize::from(access.size).min(operand.len());
            self.services.read(translation.hpa, &mut operand[..len]);
        }
        Ok(Mapping {
            gpa: page(translation.gpa),
            hpa: page(translation.hpa),
            read: true.into(),
            write: true.into(),
            fetch: true.into(),
            kind,
            ..Mapping::default()
        })
    }

    fn sensitive(&mut self, _state: &mut VcpuState, insn: &Sensitive) -> Decision {
        self.taken = self.mmu.sensitive(insn);
        if self.taken { Decision::Interrupted(Interrupted::Exit) } else { Decision::Native }
    }

    fn exception(&mut self, _state: &mut VcpuState, _exception: &Exception) -> Option<()> {
        None
    }

    fn takes_operands(&self) -> bool {
        true
    }

    /// What devices of the kernel's do not have is told of once, and the whole operand when it is there.
    /// See: KVM x86.c emulator_read_write(), complete_emulated_mmio(), read_prepare()
    fn read_operand(&mut self, parts: &mut [OperandPart<'_>]) -> Result<(), Interrupted> {
        // Of an operand on two pages, what is on the second.
        let len = parts.last().map_or(0, |part| part.bytes.len()) as u8;
        let mut left = Vec::new();
        for part in parts.iter_mut() {
            let Some(gpa) = part.device else { continue };
            let done = self.read_kernel_devices(gpa, part.bytes);
            left.extend((gpa + done as u64..).step_by(PIECE).zip(part.bytes[done..].chunks_mut(PIECE)));
        }
        let Some((gpa, _)) = left.first() else { return Ok(()) };
        let gpa = *gpa;
        self.user_mmio = true;
        self.note(Note::Mmio { kind: READ_UNSATISFIED, len, gpa, value: 0 });
        for (gpa, piece) in left {
            self.userspace(ResumeKind::MMIO);
            let (_, data) = self.bus(BusSpace::USER_MMIO, gpa, piece.len() as u8, None);
            piece.copy_from_slice(&data.to_le_bytes()[..piece.len()]);
        }
        let operand = parts.iter().flat_map(|part| part.bytes.iter().copied());
        let len = operand.clone().count() as u8;
        self.note(Note::Mmio { kind: READ, len, gpa, value: first_word(operand) });
        Ok(())
    }

    /// See: KVM x86.c write_mmio(), vcpu_mmio_write()
    fn write_operand(&mut self, parts: &[OperandPart<'_>]) -> Result<(), Interrupted> {
        let mut left = Vec::new();
        for part in parts {
            let Some(gpa) = part.device else { continue };
            let value = first_word(part.bytes.iter().copied());
            self.note(Note::Mmio { kind: WRITE, len: part.bytes.len() as u8, gpa, value });
            let mut pieces = (gpa..)
                .step_by(PIECE)
                .zip(part.bytes.chunks(PIECE))
                .map(|(gpa, piece)| (gpa, piece.len() as u8, first_word(piece.iter().copied())));
            let refused = pieces.find(|(gpa, len, value)| {
                let (claimed, _) = self.bus(BusSpace::KERNEL_MMIO, *gpa, *len, Some(*value));
                !claimed
            });
            left.extend(refused.into_iter().chain(pieces));
        }
        self.user_mmio |= !left.is_empty();
        for (gpa, len, value) in left {
            self.user_writes += 1;
            self.bus(BusSpace::USER_MMIO, gpa, len, Some(value));
        }
        Ok(())
    }

    fn opens_port(&self, port: u16) -> bool {
        self.vmware_backdoor && vmware::is_port(port)
    }

    fn opens_counter(&self, number: u32) -> bool {
        self.vmware_backdoor && Counter(number).is_known()
    }

    fn port(&mut self, state: &mut VcpuState, port: u16, size: u8, write: Option<u32>) -> u32 {
        if port == vmware::PORT {
            // A call has its arguments and answers in registers that the instruction has nothing to do with.
            self.services.tape.registers(self.vcpu, state, registers::OF_CALL);
            self.services.emulation.read |= registers::OF_CALL;
        }
        match write {
            Some(value) => self.write_port(port, size, value.into()),
            None => self.input.pop_front().unwrap_or_else(|| self.read_port(port, size)),
        }
    }

    fn reads_ahead(&mut self, elements: u64) {
        if self.services.reads_ports_ahead {
            self.ahead = elements;
        }
    }

    /// See: KVM emulate.c x86_emulate_insn(): after each 1024 iterations, or what was read ahead; x86.c
    /// x86_emulate_instruction(): where userspace has to write
    fn leaves_repeat(&mut self, left: u64, read_ahead: Option<u64>) -> bool {
        const BUNCH: u64 = 1024;
        self.services.repetitions += 1;
        let bunch = read_ahead.map_or(left.is_multiple_of(BUNCH), |ahead| ahead == 0);
        self.services.repeats_in_bunches && (bunch || self.user_writes != 0 || self.user_output)
    }

    fn cpuid(&mut self, state: &mut VcpuState, function: u32, index: u32) -> [u32; 4] {
        self.services.native_cpuid(self.vcpu, state, function, index)
    }

    fn msr(&mut self, _state: &mut VcpuState, index: u32, write: Option<u64>) -> Result<u64, Exception> {
        let (claimed, data) = self.bus(BusSpace::MSR, index.into(), 8, write);
        if claimed { Ok(data) } else { Err(Exception::gp(0)) }
    }

    fn tsc(&mut self, state: &VcpuState) -> u64 {
        self.services.clock.tsc_at(state.icount)
    }

    fn random(&mut self) -> u64 {
        self.services.random()
    }

    fn tpr_changed(&mut self, state: &mut VcpuState) {
        self.services.devices.tpr_from_cr8(self.vcpu, state);
    }
}
