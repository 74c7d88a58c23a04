//! Numbers and sets of numbers as a plan has them.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::{fmt, ops::RangeInclusive, str::FromStr};

/// A 64-bit number: an integer, or hexadecimal text, as TOML's integers have a sign.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Number(pub u64);

/// A number in decimal, or hexadecimal after `0x`; underscores do not count.
pub fn parse(text: &str) -> Option<u64> {
    let text = text.trim().replace('_', "");
    match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    }
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Word {
    Integer(i64),
    Text(String),
}

impl<'de> Deserialize<'de> for Number {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let no = |what: &dyn fmt::Display| de::Error::custom(format!("`{what}` is not a number of 64 bits"));
        match Word::deserialize(from).map_err(|_| no(&"this"))? {
            Word::Integer(value) => u64::try_from(value).map(Self).map_err(|_| no(&value)),
            Word::Text(text) => parse(&text).map(Self).ok_or_else(|| no(&text)),
        }
    }
}

impl Serialize for Number {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match i64::try_from(self.0) {
            Ok(value) => to.serialize_i64(value),
            Err(_) => to.serialize_str(&format!("{:#x}", self.0)),
        }
    }
}

/// Numbers: one, or in a text several and runs of them, with commas between: `"3, 5-9, 0x100-0x1ff"`. `"7-"` has no end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Numbers(Vec<RangeInclusive<u64>>);

impl Numbers {
    pub fn one(number: u64) -> Self {
        Self(vec![number..=number])
    }

    /// Of these numbers, whatever their order.
    pub fn of(numbers: impl IntoIterator<Item = u64>) -> Self {
        Self(numbers.into_iter().map(|number| number..=number).collect())
    }

    pub fn run(run: RangeInclusive<u64>) -> Self {
        Self(vec![run])
    }

    pub fn has(&self, number: u64) -> bool {
        self.0.iter().any(|run| run.contains(&number))
    }

    pub fn runs(&self) -> &[RangeInclusive<u64>] {
        &self.0
    }

    /// The number, where it is one only.
    pub fn single(&self) -> Option<u64> {
        match &self.0[..] {
            [run] if run.start() == run.end() => Some(*run.start()),
            _ => None,
        }
    }

    /// The numbers, if all runs are of one number.
    pub fn listed(&self) -> Option<Vec<u64>> {
        self.0.iter().map(|run| (run.start() == run.end()).then_some(*run.start())).collect()
    }
}

impl FromIterator<RangeInclusive<u64>> for Numbers {
    fn from_iter<I: IntoIterator<Item = RangeInclusive<u64>>>(runs: I) -> Self {
        Self(runs.into_iter().collect())
    }
}

impl FromStr for Numbers {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let no =
            |word: &str| format!("`{word}` is neither a number nor a run of them (as in \"3, 5-9, 20-\")");
        let run = |word: &str| {
            let (first, last) = word.split_once('-').unwrap_or((word, word));
            let first = parse(first).ok_or_else(|| no(word))?;
            let last = if last.trim().is_empty() { u64::MAX } else { parse(last).ok_or_else(|| no(word))? };
            if first <= last { Ok(first..=last) } else { Err(format!("`{word}` ends before it begins")) }
        };
        text.split(',').map(run).collect::<Result<_, _>>().map(Self)
    }
}

impl fmt::Display for Numbers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, run) in self.0.iter().enumerate() {
            let comma = if at == 0 { "" } else { ", " };
            match (*run.start(), *run.end()) {
                (first, last) if first == last => write!(f, "{comma}{first:#x}")?,
                (first, u64::MAX) => write!(f, "{comma}{first:#x}-")?,
                (first, last) => write!(f, "{comma}{first:#x}-{last:#x}")?,
            }
        }
        Ok(())
    }
}

impl<'de> Deserialize<'de> for Numbers {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let no = || de::Error::custom("expected a number, or numbers in a text, as in \"3, 5-9\"");
        match Word::deserialize(from).map_err(|_| no())? {
            Word::Integer(value) => value.try_into().map(Self::one).map_err(|_| no()),
            Word::Text(text) => text.parse().map_err(de::Error::custom),
        }
    }
}

impl Serialize for Numbers {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match self.single() {
            Some(number) => Number(number).serialize(to),
            None => to.collect_str(self),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_of_numbers() {
        let numbers: Numbers = "3, 5-9, 0x100-".parse().unwrap();
        let has = [2, 3, 4, 5, 9, 10, 0xff, 0x100, u64::MAX].map(|number| numbers.has(number));
        assert_eq!(has, [false, true, false, true, true, false, false, true, true]);
        assert_eq!(numbers.to_string().parse(), Ok(numbers));
        for bad in ["", "x", "3,", "9-5", "-3", "1-2-3"] {
            assert!(bad.parse::<Numbers>().is_err(), "{bad}");
        }
    }
}
