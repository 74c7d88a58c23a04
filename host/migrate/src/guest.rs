//! The guest that moves, as whoever runs it lets a migration run it on.

use crate::Error;
use vmtape_machine::Machine;

/// A machine in somebody's hands.
pub trait Guest {
    fn machine(&mut self) -> &mut Machine;

    /// Runs until so many instructions have retired in all. `false`: the guest has ended.
    fn advance(&mut self, instructions: u64) -> Result<bool, Error>;

    /// Runs on to where the guest can move: pending exits are completed, pending events taken. `false`: it does not come to rest,
    /// or has ended.
    fn rest(&mut self) -> Result<bool, Error>;
}
