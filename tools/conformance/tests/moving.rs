//! A guest that moves between machines of one kind while it runs cannot tell: it ends as it would have, at the same
//! instruction and with the same memory.

use anyhow::Result;
use vmtape_conformance::{
    BACKENDS,
    bench::{Bench, Outcome},
};

/// Guests with paging, interrupts, two vCPUs, MSRs, and CPUID in a loop.
const GUESTS: [&str; 5] =
    ["builtin:cpuid", "builtin:io", "builtin:smp2", "builtin:role", "builtin:late,before=40,rounds=60"];

/// Runs the guest; it moves after every so many exits, as soon as it can.
fn run(bench: &Bench, every: u64) -> Result<(Outcome, u64)> {
    let (mut player, mut printed, mut moves) = (bench.player()?, Vec::new(), 0);
    loop {
        player.advance(u64::MAX, player.machine.exits().saturating_add(every))?;
        while player.end.is_none() && !player.machine.can_move() {
            player.advance(player.machine.icount() + 1, u64::MAX)?;
        }
        printed.extend(player.take_serial());
        if player.end.is_some() {
            break;
        }
        let mut next = bench.player()?;
        next.machine.take_over(&mut player.machine)?;
        player = next;
        moves += 1;
    }
    Ok((bench.end(player, printed)?.0, moves))
}

#[test]
fn a_guest_does_not_notice_that_it_moves() -> Result<()> {
    for backend in BACKENDS {
        for guest in GUESTS {
            let folder = tempfile::tempdir()?;
            let bench = Bench::record(folder.path(), backend, &[guest])?;
            let (expected, _) = run(&bench, u64::MAX)?;
            for every in [15, 40] {
                let (actual, moves) = run(&bench, every)?;
                assert!(moves > 0, "{backend} {guest}: nothing moved");
                assert_eq!(actual, expected, "{backend} {guest}: {moves} moves, every {every} exits");
            }
        }
    }
    Ok(())
}
