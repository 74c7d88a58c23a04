//! The fault points that a plan may name, and what their words mean: by the text of their tables, so that no point of a backend is
//! known here.

use vmtape_machine::HostPoint;

/// A fault point.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Point {
    pub number: u32,
    pub name: String,
    /// What goes wrong there.
    pub text: String,
    /// What it tells and what its answer means: `a: WHAT; b: WHAT; answer: WHAT`.
    pub words: String,
    /// With which options of its backend nobody comes here: `NAME=VALUE`, separated by spaces.
    pub unreached: String,
}

/// A word that a point tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Word {
    A,
    B,
}

impl Point {
    /// The host's own points.
    pub fn of_host() -> Vec<Self> {
        let point = |(number, name, text, words): &(HostPoint, &str, &str, &str)| Self {
            number: number.0,
            name: (*name).to_owned(),
            text: (*text).to_owned(),
            words: (*words).to_owned(),
            unreached: String::new(),
        };
        HostPoint::table().iter().map(point).collect()
    }

    /// Whether a machine with these options of its backend comes here.
    pub fn is_reached_with(&self, options: &[(String, String)]) -> bool {
        let set =
            |option: &str| options.iter().any(|(name, value)| option.split_once('=') == Some((name, value)));
        !self.unreached.split_whitespace().any(set)
    }

    /// What is said of `a`, `b` or `answer`.
    pub(crate) fn said(&self, of: &str) -> &str {
        let said = self.words.split(';').find_map(|part| part.trim().strip_prefix(of)?.strip_prefix(':'));
        said.unwrap_or_default()
    }

    fn words(&self) -> [(Word, &str); 2] {
        [(Word::A, self.said("a")), (Word::B, self.said("b"))]
    }

    /// The word that is an address, and how far it is shifted: a frame's number is.
    pub(crate) fn address(&self) -> Option<(Word, u32)> {
        const PAGE_SHIFT: u32 = 12;
        self.words().into_iter().find_map(|(word, said)| match said {
            said if said.contains("address") => Some((word, 0)),
            said if said.contains("guest frame") => Some((word, PAGE_SHIFT)),
            _ => None,
        })
    }

    /// The word that is an MSR.
    pub(crate) fn msr(&self) -> Option<Word> {
        self.words().into_iter().find(|(_, said)| said.contains("MSR")).map(|(word, _)| word)
    }

    /// The word that says which operation of a list is under way, and the number of an operation in it: `0x100 list_add`.
    pub(crate) fn list(&self, operation: &str) -> Option<(Word, u64)> {
        self.words().into_iter().find_map(|(word, said)| {
            let words: Vec<&str> = said.split([' ', ',']).filter(|word| !word.is_empty()).collect();
            let at = words.windows(2).find(|pair| pair[1].eq_ignore_ascii_case(operation))?;
            Some((word, crate::plan::parse_number(at[0])?))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_point_knows_who_does_not_come_to_it() {
        let point = Point { unreached: "paging=off log=off".into(), ..Point::default() };
        let with = |name: &str, value: &str| point.is_reached_with(&[(name.into(), value.into())]);
        assert!(with("paging", "on") && with("other", "off") && point.is_reached_with(&[]));
        assert!(!with("paging", "off") && !with("log", "off"));
    }

    #[test]
    fn what_words_are_stands_in_the_tables() {
        let point = |words: &str| Point { words: words.into(), ..Point::default() };
        let flush = point("a: the scope (0 all); b: the address; answer: any");
        assert_eq!((flush.address(), flush.msr()), (Some((Word::B, 0)), None));
        let spte = point("a: the guest frame; b: the entry; answer: the bits");
        assert_eq!(spte.address(), Some((Word::A, 12)));
        assert_eq!(point("a: the MSR; b: the value; answer: any").msr(), Some(Word::A));
        let crash = point("a: the CPU; b: 0x100 list_add, 0x200 list_del, 0x300 VMCLEAR, and more");
        assert_eq!(crash.list("list_del"), Some((Word::B, 0x200)));
        assert_eq!((crash.list("vmclear"), crash.list("more")), (Some((Word::B, 0x300)), None));
    }
}
