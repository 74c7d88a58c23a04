//! vmcb12: where it lies, KVM's copy of it, and what L1 finds in it afterwards.

use super::*;
use crate::{
    kvm::nested::{
        pat,
        vmcb12::{self, Exit, Mapped, Unmapped},
    },
    silicon::vmcb::Clean,
};
use vmtape_arch::vcpu::VcpuState;
use vmtape_kvm_core::events::Events;

/// Addresses of VMRUN: taken as they are, low bits dropped, until 7.2 checks them.
#[test]
fn addresses() {
    for (kvm, rax, is_64bit, gpa) in [
        ("v6.12", 0x1234, true, Some(0x1234)),
        ("v6.12", u64::MAX, false, Some(u64::MAX)),
        ("v7.2", 0x1234, true, None),
        ("v7.2", 0x1000, true, Some(0x1000)),
        ("v7.2", 1 << WIDTH, true, None),
        ("v7.2", 0x5_0000_1000, false, Some(0x1000)),
        ("v7.2", u64::MAX, true, None),
    ] {
        let bench = l1(&[("kvm", kvm)], true);
        assert_eq!(vmcb12::address(&bench.as_l1(), rax, is_64bit), gpa, "{kvm} {rax:#x}");
    }
}

/// A page without a slot cannot be mapped, nor one that the host does not give.
#[test]
fn unmapped() {
    let mut bench = l1(&[], true);
    let (slots, host) = (&bench.vm.shared.kvm.mmu.slots, &mut bench.host);
    assert_eq!(Mapped::read(slots, 1 << 35, vmcb12::VMRUN, host), Err(Unmapped::Refused));
    host.memory.truncate(0x1000);
    assert_eq!(Mapped::read(slots, 0x1fff, vmcb12::VMRUN, host), Err(Unmapped::Refused));
}

/// 7.2 takes out of its copy what L1 does not have; the others keep it.
#[test]
fn sanitized() {
    let mut wanted = vmcb12();
    for code in [C::XSETBV, C::INVPCID, C::RDTSCP, C::SKINIT, C::RDPRU, C::CPUID] {
        wanted.control.intercepts.set(code, true);
    }
    put_word(&mut wanted, 0x58, 0xff << 32 | 7);
    put_word(&mut wanted, 0x60, u64::MAX << 32);
    put_word(&mut wanted, 0x68, u64::from(u32::MAX));
    put_word(&mut wanted, 0xa8, 0xffff_ffff);
    put_word(&mut wanted, 0x40, 0x2fff);
    let cached = |kvm| vmcb12::cache(&l1(&[("kvm", kvm)], true).as_l1(), &wanted);
    for old in ["v5.10", "v6.1", "v6.12"].map(cached) {
        assert_eq!(old.control.intercepts, wanted.control.intercepts);
        let fields = [0x5c, 0x64, 0x68, 0xa8].map(|offset| word(&old, offset) as u32);
        assert_eq!(fields, [0xff, u32::MAX, u32::MAX, u32::MAX]);
        // Map addresses lose their low bits in every release.
        assert_eq!(old.control.iopm_base_pa, 0x2000);
    }
    let new = cached("v7.2");
    let left = |code| new.control.intercepts.has(code);
    assert!(left(C::CPUID) && left(C::VMRUN));
    assert!(![C::XSETBV, C::INVPCID, C::RDTSCP, C::SKINIT, C::RDPRU].into_iter().any(left));
    assert_eq!([0x5c, 0x64, 0x68, 0xa8].map(|offset| word(&new, offset) as u32), [7, 0xff, 1, 0x8000_0fff]);
}

