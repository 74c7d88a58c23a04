//! Post-copy: the source serves what its guest has left behind.

use super::Page;
use crate::{
    Error,
    link::{Incoming, Renew, Wire},
    stream::{Pages, Record, Run},
};
use std::collections::BTreeMap;
use vmtape_arch::PAGE_SIZE;

/// Pages that go along with each answer, though nobody has asked for them.
const PUSHED: usize = 16;

/// The pages of a guest that runs elsewhere.
pub struct Server {
    wire: Wire,
    pages: BTreeMap<Page, [u8; PAGE_SIZE as usize]>,
    /// Those that were not sent.
    left: Vec<Page>,
}

impl Server {
    pub(super) fn new(wire: Wire, pages: BTreeMap<Page, [u8; PAGE_SIZE as usize]>) -> Self {
        let left = pages.keys().rev().copied().collect();
        Self { wire, pages, left }
    }

    /// Answers until the destination has everything. A link that breaks before is made anew; where it cannot be, some pages are left.
    pub fn serve(&mut self, renew: Renew) -> usize {
        loop {
            // What goes wrong on a link is a link that is no more.
            while let Ok(true) = self.step() {}
            if self.left.is_empty() {
                return 0;
            }
            match renew() {
                Some(link) => self.reconnect(self.wire.renewed(link)),
                None => return self.left.len(),
            }
        }
    }

    /// Answers what was asked. `false`: nothing was, or the destination has left.
    pub fn step(&mut self) -> Result<bool, Error> {
        match self.wire.receive()? {
            Incoming::Record(Record::Request { slot, page }) => self.answer((slot, page)).map(|()| true),
            Incoming::Record(Record::Received { slot, runs }) => {
                self.left.retain(|page| page.0 != slot);
                let has = |page: u64| runs.iter().any(|(first, count)| page.wrapping_sub(*first) < *count);
                let lacks = self.pages.keys().rev().filter(|page| page.0 == slot && !has(page.1));
                self.left.extend(lacks);
                Ok(true)
            }
            Incoming::Record(_) => Ok(true),
            Incoming::Nothing | Incoming::Closed => Ok(false),
        }
    }

    /// Goes on over another link.
    pub(crate) fn reconnect(&mut self, wire: Wire) {
        self.wire = wire;
    }

    /// Pages that were not sent.
    pub fn left(&self) -> usize {
        self.left.len()
    }

    fn answer(&mut self, wanted: Page) -> Result<(), Error> {
        let mut pages = vec![wanted];
        let mut rest = self.left.clone();
        rest.retain(|page| *page != wanted);
        while pages.len() <= PUSHED
            && let Some(page) = rest.pop()
        {
            pages.push(page);
        }
        let run = |(slot, first): Page| Run {
            slot,
            first,
            pages: self.pages.get(&(slot, first)).map_or(Pages::Zero(1), |bytes| Pages::Bytes(vec![*bytes])),
        };
        let runs = pages.into_iter().map(run).collect();
        self.wire.send(&Record::Pages(runs))?;
        // What could not be sent is still here to be sent.
        self.left = rest;
        Ok(())
    }
}
