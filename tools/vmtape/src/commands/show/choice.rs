//! Which exits are asked for.

use std::{ops::RangeInclusive, str::FromStr};
use vmtape_arch::{
    exception::Vector,
    exit::{Exit, StimulusKind},
    level::Level,
};
use vmtape_replay::text;
use vmtape_traces::event::ExitEvent;

/// Options that choose exits.
#[derive(Clone, Debug, Default, clap::Args)]
#[group(id = "choice", multiple = true)]
pub struct Choice {
    /// Only exits for these reasons, as tracepoints call them (npf, EPT_VIOLATION); `stat` lists those of a tape
    #[arg(long, value_name = "REASON", value_delimiter = ',')]
    reason: Vec<String>,
    /// Only exits at this instruction, or within FIRST-LAST
    #[arg(long, value_name = "ADDRESS")]
    rip: Option<Addresses>,
    /// Only exits about this guest physical address, or within FIRST-LAST
    #[arg(long, value_name = "ADDRESS")]
    gpa: Option<Addresses>,
    /// Only exits about this linear address, or within FIRST-LAST
    #[arg(long, value_name = "ADDRESS")]
    gva: Option<Addresses>,
    /// Only exits of this vCPU
    #[arg(long, value_name = "N")]
    vcpu: Option<u32>,
    /// Only exits of a level, and what was done about them: L2 is a guest's guest
    #[arg(long, value_name = "L1|L2", value_parser = level)]
    pub level: Option<Level>,
    /// Only exits of which a line has this text
    #[arg(long, value_name = "TEXT")]
    pub grep: Option<String>,
}

/// Reads the name of a level.
pub fn level(text: &str) -> Result<Level, String> {
    Level::from_name(text).ok_or_else(|| format!("`{text}` is neither L1 nor L2"))
}

impl Choice {
    pub fn is_everything(&self) -> bool {
        let Self { reason, rip, gpa, gva, vcpu, level, grep } = self;
        reason.is_empty()
            && [rip, gpa, gva].iter().all(|addresses| addresses.is_none())
            && vcpu.is_none()
            && level.is_none()
            && grep.is_none()
    }

    /// Whether an exit is asked for, but for its text.
    pub fn takes(&self, event: &ExitEvent) -> bool {
        let exit = &event.exit;
        let within = |addresses: &Option<Addresses>, address: Option<u64>| {
            addresses.as_ref().is_none_or(|wanted| address.is_some_and(|address| wanted.0.contains(&address)))
        };
        let reason = text::reason(exit);
        (self.reason.is_empty() || self.reason.iter().any(|wanted| wanted.eq_ignore_ascii_case(&reason)))
            && within(&self.rip, Some(event.rip))
            && within(&self.gpa, Some(exit.gpa).filter(|_| is_about_memory(exit)))
            && within(&self.gva, gva(exit))
            && self.vcpu.is_none_or(|vcpu| vcpu == event.vcpu)
            && self.level.is_none_or(|level| level == exit.level)
    }

    /// Whether its text is.
    pub fn takes_text(&self, text: &str) -> bool {
        self.grep.as_ref().is_none_or(|wanted| text.lines().any(|line| line.contains(wanted.as_str())))
    }
}

/// Whether the guest physical address of an exit means something: it is zero where an exit has none.
fn is_about_memory(exit: &Exit) -> bool {
    exit.gpa != 0 || exit.stimulus == StimulusKind::ACCESS
}

/// The linear address that an exit is about.
pub fn gva(exit: &Exit) -> Option<u64> {
    match exit.stimulus {
        StimulusKind::ACCESS if exit.access.gva != 0 || exit.access.size != 0 => Some(exit.access.gva),
        StimulusKind::EXCEPTION if exit.exception.vector == Vector::PF => Some(exit.exception.payload),
        _ => None,
    }
}

/// How many exits were looked at, and how many of them were asked for.
#[derive(Clone, Copy, Debug, Default)]
pub struct Looked {
    pub at: u64,
    pub shown: u64,
}

/// One address, or from the first to the last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Addresses(RangeInclusive<u64>);

impl FromStr for Addresses {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |word: &str| match word.strip_prefix("0x") {
            Some(digits) => u64::from_str_radix(digits, 16).ok(),
            None => word.parse().ok(),
        };
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let ends = number(first).zip(number(last)).filter(|(first, last)| first <= last);
        let (first, last) = ends.ok_or_else(|| format!("`{text}` is neither an address nor FIRST-LAST"))?;
        Ok(Self(first..=last))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_one_or_several() {
        assert_eq!("0x1000-0x1fff".parse(), Ok(Addresses(0x1000..=0x1fff)));
        assert_eq!("16".parse(), Ok(Addresses(16..=16)));
        for bad in ["", "0x", "2-1", "0x1000-", "rip"] {
            assert!(bad.parse::<Addresses>().is_err(), "{bad}");
        }
    }

    #[test]
    fn an_exit_without_an_address_is_about_none() {
        let choice = Choice { gpa: "0".parse().ok(), ..Choice::default() };
        let cpuid = ExitEvent {
            exit: Exit { stimulus: StimulusKind::SENSITIVE, ..Exit::default() },
            ..ExitEvent::default()
        };
        assert!(!choice.takes(&cpuid) && Choice::default().takes(&cpuid));
        assert!(Choice { rip: "0".parse().ok(), ..Choice::default() }.takes(&cpuid));
    }
}
