//! Where a tape's bytes come from. Reads, no mapping: a file that shrinks under a mapping would kill the program.

use crate::error::Cause;
use std::{
    fs::{self, File},
    io::{self, ErrorKind},
    os::unix::fs::FileExt,
    path::Path,
    sync::Arc,
};

/// A file or a buffer. Clones share it.
#[derive(Clone)]
pub(super) enum Source {
    File { file: Arc<File>, len: u64, tail: Option<Tail> },
    Memory(Arc<Vec<u8>>),
}

/// The last bytes of a file that somebody still writes, as they were when it was opened: they may be written again.
#[derive(Clone)]
pub(super) struct Tail {
    offset: u64,
    bytes: Arc<Vec<u8>>,
}

impl From<Vec<u8>> for Source {
    fn from(bytes: Vec<u8>) -> Self {
        Self::Memory(Arc::new(bytes))
    }
}

impl Source {
    pub fn open(path: &Path) -> Result<Self, Cause> {
        // A look before it is opened: to open a pipe is to wait for who writes to it.
        let metadata = fs::metadata(path)?;
        if metadata.is_dir() {
            return Err(Cause::Io(ErrorKind::IsADirectory.into()));
        }
        if !metadata.is_file() {
            return Err(Cause::Pipe);
        }
        let file = File::open(path)?;
        Ok(Self::File { file: Arc::new(file), len: metadata.len(), tail: None })
    }

    pub fn len(&self) -> u64 {
        match self {
            Self::File { len, .. } => *len,
            Self::Memory(bytes) => bytes.len() as u64,
        }
    }

    /// Keeps the bytes from an offset on as they are now: what a writer does to them later is not seen.
    pub fn keep_tail(&mut self, offset: u64, count: u64) -> io::Result<()> {
        let bytes = self.prefix(offset, count)?;
        if let Self::File { tail, .. } = self {
            *tail = Some(Tail { offset, bytes: Arc::new(bytes) });
        }
        Ok(())
    }

    /// Up to `count` bytes at `offset`, fewer at the end: memory is allocated for bytes that exist.
    pub fn prefix(&self, offset: u64, count: u64) -> io::Result<Vec<u8>> {
        let count = count.min(self.len().saturating_sub(offset)) as usize;
        match self {
            Self::File { tail: Some(tail), .. } if offset >= tail.offset => {
                let kept = tail.bytes.get((offset - tail.offset) as usize..).unwrap_or_default();
                Ok(kept[..count.min(kept.len())].to_vec())
            }
            Self::File { file, .. } => {
                let mut bytes = vec![0; count];
                file.read_exact_at(&mut bytes, offset)?;
                Ok(bytes)
            }
            Self::Memory(bytes) if count == 0 => Ok(bytes[..0].to_vec()),
            Self::Memory(bytes) => Ok(bytes[offset as usize..][..count].to_vec()),
        }
    }
}
