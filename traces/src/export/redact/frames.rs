//! A permutation of guest physical addresses by a key.
//!
//! It keeps what a verdict goes by: pages and large pages stay whole, two addresses share a region of 2 MiB or 1 GiB exactly
//! if they did before, and from 1 GiB on every address needs as many bits as before. Addresses that mean the same in every
//! machine stay where they are: the APICs, and what AMD's hosts keep for HyperTransport.

use std::{cell::RefCell, collections::BTreeMap};
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// Entries of a region: 4 KiB pages in 2 MiB, those in 1 GiB.
const ENTRIES: u64 = 512;
const ENTRY_BITS: u32 = 9;
const PAGE_SHIFT: u32 = 12;
/// Regions of 1 GiB by their number: 64 bits of address less 30.
const GIB_SHIFT: u32 = 30;
const GIB: u64 = 1 << GIB_SHIFT;
/// The GiB in which the APICs are, and their regions of 2 MiB in it.
const APIC_GIB: u64 = 3;
const APICS: [u64; 2] = [0x1f6, 0x1f7];
/// Widths whose last 12 GiB are kept.
const TOP_WIDTHS: std::ops::RangeInclusive<u32> = 40..=52;
const TOP: u64 = 12;

/// How a region's parts change places.
type Places = [u16; ENTRIES as usize];

/// The permutation of one key.
pub struct Frames {
    key: u64,
    /// Regions that were asked about, by what is in front of them.
    regions: RefCell<BTreeMap<u64, Places>>,
}

impl Frames {
    pub fn new(key: &[u8]) -> Self {
        Self { key: xxh3_64_with_seed(key, 0), regions: RefCell::default() }
    }

    /// A number that stands for some bytes.
    pub fn digest(&self, what: u64, bytes: &[u8]) -> u64 {
        xxh3_64_with_seed(bytes, self.key ^ what)
    }

    /// Where an address goes: its page does, and its place in the page stays.
    pub fn address(&self, gpa: u64) -> u64 {
        self.frame(gpa >> PAGE_SHIFT, 1) << PAGE_SHIFT | gpa & ((1 << PAGE_SHIFT) - 1)
    }

    /// Where the first frame of a page of this level goes.
    pub fn frame(&self, gfn: u64, level: u8) -> u64 {
        let (gib, rest) = (gfn >> (2 * ENTRY_BITS), gfn & ((1 << (2 * ENTRY_BITS)) - 1));
        let (large, small) = (rest >> ENTRY_BITS, rest & (ENTRIES - 1));
        if gib != APIC_GIB && stays(gib) {
            return gfn;
        }
        let to_gib = self.gib(gib);
        let (to_large, to_small) = match (level, gib == APIC_GIB && APICS.contains(&large)) {
            (3.., _) | (_, true) => (large, small),
            (2, _) => (self.large(gib, large), small),
            _ => (self.large(gib, large), self.place(1 << 63 | gib << ENTRY_BITS | large, small)),
        };
        to_gib << (2 * ENTRY_BITS) | to_large << ENTRY_BITS | to_small
    }

    /// A region of 2 MiB within its GiB, around those of the APICs.
    fn large(&self, gib: u64, large: u64) -> u64 {
        let mut to = self.place(gib, large);
        while gib == APIC_GIB && APICS.contains(&to) {
            to = self.place(gib, to);
        }
        to
    }

    fn place(&self, region: u64, part: u64) -> u64 {
        let mut regions = self.regions.borrow_mut();
        let places = regions.entry(region).or_insert_with(|| {
            let mut order: Vec<(u64, u16)> =
                (0..ENTRIES as u16).map(|part| (self.digest(region, &part.to_le_bytes()), part)).collect();
            order.sort_unstable();
            std::array::from_fn(|n| order[n].1)
        });
        places[part as usize].into()
    }

