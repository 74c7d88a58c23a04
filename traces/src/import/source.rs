//! Lines of a trace, plain or compressed with gzip.

use super::Error;
use flate2::bufread::MultiGzDecoder;
use std::{
    fs::{self, File},
    io::{self, BufRead, BufReader, Read},
    path::PathBuf,
};

/// Beyond this a line is no text.
const LONGEST_LINE: usize = 64 << 10;
const GZIP: &[u8] = &[0x1f, 0x8b];
/// The first bytes of a trace.dat file.
const TRACE_DAT: &[u8] = b"\x17\x08\x44tracing";

/// A trace that can be read twice.
pub enum Source {
    Path(PathBuf),
    Text(String),
}

impl Source {
    pub(super) fn name(&self) -> String {
        match self {
            Self::Path(path) => path.display().to_string(),
            Self::Text(_) => "(text)".to_owned(),
        }
    }

    fn io(&self, cause: io::Error) -> Error {
        Error::Io { trace: self.name(), cause }
    }

    /// Gives every line, without its end, to `each`.
    pub(super) fn lines(&self, each: &mut dyn FnMut(&str) -> Result<(), Error>) -> Result<(), Error> {
        match self {
            Self::Text(text) => self.read(text.as_bytes(), each),
            Self::Path(path) => {
                // A look before it is opened: to open a pipe is to wait for who writes to it.
                let kind = fs::metadata(path).map_err(|e| self.io(e))?.file_type();
                if !kind.is_file() && !kind.is_dir() {
                    return Err(Error::Pipe { trace: self.name() });
                }
                let file = File::open(path).map_err(|e| self.io(e))?;
                let mut reader = BufReader::with_capacity(1 << 16, file);
                if reader.fill_buf().map_err(|e| self.io(e))?.starts_with(GZIP) {
                    let unzipped = MultiGzDecoder::new(reader);
                    return self.read(BufReader::with_capacity(1 << 16, unzipped), each);
                }
                self.read(reader, each)
            }
        }
    }

    fn read(
        &self,
        mut reader: impl BufRead,
        each: &mut dyn FnMut(&str) -> Result<(), Error>,
    ) -> Result<(), Error> {
        if reader.fill_buf().map_err(|e| self.io(e))?.starts_with(TRACE_DAT) {
            return Err(Error::TraceDat { trace: self.name() });
        }
        let (mut line, mut number) = (Vec::new(), 0);
        loop {
            line.clear();
            let mut limited = reader.by_ref().take(LONGEST_LINE as u64 + 1);
            if limited.read_until(b'\n', &mut line).map_err(|e| self.io(e))? == 0 {
                return Ok(());
            }
            number += 1;
            if line.len() > LONGEST_LINE {
                return Err(Error::LongLine { trace: self.name(), line: number, limit: LONGEST_LINE });
            }
            each(String::from_utf8_lossy(&line).trim_end_matches(['\n', '\r']))?;
        }
    }
}
