//! A device that both sides share, as a disk is: it sees who runs the guest, and who has its newest generation.
//!
//! Between two processes it is a file: a line for each event, and whoever looks or writes locks it.

use super::Side;
use schemars::JsonSchema;
use serde::Serialize;
use std::{
    fmt,
    fs::File,
    io::{self, Read, Write},
    path::Path,
};

/// What the device has seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Event {
    /// A side runs the guest.
    Starts {
        side: Side,
        epoch: u64,
    },
    Stops {
        side: Side,
        epoch: u64,
    },
    /// The destination has taken the generation, before it runs.
    Claimed {
        epoch: u64,
    },
    /// It runs on both.
    TwoRunning {
        epoch: u64,
    },
    /// The source has taken the generation back, so that a destination that wakes late is kept out.
    Fenced {
        epoch: u64,
    },
    /// A side wanted to run with a generation that is not the newest.
    KeptOut {
        side: Side,
        epoch: u64,
    },
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Starts { side, epoch } => write!(f, "the {side} runs the guest, generation {epoch}"),
            Self::Stops { side, epoch } => write!(f, "the {side} no longer does, generation {epoch}"),
            Self::Claimed { epoch } => write!(f, "the destination has taken generation {epoch}"),
            Self::TwoRunning { epoch } => write!(f, "TWO run the guest, generation {epoch}"),
            Self::Fenced { epoch } => write!(f, "the source has taken generation {epoch} back"),
            Self::KeptOut { side, epoch } => write!(f, "the {side} is kept out: generation {epoch} is old"),
        }
    }
}

impl Event {
    /// Its line in a file.
    fn line(self) -> String {
        match self {
            Self::Starts { side, epoch } => format!("starts {epoch} {side}"),
            Self::Stops { side, epoch } => format!("stops {epoch} {side}"),
            Self::Claimed { epoch } => format!("claimed {epoch}"),
            Self::TwoRunning { epoch } => format!("two-running {epoch}"),
            Self::Fenced { epoch } => format!("fenced {epoch}"),
            Self::KeptOut { side, epoch } => format!("kept-out {epoch} {side}"),
        }
    }

    fn read(line: &str) -> Option<Self> {
        let mut words = line.split(' ');
        let (word, epoch) = (words.next()?, words.next()?.parse().ok()?);
        let side = match words.next() {
            Some("source") => Some(Side::Source),
            Some("destination") => Some(Side::Destination),
            None => None,
            Some(_) => return None,
        };
        let event = match (word, side) {
            ("starts", Some(side)) => Self::Starts { side, epoch },
            ("stops", Some(side)) => Self::Stops { side, epoch },
            ("kept-out", Some(side)) => Self::KeptOut { side, epoch },
            ("claimed", None) => Self::Claimed { epoch },
            ("two-running", None) => Self::TwoRunning { epoch },
            ("fenced", None) => Self::Fenced { epoch },
            _ => return None,
        };
        words.next().is_none().then_some(event)
    }
}

/// The device.
#[derive(Debug, Default)]
pub struct Witness {
    seen: Seen,
    /// It decides, and not only looks.
    decides: bool,
    /// Where the other process has it, too.
    file: Option<File>,
}

/// What follows from the events.
#[derive(Clone, Debug, Default)]
struct Seen {
    running: [bool; 2],
    /// The newest generation that a destination has taken, and the newest that a source has taken back.
    claimed: Option<u64>,
    fenced: Option<u64>,
    events: Vec<Event>,
}

impl Seen {
    fn take(&mut self, event: Event) {
        match event {
            Event::Starts { side, .. } => self.running[side as usize] = true,
            Event::Stops { side, .. } => self.running[side as usize] = false,
            Event::Claimed { epoch } => self.claimed = self.claimed.max(Some(epoch)),
            Event::Fenced { epoch } => self.fenced = self.fenced.max(Some(epoch)),
            Event::TwoRunning { .. } | Event::KeptOut { .. } => {}
        }
        self.events.push(event);
    }
}

impl Witness {
    /// A device that only looks on.
    pub fn new() -> Self {
        let seen = Seen { running: [true, false], ..Seen::default() };
        Self { seen, ..Self::default() }
    }

    /// One whose generation decides who may run.
    pub fn deciding() -> Self {
        Self { decides: true, ..Self::new() }
    }

    /// One that decides, and that another process has, too. The source runs its guest before the first line.
    pub fn shared(path: &Path) -> io::Result<Self> {
        let file = File::options().read(true).append(true).create(true).open(path)?;
        let mut witness = Self { file: Some(file), ..Self::deciding() };
        witness.within(|_| ())?;
        Ok(witness)
    }

