//! What the VMM does beside running the guest: ioctls at given moments, told to the recorder like everything else.

pub use crate::control_text::{action_text, control_text};
use crate::{
    Error,
    cpuid_change::CpuidChange,
    machine::{Machine, max_gpa},
    model::silicon_cpuid,
    spec::MachineSpec,
};
use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};
use vmtape_abi::{Errno, MemoryRegion, Query};
use vmtape_traces::event::{Control, Event};

/// One ioctl and its moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    pub at: When,
    pub action: Action,
}

/// When the VMM acts; the guest is stopped there, and enters again after it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum When {
    /// Before any vCPU has run.
    #[default]
    Start,
    /// After so many exits were handled: before the exit with this number, the first being 0.
    Exit(u64),
    /// After so many instructions retired.
    Insn(u64),
}

/// An ioctl.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Action {
    /// KVM_SET_CPUID2 with the vCPU's table and a change to it, as [`CpuidChange`] spells it.
    SetCpuid { vcpu: u32, change: String },
    /// KVM_SET_USER_MEMORY_REGION. The machine has memory for the largest size that its script gives a slot.
    SetMemoryRegion { slot: u32, gpa: u64, size: u64, flags: u32 },
    /// KVM_SET_MSRS with one register.
    SetMsr { vcpu: u32, index: u32, data: u64 },
    /// KVM_CHECK_EXTENSION.
    CheckExtension { cap: u32 },
    /// KVM_GET_CPUID2.
    GetCpuid { vcpu: u32 },
    /// KVM_GET_SUPPORTED_CPUID.
    GetSupportedCpuid,
    /// KVM_GET_MSRS with one register.
    GetMsr { vcpu: u32, index: u32 },
    /// A value that no ioctl shows, by its number in the contract.
    Query { vcpu: u32, query: u32 },
}

impl Action {
    /// The vCPU that it is an ioctl of.
    pub fn vcpu(&self) -> Option<u32> {
        match self {
            Self::SetCpuid { vcpu, .. }
            | Self::SetMsr { vcpu, .. }
            | Self::GetCpuid { vcpu }
            | Self::GetMsr { vcpu, .. }
            | Self::Query { vcpu, .. } => Some(*vcpu),
            Self::SetMemoryRegion { .. } | Self::CheckExtension { .. } | Self::GetSupportedCpuid => None,
        }
    }
}

impl fmt::Display for When {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Start => f.write_str("start"),
            Self::Exit(exit) => write!(f, "exit={exit}"),
            Self::Insn(insn) => write!(f, "insn={insn}"),
        }
    }
}

impl FromStr for When {
    type Err = String;

    /// `start`, `exit=N` or `insn=N`.
    fn from_str(text: &str) -> Result<Self, String> {
        let count = |count: &str| count.parse().map_err(|_| format!("{text}: `{count}` is not a count"));
        match text.split_once('=') {
            None if text == "start" => Ok(Self::Start),
            Some(("exit", exit)) => Ok(Self::Exit(count(exit)?)),
            Some(("insn", insn)) => Ok(Self::Insn(count(insn)?)),
            _ => Err(format!("`{text}` is none of start, exit=N, insn=N")),
        }
    }
}

/// The script of a machine and how far it is.
pub(crate) struct Script {
    steps: Vec<Step>,
    done: Vec<bool>,
    /// The next moments, so that a run need not look at every step after every exit.
    next_exit: u64,
    next_insn: u64,
    /// What was done, and after how many exits.
    log: Vec<(u64, Control)>,
}

impl Script {
    /// A script that fits the machine.
    pub(crate) fn new(spec: &MachineSpec) -> Result<Self, Error> {
        for step in &spec.script {
            step.check(spec.vcpus).map_err(Error::Script)?;
        }
        let mut script = Self {
            steps: spec.script.clone(),
            done: vec![false; spec.script.len()],
            next_exit: 0,
            next_insn: 0,
            log: Vec::new(),
        };
        script.look_ahead();
        Ok(script)
    }

    /// The instruction count at which the guest must be left for the next step.
    pub(crate) fn next_insn(&self) -> u64 {
        self.next_insn
    }

    pub(crate) fn is_due(&self, exits: u64, icount: u64) -> bool {
        exits >= self.next_exit || icount >= self.next_insn
    }

