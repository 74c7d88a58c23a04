//! Intercepts and permission maps: merging, and whose an exit is. Places in the maps are those of kvm-unit-tests x86/svm.c.

use super::*;
use crate::{
    kvm::nested::{
        intercepts::{self, Cr0Write, Exited, Owner},
        msrpm::{self, Unreadable},
    },
    silicon::vmcb::Msrpm,
};
use vmtape_arch::msr::Msr;

/// Where L1's maps lie in guest memory.
const MAP: u64 = 0x10_0000;
const IOPM: u64 = 0x11_0000;

fn with_maps() -> Vmcb {
    let mut vmcb = vmcb12();
    (vmcb.control.msrpm_base_pa, vmcb.control.iopm_base_pa) = (MAP, IOPM);
    vmcb.control.intercepts.set(C::MSR, true);
    vmcb.control.intercepts.set(C::IOIO, true);
    vmcb
}

/// What L1 takes away of L0's intercepts by V_INTR_MASKING, by release.
#[test]
fn what_masking_drops() {
    for (kvm, interrupts, read_cr8, vintr, vmmcall) in [
        ("v5.10", true, false, false, false),
        ("v6.1", true, false, false, false),
        ("v6.12", true, true, true, true),
        ("v6.12", false, true, false, true),
        ("v7.2", true, true, true, true),
    ] {
        let bench = l1(&[("kvm", kvm)], true);
        let mut vmcb01 = bench.vm.vcpus[0].vmcb01.vmcb.clone();
        for code in [C::READ_CR8, C::WRITE_CR8, C::VINTR] {
            vmcb01.control.intercepts.set(code, true);
        }
        vmcb01.save.rflags = if interrupts { 0x202 } else { 2 };
        let mut wanted = vmcb12();
        wanted.control.int_ctl.set_v_intr_masking(true);
        let merged = intercepts::merge(&bench.as_l1(), &vmcb01, &wanted);
        let has = [C::READ_CR8, C::WRITE_CR8, C::VINTR, C::VMMCALL].map(|code| merged.has(code));
        assert_eq!(has, [read_cr8, false, vintr, vmmcall], "{kvm} {interrupts}");
        // L1's wish counts again.
        wanted.control.intercepts.set(C::WRITE_CR8, true);
        assert!(intercepts::merge(&bench.as_l1(), &vmcb01, &wanted).has(C::WRITE_CR8));
    }
}

/// VMLOAD and VMSAVE of L2 exit, unless L1 has their virtualization and uses it under nested paging.
#[test]
fn vmload_exits_without_its_virtualization() {
    for (kvm, virtualized, np, exits) in [
        ("v5.10", true, true, true),
        ("v6.12", true, true, false),
        ("v6.12", true, false, true),
        ("v6.12", false, true, true),
        ("v7.2", true, true, false),
    ] {
        let bench = l1_on(Setup { options: &[("kvm", kvm)], newest: true, ..Default::default() });
        let mut vmcb01 = bench.vm.vcpus[0].vmcb01.vmcb.clone();
        for code in [C::VMLOAD, C::VMSAVE] {
            vmcb01.control.intercepts.set(code, false);
        }
        let mut wanted = vmcb12();
        wanted.control.virt_ext.set_v_vmload_vmsave(virtualized);
        wanted.control.nested_ctl.set_np_enable(np);
        let merged = intercepts::merge(&bench.as_l1(), &vmcb01, &wanted);
        assert_eq!([C::VMLOAD, C::VMSAVE].map(|code| merged.has(code)), [exits; 2], "{kvm}");
    }
}

/// 7.2 gives PAUSE to L1 alone; `intercept_smi=0` ignores L1's wish for SMIs.
#[test]
fn pause_and_smi() {
    let pause = |kvm, of_l1| {
        let bench = l1(&[("kvm", kvm), ("intercept_smi", "0")], true);
        let mut vmcb01 = bench.vm.vcpus[0].vmcb01.vmcb.clone();
        vmcb01.control.intercepts.set(C::PAUSE, true);
        let mut wanted = vmcb12();
        wanted.control.intercepts.set(C::PAUSE, of_l1);
        wanted.control.intercepts.set(C::SMI, true);
        let merged = intercepts::merge(&bench.as_l1(), &vmcb01, &wanted);
        assert!(!merged.has(C::SMI));
        merged.has(C::PAUSE)
    };
    assert!(pause("v6.12", false) && !pause("v7.2", false) && pause("v7.2", true));
}

