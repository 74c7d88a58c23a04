//! Properties of two hosts of one vendor, each tried as the other has it.

use super::{
    cause::{HOST, Kind},
    toggle::{Side, Toggle},
};
use vmtape_arch::host::Silicon;
use vmtape_machine::MachineSpec;

/// Sets a property as another host has it, and says how that is.
type Copy = fn(&mut Silicon, &Silicon) -> String;

const PROPERTIES: [(&str, &str, Copy); 10] = [
    (
        "MAXPHYADDR",
        "SDM vol. 3A 4.1.4 Enumeration of Paging Features by CPUID; APM vol. 3 E.4.7",
        |to, from| {
            to.phys_bits = from.phys_bits;
            from.phys_bits.to_string()
        },
    ),
    (
        "host paging levels",
        "KVM svm/svm.c get_npt_level(): NPT has the levels of the host's kernel",
        |to, from| {
            to.host_levels = from.host_levels;
            from.host_levels.to_string()
        },
    ),
    ("EPT levels", "SDM vol. 3D A.10 VPID and EPT Capabilities, bits 6 and 7", |to, from| {
        to.ept_levels = from.ept_levels;
        from.ept_levels.to_string()
    }),
    ("1 GiB pages", "SDM vol. 3A 4.1.4 Enumeration of Paging Features by CPUID, Page1GB", |to, from| {
        to.gbpages = from.gbpages;
        from.gbpages.to_string()
    }),
    ("EPT accessed and dirty bits", "SDM vol. 3D A.10 VPID and EPT Capabilities, bit 21", |to, from| {
        to.ept_ad = from.ept_ad;
        from.ept_ad.to_string()
    }),
    ("memory-encryption bits", "APM vol. 3 E.4.17 Function 8000_001Fh; KVM mmu/mmu.c", |to, from| {
        to.encryption_bits = from.encryption_bits;
        from.encryption_bits.to_string()
    }),
    ("virtual GIF", "APM vol. 2 15.33.2 Virtual GIF; vol. 3 E.4.9 Function 8000_000Ah", |to, from| {
        to.vgif = from.vgif;
        from.vgif.to_string()
    }),
    ("virtual VMLOAD and VMSAVE", "APM vol. 2 15.33.1 Virtual VMSAVE and VMLOAD", |to, from| {
        to.vls = from.vls;
        from.vls.to_string()
    }),
    ("virtual NMI", "APM vol. 2 15.21.10 NMI Virtualization", |to, from| {
        to.vnmi = from.vnmi;
        from.vnmi.to_string()
    }),
    ("read-modify-write order", "the software CPU under the recordings reads first", |to, from| {
        to.rmw_reads_first = from.rmw_reads_first;
        from.rmw_reads_first.to_string()
    }),
];

/// Properties of two hosts that differ; none between vendors, where everything does.
pub fn toggles(side: Side, machine: &MachineSpec, other: &MachineSpec) -> Vec<Toggle> {
    if machine.silicon.vendor != other.silicon.vendor {
        return Vec::new();
    }
    let toggles = PROPERTIES.into_iter().filter_map(|(property, source, copy)| {
        let mut changed = machine.clone();
        let value = copy(&mut changed.silicon, &other.silicon);
        (changed.silicon != machine.silicon).then(|| Toggle {
            side,
            kind: Kind::Configuration,
            name: format!("{HOST}{property}"),
            text: format!("the hosts differ in {property}: {} and {}", machine.host, other.host),
            source: source.to_owned(),
            change: format!("{property} {value}"),
            machine: changed,
        })
    });
    toggles.collect()
}