    /// A GiB among those of as many bits.
    fn gib(&self, gib: u64) -> u64 {
        let bits = u64::BITS - gib.leading_zeros();
        if bits < 2 || stays(gib) {
            return gib;
        }
        let mut to = gib;
        loop {
            to = self.mix(to, bits - 1);
            if !stays(to) {
                return to;
            }
        }
    }

    /// A permutation of the numbers with the same highest bit: rounds that each change one half by the other.
    fn mix(&self, value: u64, below: u32) -> u64 {
        const ROUNDS: u64 = 8;
        let mask = (1u64 << below) - 1;
        let (top, mut low) = (value & !mask, value & mask);
        if below == 1 {
            return top | low ^ (self.digest(top, b"bit") & 1);
        }
        let right = below / 2;
        let halves = [((1u64 << right) - 1, right), ((1u64 << (below - right)) - 1, 0)];
        for round in 0..ROUNDS {
            // The right half in even rounds, the left in odd ones.
            let (left_mask, shift) = (halves[1].0, right);
            let right_mask = halves[0].0;
            let (left, rest) = (low >> shift & left_mask, low & right_mask);
            low = match round % 2 {
                0 => {
                    left << shift
                        | (rest ^ self.digest(round << 8 | u64::from(below), &left.to_le_bytes()))
                            & right_mask
                }
                _ => {
                    ((left ^ self.digest(round << 8 | u64::from(below), &rest.to_le_bytes())) & left_mask)
                        << shift
                        | rest
                }
            };
        }
        top | low
    }
}

/// Whether a GiB means the same on every machine.
fn stays(gib: u64) -> bool {
    /// 0xfd_0000_0000 to 0xff_ffff_ffff.
    const HYPER_TRANSPORT: std::ops::RangeInclusive<u64> = 0xfd_0000_0000 / GIB..=0xff_ffff_ffff / GIB;
    let is_top = |width: u32| {
        let end = 1u64 << (width - GIB_SHIFT);
        (end - TOP..end).contains(&gib)
    };
    gib == APIC_GIB || HYPER_TRANSPORT.contains(&gib) || TOP_WIDTHS.into_iter().any(is_top)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn addresses_change_places_and_none_is_taken_twice() {
        let frames = Frames::new(b"key");
        let pages: BTreeSet<u64> = (0..4096).map(|page| frames.frame(page, 1)).collect();
        assert_eq!(pages.len(), 4096);
        assert!((0..4096).any(|page| frames.frame(page, 1) != page));
        for bits in 2..14 {
            let all = 1 << bits..1u64 << (bits + 1);
            let to: BTreeSet<u64> = all.clone().map(|gib| frames.gib(gib)).collect();
            assert_eq!(to, all.collect(), "{bits} bits");
        }
        assert_ne!(Frames::new(b"other").frame(0x12345, 1), frames.frame(0x12345, 1));
        assert_eq!(Frames::new(b"key").frame(0x12345, 1), frames.frame(0x12345, 1));
    }

    #[test]
    fn what_a_verdict_goes_by_stays() {
        let frames = Frames::new(b"key");
        for gpa in [1u64 << 30, 0x1_2345_6789, 1 << 39, (1 << 40) + 0x5000, 1 << 45, (1 << 51) + 7] {
            let to = frames.address(gpa);
            assert_eq!(to.leading_zeros(), gpa.leading_zeros(), "{gpa:#x}");
            assert_eq!(to & 0xfff, gpa & 0xfff);
        }
        for kept in [0xfee0_0300, 0xfec0_0010, 0xfd_0000_0000, 0xff_ffff_f000, (1 << 48) - (1 << 30)] {
            assert_eq!(frames.address(kept), kept, "{kept:#x}");
        }
        // Regions stay whole.
        let large = |gfn| frames.frame(gfn, 1) >> 9;
        assert!((0x400..0x600).all(|gfn| large(gfn) == frames.frame(0x400, 2) >> 9));
        assert_eq!(frames.frame(0x400, 2) & 0x1ff, 0);
        assert_eq!(frames.frame(0x4_0000, 3) & 0x3_ffff, 0);
    }
}
