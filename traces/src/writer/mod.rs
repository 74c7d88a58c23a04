//! Writing a tape: a vCPU's thread only appends to a batch, a thread of its own encodes, compresses and writes.

mod stream;

pub use stream::{Stream, Summary};

use crate::{
    error::{Cause, Error, Place, Result},
    event::Event,
    metadata::Metadata,
};
use crossbeam::channel::{Receiver, RecvTimeoutError, Sender, bounded};
use std::{
    fs::{self, File, TryLockError},
    io,
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

/// Events that cross the channel at once: few enough that those under way stay in the processors' caches, so many that waking
/// the writer costs nothing.
const BATCH: usize = 1024;
/// Batches that may wait: beyond them the guest waits for the writer.
const QUEUE: usize = 32;

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
    /// How long events may wait until the file has them, so that a recording that is killed loses no more. `None`: until their
    /// chunk is full. It does not change the tape.
    pub flush_every: Option<Duration>,
}

impl Default for Options {
    fn default() -> Self {
        Self { level: 9, flush_every: Some(Duration::from_secs(1)) }
    }
}

/// Records to a file. The tape has a temporary name, `NAME.partial`, until [`Writer::finish`]; a tape that was there
/// before is kept as `NAME.old`. A writer that is dropped leaves the temporary file, which opens as a cut tape.
pub struct Writer {
    path: PathBuf,
    output: Output,
    /// The temporary file, locked until the tape has its name.
    file: File,
}

/// Who encodes, compresses and writes.
enum Output {
    /// A thread of its own, so that a guest does not wait.
    Thread(Behind),
    /// Whoever has the events: where nobody waits for them, a thread more costs more than it gives.
    Here(Here),
    /// The tape has ended.
    Ended,
}

struct Behind {
    /// The first `filled` are this batch's. The others are of a batch that is written: each goes when its place is needed, so that
    /// the allocator has its memory at hand for the next event.
    batch: Vec<Event>,
    filled: usize,
    queue: Option<Sender<Message>>,
    /// Batches that are written. Who made their events frees them: two threads at one allocator wait for each other.
    used: Receiver<Vec<Event>>,
    thread: JoinHandle<Result<Summary>>,
    /// The thread waits for events that are not in the file.
    due: Arc<AtomicBool>,
}

struct Here {
    stream: Box<Stream<File>>,
    /// What went wrong, which `finish` reports.
    error: Option<Error>,
}

impl Writer {
    /// Starts a tape, with a thread that writes it. `images` are the guest's files by name.
    pub fn create(
        path: &Path,
        metadata: &Metadata,
        images: &[(&str, &[u8])],
        options: Options,
    ) -> Result<Self> {
        let (mut writer, stream) = Self::start(path, metadata, images, options)?;
        let (queue, messages) = bounded(QUEUE);
        let (give_back, used) = bounded(QUEUE);
        let due = Arc::new(AtomicBool::new(false));
        let asks = due.clone();
        let thread = thread::Builder::new()
            .name("tape-writer".to_owned())
            .spawn(move || write(stream, &messages, &give_back, options.flush_every, &asks))
            .map_err(|e| Cause::Io(e).at(&writer.path.display().to_string(), Place::File))?;
        let batch = Vec::with_capacity(BATCH);
        writer.output = Output::Thread(Behind { batch, filled: 0, queue: Some(queue), used, thread, due });
        Ok(writer)
    }

    /// Starts a tape that is written as events come, without a thread.
    pub fn create_here(path: &Path, metadata: &Metadata, options: Options) -> Result<Self> {
        let (mut writer, stream) = Self::start(path, metadata, &[], options)?;
        writer.output = Output::Here(Here { stream: Box::new(stream), error: None });
        Ok(writer)
    }

    fn start(
        path: &Path,
        metadata: &Metadata,
        images: &[(&str, &[u8])],
        options: Options,
    ) -> Result<(Self, Stream<File>)> {
        let name = path.display().to_string();
        let path = &behind_links(path).map_err(|e| Cause::Io(e).at(&name, Place::File))?;
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
        Ok((Self { path: path.to_owned(), output: Output::Ended, file: lock }, stream))
    }

