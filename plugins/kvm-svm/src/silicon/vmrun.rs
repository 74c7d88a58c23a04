//! VMRUN and #VMEXIT: what silicon takes from a VMCB, what it keeps of it, and what it writes back.
//!
//! Manual: AMD APM volume 2, 24593 rev. 3.42, 15.5 VMRUN Instruction, 15.6 #VMEXIT, 15.15 VMCB State Caching.

use super::{
    checks::{self, Invalid},
    vmcb::{Clean, EventInfo, IntState, Mirror, Vmcb, VmcbSegment},
};
use serde::{Deserialize, Serialize};
use vmtape_arch::{
    event::{Event, EventKind},
    exception::Vector,
    exit::{Exit, SvmExitCode},
    host::Silicon,
    regs::Cr4,
    sensitive::SensitiveKind,
    vcpu::{Intercepts, VcpuState},
};

/// What silicon holds of the VMCB that it runs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Running {
    /// The physical address of the VMCB whose state is kept; clean bits of another mean nothing.
    kept_of: Option<u64>,
    pub vmcb: Vmcb,
    /// What crosses the boundary under its intercepts.
    published: Intercepts,
    /// Bases were not canonical in memory.
    canonicalized: bool,
    /// PAUSEs that go by before one exits, and when the last one was.
    pauses_left: u16,
    last_pause: u64,
}

/// The groups that the checks look at.
const CHECKED: Clean = Clean::new()
    .with_intercepts(true)
    .with_iopm(true)
    .with_asid(true)
    .with_np(true)
    .with_crx(true)
    .with_drx(true)
    .with_seg(true);

impl Running {
    /// VMRUN. `pa`: where the VMCB lies. `honour`: what is marked clean is not read, be it right or not.
    pub fn vmrun(
        &mut self,
        vmcb: &mut Vmcb,
        pa: u64,
        silicon: &Silicon,
        honour: bool,
    ) -> Result<(), Invalid> {
        let kept = honour && self.kept_of == Some(pa);
        let clean = if kept { vmcb.control.clean } else { Clean::new() };
        self.vmcb.load(vmcb, clean);
        let unchecked = clean.into_bits() & CHECKED.into_bits() == CHECKED.into_bits();
        let event = self.vmcb.control.event_inj;
        let checked = match unchecked {
            true if checks::is_legal_event(event) => Ok(()),
            true => Err(Invalid::EventInjection),
            false => checks::check(&self.vmcb, silicon),
        };
        if let Err(invalid) = checked {
            self.kept_of = None;
            vmcb.control.set_exit_code(SvmExitCode::ERR);
            (vmcb.control.exit_info_1, vmcb.control.exit_info_2) = (0, 0);
            return Err(invalid);
        }
        self.kept_of = Some(pa);
        self.pauses_left = self.vmcb.control.pause_filter_count;
        if !clean.seg() || !clean.dt() {
            self.canonicalize();
        }
        if !clean.intercepts() {
            self.published = published(&self.vmcb, silicon);
        }
        Ok(())
    }

    /// CR8 is V_TPR. Registers that silicon did not load because the VMCB calls them clean: the guest goes on with what silicon
    /// kept. See: APM 15.21.1 Interrupt Masking in RFLAGS and CR8
    pub fn load_kept(&self, vmcb: &Vmcb, state: &mut VcpuState) {
        let clean = vmcb.control.clean;
        state.cr8 = (self.vmcb.control.int_ctl.v_tpr() & 0xf).into();
        let (kept, memory) = (&self.vmcb.save, &vmcb.save);
        if clean.drx() && (kept.dr6, kept.dr7) != (memory.dr6, memory.dr7) {
            (state.dr6, state.dr7) = (kept.dr6, kept.dr7);
        }
        let tables = clean.dt() && (kept.gdtr, kept.idtr) != (memory.gdtr, memory.idtr);
        let segments = clean.seg()
            && (kept.es, kept.cs, kept.ss, kept.ds, kept.cpl)
                != (memory.es, memory.cs, memory.ss, memory.ds, memory.cpl);
        if tables || segments || self.canonicalized {
            kept.load_segments(state);
        }
    }

    /// Whether V_IRQ is above the virtual task priority. See: APM 15.21.4 Injecting Virtual (INTR) Interrupts
    pub fn has_virtual_interrupt(&self, state: &VcpuState) -> bool {
        let int_ctl = self.vmcb.control.int_ctl;
        let open = !int_ctl.v_gif_enable() || state.interruptibility.virtual_gif();
        open && int_ctl.v_irq() && (int_ctl.v_ign_tpr() || u64::from(int_ctl.v_intr_prio()) > state.cr8)
    }

    /// A virtual NMI is pending that the guest, which blocks none, may take now. See: APM 15.21.10 NMI Virtualization
    pub fn has_virtual_nmi(&self, state: &VcpuState) -> bool {
        let int_ctl = self.vmcb.control.int_ctl;
        let open = !int_ctl.v_gif_enable() || state.interruptibility.virtual_gif();
        open && waits_for_nmi(&self.vmcb)
    }

