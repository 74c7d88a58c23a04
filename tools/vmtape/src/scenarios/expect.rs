//! Expectations: lines that must, or must not, be in what a command shows.

use std::collections::BTreeMap;

/// Where a line is looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Channel {
    /// What the command prints: for `record` and `run` the guest's serial output.
    Out,
    /// Its messages, how the run ended among them.
    Err,
    /// The events of the tape that it recorded, as `vmtape show` prints them.
    Event,
}

/// One expectation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Line {
    /// A line with these parts in this order, after the lines that the channel's earlier expectations matched.
    Shows { channel: Channel, text: String },
    /// No line has these parts.
    Lacks { channel: Channel, text: String },
    /// So many lines have these parts.
    Counts { channel: Channel, count: usize, text: String },
    /// The exit code of the command; zero where nothing is said.
    Status(i32),
}

/// Between parts of a line of which something else may stand.
const GAP: &str = " .. ";

impl Line {
    /// `out: TEXT`, `no event: TEXT`, `3 event: TEXT`, `status: N`.
    pub fn parse(line: &str) -> Result<Self, String> {
        let bad = || format!("`{line}` is not `[no|N] out|err|event: TEXT` or `status: N`");
        let (head, text) = line.split_once(": ").ok_or_else(bad)?;
        if head == "status" {
            return text.trim().parse().map(Self::Status).map_err(|_| bad());
        }
        let (quantity, channel) = head.rsplit_once(' ').unwrap_or(("", head));
        let channel = match channel {
            "out" => Channel::Out,
            "err" => Channel::Err,
            "event" => Channel::Event,
            _ => return Err(bad()),
        };
        let text = text.to_owned();
        match quantity {
            "" => Ok(Self::Shows { channel, text }),
            "no" => Ok(Self::Lacks { channel, text }),
            number => Ok(Self::Counts { channel, count: number.parse().map_err(|_| bad())?, text }),
        }
    }
}

/// What a command showed.
#[derive(Clone, Debug, Default)]
pub struct Shown {
    pub status: Option<i32>,
    pub out: Vec<String>,
    pub err: Vec<String>,
    pub events: Vec<String>,
}

impl Shown {
    fn lines(&self, channel: Channel) -> &[String] {
        match channel {
            Channel::Out => &self.out,
            Channel::Err => &self.err,
            Channel::Event => &self.events,
        }
    }
}

/// Every expectation that is not met, in words.
pub fn deviations(expected: &[Line], shown: &Shown) -> Vec<String> {
    let mut found = Vec::new();
    let mut at: BTreeMap<Channel, usize> = BTreeMap::new();
    let mut status = 0;
    for line in expected {
        match line {
            Line::Status(code) => status = *code,
            Line::Shows { channel, text } => {
                let from = at.entry(*channel).or_default();
                match shown.lines(*channel)[*from..].iter().position(|line| has(line, text)) {
                    Some(n) => *from += n + 1,
                    None => found.push(missing(*channel, text, &shown.lines(*channel)[*from..])),
                }
            }
            Line::Lacks { channel, text } => {
                if let Some(line) = shown.lines(*channel).iter().find(|line| has(line, text)) {
                    found.push(format!("must not show `{text}`, but shows `{}`", line.trim()));
                }
            }
            Line::Counts { channel, count, text } => {
                let actual = shown.lines(*channel).iter().filter(|line| has(line, text)).count();
                if actual != *count {
                    found.push(format!("must show `{text}` {count} times, shows it {actual} times"));
                }
            }
        }
    }
    if shown.status != Some(status) {
        let actual = shown.status.map_or("none".to_owned(), |code| code.to_string());
        let message = shown.err.first().map_or(String::new(), |line| format!(": {line}"));
        found.push(format!("exit code {actual} instead of {status}{message}"));
    }
    found
}

/// Whether the parts of a pattern stand in a line, one after the other. A part ends where a word or number ends, so that
/// `0x8` is not found in `0x80`.
fn has(line: &str, pattern: &str) -> bool {
    let mut rest = line;
    pattern.split(GAP).all(|part| {
        match rest.match_indices(part).find(|(at, _)| is_whole(part, &rest[at + part.len()..])) {
            Some((at, _)) => {
                rest = &rest[at + part.len()..];
                true
            }
            None => false,
        }
    })
}

fn is_whole(part: &str, after: &str) -> bool {
    let goes_on = |text: Option<char>| text.is_some_and(|c| c.is_ascii_alphanumeric());
    !(goes_on(part.chars().next_back()) && goes_on(after.chars().next()))
}

/// What is missing, with the line that comes closest: one that begins alike.
fn missing(channel: Channel, text: &str, rest: &[String]) -> String {
    let first = text.split([' ', '(']).next().unwrap_or_default();
    let close = rest.iter().find(|line| has(line, first)).map(|line| format!("; close: `{}`", line.trim()));
    let place = match channel {
        Channel::Out => "the output",
        Channel::Err => "the messages",
        Channel::Event => "the events",
    };
    format!("{place} must show `{text}`{}", close.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(expected: &[&str], out: &[&str], status: i32) -> usize {
        let lines: Vec<_> = expected.iter().map(|line| Line::parse(line).unwrap()).collect();
        let out = out.iter().map(|line| (*line).to_owned()).collect();
        deviations(&lines, &Shown { status: Some(status), out, ..Shown::default() }).len()
    }

    #[test]
    fn lines_must_come_in_order() {
        assert_eq!(check(&["out: a", "out: b"], &["a", "x", "b"], 0), 0);
        assert_eq!(check(&["out: b", "out: a"], &["a", "x", "b"], 0), 1);
        assert_eq!(check(&["out: #PF .. pte 1"], &["touch: #PF 0x9 cr2 0 pte 1"], 0), 0);
        assert_eq!(check(&["out: pte 1 .. #PF"], &["touch: #PF 0x9 cr2 0 pte 1"], 0), 1);
        assert_eq!(check(&["out: bytes: 0x8"], &["bytes: 0x80"], 0), 1);
        assert_eq!(check(&["out: bytes: 0x8"], &["bytes: 0x80", "bytes: 0x8, more"], 0), 0);
    }

    #[test]
    fn absence_count_and_status_are_checked() {
        assert_eq!(check(&["no out: b"], &["a"], 0), 0);
        assert_eq!(check(&["no out: a"], &["a"], 0), 1);
        assert_eq!(check(&["2 out: a"], &["a", "a"], 0), 0);
        assert_eq!(check(&["3 out: a"], &["a", "a"], 0), 1);
        assert_eq!(check(&[], &[], 1), 1);
        assert_eq!(check(&["status: 1"], &[], 1), 0);
        assert!(Line::parse("stdout: a").is_err() && Line::parse("many out: a").is_err());
    }
}
