//! `struct list_head`: a doubly linked list whose changes are single stores, so that an NMI between any two of them sees what
//! the kernel's would.
//!
//! See: Linux include/linux/list.h __list_add(), list_del(), list_for_each_entry(), include/linux/poison.h, as of 6.12

use serde::{Deserialize, Serialize};

/// What a pointer to a `list_head` points to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Pointer {
    /// Memory that nobody has initialized.
    #[default]
    Null,
    /// The list's head.
    Head,
    /// The link of an entry.
    Entry(u32),
    /// LIST_POISON1, LIST_POISON2: an entry that is off its list.
    Poison,
}

/// The two pointers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListHead {
    pub next: Pointer,
    pub prev: Pointer,
}

impl ListHead {
    /// INIT_LIST_HEAD.
    pub const EMPTY: Self = Self { next: Pointer::Head, prev: Pointer::Head };

    pub fn is_initialized(&self) -> bool {
        self.next != Pointer::Null
    }
}

/// Which of the two a store goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Field {
    Next,
    Prev,
}

/// One store, and how list.h writes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Store {
    of: Pointer,
    field: Field,
    value: Pointer,
    pub text: &'static str,
}

/// A list whose entries have their links somewhere.
pub trait List {
    fn at(&self, node: Pointer) -> ListHead;
    fn at_mut(&mut self, node: Pointer) -> &mut ListHead;

    fn store(&mut self, store: Store) {
        let node = self.at_mut(store.of);
        match store.field {
            Field::Next => node.next = store.value,
            Field::Prev => node.prev = store.value,
        }
    }
}

/// A walk that left the list: the kernel faults at an address that is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadPointer(pub Pointer);

/// `list_add(new, head)`: the last store makes the entry one of the list.
pub fn add(list: &dyn List, new: u32) -> [Store; 4] {
    let (new, prev, next) = (Pointer::Entry(new), Pointer::Head, list.at(Pointer::Head).next);
    [
        Store { of: next, field: Field::Prev, value: new, text: "next->prev = new" },
        Store { of: new, field: Field::Next, value: next, text: "new->next = next" },
        Store { of: new, field: Field::Prev, value: prev, text: "new->prev = prev" },
        Store { of: prev, field: Field::Next, value: new, text: "prev->next = new" },
    ]
}

/// `list_del(entry)`: the second store takes it out.
pub fn delete(list: &dyn List, entry: u32) -> [Store; 4] {
    let entry = Pointer::Entry(entry);
    let ListHead { next, prev } = list.at(entry);
    [
        Store { of: next, field: Field::Prev, value: prev, text: "next->prev = prev" },
        Store { of: prev, field: Field::Next, value: next, text: "prev->next = next" },
        Store { of: entry, field: Field::Next, value: Pointer::Poison, text: "entry->next = LIST_POISON1" },
        Store { of: entry, field: Field::Prev, value: Pointer::Poison, text: "entry->prev = LIST_POISON2" },
    ]
}

/// `list_for_each_entry`: it follows `next` only. The entries, in order, and how the walk ended.
pub fn walk(list: &dyn List) -> (Vec<u32>, Result<(), BadPointer>) {
    let mut entries = Vec::new();
    let mut node = list.at(Pointer::Head).next;
    while let Pointer::Entry(entry) = node {
        entries.push(entry);
        node = list.at(node).next;
    }
    let ended = if node == Pointer::Head { Ok(()) } else { Err(BadPointer(node)) };
    (entries, ended)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A head, and so many links.
    struct Links(ListHead, Vec<ListHead>);

    impl List for Links {
        fn at(&self, node: Pointer) -> ListHead {
            match node {
                Pointer::Entry(n) => self.1[n as usize],
                _ => self.0,
            }
        }

        fn at_mut(&mut self, node: Pointer) -> &mut ListHead {
            match node {
                Pointer::Entry(n) => &mut self.1[n as usize],
                _ => &mut self.0,
            }
        }
    }

    fn list(entries: u32) -> Links {
        let mut list = Links(ListHead::EMPTY, vec![ListHead::default(); entries as usize + 1]);
        for entry in 0..entries {
            add(&list, entry).into_iter().for_each(|store| list.store(store));
        }
        list
    }

    /// Walks after each of the stores.
    fn walks(list: &mut Links, stores: [Store; 4]) -> Vec<Vec<u32>> {
        let walks = stores.into_iter().map(|store| {
            list.store(store);
            let (entries, ended) = walk(list);
            assert_eq!(ended, Ok(()));
            entries
        });
        walks.collect()
    }

    #[test]
    fn an_entry_comes_and_goes_with_one_store() {
        for length in 0..=4 {
            let mut list = list(length);
            let old: Vec<u32> = (0..length).rev().collect();
            let new = [&[length][..], &old].concat();
            let stores = add(&list, length);
            assert_eq!(walks(&mut list, stores), [old.clone(), old.clone(), old, new.clone()]);
            for entry in 0..=length {
                let mut list = Links(list.0, list.1.clone());
                let left: Vec<u32> = new.iter().copied().filter(|other| *other != entry).collect();
                let stores = delete(&list, entry);
                assert_eq!(walks(&mut list, stores), [new.clone(), left.clone(), left.clone(), left]);
            }
        }
    }

    #[test]
    fn a_head_of_zeroes_leads_nowhere() {
        let list = Links(ListHead::default(), Vec::new());
        assert_eq!(walk(&list), (Vec::new(), Err(BadPointer(Pointer::Null))));
    }
}