    pub fn events(&self) -> &[Event] {
        &self.seen.events
    }

    pub fn runs(&self, side: Side) -> bool {
        self.seen.running[side as usize]
    }

    /// How many run the guest.
    pub fn runners(&self) -> usize {
        self.seen.running.iter().filter(|runs| **runs).count()
    }

    /// Whether both have run it at once.
    pub fn two_running(&self) -> bool {
        self.seen.events.iter().any(|event| matches!(event, Event::TwoRunning { .. }))
    }

    /// A destination wants to run the guest. `false`: it may not.
    pub fn claim(&mut self, epoch: u64) -> bool {
        if !self.decides {
            return true;
        }
        let claimed = self.within(|seen| {
            let kept_out = seen.fenced >= Some(epoch);
            seen.take(match kept_out {
                true => Event::KeptOut { side: Side::Destination, epoch },
                false => Event::Claimed { epoch },
            });
            !kept_out
        });
        // A device that does not answer has not said yes.
        claimed.unwrap_or(false)
    }

    /// A source that has heard nothing wants its guest back. `false`: the destination has it, or nobody can tell.
    pub fn fence(&mut self, epoch: u64) -> bool {
        let decides = self.decides;
        let fenced = self.within(|seen| {
            let free = decides && seen.claimed < Some(epoch);
            if free {
                seen.take(Event::Fenced { epoch });
            }
            free
        });
        fenced.unwrap_or(false)
    }

    /// A side runs the guest from here on. Who may is decided before; that a device misses it changes nothing about it.
    pub fn starts(&mut self, side: Side, epoch: u64) {
        let _ = self.within(|seen| {
            if !seen.running[side as usize] {
                seen.take(Event::Starts { side, epoch });
            }
            if seen.running == [true; 2] {
                seen.take(Event::TwoRunning { epoch });
            }
        });
    }

    pub fn stops(&mut self, side: Side, epoch: u64) {
        let _ = self.within(|seen| {
            if seen.running[side as usize] {
                seen.take(Event::Stops { side, epoch });
            }
        });
    }

    /// Looks and acts while nobody else does.
    fn within<T>(&mut self, act: impl FnOnce(&mut Seen) -> T) -> io::Result<T> {
        let Some(file) = &mut self.file else { return Ok(act(&mut self.seen)) };
        file.lock()?;
        let done = read(file).and_then(|mut seen| {
            let known = seen.events.len();
            let result = act(&mut seen);
            let lines: String = seen.events[known..].iter().map(|event| event.line() + "\n").collect();
            file.write_all(lines.as_bytes())?;
            file.sync_data()?;
            self.seen = seen;
            Ok(result)
        });
        file.unlock()?;
        done
    }
}

/// All that a file tells.
fn read(file: &mut File) -> io::Result<Seen> {
    use std::io::{Seek, SeekFrom};
    let mut text = String::new();
    file.seek(SeekFrom::Start(0))?;
    file.read_to_string(&mut text)?;
    let mut seen = Seen { running: [true, false], ..Seen::default() };
    for line in text.lines() {
        let event = Event::read(line).ok_or_else(|| {
            io::Error::new(io::ErrorKind::InvalidData, format!("`{line}` is no line of a witness"))
        })?;
        seen.take(event);
    }
    Ok(seen)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_that_run_are_seen_and_a_generation_keeps_one_of_them_out() {
        let mut witness = Witness::new();
        witness.stops(Side::Source, 1);
        witness.starts(Side::Destination, 1);
        assert!(!witness.two_running());
        assert!(!witness.fence(1), "it only looks on");
        witness.starts(Side::Source, 1);
        assert!(witness.two_running());

        let mut witness = Witness::deciding();
        assert!(witness.fence(1) && !witness.claim(1) && witness.claim(2));
        assert!(!witness.fence(2));
    }

    #[test]
    fn two_processes_see_one_device() -> io::Result<()> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("witness");
        let (mut source, mut destination) = (Witness::shared(&path)?, Witness::shared(&path)?);
        source.stops(Side::Source, 3);
        assert!(destination.claim(3));
        destination.starts(Side::Destination, 3);
        assert!(!source.fence(3), "the destination was first");
        source.starts(Side::Source, 3);
        assert!(source.two_running() && source.runners() == 2);
        assert!(!destination.two_running(), "it has not looked since");
        destination.stops(Side::Destination, 3);
        assert!(destination.two_running() && destination.runners() == 1);
        assert!(source.fence(4) && !destination.claim(4));
        std::fs::write(&path, "GET / HTTP/1.1\n")?;
        assert!(Witness::shared(&path).is_err() && !destination.claim(9) && !source.fence(9));
        Ok(())
    }
}
