//! A link within one process. What arrives when depends on nothing but the order of calls.

use super::{Broken, Link, Received};
use std::{cell::RefCell, rc::Rc};

#[derive(Default)]
struct Pipe {
    bytes: Vec<u8>,
    closed: bool,
}

/// One end.
pub struct Channel {
    out: Rc<RefCell<Pipe>>,
    into: Rc<RefCell<Pipe>>,
    capacity: usize,
}

/// Both ends of a channel. Who sends more than `capacity` bytes that nobody has read has no room.
pub fn pair(capacity: usize) -> [Channel; 2] {
    let pipes: [Rc<RefCell<Pipe>>; 2] = Default::default();
    let [a, b] = [0, 1].map(|n: usize| (pipes[n].clone(), pipes[1 - n].clone()));
    [a, b].map(|(out, into)| Channel { out, into, capacity })
}

impl Link for Channel {
    fn send(&mut self, bytes: &[u8]) -> Result<(), Broken> {
        let mut out = self.out.borrow_mut();
        if out.closed {
            return Err(Broken { written: 0, why: "the peer is not there".to_owned() });
        }
        out.bytes.extend_from_slice(bytes);
        Ok(())
    }

    fn receive(&mut self) -> Result<Received, Broken> {
        let mut into = self.into.borrow_mut();
        let bytes = std::mem::take(&mut into.bytes);
        Ok(match (bytes.is_empty(), into.closed) {
            (false, _) => Received::Bytes(bytes),
            (true, false) => Received::Nothing,
            (true, true) => Received::Closed,
        })
    }

    fn has_room(&self) -> bool {
        let out = self.out.borrow();
        out.closed || out.bytes.len() < self.capacity
    }

    fn close(&mut self) {
        self.out.borrow_mut().closed = true;
        self.into.borrow_mut().closed = true;
    }
}

impl Drop for Channel {
    fn drop(&mut self) {
        self.close();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_sent_arrives_also_when_the_sender_has_left() {
        let [mut a, mut b] = pair(4);
        a.send(b"abc").unwrap();
        assert!(a.has_room());
        a.send(b"de").unwrap();
        assert!(!a.has_room());
        a.close();
        assert_eq!(b.receive(), Ok(Received::Bytes(b"abcde".to_vec())));
        assert_eq!(b.receive(), Ok(Received::Closed));
        assert_eq!(b.send(b"x").map_err(|broken| broken.written), Err(0));
    }
}
