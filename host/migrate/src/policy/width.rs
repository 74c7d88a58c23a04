//! The guest's width against the destination's.
//!
//! See: QEMU 10.2.2 target/i386/host-cpu.c host_cpu_realizefn(); libvirt 11.3.0 src/qemu/qemu_validate.c and
//! src/conf/domain_conf.c; Cloud Hypervisor ae44c2971 arch/src/x86_64/mod.rs, whose list of checked leaves lacks 8000_0008h

use super::{Finding, Ground, Policy};
use crate::stream::Offer;
use vmtape_arch::cpuid::{CpuidEntry, maxphyaddr};

pub(super) fn judge(policy: Policy, offer: &Offer, cpuid: &[CpuidEntry], ground: &Ground) -> Option<Finding> {
    const RULE: &str = "width";
    let (guest, host) = (maxphyaddr(cpuid), ground.silicon.phys_bits);
    let wider = guest > host;
    let (refuses, text) = match policy {
        Policy::Strict if wider => {
            (true, format!("the guest has {guest} physical address bits, the destination {host}"))
        }
        Policy::Libvirt if wider && !passes_through(&offer.cpu) => {
            (true, format!("bits='{guest}' cannot exceed the number supported by the host CPU ({host})"))
        }
        Policy::Libvirt if passes_through(&offer.cpu) && u32::from(host) != offer.host_bits => {
            let text = format!(
                "mode='passthrough' is the same on both sides: {} bits become {host}",
                offer.host_bits
            );
            (false, text)
        }
        Policy::Qemu if guest != host => {
            (false, format!("a warning: phys-bits={guest} is not the host's {host}"))
        }
        Policy::Ch if wider => {
            (false, format!("leaf 0x80000008 is not among those compared: {guest} bits on a host of {host}"))
        }
        _ => return None,
    };
    Some(Finding::new(RULE, refuses, text))
}

/// Whether the guest's width is whatever its host has.
fn passes_through(cpu: &str) -> bool {
    let mut words = cpu.split(',');
    words.next() == Some("host") || words.any(|word| word == "host-phys-bits=on" || word == "host-phys-bits")
}
