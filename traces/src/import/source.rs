//! Where a trace comes from: a file, standard input or a text, recognised by what it begins with.

use super::{
    Error,
    dat::{self, Trace},
    line::{self, Line},
    perf,
    wrap::{self, LONGEST_LINE, Lines, Wrapped},
};
use flate2::bufread::MultiGzDecoder;
use std::{
    cell::Cell,
    fs::{self, File},
    io::{self, BufRead, BufReader, BufWriter, Read, Seek, Write},
    path::{Path, PathBuf},
};

const GZIP: &[u8] = &[0x1f, 0x8b];
const ZSTD: &[u8] = &[0x28, 0xb5, 0x2f, 0xfd];
/// What a text in UTF-16 begins with.
const UTF_16_LE: &[u8] = &[0xff, 0xfe];
const UTF_16_BE: &[u8] = &[0xfe, 0xff];

/// A trace to import.
pub enum Source {
    Path(PathBuf),
    /// Standard input. It is copied to a temporary file, because a trace is read twice.
    Stdin,
    Text(String),
}

impl Source {
    /// The trace at a path; `-` is standard input.
    pub fn at(path: &Path) -> Self {
        if path == Path::new("-") { Self::Stdin } else { Self::Path(path.to_owned()) }
    }

    pub(super) fn name(&self) -> String {
        match self {
            Self::Path(path) => path.display().to_string(),
            Self::Stdin => "standard input".to_owned(),
            Self::Text(_) => "(text)".to_owned(),
        }
    }

    pub(super) fn open(&self) -> Result<Opened<'_>, Error> {
        let name = self.name();
        let io = |cause| Error::Io { trace: self.name(), cause };
        let input = match self {
            Self::Text(text) => Input::Text(text),
            Self::Stdin => {
                let mut file = tempfile::tempfile().map_err(io)?;
                io::copy(&mut io::stdin().lock(), &mut file).map_err(io)?;
                Input::File(file)
            }
            Self::Path(path) => {
                // A look before it is opened: to open a pipe is to wait for who writes to it.
                let kind = fs::metadata(path).map_err(io)?.file_type();
                if !kind.is_file() && !kind.is_dir() {
                    return Err(Error::Pipe { trace: name });
                }
                Input::File(File::open(path).map_err(io)?)
            }
        };
        let mut opened = Opened { name, input, format: Format::Text, wrapped: Cell::default() };
        opened.recognise().map_err(|cause| opened.io(cause))?;
        Ok(opened)
    }
}

enum Input<'a> {
    Text(&'a str),
    File(File),
}

/// A trace that can be read any number of times.
pub(super) struct Opened<'a> {
    name: String,
    input: Input<'a>,
    format: Format,
    /// How its lines are wrapped, once they were read.
    wrapped: Cell<Wrapped>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    Text,
    TraceDat,
    PerfData,
}

impl Format {
    fn of(start: &[u8]) -> Self {
        match start {
            _ if start.starts_with(dat::MAGIC) => Self::TraceDat,
            _ if perf::MAGIC.iter().any(|magic| start.starts_with(magic)) => Self::PerfData,
            _ => Self::Text,
        }
    }
}

impl Opened<'_> {
    pub fn name(&self) -> &str {
        &self.name
    }

    fn io(&self, cause: io::Error) -> Error {
        Error::Io { trace: self.name.clone(), cause }
    }

    /// Finds out what it is. What is compressed as a whole and is no text is unpacked to a temporary file, because it is not
    /// read from its beginning to its end.
    fn recognise(&mut self) -> io::Result<()> {
        let Input::File(file) = &self.input else { return Ok(()) };
        let packed = is_packed(file)?;
        let mut start = [0; 16];
        let mut unpacked = unpacked(file)?;
        let mut filled = 0;
        while filled < start.len() {
            match unpacked.read(&mut start[filled..]) {
                Ok(0) => break,
                Ok(more) => filled += more,
                // A file that is cut this early is read as text, which says so.
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => break,
                Err(error) => return Err(error),
            }
        }
        let start = &start[..filled];
        self.format = Format::of(start);
        if start.starts_with(UTF_16_LE) || start.starts_with(UTF_16_BE) {
            let word = if start.starts_with(UTF_16_LE) { u16::from_le_bytes } else { u16::from_be_bytes };
            let mut whole = BufWriter::new(tempfile::tempfile()?);
            drop(unpacked);
            wrap::transcode(self::unpacked(file)?, word, &mut whole)?;
            self.input = Input::File(whole.into_inner()?);
            return Ok(());
        }
        if packed && self.format != Format::Text {
            let mut whole = tempfile::tempfile()?;
            whole.write_all(start)?;
            io::copy(&mut unpacked, &mut whole)?;
            drop(unpacked);
            self.input = Input::File(whole);
        }
        Ok(())
    }

    /// Gives every line, and its text without its end where it is text, to `each`.
    pub fn lines(&self, each: &mut dyn FnMut(&Line<'_>, &str) -> Result<(), Error>) -> Result<(), Error> {
        let file = match &self.input {
            Input::Text(text) => return self.text(text.as_bytes(), each),
            Input::File(file) => file,
        };
        match self.format {
            Format::Text => self.text(unpacked(file).map_err(|e| self.io(e))?, each),
            Format::PerfData => {
                let named = |cause| Error::PerfData { trace: self.name.clone(), cause };
                perf::records(file, &mut |line| each(line, "")).map_err(|error| match error {
                    Error::Perf(cause) => named(cause),
                    other => other,
                })
            }
            Format::TraceDat => {
                let named = |cause| Error::TraceDat { trace: self.name.clone(), cause };
                let trace = Trace::open(file).map_err(named)?;
                trace.records(&mut |line| each(line, "")).map_err(|error| match error {
                    Error::Dat(cause) => named(cause),
                    other => other,
                })
            }
        }
    }

    fn text(
        &self,
        reader: impl BufRead,
        each: &mut dyn FnMut(&Line<'_>, &str) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let mut lines = Lines::new(reader, self.wrapped.get());
        loop {
            match lines.next() {
                Ok(Some(text)) => each(&line::classify(text), text)?,
                Ok(None) => {
                    self.wrapped.set(lines.wrapped());
                    return Ok(());
                }
                Err(wrap::Error::Io(cause)) => return Err(self.io(cause)),
                Err(wrap::Error::Long(line)) => {
                    return Err(Error::LongLine { trace: self.name.clone(), line, limit: LONGEST_LINE });
                }
            }
        }
    }
}

fn is_packed(mut file: &File) -> io::Result<bool> {
    file.rewind()?;
    let mut start = Vec::new();
    file.take(4).read_to_end(&mut start)?;
    Ok(start.starts_with(GZIP) || start.starts_with(ZSTD))
}

/// A file from its beginning, decompressed if it is compressed.
fn unpacked(mut file: &File) -> io::Result<Box<dyn BufRead + '_>> {
    file.rewind()?;
    let mut reader = BufReader::with_capacity(1 << 16, file);
    let start = reader.fill_buf()?;
    Ok(if start.starts_with(GZIP) {
        Box::new(BufReader::with_capacity(1 << 16, MultiGzDecoder::new(reader)))
    } else if start.starts_with(ZSTD) {
        Box::new(BufReader::with_capacity(1 << 16, zstd::Decoder::with_buffer(reader)?))
    } else {
        Box::new(reader)
    })
}
