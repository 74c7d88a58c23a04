//! A guest that has come from another process, once. A comparison may run it several times.

use crate::{Error, player::Player};
use std::{cell::RefCell, collections::BTreeMap, rc::Rc};
use vmtape_machine::{Arrived, Pager};
use vmtape_migrate::destination::Follower;

/// The machine as it arrived, which never runs, and its memory that is still to come.
pub struct Landed {
    player: RefCell<Player>,
    pager: Option<Fetched>,
}

/// Pages that were fetched stay: what runs again waits for the same ones, and gets them from here.
#[derive(Clone)]
struct Fetched(Rc<RefCell<Store>>);

struct Store {
    follower: Follower,
    pages: BTreeMap<(u32, u64), Arrived>,
}

impl Pager for Fetched {
    fn fetch(&mut self, slot: u32, page: u64) -> Vec<Arrived> {
        let Store { follower, pages } = &mut *self.0.borrow_mut();
        if let Some(known) = pages.get(&(slot, page)) {
            return vec![known.clone()];
        }
        let arrived = follower.fetch(slot, page);
        // What came first counts.
        for page in &arrived {
            pages.entry((page.slot, page.page)).or_insert_with(|| page.clone());
        }
        arrived
    }
}

impl Landed {
    pub(crate) fn new(mut player: Player, follower: Option<Follower>) -> Self {
        let store = |follower| Fetched(Rc::new(RefCell::new(Store { follower, pages: BTreeMap::new() })));
        let pager = follower.map(store);
        if let Some(pager) = &pager {
            player.machine.set_pager(Box::new(pager.clone()));
        }
        Self { player: RefCell::new(player), pager }
    }

    pub(crate) fn follows(&self) -> bool {
        self.pager.is_some()
    }

    /// Puts the guest on a machine that was just built.
    pub(crate) fn onto(&self, actual: &mut Player) -> Result<(), Error> {
        let mut player = self.player.borrow_mut();
        actual.machine.take_over(&mut player.machine)?;
        if let Some(pager) = &self.pager {
            let all = player
                .machine
                .following()
                .into_iter()
                .all(|(slot, page)| actual.machine.page_follows(slot, page));
            debug_assert!(all, "it has the same memory");
            actual.machine.set_pager(Box::new(pager.clone()));
        }
        Ok(())
    }

    /// Has the rest of memory come; gives how many pages do not.
    pub(crate) fn pull(&self) -> usize {
        self.player.borrow_mut().machine.pull()
    }
}
