//! Records over a link, with what may happen to them on the way.

use super::{Broken, Link, Received};
use crate::{
    Error,
    points::{MovePoint, Points},
    stream::{Reader, Record, Writer},
};

/// One end of a conversation: what it sends and what it receives are a stream each.
pub struct Wire {
    link: Box<dyn Link>,
    writer: Writer,
    reader: Reader,
    points: Points,
    /// Bytes that were sent.
    pub sent: u64,
}

/// What comes over a wire.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Incoming {
    Record(Record),
    Nothing,
    Closed,
}

impl Wire {
    pub fn new(link: Box<dyn Link>, points: Points) -> Self {
        Self { link, writer: Writer::new(), reader: Reader::new(), points, sent: 0 }
    }

    /// Another wire over another link: both streams begin anew.
    pub fn renewed(&self, link: Box<dyn Link>) -> Self {
        Self::new(link, self.points.clone())
    }

    pub fn has_room(&self) -> bool {
        self.link.has_room()
    }

    pub fn close(&mut self) {
        self.link.close();
    }

    pub fn send(&mut self, record: &Record) -> Result<(), Broken> {
        let mut bytes = self.writer.record(record);
        let (kind, len) = (record.kind().0.into(), bytes.len());
        let ask = |point| self.points.ask(point, kind, len as u64);
        let at = |answer: u64| usize::try_from(answer).unwrap_or(len).min(len);
        if let Some(bit) = ask(MovePoint::SEND_FLIP) {
            let bit = bit % (8 * len as u64);
            bytes[(bit / 8) as usize] ^= 1 << (bit % 8);
        }
        if let Some(arrive) = ask(MovePoint::SEND_CUT).map(at) {
            self.link.send(&bytes[..arrive])?;
            self.link.close();
            return Err(Broken { written: arrive, why: format!("within {}", record.kind()) });
        }
        if let Some(arrive) = ask(MovePoint::SEND_LOST).map(at) {
            self.link.send(&bytes[..arrive])?;
            self.link.close();
            return Ok(());
        }
        let times = if ask(MovePoint::SEND_TWICE).is_some() { 2 } else { 1 };
        for _ in 0..times {
            self.link.send(&bytes)?;
            self.sent += len as u64;
        }
        Ok(())
    }

    /// The next record, or why there is none. A stream that ends within a section is an error only to who needs the rest: the peer
    /// may have died, so it is [`Incoming::Closed`] too.
    pub fn receive(&mut self) -> Result<Incoming, Error> {
        loop {
            if let Some(section) = self.reader.section()? {
                return Ok(Incoming::Record(Record::decode(&section)?));
            }
            match self.link.receive()? {
                Received::Bytes(bytes) => self.reader.push(&bytes),
                Received::Nothing => return Ok(Incoming::Nothing),
                Received::Closed => return Ok(Incoming::Closed),
            }
        }
    }
}