/// The map for vmcb02: a bit of either keeps an MSR intercepted, in the chunks that KVM reads; all others are.
#[test]
fn merged_maps() {
    for kvm in RELEASES {
        let mut bench = l1(&[("kvm", kvm)], true);
        let (l0, wanted) = (bench.vm.vcpus[0].msrpm.clone(), with_maps());
        // L1 intercepts writes of STAR only. STAR is 0xc0000081: byte 0x820, bits 2 and 3.
        bench.host.memory[(MAP + 0x820) as usize] = 1 << 3;
        let (shared, host) = (&bench.vm.shared, &mut bench.host);
        let view = L1::new(shared, &bench.vm.vcpus[0].core.cpuid);
        let merged = msrpm::merge(&view, &l0, &wanted, &shared.kvm.mmu.slots, host).unwrap().unwrap();
        let exits = |index: u32| [merged.exits(index, false), merged.exits(index, true)];
        assert_eq!(exits(Msr::STAR.0), [false, true], "{kvm}");
        assert_eq!(exits(Msr::LSTAR.0), [false, false], "{kvm}");
        // L0 intercepts it.
        assert_eq!(exits(Msr::EFER.0), [true, true], "{kvm}");
        // No chunk that KVM reads has it, whatever L1's map says.
        assert_eq!(exits(0x10), [true, true], "{kvm}");
        // Without L1's intercept of MSRs its map means nothing.
        let mut other = wanted.clone();
        other.control.intercepts.set(C::MSR, false);
        assert_eq!(msrpm::merge(&view, &l0, &other, &shared.kvm.mmu.slots, host), Ok(None));
    }
}

/// A map at the end of memory: VMRUN fails late, in its second phase.
#[test]
fn a_map_at_the_end_of_memory() {
    let mut bench = l1(&[], true);
    let mut wanted = with_maps();
    wanted.control.msrpm_base_pa = (1 << WIDTH) - 0x2000;
    let (shared, host) = (&bench.vm.shared, &mut bench.host);
    let view = L1::new(shared, &bench.vm.vcpus[0].core.cpuid);
    let merged = msrpm::merge(&view, &Msrpm::default(), &wanted, &shared.kvm.mmu.slots, host);
    assert_eq!(merged, Err(Unreadable));
    // At exit time an unreadable map means that L1 wants the exit.
    assert!(msrpm::msr_exits(&view, &wanted.control, Msr::STAR.0, false, &shared.kvm.mmu.slots, host));
}

fn owner_of(bench: &mut Bench, wanted: &Vmcb, code: C, info: u64, rcx: u64) -> Owner {
    let mut vmcb02 = Vmcb::default();
    vmcb02.control.set_exit_code(code);
    vmcb02.control.exit_info_1 = info;
    let vcpu = &bench.vm.vcpus[0];
    let exit = Exited {
        vmcb01: &vcpu.vmcb01.vmcb,
        vmcb02: &vmcb02.control,
        vmcb12: wanted,
        rcx,
        slots: &bench.vm.shared.kvm.mmu.slots,
    };
    let view = L1::new(&bench.vm.shared, &vcpu.core.cpuid);
    intercepts::owner(&view, &exit, &mut bench.host)
}

/// Exits by the bit of L1's intercepts, with the exceptions to that.
#[test]
fn whose_an_exit_is() {
    let mut bench = l1(&[], true);
    let mut wanted = with_maps();
    for code in [C::INTR, C::NMI, C::CPUID, C::HLT, C::EXCP_PF, C::EXCP_UD] {
        wanted.control.intercepts.set(code, true);
    }
    let mut owner = |code| owner_of(&mut bench, &wanted, code, 0, 0);
    // L0 first: events of the host, nested faults, and the exceptions that it intercepts itself.
    for code in [C::INTR, C::NMI, C::NPF, C::EXCP_UD, C::EXCP_DB] {
        assert_eq!(owner(code), Owner::L0, "{code}");
    }
    for code in [C::CPUID, C::HLT, C::EXCP_PF, C::EXCP_GP, C::ERR] {
        assert_eq!(owner(code), Owner::L1, "{code}");
    }
    for code in [C::WBINVD, C::VINTR, C(0x300)] {
        assert_eq!(owner(code), Owner::L0, "{code}");
    }
}

