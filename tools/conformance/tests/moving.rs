//! A guest that moves between machines of one kind while it runs cannot tell: it ends as it would have, at the same
//! instruction and with the same memory.

use anyhow::{Context, Result};
use std::path::Path;
use vmtape_abi::VmConfig;
use vmtape_backends::LoadedPlugin;
use vmtape_conformance::{BACKENDS, program, tail, vmtape};
use vmtape_machine::MachineSpec;
use vmtape_replay::{Error, player::Player, spec};
use vmtape_traces::{Tape, event::End};

/// Guests with paging, interrupts, two vCPUs, MSRs, and CPUID in a loop.
const GUESTS: [&str; 5] =
    ["builtin:cpuid", "builtin:io", "builtin:smp2", "builtin:role", "builtin:late,before=40,rounds=60"];

/// What a run comes to.
#[derive(Debug, PartialEq, Eq)]
struct Outcome {
    end: Option<End>,
    icount: u64,
    printed: String,
    state: u64,
}

struct Bench {
    plugin: LoadedPlugin,
    tape: Tape,
}

impl Bench {
    fn new(folder: &Path, backend: &str, guest: &str) -> Result<Self> {
        let recorded = vmtape(folder, &["record", "-q", "-b", backend, "-o", "a.tape", guest])?;
        assert!(recorded.status.success(), "{backend} {guest}: {}", tail(&recorded));
        let program = program()?;
        let library = format!("libvmtape_{}.so", backend.replace('-', "_"));
        let plugin = LoadedPlugin::load(&program.parent().context("a folder")?.join(library))?;
        Ok(Self { plugin, tape: Tape::open(&folder.join("a.tape"))? })
    }

    fn player(&self) -> Result<Player> {
        let create = |machine: &MachineSpec| {
            let config = VmConfig { silicon: machine.silicon, options: machine.options.clone() };
            self.plugin.create(&config).map_err(Error::Other)
        };
        let inputs = Box::new(spec::inputs(&self.tape)?);
        Ok(Player::new(spec::machine(&self.tape)?, inputs, spec::budget(&self.tape), &create, false)?)
    }

    /// Runs the guest; it moves after every so many exits, as soon as it can.
    fn run(&self, every: u64) -> Result<(Outcome, u64)> {
        let (mut player, mut printed, mut moves) = (self.player()?, Vec::new(), 0);
        loop {
            player.advance(u64::MAX, player.machine.exits().saturating_add(every))?;
            while player.end.is_none() && !player.machine.can_move() {
                player.advance(player.machine.icount() + 1, u64::MAX)?;
            }
            printed.extend(player.take_serial());
            if player.end.is_some() {
                break;
            }
            let mut next = self.player()?;
            next.machine.take_over(&mut player.machine)?;
            player = next;
            moves += 1;
        }
        let outcome = Outcome {
            icount: player.machine.icount(),
            printed: String::from_utf8(printed)?,
            state: player.machine.state_hash()?,
            end: player.end,
        };
        Ok((outcome, moves))
    }
}

#[test]
fn a_guest_does_not_notice_that_it_moves() -> Result<()> {
    for backend in BACKENDS {
        for guest in GUESTS {
            let folder = tempfile::tempdir()?;
            let bench = Bench::new(folder.path(), backend, guest)?;
            let (expected, _) = bench.run(u64::MAX)?;
            for every in [15, 40] {
                let (actual, moves) = bench.run(every)?;
                assert!(moves > 0, "{backend} {guest}: nothing moved");
                assert_eq!(actual, expected, "{backend} {guest}: {moves} moves, every {every} exits");
            }
        }
    }
    Ok(())
}
