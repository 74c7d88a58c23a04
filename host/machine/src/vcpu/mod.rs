//! A virtual processor: its registers, the interpreter that runs it, and how it gets on.

mod init;
mod msrs;
mod placement;
mod progress;
mod turn;

pub(crate) use init::init;
pub(crate) use msrs::Msrs;
pub(crate) use placement::Placement;
pub(crate) use progress::{Progress, describe, no_progress};
pub(crate) use turn::Turn;

use vmtape_arch::{
    event::Event as GuestEvent,
    vcpu::{Activity, Intercepts, VcpuState},
};
use vmtape_cpu::{Cpu, CpuConfig, FlushHandle};

/// One virtual processor.
pub(crate) struct Vcpu {
    pub(crate) state: VcpuState,
    pub(crate) cpu: Cpu,
    /// The backend is to be asked before the guest goes on.
    pub(crate) needs_entry: bool,
    pub(crate) progress: Progress,
}

impl Vcpu {
    /// The first vCPU boots the guest, the others wait for it. `fcw`: the x87 control word that all start with.
    pub(crate) fn new(number: u32, boot_state: &VcpuState, config: CpuConfig, fcw: u16) -> Self {
        let mut state = *boot_state;
        if number != 0 {
            state = VcpuState { activity: Activity::WAIT_FOR_SIPI, ..VcpuState::reset() };
        }
        state.fpu.fcw = fcw;
        Self { state, cpu: Cpu::new(config), needs_entry: true, progress: Progress::default() }
    }
}

/// What others ask for a flush of each vCPU's TLB with.
pub(crate) fn flush_handles(vcpus: &[Vcpu]) -> Vec<FlushHandle> {
    vcpus.iter().map(|vcpu| vcpu.cpu.flush_handle()).collect()
}

/// Registers as the guest sees them: what the backend publishes in the same structure is left out.
pub(crate) fn guest_visible(state: &VcpuState) -> VcpuState {
    VcpuState { intercepts: Intercepts::default(), inject: GuestEvent::default(), ..*state }
}
