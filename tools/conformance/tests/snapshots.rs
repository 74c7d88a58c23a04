//! A machine that goes back to a moment runs on from there as it did the first time, whatever it did in between.

use anyhow::{Context, Result};
use std::path::Path;
use vmtape_abi::VmConfig;
use vmtape_backends::LoadedPlugin;
use vmtape_conformance::{BACKENDS, program, tail, vmtape};
use vmtape_machine::{Digest, Live};
use vmtape_replay::{Error, player::Player, spec};
use vmtape_traces::{Event, Tape, event::End};

/// Guests with paging, devices, a timer, two vCPUs, and an ioctl of the VMM.
const GUESTS: [&str; 7] = [
    "builtin:cpuid",
    "builtin:dirty",
    "builtin:io",
    "builtin:luggage",
    "builtin:smp2",
    "builtin:role",
    "builtin:late,before=40,rounds=60",
];

/// What a run comes to.
#[derive(Debug, PartialEq)]
struct Outcome {
    end: Option<End>,
    icount: u64,
    printed: Vec<u8>,
    state: u64,
    digest: Digest,
    events: Vec<Event>,
}

fn player(plugin: &LoadedPlugin, tape: &Tape) -> Result<Player> {
    let create = |machine: &vmtape_machine::MachineSpec| {
        let config = VmConfig { silicon: machine.silicon, options: machine.options.clone() };
        plugin.create(&config).map_err(Error::Other)
    };
    let machine = spec::machine(tape)?;
    let inputs = Box::new(Live::new(machine.seed));
    Ok(Player::new(machine, inputs, spec::budget(tape), &create, true)?)
}

/// From where the player stands to the end.
fn rest(player: &mut Player) -> Result<Outcome> {
    player.take_events();
    player.take_serial();
    player.machine.keep_digest();
    player.advance(u64::MAX, u64::MAX)?;
    Ok(Outcome {
        icount: player.machine.icount(),
        printed: player.take_serial(),
        state: player.machine.state_hash()?,
        digest: player.machine.digest(),
        events: player.take_events(),
        end: player.end.clone(),
    })
}

/// Goes back to moments of a run, out of order and after runs with another seed, and holds each rest of the run against that
/// of a machine that was never anywhere else.
fn hold(folder: &Path, backend: &str, guest: &str) -> Result<()> {
    let recorded = vmtape(folder, &["record", "-q", "-b", backend, "-o", "a.tape", guest])?;
    assert!(recorded.status.success(), "{backend} {guest}: {}", tail(&recorded));
    let library = format!("libvmtape_{}.so", backend.replace('-', "_"));
    let plugin = LoadedPlugin::load(&program()?.parent().context("a folder")?.join(library))?;
    let tape = Tape::open(&folder.join("a.tape"))?;
    let (exits, seed) = (tape.totals()?.exits, spec::machine(&tape)?.seed);
    let (mut again, mut kept, mut expected) = (player(&plugin, &tape)?, Vec::new(), Vec::new());
    let moments = [0, exits / 3, exits * 2 / 3];
    for (n, at) in moments.into_iter().enumerate() {
        let mut once = player(&plugin, &tape)?;
        // A snapshot forgets what silicon has cached, in the run that goes on from it too.
        for at in &moments[..=n] {
            once.advance(u64::MAX, *at)?;
            once.snapshot()?;
        }
        expected.push(rest(&mut once)?);
        again.advance(u64::MAX, at)?;
        kept.push(again.snapshot()?);
    }
    for (round, n) in [2, 0, 1, 2, 1, 0].into_iter().enumerate() {
        again.rewind(&kept[n], Box::new(Live::new(seed ^ 0x5a5a)))?;
        again.advance(u64::MAX, again.machine.exits() + exits / 4)?;
        again.rewind(&kept[n], Box::new(Live::new(seed)))?;
        let (actual, expected) = (rest(&mut again)?, &expected[n]);
        let differ = actual.events.iter().zip(&expected.events).position(|(a, b)| a != b);
        let events = differ.map(|at| (&actual.events[at], &expected.events[at]));
        assert!(actual == *expected, "{backend} {guest}: moment {n} in round {round}: {events:?}");
    }
    Ok(())
}

#[test]
fn a_machine_that_goes_back_does_the_same_again() -> Result<()> {
    for backend in BACKENDS {
        for guest in GUESTS {
            hold(tempfile::tempdir()?.path(), backend, guest)?;
        }
    }
    Ok(())
}
