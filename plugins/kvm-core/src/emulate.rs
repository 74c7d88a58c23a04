//! KVM's instruction emulator as the exit handlers use it.
//!
//! See: KVM arch/x86/kvm/x86.c x86_emulate_instruction(), handle_emulation_failure()

use crate::{
    events,
    hypercall::{self, Hypercall},
    profile::{Options, Switch},
    tracer::Tracer,
    vcpu::Vcpu,
};
use vmtape_abi::{EmulateRequest, EmulateStatus, Emulated, EmulatorMmu, Errno, Host, Translation, emultype};
use vmtape_arch::{
    PAGE_SIZE,
    access::Access,
    exception::Exception,
    exit::{Exit, Resume, ResumeKind},
    note::Note,
    regs::Rflags,
    sensitive::Sensitive,
    vcpu::VcpuState,
};
use vmtape_kvm_mmu::{Unmappable, insn, walker::EmulatorView};

/// KVM_INTERNAL_ERROR_EMULATION, _DELIVERY_EV and _UNEXPECTED_EXIT_REASON.
pub const SUBERROR_EMULATION: u64 = 1;
pub const SUBERROR_DELIVERY_EV: u64 = 3;
pub const SUBERROR_UNEXPECTED_EXIT_REASON: u64 = 4;
/// Words that KVM gives with DELIVERY_EV.
pub const DELIVERY_WORDS: u64 = 5;
/// KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES.
const FLAG_INSTRUCTION_BYTES: u64 = 1;
/// Words of `kvm_run.emulation_failure` after `ndata`: the flags, the instruction bytes behind their number, the exit.
const FLAGS_WORDS: u64 = 1;
const BYTES_WORDS: u64 = 2;
const EXIT_WORDS: u64 = 5;
/// What fills the room behind the bytes.
const NOP: u8 = 0x90;

/// `x86_emulate_instruction`.
pub fn x86_emulate(
    vcpu: &mut Vcpu,
    state: &mut VcpuState,
    request: &EmulateRequest,
    options: &Options,
    mmu: &mut EmulatorView<'_>,
    host: &mut dyn Host,
) -> Resume {
    // What an exit interrupted in its delivery is dropped: the instruction raises it anew.
    vcpu.events.clear_exceptions();
    mmu.in_mode_of(state);
    let before = state.rflags();
    let request = &EmulateRequest { flags: request.flags | always(options), ..*request };
    let asked = if vcpu.guest_mode && request.flags & emultype::SKIP == 0 {
        EmulateRequest { intercepts: vcpu.l1_intercepts, ..*request }
    } else {
        *request
    };
    let result = host.emulate(vcpu.id, state, &asked, mmu);
    if result.status == EmulateStatus::SENSITIVE {
        vcpu.kept_back = mmu.taken();
        return Resume::GUEST;
    }
    if done(vcpu, state, &result, options, mmu) {
        if request.flags & emultype::SKIP == 0 && result.status == EmulateStatus::DONE {
            single_step(vcpu, state, before, &result);
        }
        Resume::GUEST
    } else {
        failure(vcpu, state, &result, options, host)
    }
}

/// What the emulator is told whoever asks it.
pub fn always(options: &Options) -> u32 {
    if options.on(Switch::ENABLE_VMWARE_BACKDOOR) { emultype::VMWARE_BACKDOOR } else { 0 }
}

/// The same with EMULTYPE_TRAP_UD, where a failure is the guest's #UD. Whether a hypercall instruction was replaced.
pub fn on_ud(
    vcpu: &mut Vcpu,
    state: &mut VcpuState,
    own_hypercall: Hypercall,
    options: &Options,
    mmu: &mut EmulatorView<'_>,
    host: &mut dyn Host,
) -> bool {
    let request = EmulateRequest { flags: emultype::TRAP_UD, ..Default::default() };
    vcpu.events.clear_exceptions();
    // EmulateOnUD: all others are the guest's #UD.
    let mut flagged = Only { mmu, executes: insn::emulates_on_ud };
    let result = host.emulate(vcpu.id, state, &request, &mut flagged);
    if done(vcpu, state, &result, options, mmu) {
        return false;
    }
    // The host's interpreter has no hypercalls.
    if let Some(found) = Hypercall::decode(&result.insn[..result.insn_len.into()]) {
        return hypercall::fix(found, own_hypercall, vcpu, state, options, mmu, host);
    }
    vcpu.inject(state, &Exception::ud());
    false
}

