//! How memory of which little is in use is saved: the words that differ from what fills the rest.

use serde::de::Error;

const WORD: usize = size_of::<u64>();

/// Words by their number.
pub type Words = Vec<(u16, u64)>;

/// The words that are not `filling`.
pub fn words(bytes: &[u8], filling: u64) -> Words {
    let words = bytes.as_chunks::<WORD>().0.iter().map(|word| u64::from_le_bytes(*word));
    (0..).zip(words).filter(|(_, word)| *word != filling).collect()
}

/// Puts them back.
pub fn fill<E: Error>(bytes: &mut [u8], words: &Words) -> Result<(), E> {
    let room = bytes.as_chunks_mut::<WORD>().0;
    for (number, word) in words {
        let to = room.get_mut(usize::from(*number)).ok_or_else(|| E::custom("a word behind the end"))?;
        *to = word.to_le_bytes();
    }
    Ok(())
}
