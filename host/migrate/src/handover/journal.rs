//! What a side has written down before it acted.

use super::{Side, State};
use crate::Error;
use schemars::JsonSchema;
use serde::Serialize;
use std::{
    fs::File,
    io::{self, Write},
    path::Path,
};

/// A transition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Entry {
    pub side: Side,
    pub epoch: u64,
    pub state: State,
}

/// Where transitions are written.
pub trait Journal {
    /// Writes one down; when this returns, it is there for good.
    fn write(&mut self, entry: &Entry) -> Result<(), Error>;
}

impl Journal for () {
    fn write(&mut self, _: &Entry) -> Result<(), Error> {
        Ok(())
    }
}

/// A line for each transition, on the disk before anything else happens.
pub struct FileJournal(File);

impl FileJournal {
    pub fn create(path: &Path) -> io::Result<Self> {
        File::options().append(true).create(true).open(path).map(Self)
    }
}

impl Journal for FileJournal {
    fn write(&mut self, entry: &Entry) -> Result<(), Error> {
        let line = format!("epoch {} {} {}\n", entry.epoch, entry.side, entry.state);
        self.0.write_all(line.as_bytes()).and_then(|()| self.0.sync_data()).map_err(Error::Journal)
    }
}