    /// Whether what is pushed still goes to the file. Not after an error, which `finish` reports.
    pub fn is_open(&self) -> bool {
        match &self.output {
            Output::Thread(behind) => behind.queue.is_some(),
            Output::Here(here) => here.error.is_none(),
            Output::Ended => false,
        }
    }

    /// Appends an event. An error of the disk is reported by `finish`.
    #[inline]
    pub fn push(&mut self, event: Event) {
        match &mut self.output {
            Output::Thread(behind) => behind.push(event),
            Output::Here(here) => here.try_to(|stream| stream.event(&event)),
            Output::Ended => {}
        }
    }

    /// Gives the thread what it waits for, if it is time: to be called now and then, events or not.
    #[inline]
    pub fn flush_if_due(&mut self) {
        if let Output::Thread(behind) = &mut self.output
            && behind.due.load(Ordering::Relaxed)
        {
            behind.due.store(false, Ordering::Relaxed);
            behind.flush();
        }
    }

    /// Appends a checkpoint at this point of the stream.
    pub fn checkpoint(&mut self, name: &str, data: Vec<u8>) {
        match &mut self.output {
            Output::Thread(behind) => {
                behind.flush();
                behind.send(Message::Checkpoint { name: name.to_owned(), data });
            }
            Output::Here(here) => here.try_to(|stream| stream.checkpoint(name, data)),
            Output::Ended => {}
        }
    }

    /// Ends the tape, gives it its name and says how large it is.
    pub fn finish(mut self) -> Result<Summary> {
        let summary = self.end(true)?;
        let partial = partial(&self.path);
        if !is_same_file(&self.file, &partial).unwrap_or(false) {
            return Err(Cause::Replaced.at(&partial.display().to_string(), Place::File));
        }
        let rename = |from: &Path, to: &Path| {
            fs::rename(from, to).map_err(|e| Cause::Io(e).at(&from.display().to_string(), Place::File))
        };
        if self.path.is_file() {
            rename(&self.path, &with_suffix(&self.path, ".old"))?;
        }
        rename(&partial, &self.path)?;
        Ok(summary)
    }

    /// Ends without a tape: the temporary file is removed.
    pub fn discard(mut self) {
        if let Output::Thread(behind) = &mut self.output {
            behind.filled = 0;
        }
        // Whoever discards a tape has an error of its own to report.
        let _ = self.end(false);
        let _ = fs::remove_file(partial(&self.path));
    }

    /// Writes what is left, and an end where the tape is whole.
    fn end(&mut self, whole: bool) -> Result<Summary> {
        let gone = || Cause::WriterGone.at(&self.path.display().to_string(), Place::File);
        let summary = match std::mem::replace(&mut self.output, Output::Ended) {
            Output::Thread(mut behind) => {
                behind.flush();
                if whole {
                    behind.send(Message::Finish);
                }
                behind.queue = None;
                behind.thread.join().map_err(|_| gone())??
            }
            Output::Here(Here { error: Some(error), .. }) => return Err(error),
            Output::Here(Here { stream, error: None }) => {
                if whole {
                    stream.finish()?
                } else {
                    stream.abandon()?
                }
            }
            Output::Ended => return Err(gone()),
        };
        // What was written ahead of a chunk may be longer than it.
        let cut = self.file.set_len(summary.bytes);
        cut.map_err(|e| Cause::Io(e).at(&self.path.display().to_string(), Place::File))?;
        Ok(summary)
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if !matches!(self.output, Output::Ended) {
            // Whoever drops a recording has an error of its own to report.
            let _ = self.end(false);
        }
    }
}

impl Behind {
    #[inline]
    fn push(&mut self, event: Event) {
        match self.batch.get_mut(self.filled) {
            Some(place) => *place = event,
            None => self.batch.push(event),
        }
        self.filled += 1;
        if self.filled == BATCH {
            self.flush();
        }
    }

    #[cold]
    fn flush(&mut self) {
        if self.filled > 0 {
            let next = self.used.try_recv().unwrap_or_else(|_| Vec::with_capacity(BATCH));
            let mut batch = std::mem::replace(&mut self.batch, next);
            batch.truncate(std::mem::take(&mut self.filled));
            self.send(Message::Events(batch));
        }
    }