    /// Delivers it. Silicon blocks further ones until IRET.
    pub fn take_virtual_nmi(&mut self, state: &mut VcpuState) {
        self.vmcb.control.int_ctl.set_v_nmi_pending(false);
        state.interruptibility.set_virtual_nmi(false);
        state.intercepts.set(SensitiveKind::NMI_WINDOW, false);
        state.inject =
            Event { valid: true.into(), kind: EventKind::NMI, vector: Vector::NMI.0, ..Default::default() };
    }

    /// A virtual interrupt is pending that the guest may take now: delivers it.
    /// See: APM 15.21.4 Injecting Virtual (INTR) Interrupts
    pub fn take_virtual_interrupt(&mut self, state: &mut VcpuState) {
        let control = &mut self.vmcb.control;
        control.int_ctl.set_v_irq(false);
        state.interruptibility.set_virtual_irq(false);
        state.intercepts.set(SensitiveKind::INTERRUPT_WINDOW, false);
        state.inject = Event {
            valid: true.into(),
            kind: EventKind::EXTERNAL_INTERRUPT,
            vector: control.int_vector as u8,
            ..Default::default()
        };
    }

    /// Whether an intercepted PAUSE exits: not while the filter counts. Under a threshold it counts anew after a PAUSE that came
    /// later than that. See: APM 15.14.4 Pause Intercept Filtering
    pub fn pause_exits(&mut self, tsc: u64) -> bool {
        let control = &self.vmcb.control;
        let since = tsc.wrapping_sub(std::mem::replace(&mut self.last_pause, tsc));
        if control.pause_filter_thresh != 0 && since > control.pause_filter_thresh.into() {
            self.pauses_left = control.pause_filter_count;
        }
        match self.pauses_left.checked_sub(1) {
            Some(left) => self.pauses_left = left,
            None => return true,
        }
        false
    }

    /// Bases that are loaded are sign-extended. See: APM 15.5.1 Canonicalization and Consistency Checks
    fn canonicalize(&mut self) {
        let save = &mut self.vmcb.save;
        let la57 = Cr4::from_bits(save.cr4).la57();
        let mut changed = false;
        let mut extend = |segment: &mut VmcbSegment| {
            let base = sign_extended(segment.base, la57);
            changed |= std::mem::replace(&mut segment.base, base) != base;
        };
        for segment in
            [&mut save.es, &mut save.cs, &mut save.ss, &mut save.ds, &mut save.gdtr, &mut save.idtr]
        {
            extend(segment);
        }
        self.canonicalized = changed;
    }

    /// What crosses the boundary while this VMCB runs.
    pub fn intercepts(&self) -> Intercepts {
        let mut intercepts = self.published;
        intercepts.set(SensitiveKind::INTERRUPT_WINDOW, opens_window(&self.vmcb));
        intercepts.set(SensitiveKind::NMI_WINDOW, waits_for_nmi(&self.vmcb));
        intercepts
    }

    /// #VMEXIT: the exit, and the guest's state as it is now. The exit is the boundary's: it may come from a tape.
    pub fn vmexit(
        &mut self,
        vmcb: &mut Vmcb,
        mirror: &mut Mirror,
        exit: &Exit,
        state: &VcpuState,
        nrips: bool,
    ) {
        let control = &mut vmcb.control;
        control.set_exit_code(SvmExitCode(exit.reason));
        (control.exit_info_1, control.exit_info_2) = (exit.info1, exit.info2);
        control.exit_int_info = EventInfo::from_bits(exit.intr_info);
        control.exit_int_info_err = exit.error_code;
        // See: APM 15.7.1 State Saved on Exit, nRIP
        let saves_next_rip = nrips && exit.insn.len != 0;
        control.next_rip = if saves_next_rip { state.rip.wrapping_add(exit.insn.len.into()) } else { 0 };
        (control.event_inj, control.event_inj_err) = (EventInfo::new(), 0);
        control.int_state = int_state(state);
        control.int_ctl.set_v_irq(self.vmcb.control.int_ctl.v_irq());
        if control.int_ctl.v_nmi_enable() {
            // The tape has it there, where an NMI was taken without an exit.
            control.int_ctl.set_v_nmi_pending(state.interruptibility.virtual_nmi());
            control.int_ctl.set_v_nmi_blocking(state.interruptibility.nmi());
        }
        let np = control.nested_ctl.np_enable();
        let (segments, tables) = mirror.update(state);
        // Silicon keeps what it stores: the clean bits of the next VMRUN speak of that.
        for save in [&mut self.vmcb.save, &mut vmcb.save] {
            save.store(state, np);
            if segments {
                save.store_segments(mirror);
            }
            if tables {
                save.store_tables(mirror);
            }
        }
    }
}

