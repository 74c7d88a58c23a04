//! The first pass over a trace: which task runs which vCPU, and what the rest of the trace leaves out.

use super::{
    Error,
    line::{Line, Record, Time},
    source::Opened,
};
use crate::text::{TRACER, TRACER_OF_IMPORT};
use std::collections::{BTreeMap, BTreeSet};
use vmtape_arch::exit::Isa;

/// A vCPU on an imported tape: its number, and in the high half the virtual machine among those in the trace.
pub const VM_SHIFT: u32 = 16;
const MOST_VMS: u32 = 0xffff;

/// What a first look at a trace finds.
#[derive(Debug, Default)]
pub struct Survey {
    /// The vCPU that each task runs, first.
    pub tasks: BTreeMap<u32, u32>,
    /// Tasks that run a vCPU of which the trace does not tell the number.
    pub numbered: u64,
    pub vms: u32,
    /// Which vCPUs are of which of several the trace does not tell.
    pub guessed: bool,
    /// Of all of them, counted up to the highest number.
    pub vcpus: u32,
    /// The clock counts in a unit of its own.
    pub ticks: bool,
    /// `kvm_exit` has no `intr_info` and no `error_code`.
    pub terse: bool,
    /// The architecture of the first exit whose reason tells it.
    pub isa: Isa,
    /// A tape as text: events keep the order of lines.
    pub in_order: bool,
    /// A tape as text: times are those of the tape.
    pub lines: u64,
    pub events: u64,
    pub bytes: u64,
}

#[derive(Default)]
struct Task {
    tgid: Option<u32>,
    named: Option<u32>,
    of_comm: Option<u32>,
    runs_a_vcpu: bool,
    /// When it was first seen to run a vCPU.
    order: usize,
}

/// Reads a trace once.
pub fn survey(source: &Opened<'_>) -> Result<Survey, Error> {
    let mut survey = Survey::default();
    let mut tasks: BTreeMap<u32, Task> = BTreeMap::new();
    let mut seen = 0;
    source.lines(&mut |line, text| {
        survey.lines += 1;
        survey.bytes += text.len() as u64 + 1;
        if text.starts_with(TRACER) {
            survey.in_order = !text.starts_with(TRACER_OF_IMPORT);
        }
        if let Line::Event(record) = line {
            survey.record(record);
            let task = tasks.entry(record.pid).or_default();
            task.tgid = task.tgid.or(record.tgid);
            let named = task.named.is_none().then(|| record.named_vcpu()).flatten();
            task.named = task.named.or(named);
            task.of_comm = task.of_comm.or_else(|| record.vcpu_of_comm());
            if !task.runs_a_vcpu && (task.of_comm.or(named).is_some() || record.is_of_a_vcpu()) {
                (task.runs_a_vcpu, task.order) = (true, seen);
                seen += 1;
            }
        }
        Ok(())
    })?;
    survey.number(tasks);
    Ok(survey)
}

impl Survey {
    fn record(&mut self, record: &Record<'_>) {
        self.events += 1;
        self.ticks |= matches!(record.time, Time::Ticks(_));
        if record.event == "kvm_exit" && (self.isa == Isa::default() || !self.terse) {
            self.terse |= record.is_terse();
            if self.isa == Isa::default()
                && let Some((_, exit)) = record.exit(Isa::default())
            {
                self.isa = exit.isa;
            }
        }
    }

    /// Gives each task its vCPU: the number that its events name, else that in QEMU's name of the thread, else the order of
    /// appearance. Two tasks with the same number are vCPUs of two machines; process ids tell which, where the trace has them.
    fn number(&mut self, tasks: BTreeMap<u32, Task>) {
        let mut runs: Vec<_> = tasks.into_iter().filter(|(_, task)| task.runs_a_vcpu).collect();
        runs.sort_by_key(|(_, task)| task.order);
        // Process ids decide only if every one of these tasks has one.
        let grouped = runs.iter().all(|(_, task)| task.tgid.is_some());
        let mut processes: Vec<u32> = Vec::new();
        let mut next: BTreeMap<u32, u32> = BTreeMap::new();
        for (pid, task) in runs {
            let number = task.named.or(task.of_comm).unwrap_or_else(|| {
                self.numbered += 1;
                (self.numbered - 1) as u32 & 0xffff
            });
            let vm = if grouped {
                let process = task.tgid.unwrap_or(pid);
                let known = processes.iter().position(|of| *of == process);
                known.unwrap_or_else(|| {
                    processes.push(process);
                    processes.len() - 1
                }) as u32
            } else {
                let vm = next.entry(number).or_default();
                *vm += 1;
                *vm - 1
            };
            let vm = vm.min(MOST_VMS - 1);
            self.vms = self.vms.max(vm + 1);
            self.tasks.insert(pid, vm << VM_SHIFT | number);
        }
        self.guessed = !grouped && self.vms > 1;
        self.vcpus = self.tasks.values().collect::<BTreeSet<_>>().len() as u32;
    }
}
