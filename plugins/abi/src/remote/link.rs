//! One end of the socket between the host's process and the backend's.

use super::message::{Reader, Torn, Writer};
use std::{
    cell::{Cell, RefCell},
    fmt,
    io::{self, ErrorKind, Read, Write},
    os::unix::net::UnixStream,
    time::{Duration, Instant},
};

/// What a message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A call that waits for its answer.
    Call,
    /// A call that has none.
    Post,
    Answer,
}

/// Whose call it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Callee {
    Backend,
    Host,
    Mmu,
    /// What comes before there is a VM.
    Plugin,
}

/// A message.
#[derive(Debug)]
pub struct Frame {
    pub kind: Kind,
    pub callee: Callee,
    /// Which call, in the order of the contract.
    pub call: u32,
    pub payload: Vec<u8>,
}

/// Length, kind, callee, call.
const HEAD: usize = 12;
/// No message comes near it: what a backend keeps is a few megabytes.
const LONGEST: usize = 1 << 30;
/// How long a read waits before the time is looked at.
const LOOK: Duration = Duration::from_millis(250);

/// Says how the other side's process ended. It owns what ends that process, which goes with the link.
pub type Obituary = Box<dyn Fn() -> String>;

/// One end.
pub struct Link {
    stream: UnixStream,
    obituary: Obituary,
    /// How long an outermost call may take.
    limit: Option<Duration>,
    since: Cell<Option<Instant>>,
    /// What is sent with the next message.
    posted: RefCell<Vec<u8>>,
    /// What was received, and how much of it was read.
    received: RefCell<(Vec<u8>, usize)>,
    broken: RefCell<Option<String>>,
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.debug_struct("Link").field("broken", &self.broken).finish_non_exhaustive()
    }
}

impl Link {
    /// `limit`: the most that the other side's answer may take.
    pub fn new(stream: UnixStream, limit: Option<Duration>, obituary: Obituary) -> io::Result<Self> {
        if let Some(limit) = limit {
            stream.set_read_timeout(Some(LOOK.min(limit)))?;
            stream.set_write_timeout(Some(limit))?;
        }
        Ok(Self {
            stream,
            obituary,
            limit,
            since: Cell::new(None),
            posted: RefCell::default(),
            received: RefCell::default(),
            broken: RefCell::default(),
        })
    }

    /// Why nothing goes over it any more.
    pub fn broken(&self) -> Option<String> {
        self.broken.borrow().clone()
    }

    /// From here on the link is broken, for the first reason that was given.
    pub fn break_for(&self, reason: impl Into<String>) {
        self.broken.borrow_mut().get_or_insert_with(|| reason.into());
    }

    /// An outermost call begins.
    pub fn begin(&self) {
        if self.limit.is_some() {
            self.since.set(Some(Instant::now()));
        }
    }

    /// Queues a message.
    pub fn post(&self, kind: Kind, callee: Callee, call: u32, payload: &Writer) {
        let mut posted = self.posted.borrow_mut();
        posted.extend((payload.0.len() as u32).to_le_bytes());
        posted.extend([kind as u8, callee as u8, 0, 0]);
        posted.extend(call.to_le_bytes());
        posted.extend(&payload.0);
    }

    /// Sends what is queued.
    pub fn flush(&self) {
        let mut posted = self.posted.borrow_mut();
        let sent = (&self.stream).write_all(&posted);
        posted.clear();
        if let Err(error) = sent {
            drop(posted);
            self.fail(&error);
        }
    }

    /// The next message of the other side, once what is queued has gone. `None`: the link is broken.
    pub fn next(&self) -> Option<Frame> {
        if self.broken.borrow().is_some() {
            return None;
        }
        self.flush();
        loop {
            match self.take() {
                Ok(Some(frame)) => return Some(frame),
                Ok(None) => self.receive()?,
                Err(Torn) => {
                    self.break_for("its process sent what is no message");
                    return None;
                }
            }
        }
    }

    /// A message out of what was received.
    fn take(&self) -> Result<Option<Frame>, Torn> {
        let mut received = self.received.borrow_mut();
        let (bytes, read) = &mut *received;
        let rest = &bytes[*read..];
        let Some((head, rest)) = rest.split_at_checked(HEAD) else { return Ok(None) };
        let mut head = Reader(head);
        let length = head.plain::<u32>()? as usize;
        if length > LONGEST {
            return Err(Torn);
        }
        let Some(payload) = rest.get(..length) else { return Ok(None) };
        let kind = match head.plain::<u8>()? {
            0 => Kind::Call,
            1 => Kind::Post,
            2 => Kind::Answer,
            _ => return Err(Torn),
        };
        let callee = match head.plain::<u8>()? {
            0 => Callee::Backend,
            1 => Callee::Host,
            2 => Callee::Mmu,
            3 => Callee::Plugin,
            _ => return Err(Torn),
        };
        let _pad = [head.plain::<u8>()?, head.plain::<u8>()?];
        let frame = Frame { kind, callee, call: head.plain()?, payload: payload.to_vec() };
        *read += HEAD + length;
        if *read == bytes.len() {
            bytes.clear();
            *read = 0;
        }
        Ok(Some(frame))
    }

    /// Waits for more bytes.
    fn receive(&self) -> Option<()> {
        let mut piece = [0; 1 << 14];
        loop {
            if let (Some(limit), Some(since)) = (self.limit, self.since.get())
                && since.elapsed() > limit
            {
                self.break_for(format!("its process gave no answer for {} s", limit.as_secs()));
                return None;
            }
            match (&self.stream).read(&mut piece) {
                Ok(0) => {
                    self.break_for((self.obituary)());
                    return None;
                }
                Ok(length) => {
                    let mut received = self.received.borrow_mut();
                    let (bytes, read) = &mut *received;
                    bytes.drain(..std::mem::take(read));
                    bytes.extend(&piece[..length]);
                    return Some(());
                }
                Err(error) if is_early(&error) => {}
                Err(error) => {
                    self.fail(&error);
                    return None;
                }
            }
        }
    }

    fn fail(&self, error: &io::Error) {
        let ended = [ErrorKind::BrokenPipe, ErrorKind::ConnectionReset].contains(&error.kind());
        self.break_for(match ended {
            true => (self.obituary)(),
            false => format!("its process cannot be talked to: {error}"),
        });
    }
}

/// Time to look at the clock, or a signal.
fn is_early(error: &io::Error) -> bool {
    [ErrorKind::WouldBlock, ErrorKind::TimedOut, ErrorKind::Interrupted].contains(&error.kind())
}