/// An address in canonical form, as silicon loads it into a segment's base.
pub fn sign_extended(address: u64, la57: bool) -> u64 {
    let unused = if la57 { 64 - 57 } else { 64 - 48 };
    ((address << unused) as i64 >> unused) as u64
}

/// Whether the guest is asked when it can take an NMI.
pub fn waits_for_nmi(vmcb: &Vmcb) -> bool {
    vmcb.control.int_ctl.v_nmi_enable() && vmcb.control.int_ctl.v_nmi_pending()
}

/// Whether the guest is asked when it can take an interrupt: to exit, or to take a virtual one. The priority is compared then,
/// since a guest may change its CR8 without an exit.
fn opens_window(vmcb: &Vmcb) -> bool {
    vmcb.control.int_ctl.v_irq()
}

/// The interrupt shadow. AMD has one, whatever instruction began it.
pub fn int_state(state: &VcpuState) -> IntState {
    let shadow = state.interruptibility;
    IntState::new().with_interrupt_shadow(shadow.sti() || shadow.mov_ss())
}

/// The instructions and conditions that the vectors ask for. `sensitive` has the last word, by permission maps and operands.
pub fn published(vmcb: &Vmcb, silicon: &Silicon) -> Intercepts {
    use SensitiveKind as K;
    use SvmExitCode as C;
    let vector = &vmcb.control.intercepts;
    let mut intercepts = Intercepts { exceptions: vector.exceptions(), ..Default::default() };
    let cr = vector.0[0];
    // The vector has reads in its low half, the boundary has writes there.
    intercepts.cr = cr.rotate_left(16);
    // The software CPU of the recordings looks at CR0's intercept for a read of any control register.
    if silicon.rmw_reads_first.is_set() && !vector.has(C::READ_CR0) {
        intercepts.cr &= 0xffff;
    }
    let cr0_write = vector.has(C::WRITE_CR0);
    let selective = vector.has(C::CR0_SEL_WRITE);
    if selective {
        intercepts.cr |= 1;
    }
    intercepts.set(K::CR_WRITE, intercepts.cr & 0xffff != 0);
    intercepts.set(K::CR_READ, intercepts.cr >> 16 != 0);
    intercepts.set(K::SMSW, vector.has(C::READ_CR0));
    intercepts.set(K::CLTS, cr0_write);
    intercepts.set(K::LMSW, cr0_write || selective);
    intercepts.set(K::DR_READ, vector.0[1] as u16 != 0);
    intercepts.set(K::DR_WRITE, vector.0[1] >> 16 != 0);
    intercepts.set(K::INTERRUPT_WINDOW, opens_window(vmcb));
    for (kind, codes) in KINDS {
        intercepts.set(*kind, codes.iter().any(|code| vector.has(*code)));
    }
    intercepts
}

/// By which bits an instruction or condition is offered.
const KINDS: &[(SensitiveKind, &[SvmExitCode])] = {
    use SensitiveKind as K;
    use SvmExitCode as C;
    &[
        (K::GDTR_IDTR, &[C::IDTR_READ, C::GDTR_READ, C::IDTR_WRITE, C::GDTR_WRITE]),
        (K::LDTR_TR, &[C::LDTR_READ, C::TR_READ, C::LDTR_WRITE, C::TR_WRITE]),
        (K::RDTSC, &[C::RDTSC]),
        (K::PUSHF, &[C::PUSHF]),
        (K::POPF, &[C::POPF]),
        (K::INTN, &[C::SWINT]),
        (K::ICEBP, &[C::ICEBP]),
        (K::RDPMC, &[C::RDPMC]),
        (K::CPUID, &[C::CPUID]),
        (K::RSM, &[C::RSM]),
        (K::IRET, &[C::IRET]),
        (K::INVD, &[C::INVD]),
        (K::PAUSE, &[C::PAUSE]),
        (K::HLT, &[C::HLT]),
        (K::INVLPG, &[C::INVLPG]),
        (K::IN, &[C::IOIO]),
        (K::OUT, &[C::IOIO]),
        (K::INS, &[C::IOIO]),
        (K::OUTS, &[C::IOIO]),
        (K::RDMSR, &[C::MSR]),
        (K::WRMSR, &[C::MSR]),
        (K::TASK_SWITCH, &[C::TASK_SWITCH]),
        (K::TRIPLE_FAULT, &[C::SHUTDOWN]),
        (K::SVM, &[C::VMRUN, C::VMLOAD, C::VMSAVE, C::STGI, C::CLGI, C::SKINIT, C::INVLPGA]),
        (K::VMMCALL, &[C::VMMCALL]),
        (K::RDTSCP, &[C::RDTSCP]),
        (K::WBINVD, &[C::WBINVD]),
        (K::MONITOR, &[C::MONITOR]),
        (K::MWAIT, &[C::MWAIT]),
        (K::XSETBV, &[C::XSETBV]),
        (K::RDPRU, &[C::RDPRU]),
        (K::INVPCID, &[C::INVPCID]),
    ]
};
