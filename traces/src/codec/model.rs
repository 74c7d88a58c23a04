//! What encoder and decoder both remember, so that they predict alike.

use crate::flat::{MAX_WORDS, View, tag};

/// Contexts are remembered by their high 16 bits: a new one takes the place of an old one with the same.
const PLACES: usize = 1 << 16;
/// Tags whose last event is remembered.
pub const TAGS: usize = 512;

/// Words of an event, and room that makes copying them cheap.
const WORDS: usize = MAX_WORDS.next_power_of_two();
/// Words that are copied at once.
const STEP: usize = 8;

/// The last event in a context.
pub struct Slot {
    context: u64,
    pub tag: u64,
    /// Zero behind the event's own.
    words: [u64; WORDS],
    count: usize,
    /// Per word: how far back the word was last found, or zero where its last value is the prediction.
    back: [u8; WORDS],
    /// A bit per word whose `back` is not zero.
    pub found: u64,
    pub blob: Vec<u8>,
}

impl Slot {
    fn new(context: u64, tag: u64) -> Self {
        let (words, back) = ([0; WORDS], [0; WORDS]);
        Self { context, tag, words, count: 0, back, found: 0, blob: Vec::new() }
    }

    /// The event's words.
    pub fn words(&self) -> &[u64] {
        &self.words[..self.count]
    }

    /// A word, and how far back it was last found.
    #[inline]
    pub fn word(&self, n: usize) -> (u64, u8) {
        (self.words[n % WORDS], self.back[n % WORDS])
    }

    #[inline]
    pub fn set_word(&mut self, n: usize, word: u64) {
        self.words[n % WORDS] = word;
    }

    /// Where a word was last found.
    pub fn set_back(&mut self, word: usize, back: u8) {
        self.back[word % WORDS] = back;
        self.found = self.found & !(1 << word) | u64::from(back != 0) << word;
    }
}

/// Words that are remembered.
const MEMORY: usize = 256;
/// Words until the last ones move to the front.
const ROOM: usize = 16 * MEMORY;

/// The last 256 words, which are zero at first: the end of a long row.
pub struct Recent {
    words: Box<[u64; ROOM]>,
    len: usize,
}

impl Recent {
    fn new() -> Self {
        Self { words: Box::new([0; ROOM]), len: MEMORY }
    }

    fn make_room(&mut self) {
        if self.len > ROOM - WORDS {
            self.words.copy_within(self.len - MEMORY..self.len, 0);
            self.len = MEMORY;
        }
    }

    /// Appends an event's words; gives the place of the first.
    pub fn push(&mut self, words: &[u64]) -> usize {
        self.make_room();
        let at = self.len;
        self.len = at + words.len();
        self.words[at..self.len].copy_from_slice(words);
        at
    }

    /// Appends the words of a slot's event, as [`Recent::push`].
    #[inline]
    pub fn push_slot(&mut self, slot: &Slot) -> usize {
        self.make_room();
        let at = self.len;
        self.len = at + slot.count;
        let (from, to) = (slot.words.as_chunks::<STEP>().0, self.words[at..].as_chunks_mut::<STEP>().0);
        for (to, from) in to.iter_mut().zip(from).take(slot.count.div_ceil(STEP)) {
            *to = *from;
        }
        at
    }

    /// Replaces an appended word.
    #[inline]
    pub fn set(&mut self, at: usize, word: u64) {
        self.words[at] = word;
    }

    /// The word `back` words before a place.
    #[inline]
    pub fn get(&self, at: usize, back: u8) -> u64 {
        self.words[at - usize::from(back)]
    }

    /// How far before a place a word is, the nearest first.
    pub fn find(&self, at: usize, word: u64) -> Option<u8> {
        // Most words are not there: several are looked at at once.
        let (rest, steps) = self.words[at + 1 - MEMORY..at].as_rchunks::<STEP>();
        let is = |known: &u64| *known == word;
        let among = |known: &[u64], before: usize| {
            known.iter().rev().position(is).map(|found| (before + found) as u8 + 1)
        };
        let step = steps.iter().rev().position(|step| step.iter().fold(false, |any, known| any | is(known)));
        match step {
            Some(step) => among(&steps[steps.len() - 1 - step], step * STEP),
            None => among(rest, steps.len() * STEP),
        }
    }
}

/// The memory of one chunk.
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
            recent: Recent::new(),
            context: 0,
            slot: None,
            exit: 0,
            previous_exit: 0,
        }
    }

    /// The slot that predicts the next event.
    #[inline]
    pub fn predicted(&self) -> Option<&Slot> {
        self.slot.map(|slot| &self.slots[slot])
    }

    /// Predicts an event that was not predicted, now that its tag is known: by the last event with that tag.
    pub fn unpredicted(&mut self, tag: u64, count: usize) {
        let mut slot = Slot::new(self.context, tag);
        let last =
            self.last.get(tag as usize).and_then(|last| self.slots.get((*last as usize).wrapping_sub(1)));
        if let Some(last) = last.filter(|last| last.tag == tag) {
            slot.words[..count].copy_from_slice(&last.words[..count]);
            slot.back[..count].copy_from_slice(&last.back[..count]);
            slot.found = last.found & ((1 << count) - 1);
        }
        slot.count = count;
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
    #[inline]
    pub fn current(&mut self) -> (&mut Slot, &mut Recent) {
        let slot = self.slot.expect("an event is predicted or has got a slot");
        (&mut self.slots[slot], &mut self.recent)
    }

    /// The event in a slot.
    #[inline]
    pub fn event(&self, slot: usize) -> View<'_> {
        self.slots.get(slot).map_or(View::default(), |slot| View {
            tag: slot.tag,
            words: slot.words(),
            blob: &slot.blob,
        })
    }

    /// Goes on to the context after the event that the current slot holds now; gives that slot.
    #[inline]
    pub fn advance(&mut self) -> usize {
        let at = self.slot.expect("an event is predicted or has got a slot");
        let event = &self.slots[at];
        if let Some(last) = self.last.get_mut(event.tag as usize) {
            *last = at as u32 + 1;
        }
        self.context = match event.tag {
            tag::EXIT => {
                let key = event.words().iter().skip(2).take(3).fold(0, |key, word| mix(key, *word));
                self.previous_exit = std::mem::replace(&mut self.exit, key);
                key
            }
            tag::RESUME => mix(mix(self.context, event.tag), self.previous_exit),
            _ => mix(self.context, event.tag.wrapping_add(event.count as u64)),
        };
        let slot = (self.places[(self.context >> 48) as usize] as usize).checked_sub(1);
        self.slot = slot.filter(|slot| self.slots[*slot].context == self.context);
        at
    }
}
