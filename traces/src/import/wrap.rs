//! Lines of a text, put together again where somebody between who printed them and who reads them has wrapped them.
//!
//! A mail wraps at words, which loses a space, a terminal anywhere. What follows a line and is none of the trace's own belongs to it if
//! the event is understood with it; once that was so a few times, what follows an event that nobody knows does too.

use super::line::{self, Line};
use std::io::{self, BufRead, Read};

/// Beyond this a line is no text.
pub(super) const LONGEST_LINE: usize = 64 << 10;
/// Pieces of a line.
const MOST_PIECES: usize = 16;
/// So many lines that are understood once they are put together show that the text was wrapped.
const CONVINCING: u32 = 4;
const MARK: &[u8] = b"\xef\xbb\xbf";
/// A space that a web page does not break, as UTF-8, and that encoding's first byte.
const HARD_SPACE: &str = "\u{a0}";
const OF_HARD_SPACE: u8 = 0xc2;

/// Why there is no next line.
pub(super) enum Error {
    Io(io::Error),
    /// This line is too long.
    Long(u64),
}

/// The lines of a text.
pub(super) struct Lines<R> {
    reader: R,
    /// The line, and the one after it.
    line: String,
    next: Vec<u8>,
    /// How many were read.
    number: u64,
    wrapped: Wrapped,
}

/// Lines that were understood once they were put together: with a space, and without one.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Wrapped {
    spaced: u32,
    joined: u32,
}

impl<R: BufRead> Lines<R> {
    /// `wrapped`: what an earlier look at the same text has found.
    pub fn new(reader: R, wrapped: Wrapped) -> Self {
        Self { reader, line: String::new(), next: Vec::new(), number: 0, wrapped }
    }

    /// How the text is wrapped, as far as it was read.
    pub fn wrapped(&self) -> Wrapped {
        self.wrapped
    }

    /// The next line, without its end.
    pub fn next(&mut self) -> Result<Option<&str>, Error> {
        if self.number == 0 {
            self.read()?;
            if self.next.starts_with(MARK) {
                self.next.drain(..MARK.len());
            }
        }
        if self.next.is_empty() {
            return Ok(None);
        }
        self.line.clear();
        push(&mut self.line, &self.next);
        self.read()?;
        for _ in 0..MOST_PIECES {
            if self.next.is_empty() || !self.goes_on() {
                break;
            }
            self.read()?;
        }
        Ok(Some(&self.line))
    }

    fn read(&mut self) -> Result<(), Error> {
        self.next.clear();
        let mut limited = self.reader.by_ref().take(LONGEST_LINE as u64 + 1);
        limited.read_until(b'\n', &mut self.next).map_err(Error::Io)?;
        self.number += 1;
        if self.next.len() > LONGEST_LINE { Err(Error::Long(self.number)) } else { Ok(()) }
    }

    /// Puts the next line behind this one, if it belongs there.
    fn goes_on(&mut self) -> bool {
        // The lines of most traces have a CPU in brackets, and nobody looks twice at those.
        if self.next.contains(&b'[') {
            return false;
        }
        let mut next = String::new();
        push(&mut next, &self.next);
        let piece = line::unquoted(&next);
        if piece.is_empty() || piece.starts_with('#') {
            return false;
        }
        let own = match line::classify(&self.line) {
            Line::Event(_) => true,
            Line::Unreadable => false,
            _ => return false,
        };
        // A piece that begins with a number looks like a frame of a call chain, which follows what is whole.
        let own = match line::classify(piece) {
            Line::Unreadable => own,
            Line::Comment if !is_understood(&self.line) => false,
            _ => return false,
        };
        let [spaced, joined] = [" ", ""].map(|between| [self.line.trim_end(), between, piece].concat());
        let wrapped = self.wrapped.spaced + self.wrapped.joined >= CONVINCING;
        let whole = match (is_understood(&spaced), is_understood(&joined)) {
            (true, false) => {
                self.wrapped.spaced += 1;
                spaced
            }
            (false, true) => {
                self.wrapped.joined += 1;
                joined
            }
            // Which of the two it is, others show.
            (understood, _) if wrapped && (understood || own) => {
                if self.wrapped.spaced >= self.wrapped.joined { spaced } else { joined }
            }
            _ => return false,
        };
        if whole.len() > LONGEST_LINE {
            return false;
        }
        self.line = whole;
        true
    }
}

fn is_understood(line: &str) -> bool {
    match line::classify(line) {
        Line::Event(record) => record.is_understood(),
        _ => false,
    }
}

