//! Designs of a hand-over, as what distinguishes them.

use super::State;
use std::{fmt, str::FromStr};

/// Whose hand-over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Handover {
    /// Three messages with an epoch; who cannot know waits.
    #[default]
    Strict,
    /// QEMU with a return path: the destination runs once it has loaded, and says so.
    Qemu,
    /// QEMU without one: the source is done once everything is sent.
    QemuNoreturn,
    /// Cloud Hypervisor: the destination runs, then answers; without the answer the source goes on.
    Ch,
    /// Propolis: the source is done once it has told the destination to run.
    Propolis,
}

/// What a design does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    /// The source waits for READY before it says GO.
    pub ready: bool,
    /// The destination waits for GO before it runs the guest.
    pub go: bool,
    /// The source waits for DONE.
    pub done: bool,
    /// What the source becomes where GO was written in part.
    pub go_cut: State,
    /// ... and where DONE does not come.
    pub done_lost: State,
}

impl Handover {
    pub const ALL: [Self; 5] = [Self::Strict, Self::Qemu, Self::QemuNoreturn, Self::Ch, Self::Propolis];

    /// See: the hand-overs of QEMU 10.2.2 migration/migration.c, Cloud Hypervisor ae44c2971 vmm/src/lib.rs, propolis 372a5744
    /// lib/propolis/src/migrate
    pub fn rules(self) -> Rules {
        match self {
            Self::Strict => {
                Rules { ready: true, go: true, done: true, go_cut: State::Parked, done_lost: State::Parked }
            }
            Self::Qemu => Rules {
                ready: false,
                go: false,
                done: true,
                go_cut: State::Running,
                done_lost: State::Running,
            },
            Self::QemuNoreturn => {
                Rules { ready: false, go: false, done: false, go_cut: State::Running, done_lost: State::Gone }
            }
            Self::Ch => {
                Rules { ready: true, go: true, done: true, go_cut: State::Running, done_lost: State::Running }
            }
            Self::Propolis => {
                Rules { ready: true, go: true, done: false, go_cut: State::Running, done_lost: State::Gone }
            }
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::Strict => "strict",
            Self::Qemu => "qemu",
            Self::QemuNoreturn => "qemu-noreturn",
            Self::Ch => "ch",
            Self::Propolis => "propolis",
        }
    }
}

impl fmt::Display for Handover {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Handover {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let named = Self::ALL.into_iter().find(|handover| handover.name() == text);
        named.ok_or_else(|| format!("`{text}` is none of {}", Self::ALL.map(Self::name).join(", ")))
    }
}