/// `kvm_vcpu_do_singlestep`, where RFLAGS had TF before the instruction. KVM forgets it where userspace has to finish the
/// instruction. `before`: RFLAGS then.
pub fn single_step(vcpu: &mut Vcpu, state: &mut VcpuState, before: Rflags, result: &Emulated) {
    if let Some(trap) = events::single_step(before.tf() && !result.user_mmio.is_set()) {
        vcpu.inject(state, &trap);
    }
}

/// The guest's fault, unless it is one of L1's nested tables: that is L1's, and waits for whoever runs L2.
/// See: KVM x86.c inject_emulated_exception()
pub fn fault(vcpu: &mut Vcpu, state: &mut VcpuState, fault: &Exception, mmu: &mut EmulatorView<'_>) {
    if !mmu.ends_in_nested_fault(fault) {
        vcpu.inject(state, fault);
    }
}

/// Whether the emulation is over, a fault of the guest's being one of its ends.
fn done(
    vcpu: &mut Vcpu,
    state: &mut VcpuState,
    result: &Emulated,
    options: &Options,
    mmu: &mut EmulatorView<'_>,
) -> bool {
    let faulted =
        result.status == EmulateStatus::FAULT && (decoded(result) || options.on(Switch::DECODE_KEEPS_FAULT));
    if faulted {
        fault(vcpu, state, &result.fault, mmu);
    }
    faulted || result.status == EmulateStatus::DONE
}

/// Whether the emulator got as far as an instruction; otherwise its fetch faulted.
fn decoded(result: &Emulated) -> bool {
    result.insn_len != 0
}

/// `handle_emulation_failure`: the guest takes #UD; at CPL 0 userspace hears of it too, if it is not L2.
pub fn failure(
    vcpu: &mut Vcpu,
    state: &mut VcpuState,
    result: &Emulated,
    options: &Options,
    host: &mut dyn Host,
) -> Resume {
    vcpu.inject(state, &Exception::ud());
    if state.cpl != 0 || vcpu.guest_mode {
        return Resume::GUEST;
    }
    vcpu.note(Note::UserspaceExit { reason: ResumeKind::INTERNAL_ERROR.0, errno: 0 }, host);
    let mut resume = Resume::new(ResumeKind::INTERNAL_ERROR);
    resume.data[0] = SUBERROR_EMULATION;
    if !options.on(Switch::EMULATION_FAILURE_DATA) {
        return resume;
    }
    let fetched = usize::from(result.fetched).min(result.insn.len());
    if fetched == 0 {
        resume.data[1] = FLAGS_WORDS + EXIT_WORDS;
        return resume;
    }
    let mut words = [NOP; 16];
    words[0] = fetched as u8;
    words[1..=fetched].copy_from_slice(&result.insn[..fetched]);
    let word = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| words[at + i]));
    let ndata = FLAGS_WORDS + BYTES_WORDS + EXIT_WORDS;
    resume.data = [SUBERROR_EMULATION, ndata, FLAG_INSTRUCTION_BYTES, word(0), word(8), 0];
    resume
}

/// KVM_EXIT_INTERNAL_ERROR about an exit that KVM cannot emulate, without instruction bytes
/// (`kvm_handle_memory_failure`, `kvm_prepare_emulation_failure_exit`).
pub fn emulation_error() -> Resume {
    let mut resume = Resume::new(ResumeKind::INTERNAL_ERROR);
    (resume.data[0], resume.data[1]) = (SUBERROR_EMULATION, FLAGS_WORDS + EXIT_WORDS);
    resume
}

