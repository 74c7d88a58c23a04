//! What KVM does for a guest that knows of it, on every backend: guests of a few instructions, recorded and replayed.

use anyhow::Result;
use vmtape_conformance::{
    BACKENDS,
    sector::{FLAT, HANDLER, LEAVE, LOADED_AT, leaves_with},
};

/// mov eax, EAX; mov edx, EDX; mov ecx, MSR; wrmsr
fn wrmsr(msr: u32, value: u64) -> Vec<u8> {
    let [eax, edx] = [value as u32, (value >> 32) as u32].map(u32::to_le_bytes);
    [&b"\x66\xb8"[..], &eax, b"\x66\xba", &edx, b"\x66\xb9", &msr.to_le_bytes(), b"\x0f\x30"].concat()
}

/// mov eax, NR; mov ebx, A; mov ecx, B; mov edx, C; mov esi, D; then the vendor's instruction.
fn hypercall(backend: &str, nr: u32, args: [u32; 4]) -> Vec<u8> {
    let [a, b, c, d] = args.map(u32::to_le_bytes);
    let call = if backend == "vmx" { b"\x0f\x01\xc1" } else { b"\x0f\x01\xd9" };
    [
        &b"\x66\xb8"[..],
        &nr.to_le_bytes(),
        b"\x66\xbb",
        &a,
        b"\x66\xb9",
        &b,
        b"\x66\xba",
        &c,
        b"\x66\xbe",
        &d,
        call,
    ]
    .concat()
}

/// An interrupt by KVM_HC_SEND_IPI: RAX says how many local APICs took it, before the handler runs.
/// See: KVM lapic.c kvm_pv_send_ipi()
#[test]
fn a_hypercall_sends_interrupts() -> Result<()> {
    const SEND_IPI: u32 = 10;
    const VECTOR: u32 = 0x30;
    const EINVAL: i32 = -22;
    const LOGICAL: u32 = 1 << 11;
    let folder = tempfile::tempdir()?;
    let ends = |backend: &str, args| {
        // The handler's address; x2APIC mode; the APIC on; sti; the call; without an interrupt on to the end.
        let vector = ((4 * VECTOR) as u16).to_le_bytes();
        let handler = (LOADED_AT + HANDLER as u32).to_le_bytes();
        let code = [
            FLAT,
            &[&b"\x66\xc7\x06"[..], &vector, &handler].concat(),
            &wrmsr(0x1b, 0xfee0_0d00),
            &wrmsr(0x80f, 0x1ff),
            b"\xfb",
            &hypercall(backend, SEND_IPI, args),
            LEAVE,
        ];
        // or eax, 0x100
        leaves_with(folder.path(), backend, &code.concat(), &[b"\x66\x0d\x00\x01\x00\x00", LEAVE].concat())
    };
    for backend in BACKENDS {
        assert_eq!(ends(backend, [1, 0, 0, VECTOR])?, 0x101, "{backend}: taken, and delivered");
        assert_eq!(ends(backend, [3, 1, 0, VECTOR])?, 0x101, "{backend}: there is one local APIC");
        assert_eq!(ends(backend, [1, 0, u32::MAX, VECTOR])?, 0, "{backend}: nobody has the number");
        // The second bitmap's numbers begin behind the first one's: 32 of them, and 2^32 - 32 comes before 0.
        assert_eq!(ends(backend, [0, 1, 32_u32.wrapping_neg(), VECTOR])?, 0x101, "{backend}");
        let refused = ends(backend, [1, 0, 0, VECTOR | LOGICAL])?;
        assert_eq!(refused, EINVAL as u32 & u32::MAX >> 1, "{backend}: destinations are the bitmaps");
    }
    Ok(())
}

