//! VM-execution and VM-entry controls, bit by bit.
//!
//! Manual: Intel SDM volume 3C, doc 325384-087, 25.6.1 Pin-Based, 25.6.2 Processor-Based VM-Execution Controls, 25.7.1
//! VM-Exit Controls, 25.8.1 VM-Entry Controls.

use super::{Vmcs, VmcsField as F};
use bitfield_struct::bitfield;

/// Pin-based controls.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct PinBased {
    pub external_interrupt_exiting: bool,
    #[bits(2)]
    __: u8,
    pub nmi_exiting: bool,
    __: bool,
    pub virtual_nmis: bool,
    pub preemption_timer: bool,
    pub posted_interrupts: bool,
    #[bits(24)]
    __: u32,
}

/// Primary processor-based controls.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct CpuBased {
    #[bits(2)]
    __: u8,
    pub interrupt_window_exiting: bool,
    pub tsc_offsetting: bool,
    #[bits(3)]
    __: u8,
    pub hlt_exiting: bool,
    __: bool,
    pub invlpg_exiting: bool,
    pub mwait_exiting: bool,
    pub rdpmc_exiting: bool,
    pub rdtsc_exiting: bool,
    #[bits(2)]
    __: u8,
    pub cr3_load_exiting: bool,
    pub cr3_store_exiting: bool,
    pub tertiary: bool,
    __: bool,
    pub cr8_load_exiting: bool,
    pub cr8_store_exiting: bool,
    pub tpr_shadow: bool,
    pub nmi_window_exiting: bool,
    pub mov_dr_exiting: bool,
    pub unconditional_io_exiting: bool,
    pub io_bitmaps: bool,
    __: bool,
    pub monitor_trap_flag: bool,
    pub msr_bitmaps: bool,
    pub monitor_exiting: bool,
    pub pause_exiting: bool,
    pub secondary: bool,
}

/// Secondary processor-based controls.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct Secondary {
    pub apic_accesses: bool,
    pub ept: bool,
    pub descriptor_table_exiting: bool,
    pub rdtscp: bool,
    pub x2apic_mode: bool,
    pub vpid: bool,
    pub wbinvd_exiting: bool,
    pub unrestricted_guest: bool,
    pub apic_register: bool,
    pub interrupt_delivery: bool,
    pub pause_loop_exiting: bool,
    pub rdrand_exiting: bool,
    pub invpcid: bool,
    pub vm_functions: bool,
    pub vmcs_shadowing: bool,
    pub encls_exiting: bool,
    pub rdseed_exiting: bool,
    pub pml: bool,
    pub ept_violation_ve: bool,
    pub conceal_from_pt: bool,
    pub xsaves: bool,
    #[bits(11)]
    __: u32,
}

/// VM-entry controls.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct EntryControls {
    #[bits(2)]
    __: u8,
    pub load_debug_controls: bool,
    #[bits(6)]
    __: u8,
    pub ia32e_mode_guest: bool,
    #[bits(4)]
    __: u8,
    pub load_pat: bool,
    pub load_efer: bool,
    #[bits(16)]
    __: u32,
}

/// Primary VM-exit controls.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct ExitControls {
    #[bits(2)]
    __: u8,
    pub save_debug_controls: bool,
    #[bits(6)]
    __: u8,
    pub host_address_space_size: bool,
    #[bits(5)]
    __: u8,
    pub acknowledge_interrupt: bool,
    #[bits(2)]
    __: u8,
    pub save_pat: bool,
    pub load_pat: bool,
    pub save_efer: bool,
    pub load_efer: bool,
    #[bits(10)]
    __: u16,
}

/// Pending debug exceptions. See: 25.4.2 Guest Non-Register State, table 25-4
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct PendingDebug {
    #[bits(4)]
    pub breakpoints: u8,
    #[bits(8)]
    __: u8,
    pub enabled_breakpoint: bool,
    __: bool,
    pub single_step: bool,
    #[bits(49)]
    __: u64,
}

impl PendingDebug {
    /// Bits that may be set.
    pub const LEGAL: Self =
        Self::new().with_breakpoints(0xf).with_enabled_breakpoint(true).with_single_step(true);
}

impl EntryControls {
    /// Controls that silicon has (IA32_VMX_ENTRY_CTLS).
    pub const LEGAL: Self = Self::new()
        .with_load_debug_controls(true)
        .with_ia32e_mode_guest(true)
        .with_load_pat(true)
        .with_load_efer(true);
}

impl ExitControls {
    /// Controls that silicon has (IA32_VMX_EXIT_CTLS).
    pub const LEGAL: Self = Self::new()
        .with_save_debug_controls(true)
        .with_host_address_space_size(true)
        .with_acknowledge_interrupt(true)
        .with_save_pat(true)
        .with_load_pat(true)
        .with_save_efer(true)
        .with_load_efer(true);
}

impl Vmcs {
    /// `exec_controls_get`: the primary processor-based controls.
    pub fn cpu_based(&self) -> CpuBased {
        CpuBased::from_bits(self.read32(F::CPU_BASED_VM_EXEC_CONTROL))
    }

    /// `exec_controls_set`.
    pub fn set_cpu_based(&mut self, controls: CpuBased) {
        self.write(F::CPU_BASED_VM_EXEC_CONTROL, controls.into_bits());
    }

    /// `secondary_exec_controls_get`.
    pub fn secondary(&self) -> Secondary {
        Secondary::from_bits(self.read32(F::SECONDARY_VM_EXEC_CONTROL))
    }

    /// `secondary_exec_controls_set`.
    pub fn set_secondary(&mut self, controls: Secondary) {
        self.write(F::SECONDARY_VM_EXEC_CONTROL, controls.into_bits());
    }

    /// MOV DR exits, or not until the next exit.
    pub fn set_mov_dr_exiting(&mut self, on: bool) {
        self.set_cpu_based(self.cpu_based().with_mov_dr_exiting(on));
    }
}
