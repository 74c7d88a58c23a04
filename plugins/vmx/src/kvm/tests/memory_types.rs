//! Which memory type an access of the guest's has: by its PAT and entry, by EPT, and what KVM of each release puts there.

use crate::testing::{ALL, DATA, GVA, Guest, PTE, silicon};
use vmtape_abi::Backend;
use vmtape_arch::{
    access::{Access, AccessKind},
    memory_type::MemoryType as T,
    msr::Msr,
};

/// PCD and PWT: entry 3 of the PAT.
const UNCACHED: u64 = 0x18;
/// The PAT after reset, but for entry 3, which is WC, and for entry 0, which is UC.
const PAT_WC: u64 = 0x0007_0406_0107_0406;
const PAT_UC: u64 = 0x0007_0406_0007_0400;

struct Bench(Guest);

impl Bench {
    /// A guest whose entry has these bits beside its rights.
    fn new(options: &[(&str, &str)], bits: u64) -> Self {
        let mut guest = Guest::new(silicon(46), 46, options);
        guest.set(PTE, DATA | ALL | bits);
        guest.populate();
        Self(guest)
    }

    fn write(mut self, msr: Msr, data: u64) -> Self {
        let Guest { vm, state, host, .. } = &mut self.0;
        vm.set_msr(0, state, msr.0, data, host).unwrap();
        vm.enter(0, state, host);
        self.0.populate();
        self
    }

    /// The type, and that of the guest's own tables.
    fn types(&mut self) -> (T, T) {
        let Guest { vm, state, host, exit, .. } = &mut self.0;
        let access = Access { gva: GVA, kind: AccessKind::READ, size: 8, ..Default::default() };
        let mapping = vm.access(0, state, &access, host, exit).mapping;
        (mapping.memory_type, mapping.guest_memory_type)
    }
}

const ASSIGNED: (&str, &str) = ("noncoherent_dma", "on");

/// See: KVM vmx/vmx.c vmx_get_mt_mask() of each release
#[test]
fn who_heeds_the_guests_pat() {
    for (options, wanted) in [
        (&[][..], T::WB),
        (&[ASSIGNED], T::UC),
        (&[("kvm", "v7.2")], T::WB),
        (&[("kvm", "v7.2"), ("ignore_guest_pat", "off")], T::UC),
        // The quirk is younger.
        (&[("kvm", "v6.12"), ("ignore_guest_pat", "off")], T::WB),
        (&[("kvm", "v5.10"), ASSIGNED], T::UC),
    ] {
        assert_eq!(Bench::new(options, UNCACHED).types(), (wanted, T::UC), "{options:?}");
    }
}

#[test]
fn a_pat_that_the_guest_writes() {
    let mut bench = Bench::new(&[ASSIGNED], UNCACHED).write(Msr::IA32_PAT, PAT_WC);
    assert_eq!(bench.types(), (T::WC, T::WC));
    // Without EPT KVM's entries select entry 0 of it, whatever the guest's own say.
    let mut bench = Bench::new(&[("ept", "off")], UNCACHED);
    assert_eq!(bench.types(), (T::WB, T::UNTOLD));
    assert_eq!(bench.write(Msr::IA32_PAT, PAT_UC).types(), (T::UC, T::UNTOLD));
}

/// Up to 6.10 the guest's MTRRs have the say of EPT's types.
#[test]
fn mtrrs_that_the_guest_writes() {
    /// Enabled, write-through by default.
    const WRITE_THROUGH: u64 = 1 << 11 | 4;
    for (kvm, wanted) in [("v6.1", T::WT), ("v6.12", T::WB)] {
        let mut bench = Bench::new(&[("kvm", kvm), ASSIGNED], 0).write(Msr::MTRR_DEF_TYPE, WRITE_THROUGH);
        assert_eq!(bench.types(), (wanted, T::WB), "{kvm}");
    }
}
