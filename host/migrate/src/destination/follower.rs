//! Post-copy: the destination asks for what its guest waits for.
//!
//! A link that breaks pauses the guest, which waits in the middle of an instruction: a new one is made, the destination says what it
//! has, and goes on.

use crate::{
    link::{self, Incoming, Link, Wire},
    points::{MovePoint, Points},
    source::Server,
    stream::{Pages, Record},
};
use std::collections::BTreeMap;
use vmtape_arch::PAGE_SIZE;
use vmtape_machine::{Arrived, Pager};

/// Times that a request is repeated, and that a broken link is made again.
const PATIENCE: usize = 8;

/// Makes a new link to the source's process; `None`: it does not come.
type NewLink = Box<dyn FnMut() -> Option<Box<dyn Link>>>;

/// Where the source is.
enum Source {
    Nowhere,
    /// In this process.
    Here(Box<Server>),
    /// In one of its own.
    Away(NewLink),
}

/// Fetches pages from a source.
pub struct Follower {
    wire: Wire,
    source: Source,
    points: Points,
    /// By slot: what has come.
    has: BTreeMap<u32, Vec<u64>>,
}

impl Follower {
    pub(super) fn new(wire: Wire, points: Points) -> Self {
        Self { wire, source: Source::Nowhere, points, has: BTreeMap::new() }
    }

    /// With a source that has no process of its own.
    pub(crate) fn beside(self, server: Server) -> Self {
        Self { source: Source::Here(Box::new(server)), ..self }
    }

    /// With a source that comes again where the link breaks.
    pub fn renewed_by(self, renew: NewLink) -> Self {
        Self { source: Source::Away(renew), ..self }
    }

    /// Takes what has come. `None`: the link is broken.
    fn take(&mut self) -> Option<Vec<Arrived>> {
        let mut arrived = Vec::new();
        while let Ok(Incoming::Record(record)) = self.wire.receive() {
            let Record::Pages(runs) = record else { continue };
            for run in runs {
                let zero = [0; PAGE_SIZE as usize];
                for n in 0..run.count() {
                    let bytes = match &run.pages {
                        Pages::Zero(_) => zero,
                        Pages::Bytes(pages) => pages[n as usize],
                    };
                    self.has.entry(run.slot).or_default().push(run.first + n);
                    arrived.push(Arrived { slot: run.slot, page: run.first + n, bytes });
                }
            }
            return Some(arrived);
        }
        None
    }

    /// Makes a new link. `false`: there is nobody to make one with.
    fn recover(&mut self) -> bool {
        self.wire = match &mut self.source {
            Source::Nowhere => return false,
            Source::Here(server) => {
                let [here, there] = link::pair(usize::MAX).map(|end| self.wire.renewed(Box::new(end)));
                server.reconnect(there);
                here
            }
            Source::Away(renew) => match renew() {
                Some(link) => self.wire.renewed(link),
                None => return false,
            },
        };
        let known = self.has.iter().map(|(slot, pages)| Record::Received {
            slot: *slot,
            runs: pages.iter().map(|page| (*page, 1)).collect(),
        });
        let known: Vec<_> = known.collect();
        known.iter().all(|record| self.wire.send(record).is_ok())
    }

    fn ask(&mut self, slot: u32, page: u64) -> Option<Vec<Arrived>> {
        self.wire.send(&Record::Request { slot, page }).ok()?;
        if let Source::Here(server) = &mut self.source {
            // What goes wrong on its side is a broken link on this one.
            while let Ok(true) = server.step() {}
        }
        self.take()
    }
}

impl Pager for Follower {
    fn fetch(&mut self, slot: u32, page: u64) -> Vec<Arrived> {
        let points = self.points.clone();
        points.waits();
        let happens = |point| points.ask(point, slot.into(), page).is_some();
        let mut arrived = Vec::new();
        if happens(MovePoint::REQUEST_NEVER) {
            return arrived;
        }
        for _ in 0..PATIENCE {
            if happens(MovePoint::REQUEST_LOST) {
                continue;
            }
            match self.ask(slot, page) {
                Some(pages) => arrived.extend(pages),
                None if self.recover() => continue,
                None => return arrived,
            }
            if let Some(found) = arrived.iter_mut().find(|found| (found.slot, found.page) == (slot, page)) {
                if happens(MovePoint::REQUEST_ZERO) {
                    found.bytes = [0; PAGE_SIZE as usize];
                }
                break;
            }
        }
        arrived
    }
}
