//! Writing a tape: the vCPU thread only appends to a batch, a thread of its own encodes, compresses and writes.

mod stream;

pub use stream::{Stream, Summary};

use crate::{
    error::{Cause, Place, Result},
    event::Event,
    metadata::Metadata,
};
use crossbeam::channel::{Receiver, Sender, bounded};
use std::{
    fs::{self, File, TryLockError},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    thread::{self, JoinHandle},
};

/// Events that cross the channel at once.
const BATCH: usize = 2048;
/// Batches that may wait: beyond them the guest waits for the writer.
const QUEUE: usize = 16;

enum Message {
    Events(Vec<Event>),
    Checkpoint { name: String, data: Vec<u8> },
    Finish,
}

/// How a tape is written.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// The zstd level of events.
    pub level: i32,
}

impl Default for Options {
    fn default() -> Self {
        Self { level: 9 }
    }
}

/// Records to a file. The tape has a temporary name, `NAME.partial`, until [`Writer::finish`]; a tape that was there
/// before is kept as `NAME.old`. A writer that is dropped leaves the temporary file, which opens as a cut tape.
pub struct Writer {
    path: PathBuf,
    batch: Vec<Event>,
    queue: Option<Sender<Message>>,
    thread: Option<JoinHandle<Result<Summary>>>,
    /// Held until the tape has its name.
    _lock: File,
}

impl Writer {
    /// Starts a tape. `images` are the guest's files by name.
    pub fn create(
        path: &Path,
        metadata: &Metadata,
        images: &[(&str, &[u8])],
        options: Options,
    ) -> Result<Self> {
        let partial = partial(path);
        let name = path.display().to_string();
        // A rename would replace a device or a socket (`-o /dev/null`, as root) by a file.
        if path.exists() && !path.is_file() {
            return Err(Cause::NotAFile.at(&name, Place::File));
        }
        let file = create_alone(&partial).map_err(|c| c.at(&partial.display().to_string(), Place::File))?;
        let lock = file.try_clone().map_err(|e| Cause::Io(e).at(&name, Place::File))?;
        let mut stream = Stream::new(file, &name, options)?;
        stream.metadata(metadata)?;
        for (name, data) in images {
            stream.image(name, data)?;
        }
        let (queue, messages) = bounded(QUEUE);
        let thread = thread::Builder::new()
            .name("tape-writer".to_owned())
            .spawn(move || write(stream, &messages))
            .map_err(|e| Cause::Io(e).at(&name, Place::File))?;
        Ok(Self {
            path: path.to_owned(),
            batch: Vec::with_capacity(BATCH),
            queue: Some(queue),
            thread: Some(thread),
            _lock: lock,
        })
    }

    /// Whether what is pushed still goes to the file. Not after an error, which `finish` reports.
    pub fn is_open(&self) -> bool {
        self.queue.is_some()
    }

    /// Appends an event. An error of the disk is reported by `finish`.
    #[inline]
    pub fn push(&mut self, event: Event) {
        self.batch.push(event);
        if self.batch.len() == BATCH {
            self.flush();
        }
    }

    /// Appends a checkpoint at this point of the stream.
    pub fn checkpoint(&mut self, name: &str, data: Vec<u8>) {
        self.flush();
        self.send(Message::Checkpoint { name: name.to_owned(), data });
    }

    #[cold]
    fn flush(&mut self) {
        let batch = std::mem::replace(&mut self.batch, Vec::with_capacity(BATCH));
        if !batch.is_empty() {
            self.send(Message::Events(batch));
        }
    }

    /// A send that fails means that the writer met an error, which `finish` gets from the thread.
    fn send(&mut self, message: Message) {
        if self.queue.as_ref().is_some_and(|queue| queue.send(message).is_err()) {
            self.queue = None;
        }
    }

    /// Ends the tape, gives it its name and says how large it is.
    pub fn finish(mut self) -> Result<Summary> {
        self.flush();
        self.send(Message::Finish);
        let summary = self.join()?;
        let rename = |from: &Path, to: &Path| {
            fs::rename(from, to).map_err(|e| Cause::Io(e).at(&from.display().to_string(), Place::File))
        };
        if self.path.is_file() {
            rename(&self.path, &with_suffix(&self.path, ".old"))?;
        }
        rename(&partial(&self.path), &self.path)?;
        Ok(summary)
    }

    /// Ends without a tape: the temporary file is removed.
    pub fn discard(mut self) {
        self.batch.clear();
        // Whoever discards a tape has an error of its own to report.
        let _ = self.join();
        let _ = fs::remove_file(partial(&self.path));
    }

    fn join(&mut self) -> Result<Summary> {
        self.queue = None;
        let gone = || Cause::WriterGone.at(&self.path.display().to_string(), Place::File);
        self.thread.take().ok_or_else(gone)?.join().map_err(|_| gone())?
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if self.thread.is_some() {
            self.flush();
            // Whoever drops a recording has an error of its own to report.
            let _ = self.join();
        }
    }
}

/// The name of a tape that is being written.
pub fn partial(path: &Path) -> PathBuf {
    with_suffix(path, ".partial")
}

/// Makes a file empty that nobody else records to: a lock says so, and goes away with whoever holds it.
fn create_alone(path: &Path) -> Result<File, Cause> {
    let file = File::options().write(true).create(true).truncate(false).open(path)?;
    match file.try_lock() {
        Err(TryLockError::WouldBlock) => return Err(Cause::Busy),
        // A file system without locks: nobody can be asked.
        Ok(()) | Err(TryLockError::Error(_)) => {}
    }
    // Another recording may have ended in between, and this is its tape.
    let (opened, named) = (file.metadata()?, fs::metadata(path)?);
    if (opened.dev(), opened.ino()) != (named.dev(), named.ino()) {
        return Err(Cause::Busy);
    }
    file.set_len(0)?;
    Ok(file)
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

fn write(mut stream: Stream<File>, messages: &Receiver<Message>) -> Result<Summary> {
    for message in messages {
        match message {
            Message::Events(batch) => {
                for event in &batch {
                    stream.event(event)?;
                }
            }
            Message::Checkpoint { name, data } => stream.checkpoint(&name, data)?,
            Message::Finish => return stream.finish(),
        }
    }
    // The recording was dropped: keep what it has.
    stream.abandon()
}
