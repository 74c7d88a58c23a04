//! Which physical CPU each vCPU runs on.

use serde::{Deserialize, Serialize};

/// The physical CPUs of a VM, and where its vCPUs are.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Placement {
    /// The CPUs that could be enabled.
    enabled: Vec<u32>,
    /// By vCPU, the CPU that it ran on last.
    last: Vec<Option<u32>>,
    /// The vCPU that is loaded.
    loaded: Option<u32>,
    /// Turns so far.
    turns: u64,
}

impl Placement {
    /// No CPU is enabled, and no vCPU has run.
    pub(crate) fn new(vcpus: u32) -> Self {
        Self { last: vec![None; vcpus as usize], ..Self::default() }
    }

    /// Whether it is one of so many vCPUs.
    pub(crate) fn fits(&self, vcpus: usize) -> bool {
        self.last.len() == vcpus
    }

    pub(crate) fn enable(&mut self, cpu: u32) {
        self.enabled.push(cpu);
    }

    /// The enabled CPUs, of which none is left.
    pub(crate) fn take_enabled(&mut self) -> Vec<u32> {
        std::mem::take(&mut self.enabled)
    }

    pub(crate) fn next_turn(&mut self) {
        self.turns += 1;
    }

    /// The CPU of this turn: each is on the next one.
    pub(crate) fn cpu_of_turn(&self) -> Option<u32> {
        let turn = self.turns % self.enabled.len().max(1) as u64;
        self.enabled.get(turn as usize).copied()
    }

    pub(crate) fn is_loaded(&self, vcpu: u32) -> bool {
        self.loaded == Some(vcpu)
    }

    pub(crate) fn is_loaded_on(&self, vcpu: u32, cpu: u32) -> bool {
        self.is_loaded(vcpu) && self.last[vcpu as usize] == Some(cpu)
    }

    /// Loads a vCPU on a CPU. True: it was on another one, or on none.
    pub(crate) fn place(&mut self, vcpu: u32, cpu: u32) -> bool {
        self.loaded = Some(vcpu);
        self.last[vcpu as usize].replace(cpu) != Some(cpu)
    }

    /// The CPU that a vCPU ran on last, or the first one.
    pub(crate) fn last_cpu(&self, vcpu: u32) -> u32 {
        self.last[vcpu as usize].or(self.enabled.first().copied()).unwrap_or(0)
    }

    /// The vCPU that was loaded.
    pub(crate) fn take_loaded(&mut self) -> Option<u32> {
        self.loaded.take()
    }
}
