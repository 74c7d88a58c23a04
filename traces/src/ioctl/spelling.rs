//! How the command line spells an ioctl's arguments: words with commas between them.

use super::Pages;
use vmtape_arch::{memory::Supply, query::Query};

/// The words of one option that nobody has taken yet.
pub struct Spelling<'a> {
    words: Vec<&'a str>,
    /// What follows the equals sign of the word that was taken last.
    after_equals: Option<&'a str>,
    /// The slot that is free next.
    next_slot: &'a mut u32,
}

impl<'a> Spelling<'a> {
    /// `next_slot`: the slot of an option that names none; it is counted up.
    pub fn new(words: Vec<&'a str>, next_slot: &'a mut u32) -> Self {
        Self { words, after_equals: None, next_slot }
    }

    /// Whether every word had its use.
    pub fn done(&self) -> Result<(), String> {
        self.words.first().map_or(Ok(()), |word| Err(format!("`{word}` means nothing here")))
    }

    /// Takes the value of `key=VALUE`.
    fn value(&mut self, key: &str) -> Option<&'a str> {
        let value = |word: &&'a str| word.split_once('=').filter(|(k, _)| *k == key).map(|(_, value)| value);
        let at = self.words.iter().position(|word| value(word).is_some())?;
        value(&self.words.remove(at))
    }

    /// `vcpu=N`; zero without.
    pub(super) fn vcpu(&mut self) -> Result<u32, String> {
        self.value("vcpu").map_or(Ok(0), number)
    }

    /// `slot=N`; without, the next that is free.
    pub(super) fn slot(&mut self) -> Result<u32, String> {
        if let Some(slot) = self.value("slot") {
            return number(slot);
        }
        *self.next_slot += 1;
        Ok(*self.next_slot - 1)
    }

    /// `key=NUMBER`; zero without.
    pub(super) fn number_or_zero<T: TryFrom<u64> + Default>(&mut self, key: &str) -> Result<T, String> {
        self.value(key).map_or(Ok(T::default()), number)
    }

    /// `key=NUMBER`.
    pub(super) fn number_of<T: TryFrom<u64>>(&mut self, key: &str) -> Result<T, String> {
        number(self.value(key).ok_or_else(|| format!("{key}=N is needed"))?)
    }

    /// A word that is a number, where there may be a `key=` beside it that is read later.
    pub(super) fn number_before<T: TryFrom<u64>>(&mut self, key: &str) -> Result<T, String> {
        let at = self.words.iter().position(|word| word.split_once('=').is_none_or(|(k, _)| k != key));
        number(self.words.remove(at.ok_or("a number is needed")?))
    }

    /// `key=PAGES`; without, all.
    pub(super) fn pages(&mut self, key: &str) -> Result<String, String> {
        let text = self.value(key).unwrap_or("all");
        Pages::parse(text).map(|_| text.to_owned())
    }

    /// `key=BYTES`.
    pub(super) fn bytes(&mut self, key: &str) -> Result<u64, String> {
        bytes(self.value(key).ok_or_else(|| format!("{key}={} is needed", key[..1].to_uppercase()))?)
    }

    /// `key=BYTES`; zero without.
    pub(super) fn bytes_or_zero(&mut self, key: &str) -> Result<u64, String> {
        self.value(key).map_or(Ok(0), bytes)
    }

    /// `key=SUPPLY`; on demand without.
    pub(super) fn supply(&mut self, key: &str) -> Result<Supply, String> {
        let Some(name) = self.value(key) else { return Ok(Supply::DEMAND) };
        Supply::from_name(name).ok_or_else(|| {
            let names: Vec<_> = Supply::NAMED.iter().map(|(_, name)| *name).collect();
            format!("`{key}={name}`: one of {} is needed", names.join(", "))
        })
    }

    /// A word that is a number.
    pub(super) fn number<T: TryFrom<u64>>(&mut self) -> Result<T, String> {
        number(self.words.pop().ok_or("a number is needed")?)
    }

    /// The first half of `NUMBER=NUMBER`.
    pub(super) fn before_equals<T: TryFrom<u64>>(&mut self) -> Result<T, String> {
        let word = self.words.pop().ok_or("INDEX=VALUE is needed")?;
        let (before, after) = word.split_once('=').ok_or_else(|| format!("`{word}` is not INDEX=VALUE"))?;
        self.after_equals = Some(after);
        number(before)
    }

    /// Its second half.
    pub(super) fn after_equals<T: TryFrom<u64>>(&mut self) -> Result<T, String> {
        number(self.after_equals.take().unwrap_or_default())
    }

    /// The name of a query.
    pub(super) fn query(&mut self) -> Result<Query, String> {
        let name = self.words.pop().unwrap_or_default();
        Query::from_name(name)
            .ok_or_else(|| format!("`{name}` is nothing that can be asked for (see --help)"))
    }

    /// All words that are left, with their commas.
    pub(super) fn rest(&mut self, needed: &str) -> Result<String, String> {
        let rest = std::mem::take(&mut self.words).join(",");
        if rest.is_empty() { Err(needed.to_owned()) } else { Ok(rest) }
    }
}

/// A number in C's decimal or hexadecimal spelling.
fn number<T: TryFrom<u64>>(text: &str) -> Result<T, String> {
    let parsed = match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => text.parse(),
    };
    let number = parsed.ok().and_then(|number| number.try_into().ok());
    number.ok_or_else(|| format!("`{text}` is no number, or too large a one"))
}

/// Bytes, or with a suffix K, M, G.
fn bytes(text: &str) -> Result<u64, String> {
    let shift = match text.chars().last() {
        Some('k' | 'K') => 10,
        Some('m' | 'M') => 20,
        Some('g' | 'G') => 30,
        _ => return number(text),
    };
    let digits: u64 = number(&text[..text.len() - 1])?;
    digits.checked_mul(1 << shift).ok_or_else(|| format!("`{text}` is not a size of memory"))
}
