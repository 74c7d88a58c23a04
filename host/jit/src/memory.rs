//! Memory for code: bounded, and never writable and executable at once.

use dynasmrt::mmap::{ExecutableBuffer, MutableBuffer};

/// Bytes that change their protection together.
const CHUNK: usize = 1 << 18;
/// 32 MiB.
const CHUNKS: usize = 128;

#[derive(Default)]
pub(crate) struct CodeMemory {
    chunks: Vec<ExecutableBuffer>,
}

impl CodeMemory {
    pub(crate) fn clear(&mut self) {
        self.chunks.clear();
    }

    /// The address of a copy of the code, which stays until [`CodeMemory::clear`]. `None`: there is no room, and what is there may be
    /// incomplete: it is to be cleared.
    pub(crate) fn add(&mut self, code: &[u8]) -> Option<u64> {
        let fits = self.chunks.last().is_some_and(|chunk| chunk.len() + code.len() <= CHUNK);
        let chunk = if fits {
            self.chunks.pop()?.make_mut().ok()
        } else if self.chunks.len() < CHUNKS && code.len() <= CHUNK {
            MutableBuffer::new(CHUNK).ok()
        } else {
            None
        };
        let mut chunk = chunk?;
        let at = chunk.len();
        chunk.set_len(at + code.len());
        chunk[at..].copy_from_slice(code);
        let chunk = chunk.make_exec().ok()?;
        let address = chunk[at..].as_ptr() as u64;
        self.chunks.push(chunk);
        Some(address)
    }
}
