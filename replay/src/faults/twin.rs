//! Tapes of runs that nobody keeps.

use crate::{
    Error,
    player::{Budget, Create, Player},
    spec,
};
use std::path::Path;
use tempfile::NamedTempFile;
use vmtape_machine::{Inputs, MachineSpec};
use vmtape_traces::{Options, Tape, writer::Stream};

/// Runs a machine and tapes it: in a file, or in a temporary one that goes when the tape does.
pub fn record(
    machine: &MachineSpec,
    inputs: Box<dyn Inputs>,
    budget: &Budget,
    create: Create,
    path: Option<&Path>,
) -> Result<Tape, Error> {
    let no_file = |cause| Error::Other(format!("a recording needs a file: {cause}"));
    let folder = path.and_then(Path::parent).filter(|folder| !folder.as_os_str().is_empty());
    let file = match folder {
        Some(folder) => NamedTempFile::new_in(folder),
        None if path.is_some() => NamedTempFile::new_in("."),
        None => NamedTempFile::new(),
    };
    let file = file.map_err(no_file)?;
    let name = path.map_or("a temporary recording".into(), |path| path.display().to_string());
    let mut stream = Stream::new(file.as_file(), &name, Options::default())?;
    let mut player = Player::new(machine.clone(), inputs, *budget, create, true)?;
    stream.metadata(&spec::metadata(player.machine.spec(), budget)?)?;
    for (name, data) in spec::images(machine) {
        stream.image(name, data)?;
    }
    player.advance_telling(u64::MAX, &mut |events| {
        events.iter().try_for_each(|event| stream.event(event)).map_err(Error::from)
    })?;
    stream.finish()?;
    match path {
        // A tape has its name once it is whole.
        Some(path) => {
            file.persist(path).map_err(|error| no_file(error.error))?;
            Ok(Tape::open(path)?)
        }
        None => Ok(Tape::open(file.path())?),
    }
}
