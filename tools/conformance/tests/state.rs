//! State by KVM's ioctls: what is got can be set and is the same when it is got again; a guest whose state was set does not
//! notice; and no bytes do harm.

use anyhow::{Context, Result, anyhow, ensure};
use proptest::prelude::*;
use std::{cell::RefCell, path::Path};
use vmtape_abi::Errno;
use vmtape_arch::state::{
    ClockData, Compared, DebugRegs, LapicState, Layout, MpState, MsrEntry, NestedState, STATE, Sregs2,
    StateKind, VcpuEvents, Xcrs, Xsave, msrs_to_bytes,
};
use vmtape_conformance::{BACKENDS, bench::Bench};
use vmtape_replay::{player::Player, state};

/// All built-in guests; the longer ones are cut off.
const GUESTS: [&str; 12] =
    ["hello", "cpuid", "io", "illegal", "touch", "matrix", "bar", "smp2", "role", "stale", "late", "legacy"];
const MOST_INSTRUCTIONS: &str = "300000";
/// Exits between two moments, so that there are some of them in each guest.
const MOMENTS: u64 = 5;

fn bench(folder: &Path, backend: &str, guest: &str) -> Result<Bench> {
    Bench::record(folder, backend, &["--max-insns", MOST_INSTRUCTIONS, &format!("builtin:{guest}")])
}

/// All kinds of a vCPU's state.
fn get_all(player: &mut Player, vcpu: u32) -> Result<Vec<Vec<u8>>> {
    let get = |kind: &StateKind| {
        player.machine.get_state(vcpu, *kind).map_err(|errno| anyhow!("{kind:?}: get: {errno:?}"))
    };
    StateKind::ALL.iter().map(get).collect()
}

/// Gets all kinds, sets them in the list's order, and gets them again.
fn again(player: &mut Player, vcpu: u32) -> Result<()> {
    let first = get_all(player, vcpu)?;
    for (kind, bytes) in StateKind::ALL.into_iter().zip(&first) {
        player.machine.set_state(vcpu, kind, bytes).map_err(|errno| anyhow!("{kind:?}: set: {errno:?}"))?;
    }
    let second = get_all(player, vcpu)?;
    for (kind, (first, second)) in StateKind::ALL.into_iter().zip(first.iter().zip(&second)) {
        let differs = first.iter().zip(second).position(|(a, b)| a != b);
        ensure!(first == second, "{kind:?}: other bytes, from {differs:?} on");
    }
    Ok(())
}

/// At several moments, wherever in an instruction's handling they are.
#[test]
fn what_is_got_can_be_set_and_is_the_same() -> Result<()> {
    for backend in BACKENDS {
        for guest in GUESTS {
            let folder = tempfile::tempdir()?;
            let bench = bench(folder.path(), backend, guest)?;
            let (expected, last) = bench.end(bench.player()?, Vec::new())?;
            let every = (last.machine.exits() / MOMENTS).max(1);
            let (mut player, mut moments) = (bench.player()?, 0);
            loop {
                player.advance(u64::MAX, player.machine.exits().saturating_add(every))?;
                if player.end.is_some() {
                    break;
                }
                moments += 1;
                for vcpu in 0..player.machine.spec().vcpus {
                    let what = || format!("{backend} {guest}: vCPU {vcpu} after {} exits", moments * every);
                    again(&mut player, vcpu).with_context(what)?;
                }
            }
            let (actual, _) = bench.end(player, Vec::new())?;
            ensure!(moments > 0 || last.machine.exits() == 0, "{backend} {guest}: no moment");
            ensure!(actual == expected, "{backend} {guest}: {actual:?} instead of {expected:?}");
        }
    }
    Ok(())
}

/// A guest that moves to a fresh VM, state by state, ends as one that does not.
#[test]
fn a_guest_moves_by_its_state() -> Result<()> {
    for backend in BACKENDS {
        for guest in GUESTS {
            let folder = tempfile::tempdir()?;
            let bench = bench(folder.path(), backend, guest)?;
            let (expected, last) = bench.end(bench.player()?, Vec::new())?;
            let every = (last.machine.exits() / MOMENTS).max(1);
            let (mut player, mut printed) = (bench.player()?, Vec::new());
            for _ in 0..MOMENTS {
                player.advance(u64::MAX, player.machine.exits().saturating_add(every))?;
                if !player.rest()? {
                    break;
                }
                printed.extend(player.take_serial());
                let mut next = bench.player()?;
                next.machine.take_over(&mut player.machine).with_context(|| format!("{backend} {guest}"))?;
                player = next;
            }
            let (actual, _) = bench.end(player, printed)?;
            ensure!(actual == expected, "{backend} {guest}: {actual:?} instead of {expected:?}");
        }
    }
    Ok(())
}

