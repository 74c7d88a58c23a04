//! Why a tape cannot be replayed.

use thiserror::Error;
use vmtape_machine::vmm::When;

#[derive(Debug, Error)]
pub enum Error {
    #[error(transparent)]
    Tape(#[from] vmtape_traces::Error),
    #[error(transparent)]
    Machine(#[from] vmtape_machine::Error),
    #[error("the tape's description of the machine cannot be read")]
    Spec(#[from] postcard::Error),
    #[error(
        "{tape}: an imported recording has no machine to run: its exits can be judged (`vmtape replay --mode exits`, `vmtape check`) \
         and held against a run (`vmtape diff`)"
    )]
    NoMachine { tape: String },
    #[error("{tape}: at {at} there is no guest that could move: it has ended, or does not come to rest")]
    NobodyMoves { tape: String, at: When },
    #[error(
        "{tape}: nothing on it could be compared: it has no exits, or none that can be judged without its guest"
    )]
    NothingCompared { tape: String },
    #[error(
        "{tape}: nothing differs of what could be compared, but that is no answer: unknown are {unknown}"
    )]
    PartlyCompared { tape: String, unknown: String },
    #[error("the backend `{backend}` refuses the machine: {reason}")]
    Refused { backend: String, reason: String },
    #[error("the backend `{backend}` broke after {exits} exits: {reason}")]
    Failed { backend: String, exits: u64, reason: String },
    /// What was asked for makes no sense, whatever the tape holds.
    #[error("{0}")]
    Misuse(String),
    #[error("{0}")]
    Other(String),
}
