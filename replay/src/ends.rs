//! Whether two runs ended alike: in the same way, whatever words their vendors have for it.

use vmtape_arch::exit::{Resume, ResumeKind};
use vmtape_traces::event::End;

/// How a run ended, without what only one vendor's machine says.
#[derive(Clone, Debug, PartialEq, Eq)]
enum How {
    Status(u32),
    Shutdown(String),
    Idle,
    /// The kind, and what of its data and of its words means the same everywhere.
    Fatal(ResumeKind, i32, Vec<u64>, String),
    Limit(String),
    NoProgress(u32),
    Cut,
    Interrupted,
}

impl How {
    fn of(end: &End) -> Self {
        match end {
            End::DebugExit { status } => Self::Status(*status),
            End::Shutdown { reason } if reason.starts_with(TRIPLE_FAULT) => {
                Self::Shutdown(TRIPLE_FAULT.to_owned())
            }
            End::Shutdown { reason } => Self::Shutdown(reason.clone()),
            End::Idle { .. } => Self::Idle,
            End::Fatal { resume, reason, .. } => {
                let words = if is_vendors(resume.kind) { String::new() } else { reason.clone() };
                Self::Fatal(resume.kind, resume.errno, telling(resume).to_vec(), words)
            }
            End::Limit { what } => Self::Limit(what.clone()),
            End::NoProgress { vcpu, .. } => Self::NoProgress(*vcpu),
            End::Cut => Self::Cut,
            End::Interrupted => Self::Interrupted,
        }
    }
}

/// Silicon without a hypervisor's help says it in fewer words.
const TRIPLE_FAULT: &str = "triple fault";

/// Whether the words of such an end are a vendor's: a crash of the host, for one, says what it left behind.
fn is_vendors(kind: ResumeKind) -> bool {
    matches!(kind, ResumeKind::INTERNAL_ERROR | ResumeKind::FAIL_ENTRY | ResumeKind::NOT_MODELLED)
}

/// An internal error has a suberror, and then words of the vendor's: exit reasons, qualifications. The other kinds have none that
/// differ.
// See: KVM x86.c prepare_emulation_failure_exit(), vmx/vmx.c __vmx_handle_exit(), svm/svm.c svm_handle_invalid_exit()
fn telling(resume: &Resume) -> &[u64] {
    match resume.kind {
        ResumeKind::INTERNAL_ERROR => &resume.data[..1],
        ResumeKind::FAIL_ENTRY | ResumeKind::NOT_MODELLED => &[],
        _ => &resume.data,
    }
}

/// Whether two runs ended alike. Where they were then, and what they had in registers and memory, is compared by itself.
pub fn alike(a: Option<&End>, b: Option<&End>) -> bool {
    a.map(How::of) == b.map(How::of)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vendors_have_words_of_their_own_for_one_end() {
        let stuck = |reason: &str| End::NoProgress { vcpu: 0, repeats: 1000, reason: reason.to_owned() };
        let error = |suberror, word| {
            let resume =
                Resume { data: [suberror, word, 0, 0, 0, 0], ..Resume::new(ResumeKind::INTERNAL_ERROR) };
            End::Fatal { vcpu: 0, resume, reason: word.to_string() }
        };
        let alike = |a: &End, b: &End| alike(Some(a), Some(b));
        assert!(alike(&stuck("all of them EXCEPTION_NMI"), &stuck("all of them UD excp")));
        assert!(alike(&error(1, 2), &error(1, 3)) && !alike(&error(1, 2), &error(3, 2)));
        assert!(!alike(&stuck(""), &End::Cut) && !super::alike(Some(&End::Cut), None));
        let shutdown = |reason: &str| End::Shutdown { reason: reason.to_owned() };
        assert!(alike(&shutdown("triple fault"), &shutdown("triple fault (KVM_EXIT_SHUTDOWN)")));
        assert!(!alike(&shutdown("triple fault"), &shutdown("reset by port 0x64")));
        let crashed = |left: &str| {
            let reason = format!("the host has crashed{left}");
            End::Fatal { vcpu: 0, resume: Resume::errno(-5), reason }
        };
        assert!(!alike(&crashed(""), &crashed("; a VMCS is still active")));
        let status = |status| End::DebugExit { status };
        assert!(!alike(&status(1), &status(3)) && alike(&status(1), &status(1)));
    }
}
