//! The one place where compiled code is entered, and all unsafe code.
#![expect(unsafe_code, reason = "host code that was made a moment ago is called")]
// UNSAFETY: registers are copied by volatile reads, which is sound as any read of a reference is; and
// a block's code is entered by its address. It is sound because
// - the address is one that `CodeMemory::add` gave for code of `translate`, entered at its beginning or at a place that the
//   translation names, and the memory stays mapped and executable while `Compiler`, which is borrowed, has it;
// - the code touches four things only: the frame, which lives on this stack; `ram`, whose bounds it checks with each
//   access (a `Cell` may be written through a shared reference, and nobody else has one on another thread); the guest's XMM
//   registers, which it has for itself; and the tables of pages and links, which it only reads, at indices that cannot leave them;
// - it keeps the callee-saved registers, the stack pointer and MXCSR, and calls nothing.

use crate::{
    frame::{BIAS, BUDGET, FLOATS, Frame, HOST_MXCSR, MXCSR, in_host, pack_flags, unpack_flags, unpack_miss},
    interface::{Guest, Miss, Tag, WIDEST},
    links::Links,
};
use dynasmrt::{DynasmApi, DynasmLabelApi, VecAssembler, dynasm, x64::X64Relocation};

/// Addresses of the two routines around compiled code.
#[derive(Clone, Copy, Default)]
pub(crate) struct Gate {
    pub(crate) enter: u64,
    pub(crate) exit: u64,
}

/// The code of the gate, and where in it the way out begins.
pub(crate) fn gate() -> Option<(Vec<u8>, u64)> {
    let mut ops = VecAssembler::<X64Relocation>::new(0);
    dynasm!(ops
        ; .arch x64
        ; push rbx
        ; push rbp
        ; push r12
        ; push r13
        ; push r14
        ; push r15
        ; mov rbp, rdi
        ; mov r14, rsi
        ; mov r13, [BYTE rbp + BUDGET]
    );
    for (displacement, host) in in_host() {
        dynasm!(ops ; .arch x64 ; mov Rq(host), [BYTE rbp + displacement]);
    }
    dynasm!(ops ; .arch x64 ; jmp r14);
    let exit = ops.offset().0 as u64;
    dynasm!(ops
        ; .arch x64
        ; cmp DWORD [rbp + FLOATS], 0
        ; je >integers
        ; stmxcsr [rbp + MXCSR]
        ; ldmxcsr [rbp + HOST_MXCSR]
        ; integers:
    );
    for (displacement, host) in in_host() {
        dynasm!(ops ; .arch x64 ; mov [BYTE rbp + displacement], Rq(host));
    }
    dynasm!(ops
        ; .arch x64
        ; mov [BYTE rbp + BUDGET], r13
        ; pop r15
        ; pop r14
        ; pop r13
        ; pop r12
        ; pop rbp
        ; pop rbx
        ; ret
    );
    ops.finalize().ok().map(|code| (code, exit))
}

/// How compiled code came back: the value in its EAX, the RIP that it has set where it left for another block, and the access that it
/// has missed if it did.
pub(crate) struct Left {
    pub(crate) code: u32,
    pub(crate) rip: u64,
    pub(crate) miss: Miss,
}

/// Runs compiled code from an address on.
pub(crate) fn enter(
    gate: Gate,
    code: u64,
    links: &Links,
    guest: Guest<'_>,
    tag: Tag,
    budget: &mut i64,
) -> Left {
    let mut changes = guest.changes;
    let room = changes.as_ref().map_or(u64::MAX, |changes| changes.ram.end);
    let counted =
        changes.as_ref().map_or((0, 0, 0), |changes| (*changes.sum, changes.until, changes.ram.start));
    let mut frame = Frame {
        gpr: one_by_one(guest.gpr),
        flags: pack_flags(*guest.rflags),
        overflow: 0,
        budget: *budget,
        tlb: guest.tlb.as_ptr(),
        read_epoch: guest.read_epoch,
        write_epoch: guest.write_epoch,
        ram: guest.ram.as_ptr().cast_mut().cast(),
        ram_last: room.min(guest.ram.len() as u64).saturating_sub(WIDEST as u64),
        slots: links.slots.as_ptr(),
        targets: links.targets.as_ptr(),
        tag: tag.0,
        fs_base: guest.fs_base,
        gs_base: guest.gs_base,
        rip: 0,
        exit: gate.exit,
        next: 0,
        xmm: guest.xmm.as_mut_ptr(),
        mxcsr: *guest.mxcsr,
        host_mxcsr: 0,
        floats: 0,
        sse: guest.sse.into(),
        missed: 0,
        miss: 0,
        changes: [counted.0 as u64, (counted.0 >> u64::BITS) as u64],
        until: counted.1,
        ram_start: counted.2,
        place: 0,
        before: [0; 2],
        spill: 0,
    };
    // SAFETY: see above. The routine is the one that `gate` has assembled, with this signature.
    let code = unsafe {
        let routine: extern "sysv64" fn(*mut u8, u64) -> u64 =
            std::mem::transmute::<*const u8, _>(gate.enter as *const u8);
        routine((&raw mut frame).cast::<u8>().add(BIAS), code)
    };
    *guest.gpr = one_by_one(&frame.gpr);
    *guest.rflags = unpack_flags(*guest.rflags, frame.flags);
    *budget = frame.budget;
    *guest.mxcsr = frame.mxcsr;
    if let Some(changes) = &mut changes {
        *changes.sum = u128::from(frame.changes[0]) | u128::from(frame.changes[1]) << u64::BITS;
    }
    Left { code: code as u32, rip: frame.rip, miss: unpack_miss(frame.missed, frame.miss) }
}

/// A copy of registers that were written a moment ago. A wider load than the stores would wait until they are in the cache, behind
/// all stores before them.
#[inline(always)]
fn one_by_one(gpr: &[u64; 16]) -> [u64; 16] {
    // SAFETY: a reference may be read.
    std::array::from_fn(|n| unsafe { (&raw const gpr[n]).read_volatile() })
}
