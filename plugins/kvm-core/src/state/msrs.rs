//! KVM_GET_MSRS and KVM_SET_MSRS: one register after the other, up to the first that is refused.
//!
//! See: KVM x86.c msr_io(), do_get_msr(), do_set_msr()

use crate::{
    msr::{self, Refused, list},
    profile::Switch,
    vm::{Ops, VendorVcpu},
};
use vmtape_abi::{Errno, Host};
use vmtape_arch::{
    state::{MAX_IO_MSRS, MsrEntry},
    vcpu::VcpuState,
};
use vmtape_kvm_mmu::fault_points::FaultPoint;

/// KVM_GET_MSRS; gives how many registers were read.
pub fn get_msrs<O: Ops>(
    (ops, v): (&mut O, &mut O::Vcpu),
    state: &mut VcpuState,
    entries: &mut [MsrEntry],
    host: &mut dyn Host,
) -> Result<u32, Errno> {
    check_count(entries.len())?;
    for (done, entry) in (0..).zip(&mut *entries) {
        if FaultPoint::GET_MSR_REFUSED.poll(v.core().id, entry.index.into(), 0, host).is_some() {
            return Ok(done);
        }
        match ops.get_msr(v, state, entry.index, true, host) {
            Ok(data) => entry.data = data,
            Err(Refused) if list::is_advertised(entry.index) => entry.data = 0,
            Err(Refused) => return Ok(done),
        }
    }
    Ok(entries.len() as u32)
}

/// KVM_SET_MSRS; gives how many registers were written.
pub fn set_msrs<O: Ops>(
    (ops, v): (&mut O, &mut O::Vcpu),
    state: &mut VcpuState,
    entries: &[MsrEntry],
    host: &mut dyn Host,
) -> Result<u32, Errno> {
    check_count(entries.len())?;
    let written = entries.iter().take_while(|entry| set_one(ops, v, state, entry, host).is_ok());
    Ok(written.count() as u32)
}

fn check_count(count: usize) -> Result<(), Errno> {
    if count < MAX_IO_MSRS { Ok(()) } else { Err(Errno::E2BIG) }
}

fn set_one<O: Ops>(
    ops: &mut O,
    v: &mut O::Vcpu,
    state: &mut VcpuState,
    &MsrEntry { index, data, .. }: &MsrEntry,
    host: &mut dyn Host,
) -> Result<(), Refused> {
    if FaultPoint::SET_MSR_REFUSED.poll(v.core().id, index.into(), data, host).is_some() {
        return Err(Refused);
    }
    let frozen = v.core().is_frozen(&ops.kvm().options, Switch::IMMUTABLE_FEATURE_MSRS);
    if frozen && msr::is_immutable_feature(index) {
        let same = ops.get_msr(v, state, index, true, host) == Ok(data);
        return if same { Ok(()) } else { Err(Refused) };
    }
    let effect = match ops.set_msr(v, state, index, data, true, host) {
        Err(Refused) if data == 0 && list::is_advertised(index) => return Ok(()),
        written => written?,
    };
    ops.apply(v, state, effect, host);
    state.intercepts = ops.intercepts(v, state);
    Ok(())
}