/// MSR exits by L1's map: bit 0 of EXITINFO1 says that it is a write; MSRs of no map always exit.
#[test]
fn msr_exits() {
    for kvm in RELEASES {
        let mut bench = l1(&[("kvm", kvm)], true);
        let wanted = with_maps();
        // Writes of 0x277: byte 0x9d, bit 7. Reads of VM_HSAVE_PA: byte 0x1045, bit 6.
        bench.host.memory[(MAP + 0x9d) as usize] = 1 << 7;
        bench.host.memory[(MAP + 0x1045) as usize] = 1 << 6;
        for (index, write, owner) in [
            (0x277_u64, 1, Owner::L1),
            (0x277, 0, Owner::L0),
            (0xc001_0117, 0, Owner::L1),
            (0xc001_0117, 1, Owner::L0),
            // The upper half of RCX means nothing.
            (0x1_0000_0277, 1, Owner::L1),
            (0x4b56_4d00, 0, Owner::L1),
            (0x2000, 0, Owner::L1),
        ] {
            assert_eq!(owner_of(&mut bench, &wanted, C::MSR, write, index), owner, "{kvm} {index:#x}");
        }
    }
}

/// A map whose last page is missing: old releases read four bytes, 7.2 one.
#[test]
fn a_straddled_map() {
    for (kvm, owner) in [("v6.12", Owner::L1), ("v7.2", Owner::L0)] {
        let mut bench = l1(&[("kvm", kvm)], true);
        let mut wanted = with_maps();
        // The byte of 0xc0000080 to 83 is the last one that exists.
        let end = bench.vm.shared.kvm.mmu.slots.iter().map(|slot| slot.gpa + slot.size).max().unwrap();
        wanted.control.msrpm_base_pa = end - 0x821;
        assert_eq!(owner_of(&mut bench, &wanted, C::MSR, 0, 0xc000_0081), owner, "{kvm}");
    }
}

/// I/O exits: any bit of the ports that the access touches, and beyond port 0xffff the third page.
#[test]
fn io_exits() {
    let mut bench = l1(&[], true);
    let wanted = with_maps();
    let (byte, word, long) = (1 << 4, 1 << 5, 1 << 6);
    for (intercepted, port, size, owner) in [
        (0x40_u64, 0x40_u64, byte, Owner::L1),
        (0x40, 0x41, byte, Owner::L0),
        (0x43, 0x40, long, Owner::L1),
        (0x44, 0x40, long, Owner::L0),
        // Across a byte of the map, and across a page of it.
        (0x48, 0x47, word, Owner::L1),
        (0x8000, 0x7fff, word, Owner::L1),
        (0x8000, 0x7fff, byte, Owner::L0),
        // Bit 0 of byte 0x2000 is what an access at the last port reaches too.
        (0x1_0000, 0xffff, word, Owner::L1),
        (0x1_0000, 0xffff, byte, Owner::L0),
    ] {
        let at = (IOPM + intercepted / 8) as usize;
        bench.host.memory[at] = 1 << (intercepted % 8);
        let got = owner_of(&mut bench, &wanted, C::IOIO, port << 16 | size, 0);
        assert_eq!(got, owner, "{intercepted:#x} {port:#x} {size:#x}");
        bench.host.memory[at] = 0;
    }
}

/// CR0 writes that KVM emulates for L2: LMSW always has the selective intercept, CLTS never, MOV if more than TS and MP changes;
/// releases before 6.1.160 and 6.12.64 look at it first.
#[test]
fn selective_cr0_writes() {
    const PAGING: u64 = 0x8000_0001;
    let both = [C::WRITE_CR0, C::CR0_SEL_WRITE];
    for (kvm, intercepted, write, new, exit) in [
        ("v6.12", &both[..], Cr0Write::Mov, PAGING | 1 << 30, Some(C::WRITE_CR0)),
        ("v5.10", &both[..], Cr0Write::Mov, PAGING | 1 << 30, Some(C::CR0_SEL_WRITE)),
        ("v6.12", &both[1..], Cr0Write::Mov, PAGING | 1 << 30, Some(C::CR0_SEL_WRITE)),
        ("v6.12", &both[1..], Cr0Write::Mov, PAGING | 2, None),
        ("v6.12", &both[1..], Cr0Write::Mov, PAGING | 8, None),
        ("v6.12", &both[1..], Cr0Write::Lmsw, PAGING, Some(C::CR0_SEL_WRITE)),
        ("v6.12", &both[1..], Cr0Write::Clts, PAGING, None),
        ("v6.12", &both[..1], Cr0Write::Clts, PAGING, Some(C::WRITE_CR0)),
        ("v5.10", &both[..], Cr0Write::Clts, PAGING, Some(C::WRITE_CR0)),
        ("v6.12", &[], Cr0Write::Mov, 0, None),
    ] {
        let bench = l1(&[("kvm", kvm)], true);
        let mut wanted = vmcb12();
        for code in intercepted {
            wanted.control.intercepts.set(*code, true);
        }
        let got = intercepts::cr0_write(&bench.as_l1(), &wanted, write, PAGING, new);
        assert_eq!(got, exit, "{kvm} {write:?} {new:#x}");
    }
}
