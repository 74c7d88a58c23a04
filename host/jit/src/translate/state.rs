//! Where the guest's status flags are while a block is translated.

/// What has made the flags that are in the host's, as far as they are not the guest's in every bit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Producer {
    /// They are.
    Exact,
    /// AF is clear.
    Logic,
    /// AF is clear, and OF is that of a shift by one.
    ShiftLeft,
    /// AF is clear, and OF was kept in the frame.
    ShiftRight,
    /// AF and OF are clear.
    ShiftArithmetic,
}

/// In the host's flags, in the frame, in both, or of no interest (which is taken for the frame).
#[derive(Clone, Copy, Debug)]
pub(super) struct Flags {
    pub(super) host: Option<Producer>,
    pub(super) saved: bool,
}

impl Flags {
    pub(super) const fn in_frame() -> Self {
        Self { host: None, saved: true }
    }

    pub(super) fn are_in_host(self) -> bool {
        self.host.is_some()
    }

    /// What is in the host's flags only.
    pub(super) fn unsaved(self) -> Option<Producer> {
        if self.saved { None } else { self.host }
    }
}