    fn take_due(&mut self, exits: u64, icount: u64) -> Vec<Action> {
        let mut due = Vec::new();
        for (step, done) in self.steps.iter().zip(&mut self.done).filter(|(_, done)| !**done) {
            *done = match step.at {
                When::Start => true,
                When::Exit(exit) => exits >= exit,
                When::Insn(insn) => icount >= insn,
            };
            due.extend(done.then(|| step.action.clone()));
        }
        self.look_ahead();
        due
    }

    fn look_ahead(&mut self) {
        (self.next_exit, self.next_insn) = (u64::MAX, u64::MAX);
        for (step, _) in self.steps.iter().zip(&self.done).filter(|(_, done)| !**done) {
            match step.at {
                When::Start => self.next_exit = 0,
                When::Exit(exit) => self.next_exit = self.next_exit.min(exit),
                When::Insn(insn) => self.next_insn = self.next_insn.min(insn),
            }
        }
    }

    pub(crate) fn done(&self) -> &[bool] {
        &self.done
    }

    /// Goes on where a checkpoint was made.
    pub(crate) fn resume(&mut self, done: Vec<bool>) {
        self.done = done;
        self.look_ahead();
    }

    /// Goes on where another machine's is, with what was done there.
    pub(crate) fn take_over(&mut self, other: &Self) {
        self.log.clone_from(&other.log);
        self.resume(other.done.clone());
    }

    fn left(&self) -> impl Iterator<Item = &Step> {
        self.steps.iter().zip(&self.done).filter(|(_, done)| !**done).map(|(step, _)| step)
    }
}

impl Step {
    /// Whether a machine with so many vCPUs can do it.
    pub fn check(&self, vcpus: u32) -> Result<(), String> {
        if let Some(vcpu) = self.action.vcpu().filter(|vcpu| *vcpu >= vcpus) {
            return Err(format!("there is no vCPU {vcpu}: the machine has {vcpus}, numbered from 0"));
        }
        match &self.action {
            Action::SetCpuid { change, .. } => change.parse::<CpuidChange>().map(drop),
            _ => Ok(()),
        }
    }
}

/// The memory slots that a script makes.
pub(crate) fn memory_regions(script: &[Step]) -> Vec<MemoryRegion> {
    let region = |step: &Step| match step.action {
        Action::SetMemoryRegion { slot, gpa, size, flags } => {
            Some(MemoryRegion { slot, flags, gpa, size, hpa: 0 })
        }
        _ => None,
    };
    script.iter().filter_map(region).collect()
}

/// The result of an ioctl as the tape has it.
fn code(result: &Result<(), Errno>) -> i32 {
    result.err().map_or(0, |errno| errno.0)
}

/// A value and the result of the ioctl that gives it.
fn value(read: Result<u64, Errno>) -> (u64, i32) {
    match read {
        Ok(value) => (value, 0),
        Err(errno) => (0, errno.0),
    }
}

impl Machine {
    /// Does what the script has for this moment.
    pub(crate) fn run_script(&mut self) {
        let icount = self.services.clock.icount;
        if !self.script.is_due(self.exits, icount) {
            return;
        }
        for action in self.script.take_due(self.exits, icount) {
            let control = self.ioctl_of(&action);
            let _ = self.control(&control);
        }
    }

    /// The ioctl that an action stands for here and now, its results still open.
    fn ioctl_of(&self, action: &Action) -> Control {
        match action {
            Action::SetCpuid { vcpu, change } => {
                // The text was checked when the machine was built.
                let change = change.parse::<CpuidChange>().unwrap_or_default();
                let entries = change.apply(&self.services.cpuid[*vcpu as usize]);
                Control::SetCpuid { vcpu: *vcpu, entries, result: 0 }
            }
            Action::SetMemoryRegion { slot, gpa, size, flags } => {
                let hpa = self.services.memory.backing(*slot).unwrap_or(0);
                Control::SetMemoryRegion {
                    slot: *slot,
                    flags: *flags,
                    gpa: *gpa,
                    size: *size,
                    hpa,
                    result: 0,
                }
            }
            Action::SetMsr { vcpu, index, data } => {
                Control::SetMsr { vcpu: *vcpu, index: *index, data: *data, result: 0 }
            }
            Action::CheckExtension { cap } => Control::CheckExtension { cap: *cap, result: 0 },
            Action::GetCpuid { vcpu } => Control::GetCpuid { vcpu: *vcpu, entries: Vec::new(), result: 0 },
            Action::GetSupportedCpuid => Control::GetSupportedCpuid { entries: Vec::new(), result: 0 },
            Action::GetMsr { vcpu, index } => {
                Control::GetMsr { vcpu: *vcpu, index: *index, data: 0, result: 0 }
            }
            Action::Query { vcpu, query } => {
                Control::Query { vcpu: *vcpu, query: *query, value: 0, result: 0 }
            }
        }
    }