/// As many bytes as the structure has, or some.
fn size_of_kind(kind: StateKind) -> usize {
    let fixed = kind.row().and_then(|row| row.size);
    fixed.unwrap_or(if kind == StateKind::MSRS { 8 + 4 * 16 } else { size_of::<NestedState>() })
}

/// Any bytes get an answer: success or an errno. What was taken can be got again.
#[test]
fn any_bytes_get_an_answer() -> Result<()> {
    for backend in BACKENDS {
        let folder = tempfile::tempdir()?;
        let bench = bench(folder.path(), backend, "hello")?;
        let mut player = bench.player()?;
        player.advance(1000, u64::MAX)?;
        let mut runner = proptest::test_runner::TestRunner::deterministic();
        let kinds = proptest::sample::select(StateKind::ALL.to_vec());
        let strategy = kinds.prop_flat_map(|kind| {
            let exact = proptest::collection::vec(any::<u8>(), size_of_kind(kind));
            let any_size = proptest::collection::vec(any::<u8>(), 0..200);
            // Mostly zeros come further than noise does.
            let sparse =
                proptest::collection::vec(prop_oneof![9 => Just(0), 1 => any::<u8>()], size_of_kind(kind));
            (Just(kind), prop_oneof![exact, any_size, sparse])
        });
        let player = RefCell::new(player);
        let tried = runner.run(&strategy, |(kind, bytes)| {
            let mut player = player.borrow_mut();
            let result = player.machine.set_state(0, kind, &bytes);
            if bytes.len() != size_of_kind(kind) && kind != StateKind::NESTED_STATE {
                prop_assert!(result.is_err(), "{:?} took {} bytes", kind, bytes.len());
            }
            prop_assert!(matches!(result, Ok(()) | Err(Errno::EINVAL | Errno::EFAULT | Errno::E2BIG)));
            prop_assert!(player.machine.get_state(0, kind).is_ok());
            Ok(())
        });
        tried.map_err(|e| anyhow!("{backend}: {e}"))?;
        let mut player = player.into_inner();
        ensure!(player.machine.get_state(9, StateKind::REGS) == Err(Errno::ENOENT));
    }
    Ok(())
}

