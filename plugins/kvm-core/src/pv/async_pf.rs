//! Asynchronous page faults, as far as a host whose pages come while the vCPU waits has them: no page is ever told to be missing, and
//! a guest that turns them on is told that all are there.
//!
//! See: KVM x86.c kvm_pv_enable_async_pf(), kvm_arch_async_page_present(); virt/kvm/async_pf.c kvm_async_pf_wakeup_all(),
//! kvm_check_async_pf_completion()

use crate::{Kvm, Vcpu, hypercall};
use serde::{Deserialize, Serialize};
use vmtape_abi::Host;

/// KVM_ASYNC_PF_ENABLED and KVM_ASYNC_PF_DELIVERY_AS_INT: without both there are none.
const ENABLED: u64 = 1 << 0 | 1 << 3;
/// Reserved bits of MSR_KVM_ASYNC_PF_EN, and where the interrupt is not known yet.
const RESERVED: u64 = 0x30;
const RESERVED_OF_OLD: u64 = 0x38;
/// Flags below the address.
const FLAGS: u64 = 0x3f;
/// Where `struct kvm_vcpu_pv_apf_data` has the token.
const TOKEN: u64 = 4;
/// The token of all pages.
const ALL: u32 = u32::MAX;

/// A vCPU's asynchronous page faults.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct AsyncPf {
    /// This KVM knows MSR_KVM_ASYNC_PF_INT and MSR_KVM_ASYNC_PF_ACK.
    pub with_interrupt: bool,
    pub enable: u64,
    pub vector: u64,
    /// The guest is to be told of all pages, once it has room for that.
    done: bool,
}

impl AsyncPf {
    pub fn new(with_interrupt: bool) -> Self {
        Self { with_interrupt, ..Self::default() }
    }

    /// MSR_KVM_ASYNC_PF_EN. False: KVM refuses the value.
    pub fn set_enable(&mut self, data: u64) -> bool {
        let reserved = if self.with_interrupt { RESERVED } else { RESERVED_OF_OLD };
        if data & reserved != 0 {
            return false;
        }
        self.enable = data;
        self.done = self.is_on();
        true
    }

    /// MSR_KVM_ASYNC_PF_INT.
    pub fn set_vector(&mut self, data: u64) -> bool {
        let legal = self.with_interrupt && data >> 8 == 0;
        if legal {
            self.vector = data;
        }
        legal
    }

    fn is_on(&self) -> bool {
        self.enable & ENABLED == ENABLED
    }

    /// Whether there is something to tell.
    pub fn is_done(&self) -> bool {
        self.done
    }
}

/// `kvm_check_async_pf_completion`.
pub(super) fn complete(kvm: &mut Kvm, vcpu: &mut Vcpu, host: &mut dyn Host) {
    let AsyncPf { enable, vector, .. } = vcpu.pv.async_pf;
    let token = (enable & !FLAGS) + TOKEN;
    if !vcpu.pv.async_pf.done || kvm.read_guest(token, host) != Some([0; 4]) {
        return;
    }
    // Nor does a local APIC have room that is turned off.
    if hypercall::interrupt(vcpu.id, vcpu.id.into(), vector, host) {
        vcpu.pv.async_pf.done = false;
        kvm.write_guest(vcpu.id, token, &ALL.to_le_bytes(), host);
    }
}
