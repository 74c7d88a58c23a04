//! Backends that are linked into the program.

use vmtape_abi::{Plugin, import::Backends};

/// A backend that needs no file. Its table and its handshake are those of a library.
#[derive(Clone, Copy, Debug)]
pub struct Embedded {
    link: fn(&'static str) -> Backends,
    build: &'static str,
}

impl Embedded {
    /// `build` is for people, as in a library's table.
    pub const fn new<P: Plugin>(build: &'static str) -> Self {
        Self { link: Backends::linked::<P>, build }
    }

    pub(crate) fn backends(&self) -> Backends {
        (self.link)(self.build)
    }
}
