//! A player as the guest of a migration.

use crate::player::Player;
use vmtape_machine::Machine;
use vmtape_migrate::{Error, Guest};

fn failed(error: crate::Error) -> Error {
    Error::Guest(error.to_string())
}

impl Guest for Player {
    fn machine(&mut self) -> &mut Machine {
        &mut self.machine
    }

    fn advance(&mut self, instructions: u64) -> Result<bool, Error> {
        Self::advance(self, instructions, u64::MAX).map_err(failed)?;
        Ok(self.end.is_none())
    }

    fn rest(&mut self) -> Result<bool, Error> {
        Self::rest(self).map_err(failed)
    }
}
