//! What a guest sees of the notes that an exit's handling left.

use crate::{exempt, text};
use vmtape_arch::{exception::Vector, msr::ReachedPat, note::Note};

/// What a guest sees of an exit's handling.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seen {
    Exception(String),
    Note(String),
}

impl Seen {
    /// What a note says that a guest sees; backends' own detail is removed.
    pub fn of(note: &Note) -> Option<Self> {
        match *note {
            Note::InjException { vector, has_error, error_code, .. } if is_visible(note) => {
                Some(Self::exception(vector, has_error, error_code))
            }
            // Which PAT it is a guest learns from what it reads.
            Note::Msr { write, index, data, exception, host_initiated, passed, .. } if is_visible(note) => {
                let pat = ReachedPat::ONLY;
                let note = Note::Msr { write, index, data, exception, host_initiated, passed, pat };
                Some(Self::Note(text::note_line(&note, 0, 0)))
            }
            _ => is_visible(note).then(|| Self::Note(text::note_line(note, 0, 0))),
        }
    }

    /// An exception with its error code.
    pub fn exception(vector: Vector, has_error: bool, error_code: u32) -> Self {
        let code = if has_error { format!(" ({error_code:#x})") } else { String::new() };
        Self::Exception(format!("{vector}{code}"))
    }

    pub fn text(&self) -> &str {
        match self {
            Self::Exception(text) | Self::Note(text) => text,
        }
    }

    /// Several on one line.
    pub fn line(seen: &[Self]) -> String {
        match seen {
            [] => "nothing".to_owned(),
            seen => seen.iter().map(Self::text).collect::<Vec<_>>().join("; "),
        }
    }

    /// The first one that two sides do not share, in a word: numbers may be another run's.
    pub fn word(seen: &[Self], other: &[Self]) -> String {
        let first = seen.iter().enumerate().find(|(n, seen)| other.get(*n) != Some(seen));
        match first {
            Some((_, Self::Note(text))) => text.split(':').next().unwrap_or_default().to_owned(),
            Some((_, Self::Exception(text))) => text.clone(),
            None => "nothing".to_owned(),
        }
    }
}

fn is_visible(note: &Note) -> bool {
    /// `kvm_mmio` tells a read twice: when it is asked for, and with its value.
    const UNSATISFIED_READ: u8 = 0;
    match *note {
        Note::InjException { reinjected, .. } => !reinjected,
        Note::Mmio { kind, .. } => kind != UNSATISFIED_READ,
        Note::Msr { .. } => exempt::is_traced(note),
        Note::Cpuid { .. } | Note::Pio { .. } => true,
        _ => false,
    }
}

/// The notes of which a guest sees something.
pub fn visible(notes: &[Note]) -> impl Iterator<Item = &Note> + Clone {
    notes.iter().filter(|note| is_visible(note) && !exempt::is_apic_access(note))
}
