//! Post-copy: the destination asks for what its guest waits for.
//!
//! A link that breaks pauses the guest, which waits in the middle of an instruction: a new one is made, the destination says what it
//! has, and goes on.

use crate::{
    link::{self, Incoming, Wire},
    points::{MovePoint, Points},
    source::Server,
    stream::{Pages, Record},
};
use std::collections::BTreeMap;
use vmtape_arch::PAGE_SIZE;
use vmtape_machine::{Arrived, Pager};

/// Times that a request is repeated, and that a broken link is made again.
const PATIENCE: usize = 8;

/// Fetches pages from a source.
pub struct Follower {
    wire: Wire,
    /// The source, where it is in this process.
    server: Option<Server>,
    points: Points,
    /// By slot: what has come.
    has: BTreeMap<u32, Vec<u64>>,
}

impl Follower {
    pub(super) fn new(wire: Wire, points: Points) -> Self {
        Self { wire, server: None, points, has: BTreeMap::new() }
    }

    /// With a source that has no process of its own.
    pub(crate) fn beside(mut self, server: Server) -> Self {
        self.server = Some(server);
        self
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
        let Some(server) = &mut self.server else { return false };
        let [here, there] = link::pair(usize::MAX).map(|end| Wire::new(Box::new(end), self.points.clone()));
        server.reconnect(there);
        self.wire = here;
        let known = self.has.iter().map(|(slot, pages)| Record::Received {
            slot: *slot,
            runs: pages.iter().map(|page| (*page, 1)).collect(),
        });
        let known: Vec<_> = known.collect();
        known.iter().all(|record| self.wire.send(record).is_ok())
    }

    fn ask(&mut self, slot: u32, page: u64) -> Option<Vec<Arrived>> {
        self.wire.send(&Record::Request { slot, page }).ok()?;
        if let Some(server) = &mut self.server {
            // What goes wrong on its side is a broken link on this one.
            while let Ok(true) = server.step() {}
        }
        self.take()
    }
}

impl Pager for Follower {
    fn fetch(&mut self, slot: u32, page: u64) -> Vec<Arrived> {
        let points = self.points.clone();
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
