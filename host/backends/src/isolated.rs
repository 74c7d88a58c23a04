//! A plugin in a process of its own: what it does there to itself ends that process, not this one.

use std::{
    cell::RefCell,
    io,
    os::{
        fd::OwnedFd,
        unix::{
            net::UnixStream,
            process::{CommandExt, ExitStatusExt},
        },
    },
    path::PathBuf,
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::Duration,
};
use vmtape_abi::remote::{Link, RemotePlugin};

/// The first argument of a backend's process; the file of its plugin, or the number of an embedded one, is the second.
pub(crate) const CHILD: &str = "--serve-backend";

/// How backends run in processes of their own.
#[derive(Clone, Debug)]
pub struct Isolation {
    /// It calls [`crate::serve_if_child`] before anything else.
    pub program: PathBuf,
    /// The most that one call may take.
    pub limit: Duration,
}

/// What a process is to load.
#[derive(Clone, Debug)]
pub enum Which {
    File(PathBuf),
    Embedded(usize),
}

impl Isolation {
    /// Starts a process and waits for what its plugin says of itself.
    pub(crate) fn start(&self, which: &Which) -> Result<RemotePlugin, String> {
        let failed = |error: io::Error| format!("{}: a backend's process: {error}", self.program.display());
        let (ours, theirs) = UnixStream::pair().map_err(failed)?;
        let mut command = Command::new(&self.program);
        command.arg(CHILD);
        match which {
            Which::File(path) => command.arg(path),
            Which::Embedded(number) => command.arg(number.to_string()),
        };
        // What interrupts this program at a terminal is not the backend's. Its standard output would get among the data.
        command.process_group(0).stdin(Stdio::from(OwnedFd::from(theirs))).stdout(Stdio::null());
        let process = Process(RefCell::new(command.spawn().map_err(failed)?));
        let obituary = Box::new(move || process.obituary());
        RemotePlugin::meet(Link::new(ours, Some(self.limit), obituary).map_err(failed)?)
    }
}

/// A backend's process, which goes with this.
struct Process(RefCell<Child>);

impl Process {
    /// How it ended.
    fn obituary(&self) -> String {
        let mut child = self.0.borrow_mut();
        for _ in 0..100 {
            match child.try_wait() {
                Ok(Some(status)) => return ended(status),
                Ok(None) => thread::sleep(Duration::from_millis(10)),
                Err(_) => break,
            }
        }
        "its process closed its socket".to_owned()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let child = self.0.get_mut();
        // It may have ended.
        let _ = child.kill();
        let _ = child.wait();
    }
}

fn ended(status: ExitStatus) -> String {
    const NAMES: [(i32, &str); 7] = [
        (4, "SIGILL"),
        (6, "SIGABRT"),
        (7, "SIGBUS"),
        (8, "SIGFPE"),
        (9, "SIGKILL"),
        (11, "SIGSEGV"),
        (15, "SIGTERM"),
    ];
    match (status.signal(), status.code()) {
        (Some(signal), _) => {
            let name = NAMES.iter().find(|(number, _)| *number == signal).map_or("", |(_, name)| name);
            format!("its process was ended by signal {signal} {name}").trim_end().to_owned()
        }
        (None, code) => format!("its process ended with exit code {}", code.unwrap_or_default()),
    }
}