/// Clean bits of L1's that KVM honours, for the same vmcb12 only.
#[test]
fn clean_bits() {
    let mut all = vmcb12();
    put_word(&mut all, 0xc0, u64::from(u32::MAX));
    for (options, kept) in [
        (&[("kvm", "v5.10")][..], 0),
        (&[("kvm", "v6.1")], 0x1c0),
        (&[("kvm", "v6.12")], 0x1c0),
        (&[("kvm", "v7.2")], 0x1d0),
    ] {
        let bench = l1(options, true);
        assert_eq!(vmcb12::kept(&bench.as_l1(), &all, false).into_bits(), kept, "{options:?}");
        assert_eq!(vmcb12::kept(&bench.as_l1(), &all, true).into_bits(), 0);
    }
}

/// A VMRUN that fails KVM's checks: exit code and information, EVENTINJ where it is cleared, nothing else.
#[test]
fn invalid() {
    for (kvm, event) in [("v5.10", 0x8000_0030), ("v6.1", 0x8000_0030), ("v6.12", 0), ("v7.2", 0)] {
        let mut expected = vmcb12();
        put_words(&mut expected, &[(0x78, 5), (0x80, 6), (0x88, 7), (0xa8, 0x8000_0030), (0xc8, 9)]);
        let mut vmcb = expected.clone();
        vmcb12::store_invalid(&l1(&[("kvm", kvm)], true).as_l1(), &mut vmcb);
        put_words(&mut expected, &[(0x70, u64::MAX), (0x78, 0), (0x80, 0), (0xa8, event)]);
        assert!(vmcb == expected, "{kvm}");
    }
    // Kernels before their stable updates wrote half of the code.
    let old = l1(&[("-nested-invalid-code-high", "")], true);
    assert_eq!(vmcb12::invalid_code(&old.as_l1()), 0xffff_ffff);
}

/// #VMEXIT: what comes from vmcb02, from the copy and from the registers, and what is never written.
#[test]
fn exits() {
    let mut state = VcpuState::reset();
    (state.rip, state.cr2, state.cr3, state.dr6) = (0x1234, 0xc2, 0xc3, 0xffff_0ff1);
    let mut vmcb02 = vmcb12();
    put_words(&mut vmcb02, &[(0x70, 0x81), (0x78, 1), (0x80, 2), (0xc8, 0x1237), (0x640, 0x22)]);
    vmcb02.save.es.selector = 0x77;
    vmcb02.control.asid = 99;
    let mut cached = vmcb12();
    put_word(&mut cached, 0xa8, 0x8000_0030);
    cached.control.tlb_ctl = 3;
    cached.control.int_ctl.set_v_tpr(5);
    for (kvm, event, tlb, cr2) in [
        ("v5.10", 0x8000_0030, 3, 0x22),
        ("v6.1", 0x8000_0030, 3, 0xc2),
        ("v6.12", 0, 0, 0xc2),
        ("v7.2", 0, 0, 0xc2),
    ] {
        let mut vmcb = vmcb12();
        put_word(&mut vmcb, 0x88, 0x55_8000_0030);
        let exit = Exit { vmcb02: &vmcb02, cached: &cached, state: &state, events: &Events::default() };
        vmcb12::store_exit(&l1(&[("kvm", kvm)], true).as_l1(), &mut vmcb, &exit);
        let words = [0x70, 0x78, 0x80, 0x578, 0x550, 0x568].map(|offset| word(&vmcb, offset));
        assert_eq!(words, [0x81, 1, 2, 0x1234, 0xc3, 0xffff_0ff1], "{kvm}");
        // No event was on its way; the error code of the last one stays.
        assert_eq!(word(&vmcb, 0x88), 0x55 << 32, "{kvm}");
        assert_eq!(
            [word(&vmcb, 0xa8), word(&vmcb, 0x5c) & 0xff, word(&vmcb, 0x640)],
            [event, tlb, cr2],
            "{kvm}"
        );
        assert_eq!((vmcb.save.es.selector, vmcb.control.asid), (0x77, 1), "{kvm}");
        assert_eq!(word(&vmcb, 0x60) & 0xf, 5, "{kvm}");
    }
    // After VMEXIT_INVALID the interrupted event is not written.
    let mut vmcb = vmcb12();
    put_word(&mut vmcb, 0x88, 0x55_8000_0030);
    vmcb02.control.exit_code = u64::MAX;
    let exit = Exit { vmcb02: &vmcb02, cached: &cached, state: &state, events: &Events::default() };
    vmcb12::store_exit(&l1(&[], true).as_l1(), &mut vmcb, &exit);
    assert_eq!(word(&vmcb, 0x88), 0x55_8000_0030);
}

