//! Hardware task switches, which are not modelled: #GP with the selector, and a line in the log.

use crate::{core::Core, env::Interrupted, insn::Insn};
use vmtape_arch::{
    descriptor::Selector,
    exception::Vector,
    sensitive::{Sensitive, SensitiveKind},
    vcpu::seg,
};

impl Core<'_> {
    /// JMP or CALL to a TSS or task gate.
    pub(super) fn task_switch(&mut self, selector: Selector, insn: &Insn) -> Result<(), Interrupted> {
        let what = self.describe(insn, SensitiveKind::TASK_SWITCH);
        self.sensitive(&Sensitive { number: selector.into_bits() as u32, ..what })?;
        self.not_modelled();
        self.bad(Vector::GP, selector)
    }

    /// IRET with NT set: #GP(0) in IA-32e mode.
    pub(super) fn return_to_task(&mut self) -> Result<(), Interrupted> {
        if !self.state.efer().lma() {
            self.condition(SensitiveKind::TASK_SWITCH)?;
            self.not_modelled();
        }
        self.require_gp0(false)
    }

    /// An event through a task gate.
    pub(super) fn task_gate(&mut self) -> Result<(), Interrupted> {
        self.condition(SensitiveKind::TASK_SWITCH)?;
        self.not_modelled();
        self.require_gp0(false)
    }

    fn not_modelled(&self) {
        let tr = self.state.seg[seg::TR].selector;
        tracing::warn!(rip = self.state.rip, tr, "hardware task switching is not modelled, #GP");
    }
}
