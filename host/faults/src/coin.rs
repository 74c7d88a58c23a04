//! Chance by count: what comes up depends on the seed, on whose coin it is and on how often it was thrown, never on the order in
//! which other coins are.

use rand::Rng;
use rand_pcg::Pcg64;
use xxhash_rust::xxh3::xxh3_128_with_seed;

/// A row of random numbers of which any can be had without those before it.
#[derive(Clone, Copy, Debug)]
pub struct Coin {
    state: u128,
}

/// Every coin draws from the same stream, at another place of it.
const STREAM: u128 = 0xa02_bdbf_7bb3_c0a7;

impl Coin {
    /// `whose`: what tells this coin from the others of the seed.
    pub fn new(seed: u64, whose: &[u8]) -> Self {
        Self { state: xxh3_128_with_seed(whose, seed) }
    }

    /// The `n`-th number.
    pub fn number(&self, n: u64) -> u64 {
        let mut generator = Pcg64::new(self.state, STREAM);
        generator.advance(n.into());
        generator.next_u64()
    }

    /// Whether the `n`-th throw comes up, as it does with this probability.
    pub fn comes_up(&self, n: u64, probability: f64) -> bool {
        /// The numbers that a double holds all of.
        const BITS: u32 = 53;
        let fraction = (self.number(n) >> (64 - BITS)) as f64 / (1u64 << BITS) as f64;
        fraction < probability
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_throw_depends_on_its_number_alone() {
        let coin = Coin::new(7, b"lost-flush");
        let forwards: Vec<_> = (0..100).map(|n| coin.number(n)).collect();
        let backwards: Vec<_> = (0..100).rev().map(|n| coin.number(n)).collect();
        assert!(forwards.iter().eq(backwards.iter().rev()));
        let mut numbers = forwards;
        numbers.extend((0..100).map(|n| Coin::new(8, b"lost-flush").number(n)));
        numbers.extend((0..100).map(|n| Coin::new(7, b"lost-dirty").number(n)));
        numbers.sort_unstable();
        numbers.dedup();
        assert_eq!(numbers.len(), 300);
    }

    #[test]
    fn a_coin_comes_up_as_often_as_it_should() {
        let coin = Coin::new(1, b"");
        let count = |p| (0..10_000).filter(|n| coin.comes_up(*n, p)).count();
        assert_eq!((count(0.0), count(1.0)), (0, 10_000));
        assert!((2_300..2_700).contains(&count(0.25)), "{}", count(0.25));
    }
}