/// What is written back leaves the rest of the page to L1.
#[test]
fn written_back() {
    let mut bench = l1(&[], true);
    let (slots, host) = (&bench.vm.shared.kvm.mmu.slots, &mut bench.host);
    const AT: u64 = 0x10_0000;
    let mut mapped = Mapped::read(slots, AT + 0x123, vmcb12::VMRUN, host).unwrap();
    put_word(&mut mapped.vmcb, 0x70, 0x81);
    put_word(&mut mapped.vmcb, 0x668, 0x0606);
    // L1 wrote here meanwhile.
    host.memory[(AT + 0x8) as usize] = 1;
    mapped.write_back(host);
    let page = Mapped::read(slots, AT, vmcb12::VMRUN, host).unwrap().vmcb;
    assert_eq!([0x8, 0x70, 0x668].map(|offset| word(&page, offset)), [1, 0x81, 0x0606]);
}

/// A VMCB without a zero in it.
fn full(seed: u8) -> Vmcb {
    let mut vmcb = Vmcb::default();
    vmcb.as_mut_bytes().iter_mut().enumerate().for_each(|(n, byte)| *byte = seed.wrapping_add(n as u8 % 11));
    vmcb
}

/// The fields that are read of the page hold all that VMRUN, VMLOAD and #VMEXIT use: with them it goes as with the whole page.
#[test]
fn fields() {
    const AT: u64 = 0x10_0000;
    const PAGE: std::ops::Range<usize> = AT as usize..AT as usize + 0x1000;
    for kvm in RELEASES {
        let mut bench = l1(&[("kvm", kvm)], true);
        let mut whole = full(0x41);
        bench.host.memory[PAGE].copy_from_slice(whole.as_bytes());
        let slots = &bench.vm.shared.kvm.mmu.slots;
        let mut mapped = Mapped::read(slots, AT, vmcb12::VMRUN, &mut bench.host).unwrap();
        let moved = Mapped::read(slots, AT, vmcb12::VMLOAD, &mut bench.host).unwrap().vmcb;
        let view = bench.as_l1();
        assert_eq!(vmcb12::cache(&view, &mapped.vmcb).control, vmcb12::cache(&view, &whole).control, "{kvm}");
        // What silicon loads is what KVM loads, but for AVIC and CET, which L1 does not have.
        let loaded = |from: &Vmcb| {
            let mut vmcb = Vmcb::default();
            vmcb.load(from, Clean::new().with_avic(true).with_cet(true));
            vmcb
        };
        assert_eq!(loaded(&mapped.vmcb), loaded(&whole), "{kvm}");
        let area = |vmcb: &Vmcb| {
            let mut area = Vmcb::default().save;
            area.copy_vmload(&vmcb.save);
            area
        };
        assert_eq!(area(&moved), area(&whole), "{kvm}");

        let (vmcb02, cached, state) = (full(0x81), full(0xa1), VcpuState::reset());
        let exit = Exit { vmcb02: &vmcb02, cached: &cached, state: &state, events: &Events::default() };
        for vmcb in [&mut mapped.vmcb, &mut whole] {
            vmcb12::store_exit(&view, vmcb, &exit);
            pat::store(&view, vmcb, &cached, &vmcb02);
        }
        mapped.write_back(&mut bench.host);
        assert_eq!(&bench.host.memory[PAGE], whole.as_bytes(), "{kvm}");
    }
}
