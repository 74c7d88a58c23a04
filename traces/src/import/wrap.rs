//! Lines of a text, put together again where somebody between who printed them and who reads them has wrapped them.
//!
//! A mail wraps at words, which loses a space, a terminal anywhere. What follows a line and is none of the trace's own belongs to it if
//! the event is understood with it; once that was so a few times, what follows an event that nobody knows does too. Who wraps anywhere
//! does so at one width: what follows a line of just that width belongs to it, though the line may be an event by itself (`val 0x8`).

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
    /// The length of the last one that is part of `line`, as it was read.
    length: usize,
    wrapped: Wrapped,
}

/// Lines that were understood once they were put together: with a space, and without one.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Wrapped {
    spaced: u32,
    joined: u32,
    /// The length of those that were joined, and how many were of it, less how many were not.
    width: (usize, u32),
}

impl Wrapped {
    /// A line of this length was understood with what follows it at once.
    fn join(&mut self, length: usize) {
        self.joined += 1;
        self.width = match self.width {
            (width, times) if width == length => (width, times + 1),
            (width, times @ 1..) => (width, times - 1),
            _ => (length, 1),
        };
    }

    /// Whether a line of this length is certainly the first part of one.
    fn is_cut(&self, length: usize) -> bool {
        self.joined > self.spaced && self.width.0 == length && self.width.1 >= CONVINCING
    }
}

impl<R: BufRead> Lines<R> {
    /// `wrapped`: what an earlier look at the same text has found.
    pub fn new(reader: R, wrapped: Wrapped) -> Self {
        Self { reader, line: String::new(), next: Vec::new(), number: 0, length: 0, wrapped }
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
        self.length = without_end(&self.next).len();
        self.read()?;
        for _ in 0..MOST_PIECES {
            if self.next.is_empty() || !self.goes_on() {
                break;
            }
            self.length = without_end(&self.next).len();
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
        if has_cpu(&self.next) {
            return false;
        }
        let mut next = String::new();
        push(&mut next, &self.next);
        let raw = without_quote(&next);
        if self.wrapped.is_cut(self.length) && self.line.len() + raw.len() <= LONGEST_LINE {
            self.line.push_str(raw);
            return true;
        }
        let piece = line::unquoted(&next);
        // An exception's name (`#PF`) is no comment.
        let is_name = |rest: &str| rest.starts_with(|letter: char| letter.is_ascii_uppercase());
        if piece.is_empty() || piece.strip_prefix('#').is_some_and(|rest| !is_name(rest)) {
            return false;
        }
        let spaced = [self.line.trim_end(), " ", piece].concat();
        let own = match line::classify(&self.line) {
            Line::Event(_) => true,
            // Cut before the name of the event.
            Line::Unreadable => matches!(line::classify(&spaced), Line::Event(_)),
            _ => return false,
        };
        // A piece that begins with a number looks like a frame of a call chain, which follows what is whole.
        let own = match line::classify(piece) {
            Line::Unreadable => own,
            Line::Comment if !is_understood(&self.line) => false,
            _ => return false,
        };
        let joined = [&self.line, raw].concat();
        let wrapped = self.wrapped.spaced + self.wrapped.joined >= CONVINCING;
        let has_space = self.line.ends_with(' ') || raw.starts_with(' ');
        let whole = match (is_understood(&spaced), is_understood(&joined)) {
            // Cut before a space: as between two letters.
            (_, true) if raw.starts_with(' ') => {
                self.wrapped.join(self.length);
                joined
            }
            (true, understood) if !understood || has_space => {
                self.wrapped.spaced += 1;
                if understood { joined } else { spaced }
            }
            (false, true) => {
                self.wrapped.join(self.length);
                joined
            }
            // Which of the two it is, others show.
            (understood, _) if wrapped && (understood || own) => {
                if !has_space && self.wrapped.spaced >= self.wrapped.joined { spaced } else { joined }
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

/// A line without the mark of a mail's quotation.
fn without_quote(line: &str) -> &str {
    line.strip_prefix('>').map_or(line, |quoted| quoted.strip_prefix(' ').unwrap_or(quoted))
}

/// Whether a number stands in brackets.
fn has_cpu(line: &[u8]) -> bool {
    let opens = line.iter().enumerate().filter(|(_, byte)| **byte == b'[');
    opens.map(|(at, _)| &line[at + 1..]).any(|rest| {
        let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
        digits > 0 && rest.get(digits) == Some(&b']')
    })
}

fn without_end(line: &[u8]) -> &[u8] {
    let end = line.iter().rposition(|byte| !matches!(byte, b'\n' | b'\r'));
    &line[..end.map_or(0, |last| last + 1)]
}

/// Appends a line as text, without its end, and with plain spaces.
fn push(text: &mut String, line: &[u8]) {
    let line = String::from_utf8_lossy(without_end(line));
    match line.as_bytes().contains(&OF_HARD_SPACE) {
        true => text.push_str(&line.replace(HARD_SPACE, " ")),
        false => text.push_str(&line),
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

    /// A terminal wraps at one width, also where what it leaves is an event by itself, where a piece is blank, and in a mail.
    #[test]
    fn lines_that_are_cut_at_one_width_are_exact() {
        let events = [
            LINE,
            "CPU 0/KVM-186 [000] d..1. 7.431541: kvm_pio: pio_write at 0x70 size 1 count 1 val 0x8f ",
            "CPU 0/KVM-186 [000] d..1. 7.431541: kvm_new_event: some words 1234 that nobody knows, and no more",
            "CPU 0/KVM-186 [000] d..1. 7.431541: kvm_inj_virq: IRQ 0x8 [reinjected]",
        ];
        for (width, quote) in (40..100).flat_map(|width| [(width, ""), (width, "> ")]) {
            let cut = |line: &str| {
                let pieces = line.as_bytes().chunks(width).map(|piece| String::from_utf8_lossy(piece));
                pieces.map(|piece| format!("{quote}{piece}\n")).collect::<String>()
            };
            let text = events.map(cut).concat();
            let mut shown = Lines::new(text.as_bytes(), Wrapped::default());
            (0..20).for_each(|_| shown.wrapped.join(quote.len() + width));
            let mut found = Vec::new();
            while let Ok(Some(line)) = shown.next() {
                found.push(line.strip_prefix(quote).unwrap().to_owned());
            }
            assert_eq!(found, events, "{width} {quote}");
        }
    }

    /// A mail wraps at words, also before an event's name, and before one of an exception.
    #[test]
    fn lines_that_are_wrapped_at_words_are_whole_again() {
        let (head, tail) = LINE.split_once(" info1").unwrap();
        let shown = format!("{head}\ninfo1{tail}\n").repeat(CONVINCING as usize);
        for (head, tail) in [
            ("CPU 0/KVM-186 [000] d..1. 7.431541:", "kvm_inj_exception: #UD"),
            ("CPU 0/KVM-186 [000] d..1. 7.431541: kvm_inj_exception:", "#UD"),
            ("CPU 0/KVM-186 [000] d..1. 7.431541:", "kvm_new_event: some words"),
        ] {
            let found = lines(&format!("{shown}{head}\n{tail}\n"));
            assert_eq!(found.last(), Some(&format!("{head} {tail}")));
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
