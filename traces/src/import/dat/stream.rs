//! The events of one CPU, page after page.

use super::{
    Error, Layout,
    header::{Data, unpack},
    page::{self, Head},
};
use std::{fs::File, os::unix::fs::FileExt};

/// As many bytes are read at a time where nothing is compressed.
const READ: u64 = 1 << 18;
/// No chunk of compressed pages is larger.
const LARGEST_CHUNK: u64 = 64 << 20;

pub struct Stream<'a> {
    file: &'a File,
    data: Data,
    layout: Layout,
    /// Where in the file is what was not read yet, and where it ends.
    next: u64,
    end: u64,
    /// Chunks that are left, once they are counted.
    chunks: Option<u64>,
    /// Pages in memory.
    pages: Vec<u8>,
    /// The page that is read, within them.
    page: usize,
    head: Head,
    at: usize,
    time: u64,
    /// The current event.
    record: Option<(usize, usize)>,
    gap: Option<u64>,
}

impl<'a> Stream<'a> {
    pub fn open(file: &'a File, data: Data, layout: Layout) -> Result<Self, Error> {
        // What compressed data come to in the file is told by the chunks themselves.
        let end = if data.compressed { file.metadata()?.len() } else { data.offset + data.size };
        let next = data.offset;
        let head = Head::default();
        Ok(Self {
            file,
            data,
            layout,
            next,
            end,
            chunks: None,
            pages: Vec::new(),
            page: 0,
            head,
            at: 0,
            time: 0,
            record: None,
            gap: None,
        })
    }

    /// The time of the current event, if there is one.
    pub fn time(&self) -> Option<u64> {
        self.record.map(|_| self.time)
    }

    /// The current event.
    pub fn record(&self) -> &[u8] {
        let (start, end) = self.record.unwrap_or_default();
        &self.pages[self.page + start..self.page + end]
    }

    /// How many events are missing before the current one, if some are; 0 if that is not told.
    pub fn take_gap(&mut self) -> Option<u64> {
        self.gap.take()
    }

    /// Goes to the next event.
    pub fn advance(&mut self) -> Result<(), Error> {
        self.record = None;
        loop {
            let page = self.pages.get(self.page..).unwrap_or_default();
            match page::next(page, self.at, self.head.end, &mut self.time, self.layout)? {
                Some(next) => {
                    self.at = next.after;
                    if next.data.is_some() {
                        self.record = next.data;
                        return Ok(());
                    }
                }
                None => {
                    if !self.turn()? {
                        return Ok(());
                    }
                    if let Some(events) = self.head.missed {
                        *self.gap.get_or_insert(0) += events;
                    }
                }
            }
        }
    }

    /// Goes to the next page, if there is one.
    fn turn(&mut self) -> Result<bool, Error> {
        let size = self.data.page_size as usize;
        if !self.pages.is_empty() {
            self.page += size;
        }
        if self.page + size > self.pages.len() {
            self.pages.clear();
            self.page = 0;
            if !self.refill()? {
                self.head = Head::default();
                self.at = 0;
                return Ok(false);
            }
        }
        let page = self.pages.get(self.page..self.page + size).ok_or(Error::Cut("a page"))?;
        self.head = page::head(page, self.layout)?;
        (self.at, self.time) = (self.head.start, self.head.time);
        Ok(true)
    }

    fn refill(&mut self) -> Result<bool, Error> {
        if self.data.compressed {
            return self.chunk();
        }
        let size = u64::from(self.data.page_size);
        let most = (READ / size).max(1) * size;
        let take = most.min((self.end - self.next) / size * size);
        self.pages.resize(take as usize, 0);
        self.file.read_exact_at(&mut self.pages, self.next)?;
        self.next += take;
        Ok(take > 0)
    }

    /// Compressed pages: a count of chunks, then for each its size packed and unpacked, and its bytes.
    fn chunk(&mut self) -> Result<bool, Error> {
        let left = match self.chunks {
            Some(left) => left,
            None => self.number()?,
        };
        self.chunks = Some(left.saturating_sub(1));
        if left == 0 {
            return Ok(false);
        }
        let (packed, unpacked) = (self.number()?, self.number()?);
        if unpacked > LARGEST_CHUNK || unpacked < u64::from(self.data.page_size) {
            return Err(Error::Bent(format!("a chunk has {unpacked} bytes unpacked")));
        }
        let bytes = self.bytes(packed)?;
        self.pages = unpack(&bytes, unpacked, "a chunk")?;
        Ok(true)
    }

    fn number(&mut self) -> Result<u64, Error> {
        let bytes = self.bytes(4)?;
        Ok(self.layout.number(&bytes))
    }

    fn bytes(&mut self, len: u64) -> Result<Vec<u8>, Error> {
        if len > self.end - self.next {
            return Err(Error::Cut("the data of a CPU"));
        }
        let mut bytes = vec![0; len as usize];
        self.file.read_exact_at(&mut bytes, self.next)?;
        self.next += len;
        Ok(bytes)
    }
}
