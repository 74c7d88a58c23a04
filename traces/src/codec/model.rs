//! What encoder and decoder both remember, so that they predict alike.

use crate::flat::{View, tag};

/// Contexts are remembered by their high 16 bits: a new one takes the place of an old one with the same.
const PLACES: usize = 1 << 16;
/// Tags whose last event is remembered.
pub const TAGS: usize = 512;

/// The last event in a context.
#[derive(Clone, Default)]
pub struct Slot {
    context: u64,
    pub tag: u64,
    pub words: Vec<u64>,
    /// Per word: how far back the word was last found, or zero where its last value is the prediction.
    pub back: Vec<u8>,
    /// A bit per word whose `back` is not zero.
    pub found: u64,
    pub blob: Vec<u8>,
}

impl Slot {
    /// Where a word was last found.
    pub fn set_back(&mut self, word: usize, back: u8) {
        self.back[word] = back;
        self.found = self.found & !(1 << word) | u64::from(back != 0) << word;
    }
}

/// The last 256 words.
#[derive(Clone)]
pub struct Recent {
    words: [u64; 256],
    next: u8,
}

impl Recent {
    pub fn push(&mut self, word: u64) {
        self.words[usize::from(self.next)] = word;
        self.next = self.next.wrapping_add(1);
    }

    /// Pushes words one after the other.
    pub fn extend(&mut self, words: &[u64]) {
        let next = usize::from(self.next);
        if let Some(room) = self.words[next..].get_mut(..words.len()) {
            room.copy_from_slice(words);
            self.next = self.next.wrapping_add(words.len() as u8);
        } else {
            words.iter().for_each(|word| self.push(*word));
        }
    }

    /// The word `back` words ago, 1 being the last.
    pub fn get(&self, back: u8) -> u64 {
        self.words[usize::from(self.next.wrapping_sub(back))]
    }

    /// How far back a word is, the nearest first.
    pub fn find(&self, word: u64) -> Option<u8> {
        let next = usize::from(self.next);
        let newer = self.words[..next].iter().rposition(|known| *known == word).map(|at| next - at);
        // The word at `next` is 256 back.
        let older = || {
            let at = self.words[next + 1..].iter().rposition(|known| *known == word)?;
            Some(self.words.len() - 1 - at)
        };
        newer.or_else(older).map(|back| back as u8)
    }
}

/// The memory of one chunk.
#[derive(Clone)]
pub struct Model {
    slots: Vec<Slot>,
    /// The slot at each place plus one, or zero.
    places: Vec<u32>,
    /// Likewise the slot of the last event of each tag.
    last: [u32; TAGS],
    pub recent: Recent,
    context: u64,
    /// The slot of the current context.
    slot: Option<usize>,
    exit: u64,
    /// The exit before the current group's.
    previous_exit: u64,
}

/// Mixes a value into a context. The constant is 2^64 divided by the golden ratio.
const fn mix(context: u64, value: u64) -> u64 {
    (context ^ value).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29)
}

impl Model {
    pub fn new() -> Self {
        Self {
            slots: Vec::new(),
            places: vec![0; PLACES],
            last: [0; TAGS],
            recent: Recent { words: [0; 256], next: 0 },
            context: 0,
            slot: None,
            exit: 0,
            previous_exit: 0,
        }
    }

    /// The slot that predicts the next event.
    pub fn predicted(&self) -> Option<&Slot> {
        self.slot.map(|slot| &self.slots[slot])
    }

    /// Predicts an event that was not predicted, now that its tag is known: by the last event with that tag.
    pub fn unpredicted(&mut self, tag: u64, count: usize) {
        let mut slot = Slot { context: self.context, tag, ..Default::default() };
        let last =
            self.last.get(tag as usize).and_then(|last| self.slots.get((*last as usize).wrapping_sub(1)));
        if let Some(last) = last.filter(|last| last.tag == tag) {
            slot.words.clone_from(&last.words);
            slot.back.clone_from(&last.back);
            slot.found = last.found & ((1 << count) - 1);
        }
        slot.words.resize(count, 0);
        slot.back.resize(count, 0);
        let place = &mut self.places[(self.context >> 48) as usize];
        if *place == 0 {
            self.slots.push(slot);
            *place = self.slots.len() as u32;
        } else {
            self.slots[*place as usize - 1] = slot;
        }
        self.slot = Some(*place as usize - 1);
    }

    /// The slot of the current context, which one of the above has made sure of, and the recent words.
    pub fn current(&mut self) -> (&mut Slot, &mut Recent) {
        let slot = self.slot.expect("an event is predicted or has got a slot");
        (&mut self.slots[slot], &mut self.recent)
    }

    /// The event in a slot.
    pub fn event(&self, slot: usize) -> View<'_> {
        self.slots.get(slot).map_or(View::default(), |slot| View {
            tag: slot.tag,
            words: &slot.words,
            blob: &slot.blob,
        })
    }

    /// Goes on to the context after the event that the current slot holds now; gives that slot.
    pub fn advance(&mut self) -> usize {
        let at = self.slot.expect("an event is predicted or has got a slot");
        let event = &self.slots[at];
        if let Some(last) = self.last.get_mut(event.tag as usize) {
            *last = at as u32 + 1;
        }
        self.context = match event.tag {
            tag::EXIT => {
                let key = event.words.iter().skip(2).take(3).fold(0, |key, word| mix(key, *word));
                self.previous_exit = std::mem::replace(&mut self.exit, key);
                key
            }
            tag::RESUME => mix(mix(self.context, event.tag), self.previous_exit),
            _ => mix(self.context, event.tag.wrapping_add(event.words.len() as u64)),
        };
        let slot = (self.places[(self.context >> 48) as usize] as usize).checked_sub(1);
        self.slot = slot.filter(|slot| self.slots[*slot].context == self.context);
        at
    }
}
