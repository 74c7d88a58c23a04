//! The exits of a tape, decoded ahead by a thread of their own while the caller looks at them.

use crate::{
    error::{Error, Result},
    exits::{Batch, ExitGroup, Grouping, Rest},
    reader::{Events, Tape},
};
use crossbeam::channel::{Receiver, Sender, bounded};
use std::thread;

/// Exits that cross the channel at once: few enough that all exits under way stay in the processors' caches, so many that waking
/// the decoder costs little.
const BATCH: usize = 512;
/// Batches that are decoded ahead.
const QUEUE: usize = 2;

/// The exits of a tape in order. What was looked at goes back to the decoder, so that no memory is allocated for exits.
pub struct Ahead {
    batches: Receiver<Result<Batch>>,
    used: Sender<Batch>,
    rest: Receiver<Rest>,
    batch: Batch,
    next: usize,
}

impl Ahead {
    /// What is behind the last exit, once all of them were given.
    pub fn rest(&mut self) -> Rest {
        self.rest.try_recv().unwrap_or_default()
    }

    /// The next exit.
    pub fn next_exit(&mut self) -> Result<Option<&ExitGroup>> {
        while self.next == self.batch.len() {
            let Ok(batch) = self.batches.recv() else { return Ok(None) };
            let used = std::mem::replace(&mut self.batch, batch?);
            self.next = 0;
            // A decoder that is done needs no memory.
            let _ = self.used.try_send(used);
        }
        self.next += 1;
        Ok(self.batch.get(self.next - 1).map(|group| &**group))
    }
}

/// Calls `work` with the exits of a tape from a chunk on, the first of them having this number.
pub fn with_exits<R>(tape: &Tape, chunk: usize, first: u64, work: impl FnOnce(&mut Ahead) -> R) -> R {
    let (batches, received) = bounded(QUEUE);
    let (used, returned) = bounded(QUEUE);
    let (rests, rest) = bounded(1);
    thread::scope(|scope| {
        scope.spawn(move || {
            let decoder = AheadDecoder {
                events: tape.events_from(chunk),
                groups: Grouping::new(first),
                returned,
                rests,
            };
            decoder.run(&batches);
        });
        // The decoder ends when nobody receives any more.
        work(&mut Ahead { batches: received, used, rest, batch: Vec::new(), next: 0 })
    })
}

struct AheadDecoder<'t> {
    events: Events<'t>,
    groups: Grouping,
    returned: Receiver<Batch>,
    rests: Sender<Rest>,
}

impl AheadDecoder<'_> {
    fn run(mut self, batches: &Sender<Result<Batch>>) {
        loop {
            let (batch, error) = self.batch();
            let over = batch.len() < BATCH;
            if batches.send(Ok(batch)).is_err() {
                return;
            }
            if let Some(error) = error {
                // Nobody has to listen any more.
                let _ = batches.send(Err(error));
                return;
            }
            if over {
                let _ = self.rests.send(self.groups.take_rest());
                return;
            }
        }
    }

    /// The next exits; fewer than a full batch at the end or before an error.
    fn batch(&mut self) -> (Batch, Option<Error>) {
        let mut batch = self.returned.try_recv().unwrap_or_default();
        let groups = &mut self.groups;
        groups.spare.append(&mut batch);
        while groups.done.len() < BATCH {
            let decoded = self.events.decode_while(|decoder| {
                groups.take_decoded(decoder)?;
                Ok(groups.done.len() < BATCH)
            });
            match decoded {
                Some(Ok(())) => {}
                Some(Err(error)) => {
                    batch.extend(groups.done.drain(..));
                    return (batch, Some(error));
                }
                None => {
                    groups.close_all();
                    break;
                }
            }
        }
        batch.extend(groups.done.drain(..));
        (batch, None)
    }
}
