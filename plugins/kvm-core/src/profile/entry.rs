//! What the registry says of a switch.

use super::Switch;

/// The backends that know an entry, as bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scope(u8);

impl Scope {
    pub const VMX: Self = Self(1);
    pub const SVM: Self = Self(2);
    pub const NPT: Self = Self(4);
    /// Two-dimensional paging, of either vendor.
    pub const TDP: Self = Self(5);
    pub const AMD: Self = Self(6);
    pub const ALL: Self = Self(7);

    /// Whether the two have a backend in common.
    pub const fn meets(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }
}

/// What kind of switch an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A module parameter and its default.
    Parameter(bool),
    /// A change in KVM: on in the releases from `since` on, and before `until`.
    Patch,
    /// What silicon does where no manual that we could read says it. On by default.
    Silicon,
}

fn reached(first: &str, release: &str) -> bool {
    super::position(first) <= super::position(release)
}

/// One switch.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    pub switch: Switch,
    pub kind: Kind,
    pub scope: Scope,
    /// What it changes, in one sentence.
    pub text: &'static str,
    /// Where that can be read: file, function, manual.
    pub source: &'static str,
    /// The commit, or where it was posted.
    pub commit: &'static str,
    pub subject: &'static str,
    /// The first release that has it; `None`: no release.
    pub since: Option<&'static str>,
    /// The first release that no longer has it, and the commit that took it out.
    pub until: Option<(&'static str, &'static str)>,
}

impl Entry {
    const fn new(switch: Switch, kind: Kind, scope: Scope, text: &'static str) -> Self {
        let (source, commit, subject) = ("", "", "");
        Self { switch, kind, scope, text, source, commit, subject, since: None, until: None }
    }

    /// A module parameter.
    pub const fn parameter(switch: Switch, scope: Scope, default: bool, text: &'static str) -> Self {
        Self::new(switch, Kind::Parameter(default), scope, text)
    }

    /// A change in KVM, in no release yet.
    pub const fn patch(switch: Switch, scope: Scope, text: &'static str) -> Self {
        Self::new(switch, Kind::Patch, scope, text)
    }

    /// A behaviour of silicon.
    pub const fn silicon(switch: Switch, scope: Scope, text: &'static str) -> Self {
        Self::new(switch, Kind::Silicon, scope, text)
    }

    pub const fn source(mut self, source: &'static str) -> Self {
        self.source = source;
        self
    }

    pub const fn commit(mut self, commit: &'static str, subject: &'static str) -> Self {
        (self.commit, self.subject) = (commit, subject);
        self
    }

    pub const fn since(mut self, release: &'static str) -> Self {
        self.since = Some(release);
        self
    }

    pub const fn until(mut self, release: &'static str, commit: &'static str) -> Self {
        self.until = Some((release, commit));
        self
    }

    /// Its value in a release.
    pub(super) fn default(&self, release: &str) -> bool {
        match self.kind {
            Kind::Parameter(value) => value,
            Kind::Silicon => true,
            Kind::Patch => {
                self.has_come(release) && !self.until.is_some_and(|(first, _)| reached(first, release))
            }
        }
    }

    /// Whether a release is its first one, or a later one.
    pub(super) fn has_come(&self, release: &str) -> bool {
        self.since.is_some_and(|first| reached(first, release))
    }
}
