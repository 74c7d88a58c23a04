//! The MSR permission map of `vmcb02`: L0's and L1's together; and what L1's own maps say of an exit.
//!
//! See: KVM arch/x86/kvm/svm/nested.c nested_svm_vmrun_msrpm() (7.2: nested_svm_merge_msrpm()), nested_svm_exit_handled_msr(),
//! nested_svm_intercept_ioio()

use super::{patches::L1, vmcb12::Vmcb12};
use crate::silicon::{
    exits::IoInfo,
    vmcb::{ControlArea, Msrpm},
};
use std::collections::BTreeSet;
use vmtape_abi::Host;
use vmtape_arch::{PAGE_SIZE, exit::SvmExitCode as C, msr::Msr};
use vmtape_kvm_core::{profile::Switch, slots::Slots};

/// L1's map cannot be read where KVM needs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unreadable;

/// MSRs that KVM may leave to a guest, whose part of L1's map it therefore reads. Those of the x2APIC are always intercepted
/// in L2. See: KVM svm/svm.c direct_access_msrs
const DIRECT: &[u32] = &[
    Msr::STAR.0,
    Msr::IA32_SYSENTER_CS.0,
    Msr::IA32_SYSENTER_EIP.0,
    Msr::IA32_SYSENTER_ESP.0,
    Msr::GS_BASE.0,
    Msr::FS_BASE.0,
    Msr::KERNEL_GS_BASE.0,
    Msr::LSTAR.0,
    Msr::CSTAR.0,
    Msr::SYSCALL_MASK.0,
    Msr::IA32_SPEC_CTRL.0,
    Msr::IA32_PRED_CMD.0,
    Msr::IA32_DEBUGCTL.0,
    LASTBRANCHFROMIP,
    LASTBRANCHTOIP,
    LASTINTFROMIP,
    LASTINTTOIP,
    Msr::EFER.0,
    Msr::IA32_PAT.0,
    Msr::TSC_AUX.0,
    GHCB,
];
const LASTBRANCHFROMIP: u32 = 0x1db;
const LASTBRANCHTOIP: u32 = 0x1dc;
const LASTINTFROMIP: u32 = 0x1dd;
const LASTINTTOIP: u32 = 0x1de;
const GHCB: u32 = 0xc001_0130;

/// Bytes that KVM reads and merges at once.
fn chunk(l1: &L1<'_>) -> usize {
    if l1.on(Switch::NESTED_MSRPM_BYTES) { 8 } else { 4 }
}

/// The map for `vmcb02`, where L1 intercepts MSRs; otherwise L0's alone is used. Chunks that KVM does not read stay intercepted.
pub fn merge(
    l1: &L1<'_>,
    msrpm01: &Msrpm,
    vmcb12: &Vmcb12,
    slots: &Slots,
    host: &mut dyn Host,
) -> Result<Option<Msrpm>, Unreadable> {
    if !vmcb12.control.intercepts.has(C::MSR) {
        return Ok(None);
    }
    let size = chunk(l1);
    let chunks: BTreeSet<_> =
        DIRECT.iter().filter_map(|msr| Msrpm::byte(*msr)).map(|byte| byte / size * size).collect();
    let mut merged = Msrpm::default();
    for at in chunks {
        let mut of_l1 = [0; 8];
        let of_l1 = &mut of_l1[..size];
        read_guest(slots, vmcb12.control.msrpm_base_pa.wrapping_add(at as u64), of_l1, host)?;
        merged.merge(at, msrpm01, of_l1);
    }
    Ok(Some(merged))
}

/// `nested_svm_exit_handled_msr`, given that L1 intercepts MSRs: an MSR that no map has exits, and so does one whose place in
/// the map cannot be read.
pub fn msr_exits(
    l1: &L1<'_>,
    vmcb12: &ControlArea,
    index: u32,
    write: bool,
    slots: &Slots,
    host: &mut dyn Host,
) -> bool {
    let Some(byte) = Msrpm::byte(index) else { return true };
    // Older releases read the four bytes around it, and do not exit less for it.
    let (first, len) = if l1.on(Switch::NESTED_MSRPM_BYTES) { (byte, 1) } else { (byte & !3, 4) };
    let mut bytes = [0; 4];
    let at = vmcb12.msrpm_base_pa.wrapping_add(first as u64);
    if read_guest(slots, at, &mut bytes[..len], host).is_err() {
        return true;
    }
    bytes[byte - first] >> (2 * (index % 4) + u32::from(write)) & 1 != 0
}

/// `nested_svm_intercept_ioio`, given that L1 intercepts I/O: any bit of the ports that the access touches.
pub fn io_exits(vmcb12: &ControlArea, info: u64, slots: &Slots, host: &mut dyn Host) -> bool {
    let info = IoInfo::from_bits(info);
    let (port, size) = (u64::from(info.port()), u32::from(info.size()));
    let first = port % 8;
    let mut map = [0; 2];
    let len = if first as u32 + size > 8 { 2 } else { 1 };
    let at = vmcb12.iopm_base_pa.wrapping_add(port / 8);
    if read_guest(slots, at, &mut map[..len], host).is_err() {
        return true;
    }
    let mask = 0xf_u16 >> (4 - size.min(4)) << first;
    u16::from_le_bytes(map) & mask != 0
}

/// `kvm_vcpu_read_guest`: page by page.
fn read_guest(slots: &Slots, gpa: u64, buf: &mut [u8], host: &mut dyn Host) -> Result<(), Unreadable> {
    let in_page = (PAGE_SIZE - gpa % PAGE_SIZE) as usize;
    let (here, beyond) = buf.split_at_mut(in_page.min(buf.len()));
    let hpa = slots.hpa(gpa).ok_or(Unreadable)?;
    if !host.read(hpa, here) {
        return Err(Unreadable);
    }
    if beyond.is_empty() { Ok(()) } else { read_guest(slots, gpa.wrapping_add(in_page as u64), beyond, host) }
}
