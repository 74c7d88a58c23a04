//! What the VMM does beside running the guest: ioctls at given moments, told to the recorder like everything else.

use super::NestedChange;
use crate::{Error, model::CpuidChange};
use serde::{Deserialize, Serialize};
use std::{collections::VecDeque, fmt, str::FromStr};
use vmtape_abi::MemoryRegion;
use vmtape_traces::{event::Control, ioctl::Action};

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
    /// Before there are vCPUs, which some capabilities must be enabled before.
    Create,
}

impl fmt::Display for When {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Start => f.write_str("start"),
            Self::Exit(exit) => write!(f, "exit={exit}"),
            Self::Insn(insn) => write!(f, "insn={insn}"),
            Self::Create => f.write_str("create"),
        }
    }
}

impl FromStr for When {
    type Err = String;

    /// `create`, `start`, `exit=N` or `insn=N`.
    fn from_str(text: &str) -> Result<Self, String> {
        let count = |count: &str| count.parse().map_err(|_| format!("{text}: `{count}` is not a count"));
        match text.split_once('=') {
            None if text == "create" => Ok(Self::Create),
            None if text == "start" => Ok(Self::Start),
            Some(("exit", exit)) => Ok(Self::Exit(count(exit)?)),
            Some(("insn", insn)) => Ok(Self::Insn(count(insn)?)),
            _ => Err(format!("`{text}` is none of create, start, exit=N, insn=N")),
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
    /// What was done before there were vCPUs and nobody has been told yet.
    created: VecDeque<Control>,
    /// What was done, and after how many exits.
    log: Vec<(u64, Control)>,
}

impl Script {
    /// A script that fits the machine.
    pub(crate) fn new(steps: &[Step], vcpus: u32) -> Result<Self, Error> {
        for step in steps {
            step.check(vcpus).map_err(Error::Script)?;
        }
        let mut script = Self {
            steps: steps.to_vec(),
            done: vec![false; steps.len()],
            next_exit: 0,
            next_insn: 0,
            created: VecDeque::new(),
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

    pub(crate) fn take_due(&mut self, exits: u64, icount: u64) -> Vec<Action> {
        let (mut created, mut due) = (Vec::new(), Vec::new());
        for (step, done) in self.steps.iter().zip(&mut self.done).filter(|(_, done)| !**done) {
            *done = match step.at {
                When::Create | When::Start => true,
                When::Exit(exit) => exits >= exit,
                When::Insn(insn) => icount >= insn,
            };
            let due = if step.at == When::Create { &mut created } else { &mut due };
            due.extend(done.then(|| step.action.clone()));
        }
        self.look_ahead();
        created.append(&mut due);
        created
    }

    fn look_ahead(&mut self) {
        (self.next_exit, self.next_insn) = (u64::MAX, u64::MAX);
        for (step, _) in self.steps.iter().zip(&self.done).filter(|(_, done)| !**done) {
            match step.at {
                When::Create | When::Start => self.next_exit = 0,
                When::Exit(exit) => self.next_exit = self.next_exit.min(exit),
                When::Insn(insn) => self.next_insn = self.next_insn.min(insn),
            }
        }
    }

    /// What there is to do before there are vCPUs.
    pub(crate) fn before_vcpus(&self) -> Vec<Action> {
        let steps = self.steps.iter().filter(|step| step.at == When::Create);
        steps.map(|step| step.action.clone()).collect()
    }

    /// An ioctl was made before there were vCPUs; it is told when the run begins.
    pub(crate) fn created(&mut self, control: Control) {
        self.created.push_back(control);
    }

    /// The next ioctl that was made already.
    pub(crate) fn next_created(&mut self) -> Option<Control> {
        self.created.pop_front()
    }

    /// Whether the script itself empties dirty rings; otherwise the VMM does it when one is full.
    pub(crate) fn empties_rings(&self) -> bool {
        let empties =
            |step: &Step| matches!(step.action, Action::HarvestDirtyRing { .. } | Action::ResetDirtyRings {});
        self.steps.iter().any(empties)
    }

    /// Whether KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2 is enabled: getting a log does not clear it then.
    pub(crate) fn protects_manually(&self) -> bool {
        const MANUAL_DIRTY_LOG_PROTECT2: u32 = 168;
        let enabled = self.enabled_caps().filter(|(cap, ..)| *cap == MANUAL_DIRTY_LOG_PROTECT2).last();
        enabled.is_some_and(|(.., arg)| arg & 1 != 0)
    }

    /// Capabilities that were enabled, in order: number, flags, argument.
    pub(crate) fn enabled_caps(&self) -> impl Iterator<Item = (u32, u32, u64)> {
        let enabled = |control: &Control| match *control {
            Control::EnableCap { cap, flags, arg, result: 0 } => Some((cap, flags, arg)),
            _ => None,
        };
        self.log.iter().map(|(_, control)| control).chain(&self.created).filter_map(enabled)
    }

    /// Takes note of what was done.
    pub(crate) fn log(&mut self, exits: u64, control: Control) {
        self.log.push((exits, control));
    }

    /// What was done so far, each with the number of exits before it.
    pub(crate) fn logged(&self) -> &[(u64, Control)] {
        &self.log
    }

    pub(crate) fn done(&self) -> &[bool] {
        &self.done
    }

    /// Goes on where a checkpoint was made.
    pub(crate) fn resume(&mut self, done: Vec<bool>) {
        self.done = done;
        self.created.clear();
        self.look_ahead();
    }

    /// What was done after so many ioctls never was.
    pub(crate) fn forget_since(&mut self, count: usize) {
        self.log.truncate(count);
    }

    /// Goes on where another machine's is, with what was done there.
    pub(crate) fn take_over(&mut self, done: Vec<bool>, log: Vec<(u64, Control)>) {
        self.log = log;
        self.resume(done);
    }

    pub(crate) fn left(&self) -> impl Iterator<Item = &Step> {
        self.steps.iter().zip(&self.done).filter(|(_, done)| !**done).map(|(step, _)| step)
    }
}

impl Step {
    /// Whether a machine with so many vCPUs can do it.
    pub fn check(&self, vcpus: u32) -> Result<(), String> {
        if let Some(vcpu) = self.action.vcpu().filter(|vcpu| *vcpu >= vcpus) {
            return Err(format!("there is no vCPU {vcpu}: the machine has {vcpus}, numbered from 0"));
        }
        if self.at == When::Create
            && (self.action.vcpu().is_some() || matches!(self.action, Action::SetMemoryRegion { .. }))
        {
            return Err(
                "before there are vCPUs only KVM_ENABLE_CAP and questions to the VM are possible".into()
            );
        }
        match &self.action {
            Action::SetCpuid { change, .. } => change.parse::<CpuidChange>().map(drop),
            Action::SetNestedState { change, .. } => change.parse::<NestedChange>().map(drop),
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
