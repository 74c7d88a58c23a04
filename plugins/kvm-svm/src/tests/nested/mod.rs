//! Functions over VMCBs of nested guests, against the tables of what KVM does by release (as read in 5.10.262, 6.1.192, 6.12.117
//! and 7.2.13).

mod checks;
mod lbr;
mod maps;
mod newest;
mod pat;
mod resume;
mod state;
mod vmcb12;

use super::bench::{Bench, Setup};
use crate::{kvm::nested::patches::L1, silicon::vmcb::Vmcb};
use vmtape_abi::Backend;
use vmtape_arch::{
    cpuid::CpuidEntry,
    exit::SvmExitCode as C,
    regs::{Cr0, Cr4, Efer},
};
use zerocopy::IntoBytes;

/// The profiles that stand for the four kernels that were read.
pub const RELEASES: [&str; 4] = ["v5.10", "v6.1", "v6.12", "v7.2"];
/// L1's MAXPHYADDR, and the host's.
const WIDTH: u32 = 36;
const HOST_WIDTH: u32 = 46;
/// All that 0x8000000A EDX can tell L1.
const SVM_FEATURES: u32 = 0x1201_947b;

/// CPUID of an L1 on AMD with SVM, long mode, NX, FFXSR and 1 GiB pages.
fn cpuid() -> Vec<CpuidEntry> {
    let leaf = |function, [eax, ebx, ecx, edx]: [u32; 4]| CpuidEntry {
        function,
        eax,
        ebx,
        ecx,
        edx,
        ..Default::default()
    };
    vec![
        leaf(0, [0xd, 0x6874_7541, 0x444d_4163, 0x6974_6e65]),
        leaf(1, [0x0083_0f10, 0, 0, 0]),
        leaf(0x8000_0000, [0x8000_000a, 0, 0, 0]),
        leaf(0x8000_0001, [0, 0, 1 << 2, 1 << 29 | 1 << 26 | 1 << 25 | 1 << 20]),
        leaf(0x8000_0008, [WIDTH | 48 << 8, 0, 0, 0]),
        leaf(0x8000_000a, [1, 8, 0, SVM_FEATURES]),
    ]
}

/// An L1 that has turned SVM on.
pub fn l1(options: &[(&str, &str)], npt: bool) -> Bench {
    l1_on(Setup { options, npt, ..Default::default() })
}

/// The same on this machine.
pub fn l1_on(setup: Setup<'_>) -> Bench {
    let mut bench = setup.build();
    bench.vm.set_cpuid(0, &mut bench.states[0], &cpuid(), &mut bench.host).unwrap_or_else(|_| {
        // Releases that refuse a table after KVM_RUN.
        bench.vm.vcpus[0].core.cpuid = vmtape_kvm_core::cpuid::GuestCpuid::new(&cpuid()).unwrap();
    });
    let state = bench.state();
    state.efer = state.efer().with_svme(true).into_bits();
    bench
}

impl Bench {
    /// L1 as KVM sees it.
    fn as_l1(&self) -> L1<'_> {
        L1::new(&self.vm.shared, &self.vm.vcpus[0].core.cpuid)
    }
}

/// A `vmcb12` of an L2 in long mode under nested paging, which every release runs.
pub fn vmcb12() -> Vmcb {
    let mut vmcb = Vmcb::default();
    let (control, save) = (&mut vmcb.control, &mut vmcb.save);
    control.intercepts.set(C::VMRUN, true);
    control.asid = 1;
    control.nested_ctl.set_np_enable(true);
    (control.nested_cr3, control.iopm_base_pa, control.msrpm_base_pa) = (0x1000, 0x2000, 0x5000);
    save.efer = Efer::new().with_svme(true).with_lme(true).with_lma(true).into_bits();
    save.cr0 = Cr0::new().with_pe(true).with_pg(true).into_bits();
    save.cr4 = Cr4::new().with_pae(true).into_bits();
    save.cs.attrib = 0x29b;
    save.g_pat = 0x0007_0406_0007_0406;
    vmcb
}

/// A field of a VMCB by the manual's offset.
fn word(vmcb: &Vmcb, offset: usize) -> u64 {
    let bytes = &vmcb.as_bytes()[offset..offset + 8];
    u64::from_le_bytes(bytes.try_into().unwrap())
}

fn put_word(vmcb: &mut Vmcb, offset: usize, value: u64) {
    vmcb.as_mut_bytes()[offset..offset + 8].copy_from_slice(&value.to_le_bytes());
}

fn put_words(vmcb: &mut Vmcb, words: &[(usize, u64)]) {
    words.iter().for_each(|(offset, value)| put_word(vmcb, *offset, *value));
}