/// What KVM refuses, kind by kind.
/// See: KVM x86.c kvm_is_valid_sregs(), kvm_vcpu_ioctl_x86_set_vcpu_events(), __kvm_set_xcr()
#[test]
fn what_is_refused() -> Result<()> {
    fn changed<T: Layout>(player: &mut Player, kind: StateKind, change: impl Fn(&mut T)) -> Result<Vec<u8>> {
        let bytes = player.machine.get_state(0, kind).map_err(|errno| anyhow!("{errno:?}"))?;
        let mut state = T::from_bytes(&bytes).context("of this size")?;
        change(&mut state);
        Ok(state.to_bytes())
    }
    for backend in BACKENDS {
        let folder = tempfile::tempdir()?;
        let bench = bench(folder.path(), backend, "hello")?;
        let player = &mut bench.player()?;
        // In 64-bit mode by then.
        player.advance(100_000, u64::MAX)?;
        let sregs =
            |change: fn(&mut Sregs2)| move |player: &mut Player| changed(player, StateKind::SREGS2, change);
        let refused: Vec<(&str, StateKind, Vec<u8>)> = vec![
            ("CR0.PG without PE", StateKind::SREGS2, sregs(|s| s.cr0 &= !1)(player)?),
            ("LME and PG without PAE", StateKind::SREGS2, sregs(|s| s.cr4 &= !(1 << 5))(player)?),
            ("LME and PG without LMA", StateKind::SREGS2, sregs(|s| s.efer &= !(1 << 10))(player)?),
            ("LMA without PG", StateKind::SREGS2, sregs(|s| s.cr0 &= !(1 << 31))(player)?),
            ("CR3 beyond MAXPHYADDR", StateKind::SREGS2, sregs(|s| s.cr3 |= 1 << 60)(player)?),
            ("a reserved bit of CR4", StateKind::SREGS2, sregs(|s| s.cr4 |= 1 << 40)(player)?),
            ("PDPTRs in long mode", StateKind::SREGS2, sregs(|s| s.flags = 1)(player)?),
            ("a flag", StateKind::SREGS2, sregs(|s| s.flags = 2)(player)?),
            ("APIC_BASE", StateKind::SREGS2, sregs(|s| s.apic_base |= 1)(player)?),
            (
                "DR6",
                StateKind::DEBUGREGS,
                changed::<DebugRegs>(player, StateKind::DEBUGREGS, |d| d.dr6 |= 1 << 32)?,
            ),
            (
                "DR7",
                StateKind::DEBUGREGS,
                changed::<DebugRegs>(player, StateKind::DEBUGREGS, |d| d.dr7 |= 1 << 32)?,
            ),
            (
                "flags",
                StateKind::DEBUGREGS,
                changed::<DebugRegs>(player, StateKind::DEBUGREGS, |d| d.flags = 1)?,
            ),
            ("17 XCRs", StateKind::XCRS, changed::<Xcrs>(player, StateKind::XCRS, |x| x.nr_xcrs = 17)?),
            (
                "XCR0 without x87",
                StateKind::XCRS,
                changed::<Xcrs>(player, StateKind::XCRS, |x| x.xcrs[0].value = 2)?,
            ),
            ("MPX", StateKind::XCRS, changed::<Xcrs>(player, StateKind::XCRS, |x| x.xcrs[0].value |= 0x18)?),
            (
                "XSTATE_BV",
                StateKind::XSAVE,
                changed::<Xsave>(player, StateKind::XSAVE, |x| x.xstate_bv |= 1 << 17)?,
            ),
            (
                "compacted",
                StateKind::XSAVE,
                changed::<Xsave>(player, StateKind::XSAVE, |x| x.xcomp_bv = 1 << 63)?,
            ),
            ("MXCSR", StateKind::XSAVE, changed::<Xsave>(player, StateKind::XSAVE, |x| x.mxcsr |= 1 << 16)?),
            (
                "the vector of NMIs",
                StateKind::VCPU_EVENTS,
                changed::<VcpuEvents>(player, StateKind::VCPU_EVENTS, |e| {
                    (e.exception_injected, e.exception_nr) = (1, 2);
                })?,
            ),
            (
                "no exception",
                StateKind::VCPU_EVENTS,
                changed::<VcpuEvents>(player, StateKind::VCPU_EVENTS, |e| {
                    (e.exception_pending, e.exception_nr) = (1, 32);
                })?,
            ),
            ("stopped", StateKind::MP_STATE, vec![5, 0, 0, 0]),
            (
                "guest mode",
                StateKind::NESTED_STATE,
                changed::<NestedState>(player, StateKind::NESTED_STATE, |n| {
                    n.flags.set_guest_mode(true);
                })?,
            ),
            (
                "another format",
                StateKind::NESTED_STATE,
                changed::<NestedState>(player, StateKind::NESTED_STATE, |n| {
                    n.format ^= 1;
                })?,
            ),
            (
                "size",
                StateKind::NESTED_STATE,
                changed::<NestedState>(player, StateKind::NESTED_STATE, |n| n.size = 1)?,
            ),
            ("flags", StateKind::CLOCK, changed::<ClockData>(player, StateKind::CLOCK, |c| c.flags = 1)?),
        ];
        for (what, kind, bytes) in refused {
            let before = player.machine.get_state(0, kind);
            ensure!(
                player.machine.set_state(0, kind, &bytes) == Err(Errno::EINVAL),
                "{backend} {kind:?}: {what}"
            );
            ensure!(player.machine.get_state(0, kind) == before, "{backend} {kind:?}: {what}: it changed");
        }
    }
    Ok(())
}

/// Kinds that cannot differ between two machines of one kind: the frequency is the same everywhere, and there is no nested state.
const ALIKE: [StateKind; 2] = [StateKind::TSC_KHZ, StateKind::NESTED_STATE];

/// Changes a kind of a vCPU's state.
fn change<T: Layout>(player: &mut Player, kind: StateKind, change: impl Fn(&mut T)) -> Result<()> {
    let bytes = player.machine.get_state(0, kind).map_err(|errno| anyhow!("{kind}: {errno:?}"))?;
    let mut state = T::from_bytes(&bytes).context("of this size")?;
    change(&mut state);
    player.machine.set_state(0, kind, &state.to_bytes()).map_err(|errno| anyhow!("{kind}: {errno:?}"))
}

/// A guest on its way, whose every kind of state holds something that a fresh machine's does not.
fn unlike_a_fresh_one(bench: &Bench) -> Result<Player> {
    const SYSENTER_CS: MsrEntry = MsrEntry::new(0x174, 0x10);
    let mut player = bench.player()?;
    player.advance(u64::MAX, 40)?;
    ensure!(player.rest()?, "the guest has ended");
    change(&mut player, StateKind::DEBUGREGS, |regs: &mut DebugRegs| regs.db[1] = 0x1234)?;
    change(&mut player, StateKind::XCRS, |xcrs: &mut Xcrs| xcrs.xcrs[0].value = 3)?;
    change(&mut player, StateKind::XSAVE, |xsave: &mut Xsave| xsave.xmm[3] = [5, 6])?;
    change(&mut player, StateKind::TSC_OFFSET, |offset: &mut u64| *offset = 0x5555)?;
    change(&mut player, StateKind::LAPIC, |page: &mut LapicState| page.set(0x3e0, 0xb))?;
    let msrs = msrs_to_bytes(&[SYSENTER_CS]);
    player.machine.set_state(0, StateKind::MSRS, &msrs).map_err(|errno| anyhow!("MSRs: {errno:?}"))?;
    change(&mut player, StateKind::MP_STATE, |state: &mut MpState| *state = MpState::HALTED)?;
    change(&mut player, StateKind::VCPU_EVENTS, |events: &mut VcpuEvents| events.nmi_masked = 1)?;
    Ok(player)
}