    /// Makes an ioctl with the arguments of `control`, tells the recorder, and gives it back with this backend's results.
    /// One of a vCPU that does not exist comes from a damaged tape and does nothing.
    pub fn control(&mut self, control: &Control) -> Control {
        let icount = self.services.clock.icount;
        let done = self.ioctl(control.clone());
        self.script.log.push((self.exits, done.clone()));
        self.services.tape.event(Event::Control { icount, control: done.clone() });
        done
    }

    fn ioctl(&mut self, mut control: Control) -> Control {
        match &mut control {
            Control::SetCpuid { vcpu, entries, result } => {
                if let Some(done) = self.set_cpuid(*vcpu, entries) {
                    *result = code(&done);
                }
            }
            Control::SetMemoryRegion { slot, flags, gpa, size, hpa, result } => {
                let region = MemoryRegion { slot: *slot, flags: *flags, gpa: *gpa, size: *size, hpa: *hpa };
                *result = code(&self.set_memory_region(&region));
            }
            Control::SetMsr { vcpu, index, data, result } => {
                let Some(v) = self.vcpus.get_mut(*vcpu as usize) else { return control };
                let done = self.backend.set_msr(*vcpu, &mut v.state, *index, *data, &mut self.services);
                v.needs_entry = true;
                *result = code(&done);
            }
            Control::CheckExtension { cap, result } => *result = self.backend.check_extension(*cap),
            Control::GetCpuid { vcpu, entries, .. } => {
                if (*vcpu as usize) < self.vcpus.len() {
                    *entries = self.backend.get_cpuid(*vcpu);
                }
            }
            Control::GetSupportedCpuid { entries, .. } => {
                *entries = self.backend.supported_cpuid(&silicon_cpuid(&self.spec.silicon));
            }
            Control::GetMsr { vcpu, index, data, result } => {
                let Some(v) = self.vcpus.get_mut(*vcpu as usize) else { return control };
                let read = self.backend.get_msr(*vcpu, &mut v.state, *index, &mut self.services);
                (*data, *result) = value(read);
            }
            Control::Query { query, vcpu, value: found, result } => {
                if (*vcpu as usize) < self.vcpus.len() {
                    (*found, *result) = value(self.backend.query(*vcpu, Query(*query)));
                }
            }
        }
        control
    }

    /// Silicon that executes CPUID itself answers from the table that was accepted last.
    fn set_cpuid(&mut self, n: u32, entries: &[vmtape_arch::cpuid::CpuidEntry]) -> Option<Result<(), Errno>> {
        let vcpu = self.vcpus.get_mut(n as usize)?;
        let done = self.backend.set_cpuid(n, &mut vcpu.state, entries, &mut self.services);
        vcpu.needs_entry = true;
        if done.is_ok() {
            self.services.cpuid[n as usize] = entries.to_vec();
            self.services.devices.set_max_gpa(n, max_gpa(entries));
        }
        Some(done)
    }

    fn set_memory_region(&mut self, region: &MemoryRegion) -> Result<(), Errno> {
        // No script asks for memory that the arena has no place for; a damaged tape may.
        if !self.services.memory.is_backed(region.hpa, region.size) {
            return Err(Errno::EFAULT);
        }
        self.backend.set_memory_region(region, &mut self.services)?;
        self.services.memory.set_slot(region);
        self.vcpus.iter_mut().for_each(|vcpu| vcpu.needs_entry = true);
        Ok(())
    }

    /// What the VMM has done so far, each with the number of exits before it.
    pub fn controls(&self) -> &[(u64, Control)] {
        &self.script.log
    }

    /// Steps of the script whose moment has not come.
    pub fn steps_left(&self) -> impl Iterator<Item = &Step> {
        self.script.left()
    }
}