/// Appends a line as text, without its end, and with plain spaces.
fn push(text: &mut String, line: &[u8]) {
    let line = String::from_utf8_lossy(line);
    let line = line.trim_end_matches(['\n', '\r']);
    match line.as_bytes().contains(&OF_HARD_SPACE) {
        true => text.push_str(&line.replace(HARD_SPACE, " ")),
        false => text.push_str(line),
    }
}

/// A text in UTF-16 as UTF-8. `word`: which of a number's bytes comes first.
pub(super) fn transcode(
    reader: impl Read,
    word: fn([u8; 2]) -> u16,
    out: &mut impl io::Write,
) -> io::Result<()> {
    let mut bytes = io::BufReader::new(reader).bytes();
    let mut failed = None;
    let units = std::iter::from_fn(|| match (bytes.next()?, bytes.next()?) {
        (Ok(low), Ok(high)) => Some(word([low, high])),
        (Err(error), _) | (_, Err(error)) => {
            failed = Some(error);
            None
        }
    });
    let mut buffer = [0; 4];
    for character in char::decode_utf16(units) {
        let character = character.unwrap_or(char::REPLACEMENT_CHARACTER);
        out.write_all(character.encode_utf8(&mut buffer).as_bytes())?;
    }
    failed.map_or(Ok(()), Err)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &str) -> Vec<String> {
        let mut lines = Lines::new(text.as_bytes(), Wrapped::default());
        let mut all = Vec::new();
        while let Ok(Some(line)) = lines.next() {
            all.push(line.to_owned());
        }
        all
    }

    const LINE: &str = "CPU 0/KVM-186 [000] d..1. 7.431541: kvm_exit: vcpu 0 reason npf rip 0xfff0 info1 0x0000000500000014 info2 \
                        0xfffff000 intr_info 0x00000000 error_code 0x00000000";

    /// At every word, and at every letter: whole, or else two lines as they are.
    #[test]
    fn wrapped_lines_are_whole_again() {
        let body = LINE.find("kvm_exit").unwrap()..LINE.find("error_code 0x").unwrap();
        let mut whole = 0;
        for at in body.clone().filter(|at| LINE.as_bytes()[*at] == b' ') {
            let (head, tail) = (&LINE[..at], &LINE[at + 1..]);
            let found = lines(&format!("> {head}\n> {tail}\n"));
            whole += u32::from(found == [format!("> {LINE}")]);
            assert!(found.len() == 1 || found == [format!("> {head}"), format!("> {tail}")], "{found:?}");
        }
        assert!(whole > 8, "{whole}");
        // Once it is known how a text was wrapped, wherever that was.
        let inside = LINE.find("fo1").unwrap();
        let shown = format!("{}\n{}\n", &LINE[..inside], &LINE[inside..]).repeat(CONVINCING as usize);
        for at in body.filter(|at| !LINE[at - 1..=*at].contains(' ')) {
            let (head, tail) = LINE.split_at(at);
            let found = lines(&format!("{shown}{head}\n{tail}\n"));
            assert_eq!(found.last().map(String::as_str), Some(LINE), "{head}");
        }
    }

    #[test]
    fn what_is_no_part_of_a_line_stays_by_itself() {
        for text in ["Thanks,", "```", "> ", "--", "7", "0x1000"] {
            assert_eq!(lines(&format!("{LINE}\n{text}\n")), [LINE, text]);
        }
        let entry = " x-1 [000] 1.000001: kvm_entry: vcpu 0, rip 0x1000";
        assert_eq!(lines(&format!("{entry}\nhello\n")), [entry, "hello"]);
    }

    /// What nobody knows is put together where what is known was.
    #[test]
    fn a_text_that_was_wrapped_is_known_for_it() {
        let (head, tail) = LINE.split_at(LINE.find(" info1").unwrap());
        let wrapped = format!("{head}\n{}\n", tail.trim_start());
        let unknown = " x-1 [000] 1.000001: kvm_new_event: some\nmore words\n";
        assert_eq!(lines(&format!("{unknown}{wrapped}")).len(), 3);
        let all = lines(&(wrapped.repeat(5) + unknown));
        assert_eq!(
            all.last().map(String::as_str),
            Some(" x-1 [000] 1.000001: kvm_new_event: some more words")
        );
    }

    #[test]
    fn marks_and_hard_spaces_go() {
        assert_eq!(lines("\u{feff}a\u{a0}b\r\n\nc"), ["a b", "", "c"]);
        let mut out = Vec::new();
        transcode(&b"\xff\xfea\0\x3d\xd8\x00\xde"[..], u16::from_le_bytes, &mut out).unwrap();
        assert_eq!(String::from_utf8(out).unwrap(), "\u{feff}a😀");
    }
}