/// A move that left out any kind would show: what it carries is there, and not without it.
#[test]
fn every_kind_moves() -> Result<()> {
    for backend in BACKENDS {
        let folder = tempfile::tempdir()?;
        let bench = bench(folder.path(), backend, "late")?;
        let mut source = unlike_a_fresh_one(&bench)?;
        let wanted = get_all(&mut source, 0)?;
        let held = |player: &mut Player, kind: StateKind| {
            player.machine.get_state(0, kind).map_err(|errno| anyhow!("{kind}: {errno:?}"))
        };
        for omitted in StateKind::ALL.into_iter().filter(|kind| !ALIKE.contains(kind)) {
            let mut without = bench.player()?;
            for (kind, bytes) in StateKind::ALL.into_iter().zip(&wanted).filter(|(kind, _)| *kind != omitted)
            {
                without
                    .machine
                    .set_state(0, kind, bytes)
                    .map_err(|errno| anyhow!("{backend} {kind}: {errno:?}"))?;
            }
            let at = StateKind::ALL.iter().position(|kind| *kind == omitted).context("it is in the list")?;
            ensure!(
                held(&mut without, omitted)? != wanted[at],
                "{backend}: {omitted} is there without being set"
            );
        }
        let mut target = bench.player()?;
        target.machine.take_over(&mut source.machine)?;
        for (kind, bytes) in StateKind::ALL.into_iter().zip(&wanted) {
            ensure!(held(&mut target, kind)? == *bytes, "{backend}: {kind} has not moved");
        }
    }
    Ok(())
}

/// The hash over a machine's state has of each kind what its row says.
#[test]
fn the_hash_has_what_the_list_says() -> Result<()> {
    for backend in BACKENDS {
        let folder = tempfile::tempdir()?;
        let bench = bench(folder.path(), backend, "late")?;
        let mut source = unlike_a_fresh_one(&bench)?;
        let fresh = bench.player()?.machine.state_hash()?;
        for row in STATE.iter().filter(|row| !ALIKE.contains(&row.kind)) {
            let bytes = source.machine.get_state(0, row.kind).map_err(|errno| anyhow!("{errno:?}"))?;
            let mut changed = bench.player()?;
            changed
                .machine
                .set_state(0, row.kind, &bytes)
                .map_err(|errno| anyhow!("{backend} {}: {errno:?}", row.kind))?;
            let seen = changed.machine.state_hash()? != fresh;
            ensure!(seen != matches!(row.compared, Compared::Nothing(_)), "{backend}: {}", row.kind);
        }
    }
    Ok(())
}

/// Whatever of a vCPU's state differs, a comparison of two machines names it: the FPU's registers too, which memory does not
/// show before the guest stores them.
#[test]
fn what_differs_in_the_fpu_is_told() -> Result<()> {
    type Change = fn(&mut Xsave);
    let changes: [(&str, Change); 7] = [
        ("FPR0 mantissa", |xsave| (xsave.xstate_bv, xsave.st[0][0]) = (7, 1)),
        ("FPR7 sign and exponent", |xsave| (xsave.xstate_bv, xsave.st[7][9]) = (7, 1)),
        ("FTW", |xsave| (xsave.xstate_bv, xsave.ftw) = (7, 0x81)),
        ("FOP", |xsave| (xsave.xstate_bv, xsave.fop) = (7, 0x123)),
        ("FDP", |xsave| (xsave.xstate_bv, xsave.fdp) = (7, 0x1000)),
        ("XMM15 high", |xsave| (xsave.xstate_bv, xsave.xmm[15][1]) = (7, 1)),
        ("YMM9 bits 192 to 255", |xsave| (xsave.xstate_bv, xsave.ymm_hi[9][1]) = (7, 1)),
    ];
    for backend in BACKENDS {
        let folder = tempfile::tempdir()?;
        let bench = bench(folder.path(), backend, "hello")?;
        let untouched = bench.player()?;
        for (name, fpu) in changes {
            let mut player = bench.player()?;
            change(&mut player, StateKind::XSAVE, fpu)?;
            let told: Vec<String> = state::compare(&untouched.machine, &player.machine)
                .iter()
                .map(|difference| difference.name())
                .collect();
            ensure!(told == [name], "{backend}: {told:?} instead of {name}");
        }
    }
    Ok(())
}