/// kvmclock and the time of day, where the guest wants them.
/// See: KVM x86.c kvm_guest_time_update(), kvm_write_wall_clock(); include/asm/pvclock-abi.h
#[test]
fn clocks_are_written_where_the_guest_wants_them() -> Result<()> {
    const SYSTEM_TIME_NEW: u32 = 0x4b56_4d01;
    const WALL_CLOCK_NEW: u32 = 0x4b56_4d00;
    let folder = tempfile::tempdir()?;
    let reads = |backend, at: u16| {
        // mov eax, [AT]; shr eax, 1, as a status loses its highest bit
        let load = [&b"\x66\xa1"[..], &at.to_le_bytes(), b"\x66\xd1\xe8"].concat();
        let code =
            [FLAT, &wrmsr(SYSTEM_TIME_NEW, 0x1001), &wrmsr(WALL_CLOCK_NEW, 0x2000), &load, LEAVE].concat();
        leaves_with(folder.path(), backend, &code, &[])
    };
    for backend in BACKENDS {
        // Version 2: written once. A tick of 10 ns is 10/16 * 2^4 ns; the clocks of all vCPUs go alike.
        assert_eq!(reads(backend, 0x1000)?, 2 >> 1, "{backend}");
        assert_eq!(reads(backend, 0x1018)?, 0xa000_0000 >> 1, "{backend}");
        assert_eq!(reads(backend, 0x101c)?, (1 << 8 | 4) >> 1, "{backend}");
        // 2026-01-01, when the run began.
        assert_eq!(reads(backend, 0x2000)?, 2 >> 1, "{backend}");
        assert_eq!(reads(backend, 0x2004)?, 1_767_225_600 >> 1, "{backend}");
    }
    Ok(())
}

/// The time of day and the TSC together; another clock there is none of.
#[test]
fn a_hypercall_pairs_the_clocks() -> Result<()> {
    const CLOCK_PAIRING: u32 = 9;
    const EOPNOTSUPP: i32 = -95;
    const EFAULT: i32 = -14;
    let folder = tempfile::tempdir()?;
    let ends = |backend: &str, args, then: &[u8]| {
        let code = [FLAT, &hypercall(backend, CLOCK_PAIRING, args), then, LEAVE].concat();
        leaves_with(folder.path(), backend, &code, &[])
    };
    for backend in BACKENDS {
        // mov eax, [0x1000]; shr eax, 1
        assert_eq!(ends(backend, [0x1000, 0, 0, 0], b"\x66\xa1\x00\x10\x66\xd1\xe8")?, 1_767_225_600 >> 1);
        for (args, error) in [([0x1000, 1, 0, 0], EOPNOTSUPP), ([0xd000_0000, 0, 0, 0], EFAULT)] {
            assert_eq!(ends(backend, args, b"")?, error as u32 & u32::MAX >> 1, "{backend}");
        }
    }
    Ok(())
}

/// A guest that turns on asynchronous page faults hears that all pages are there, if it has room for that; what a release does not
/// have is #GP. See: KVM x86.c kvm_pv_enable_async_pf(), virt/kvm/async_pf.c kvm_async_pf_wakeup_all()
#[test]
fn all_pages_are_there() -> Result<()> {
    const ASYNC_PF_EN: u32 = 0x4b56_4d02;
    const ASYNC_PF_INT: u32 = 0x4b56_4d06;
    const VECTOR: u8 = 0x30;
    const GP: u8 = 13;
    const ON: u64 = 0x1000 | 1 | 1 << 1 | 1 << 3;
    const TOLD: u32 = u32::MAX >> 1;
    const FAULTED: u32 = 0x1234;
    let folder = tempfile::tempdir()?;
    let ends = |backend: &str, token: u32, enable| {
        let to = |vector: u8, handler: u32| {
            let place = (4 * u16::from(vector)).to_le_bytes();
            [&b"\x66\xc7\x06"[..], &place, &(LOADED_AT + handler).to_le_bytes()].concat()
        };
        // mov dword [0x1004], TOKEN
        let room = [&b"\x66\xc7\x06\x04\x10"[..], &token.to_le_bytes()].concat();
        // sti; nop; xor eax, eax: nobody interrupted.
        let code = [
            FLAT,
            &to(VECTOR, HANDLER as u32),
            &to(GP, HANDLER as u32 + 0x40),
            &room,
            &wrmsr(0x1b, 0xfee0_0d00),
            &wrmsr(0x80f, 0x1ff),
            &wrmsr(ASYNC_PF_INT, VECTOR.into()),
            &wrmsr(ASYNC_PF_EN, enable),
            b"\xfb\x90\x66\x31\xc0",
            LEAVE,
        ];
        // mov eax, [0x1004]; shr eax, 1
        let mut handler = [&b"\x66\xa1\x04\x10\x66\xd1\xe8"[..], LEAVE].concat();
        handler.resize(0x40, 0x90);
        // mov eax, FAULTED
        handler.extend([&b"\x66\xb8"[..], &FAULTED.to_le_bytes(), LEAVE].concat());
        leaves_with(folder.path(), backend, &code.concat(), &handler)
    };
    for backend in BACKENDS {
        assert_eq!(ends(backend, 0, ON)?, TOLD, "{backend}");
        assert_eq!(ends(backend, 5, ON)?, 0, "{backend}: the guest has not read the last one yet");
        assert_eq!(ends(backend, 0, ON & !1)?, 0, "{backend}: not turned on");
        assert_eq!(ends(backend, 0, ON | 0x10)?, FAULTED, "{backend}: reserved");
        assert_eq!(ends(&format!("{backend},kvm=v5.10"), 0, ON)?, TOLD, "{backend}");
        assert_eq!(ends(&format!("{backend},kvm=v5.7"), 0, ON)?, FAULTED, "{backend}");
    }
    Ok(())
}

