//! How the two sides reach each other.

mod channel;
mod socket;
mod wire;

pub use channel::{Channel, pair};
pub use socket::{Address, Listener, Socket};
pub use wire::{Incoming, Wire};

use thiserror::Error;

/// A way to the peer and back, in order. Bytes may come in other pieces than they were sent in.
pub trait Link {
    fn send(&mut self, bytes: &[u8]) -> Result<(), Broken>;

    /// What has arrived. A link between processes waits for it.
    fn receive(&mut self) -> Result<Received, Broken>;

    /// Whether the peer has read enough of what was sent before.
    fn has_room(&self) -> bool {
        true
    }

    /// Nothing is sent or received any more.
    fn close(&mut self);
}

/// Makes a new link where one is broken; `None`: the peer does not come.
pub type Renew<'a> = &'a mut dyn FnMut() -> Option<Box<dyn Link>>;

/// What comes out of a link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Received {
    Bytes(Vec<u8>),
    /// Nothing for now.
    Nothing,
    /// The peer has left.
    Closed,
}

/// The link is broken.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("the link is broken: {why}")]
pub struct Broken {
    /// Bytes of what was to be sent that were handed over.
    pub written: usize,
    pub why: String,
}