/// What `prepare_emulation_failure_exit` says of the exit, as far as there is room for it: reason, EXITINFO1 or
/// qualification, and so on.
pub fn with_exit(mut resume: Resume, exit: &Exit) -> Resume {
    let [suberror, ndata, ..] = resume.data;
    if (resume.kind, suberror) == (ResumeKind::INTERNAL_ERROR, SUBERROR_DELIVERY_EV) {
        // The event is what `get_exit_info` calls the second information: EXITINFO2 on SVM.
        resume.data[2..5].copy_from_slice(&[exit.info2, exit.reason.into(), exit.info1]);
    }
    if (resume.kind, suberror) == (ResumeKind::INTERNAL_ERROR, SUBERROR_EMULATION) && ndata != 0 {
        let words =
            [exit.reason.into(), exit.info1, exit.info2, exit.intr_info.into(), exit.error_code.into()];
        // After suberror and ndata.
        let start = (2 + ndata - EXIT_WORDS) as usize;
        resume.data.iter_mut().skip(start).zip(words).for_each(|(slot, word)| *slot = word);
    }
    resume
}

/// The emulator where it executes some instructions only, and decodes the others. What L1 wants to hear of is asked for all.
/// See: KVM emulate.c x86_decode_insn(), x86_emulate_insn()
pub(crate) struct Only<'a> {
    pub mmu: &'a mut dyn EmulatorMmu,
    /// Whether it executes an instruction.
    pub executes: fn(&[u8]) -> bool,
}

impl EmulatorMmu for Only<'_> {
    fn translate(
        &mut self,
        state: &VcpuState,
        access: &Access,
        host: &mut dyn Host,
    ) -> Result<Translation, Exception> {
        self.mmu.translate(state, access, host)
    }

    fn wrote(&mut self, gpa: u64, len: u8, host: &mut dyn Host) {
        self.mmu.wrote(gpa, len, host);
    }

    fn knows(&self, insn: &[u8]) -> bool {
        (self.executes)(insn) && self.mmu.knows(insn)
    }

    fn sensitive(&mut self, insn: &Sensitive) -> bool {
        self.mmu.sensitive(insn)
    }
}

/// KVM_EXIT_INTERNAL_ERROR with suberror DELIVERY_EV: an exit that KVM cannot handle interrupted the delivery of an event.
/// `words`: the event, the exit's reason and qualification, the address that KVM was asked to emulate at. The fifth that
/// KVM gives, the CPU of the last entry, has no room.
/// See: KVM x86.c kvm_prepare_event_vectoring_exit(); before, vmx/vmx.c __vmx_handle_exit()
pub fn delivery_error(tracer: Tracer, ndata: u64, words: [u64; 4], host: &mut dyn Host) -> Resume {
    tracer.note(Note::UserspaceExit { reason: ResumeKind::INTERNAL_ERROR.0, errno: 0 }, host);
    let mut resume = Resume::new(ResumeKind::INTERNAL_ERROR);
    (resume.data[0], resume.data[1]) = (SUBERROR_DELIVERY_EV, ndata);
    resume.data[2..].copy_from_slice(&words);
    resume
}

/// Memory that the nested tables cannot map, as the exits proposed in 2024 tell userspace. The proposal named neither
/// suberror nor flags; size and errno are those of KVM's other memory faults.
/// See: KVM mmu/mmu_internal.h kvm_mmu_prepare_memory_fault_exit()
pub fn unmappable(tracer: Tracer, gpa: u64, how: Unmappable, host: &mut dyn Host) -> Resume {
    let (kind, errno, data) = match how {
        Unmappable::MemoryFault => {
            (ResumeKind::MEMORY_FAULT, Errno::EFAULT.0, [0, gpa & !(PAGE_SIZE - 1), PAGE_SIZE, 0, 0, 0])
        }
        _ => (ResumeKind::INTERNAL_ERROR, 0, [SUBERROR_UNEXPECTED_EXIT_REASON, 1, gpa, 0, 0, 0]),
    };
    tracer.note(Note::UserspaceExit { reason: kind.0, errno }, host);
    Resume { kind, errno, data }
}
