//! A recorded guest and its backend, for tests that take its machine in their own hands.

use crate::{program, tail, vmtape};
use anyhow::{Context, Result, ensure};
use std::path::Path;
use vmtape_abi::VmConfig;
use vmtape_backends::LoadedPlugin;
use vmtape_machine::MachineSpec;
use vmtape_replay::{Error, player::Player, spec};
use vmtape_traces::{Tape, event::End};

/// A backend's plugin, which lies beside the program.
pub fn plugin(backend: &str) -> Result<LoadedPlugin> {
    let library = format!("libvmtape_{}.so", backend.replace('-', "_"));
    Ok(LoadedPlugin::load(&program()?.parent().context("a folder")?.join(library))?)
}

/// What a run comes to.
#[derive(Debug, PartialEq, Eq)]
pub struct Outcome {
    pub end: Option<End>,
    pub icount: u64,
    pub printed: String,
    pub state: u64,
}

/// A recorded guest and its backend.
pub struct Bench {
    plugin: LoadedPlugin,
    tape: Tape,
}

impl Bench {
    /// Records a guest; the words are options and the guest. How it ends is of no matter.
    pub fn record(folder: &Path, backend: &str, words: &[&str]) -> Result<Self> {
        let line = ["record", "-q", "-b", backend, "-o", "a.tape"];
        let recorded = vmtape(folder, &[&line[..], words].concat())?;
        let path = folder.join("a.tape");
        ensure!(path.exists(), "{backend} {words:?}: {}", tail(&recorded));
        Ok(Self { plugin: plugin(backend)?, tape: Tape::open(&path)? })
    }

    /// Another machine like the tape's, which has run nothing.
    pub fn player(&self) -> Result<Player> {
        let create = |machine: &MachineSpec| {
            let config = VmConfig { silicon: machine.silicon, options: machine.options.clone() };
            self.plugin.create(&config).map_err(Error::Other)
        };
        let inputs = Box::new(spec::inputs(&self.tape)?);
        Ok(Player::new(spec::machine(&self.tape)?, inputs, spec::budget(&self.tape), &create, false)?)
    }

    /// Runs a guest to its end; it has printed this before.
    pub fn end(&self, mut player: Player, mut printed: Vec<u8>) -> Result<(Outcome, Player)> {
        player.advance(u64::MAX, u64::MAX)?;
        printed.extend(player.take_serial());
        let outcome = Outcome {
            end: player.end.clone(),
            icount: player.machine.icount(),
            printed: String::from_utf8(printed)?,
            state: player.machine.state_hash()?,
        };
        Ok((outcome, player))
    }
}