    /// A send that fails means that the writer met an error, which `finish` gets from the thread.
    fn send(&mut self, message: Message) {
        if self.queue.as_ref().is_some_and(|queue| queue.send(message).is_err()) {
            self.queue = None;
        }
    }
}

impl Here {
    /// Does nothing after an error.
    fn try_to(&mut self, write: impl FnOnce(&mut Stream<File>) -> Result<()>) {
        if self.error.is_none() {
            self.error = write(&mut self.stream).err();
        }
    }
}

/// The name of a tape that is being written.
pub fn partial(path: &Path) -> PathBuf {
    with_suffix(path, ".partial")
}

/// Makes a file empty that nobody else records to: a lock says so, and goes away with whoever holds it. Somebody's link in its place
/// would lead elsewhere, and a pipe would make us wait.
fn create_alone(path: &Path) -> Result<File, Cause> {
    if fs::symlink_metadata(path).is_ok_and(|there| !there.is_file()) {
        return Err(Cause::InTheWay);
    }
    let mut options = File::options();
    options.write(true).create(true).truncate(false).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK);
    let file = options.open(path)?;
    match file.try_lock() {
        Err(TryLockError::WouldBlock) => return Err(Cause::Busy),
        // A file system without locks: nobody can be asked.
        Ok(()) | Err(TryLockError::Error(_)) => {}
    }
    // Another recording may have ended in between, and this is its tape.
    if !is_same_file(&file, path)? {
        return Err(Cause::Busy);
    }
    file.set_len(0)?;
    Ok(file)
}

/// Whether a name leads to an open file, and not to what somebody has put in its place.
fn is_same_file(file: &File, path: &Path) -> io::Result<bool> {
    let (opened, named) = (file.metadata()?, fs::metadata(path)?);
    Ok((opened.dev(), opened.ino()) == (named.dev(), named.ino()))
}

/// Where a file lies, or would lie, that is written by this name: a symbolic link is followed, never replaced.
///
/// # Errors
///
/// `ELOOP`: links that lead to each other lead nowhere.
pub fn behind_links(path: &Path) -> io::Result<PathBuf> {
    /// As many as Linux follows. See: path_resolution(7)
    const MOST_LINKS: u32 = 40;
    let mut path = path.to_owned();
    for _ in 0..MOST_LINKS {
        // What is no file (`/dev/stdout` leads to a pipe without a name) is not found by its link.
        if path.exists() && !path.is_file() {
            return Ok(path);
        }
        let Ok(target) = fs::read_link(&path) else { return Ok(path) };
        path = path.parent().unwrap_or(Path::new("")).join(target);
    }
    Err(io::Error::from_raw_os_error(libc::ELOOP))
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

fn write(
    mut stream: Stream<File>,
    messages: &Receiver<Message>,
    give_back: &Sender<Vec<Event>>,
    flush_every: Option<Duration>,
    due: &AtomicBool,
) -> Result<Summary> {
    let never = Duration::from_secs(u64::from(u32::MAX));
    let every = flush_every.unwrap_or(never);
    let (mut last, mut asked) = (Instant::now(), false);
    loop {
        match messages.recv_timeout(every.saturating_sub(last.elapsed())) {
            Ok(Message::Events(batch)) => {
                batch.iter().try_for_each(|event| stream.event(event))?;
                // Who sends has memory enough where it takes none back.
                let _ = give_back.try_send(batch);
                if std::mem::take(&mut asked) {
                    stream.flush();
                }
            }
            Ok(Message::Checkpoint { name, data }) => stream.checkpoint(&name, data)?,
            Ok(Message::Finish) => return stream.finish(),
            // The recording was dropped: keep what it has.
            Err(RecvTimeoutError::Disconnected) => return stream.abandon(),
            Err(RecvTimeoutError::Timeout) => {}
        }
        if last.elapsed() >= every {
            due.store(true, Ordering::Relaxed);
            (last, asked) = (Instant::now(), true);
        }
    }
}