/// VMware's backdoor port, as QEMU answers there: the version in EAX, the magic in EBX; what is no call gets ones. RDPMC reads the
/// backdoor's counters and four more of an AMD guest's, none of an Intel one's.
/// See: QEMU hw/i386/vmport.c; KVM pmu.c kvm_pmu_rdpmc()
#[test]
fn a_port_calls_the_hypervisor() -> Result<()> {
    const MAGIC: u32 = 0x564d_5868;
    const GET_VERSION: u32 = 10;
    let folder = tempfile::tempdir()?;
    // mov eax, MAGIC; mov ecx, COMMAND; mov dx, 0x5658; in eax, dx
    let call = |magic: u32, command: u32| {
        let (magic, command) = (magic.to_le_bytes(), command.to_le_bytes());
        [&b"\x66\xb8"[..], &magic, b"\x66\xb9", &command, b"\xba\x58\x56\x66\xed"].concat()
    };
    // mov ecx, NUMBER; rdpmc; mov eax, 1
    let rdpmc =
        |number: u32| [&b"\x66\xb9"[..], &number.to_le_bytes(), b"\x0f\x33\x66\xb8\x01\0\0\0"].concat();
    // The handler of #GP: mov eax, 2
    let gp = [&b"\x66\xb8\x02\0\0\0"[..], LEAVE].concat();
    let handler = (LOADED_AT + HANDLER as u32).to_le_bytes();
    // mov dword [0x34], HANDLER
    let vector = [&b"\x66\xc7\x06\x34\0"[..], &handler].concat();
    for backend in BACKENDS {
        let ends = |code: &[u8], then: &[u8]| {
            leaves_with(folder.path(), backend, &[FLAT, &vector, code, then, LEAVE].concat(), &gp)
        };
        assert_eq!(ends(&call(MAGIC, GET_VERSION), b"")?, 6, "{backend}");
        // mov eax, ebx; mov eax, ecx
        assert_eq!(ends(&call(MAGIC, GET_VERSION), b"\x66\x89\xd8")?, MAGIC, "{backend}");
        assert_eq!(ends(&call(MAGIC, GET_VERSION), b"\x66\x89\xc8")?, 2, "{backend}: a VMX of type 2");
        assert_eq!(ends(&call(MAGIC, 0xfff), b"")?, u32::MAX >> 1, "{backend}: no such call");
        assert_eq!(ends(&call(1, GET_VERSION), b"")?, u32::MAX >> 1, "{backend}: no call at all");
        let counters = if backend == "vmx" { 2 } else { 1 };
        for number in [0x1_0000, 0x1_0002, 3] {
            assert_eq!(ends(&rdpmc(number), b"")?, counters, "{backend}: counter {number:#x}");
        }
        assert_eq!(ends(&rdpmc(0xfff), b"")?, 2, "{backend}");
    }
    Ok(())
}
