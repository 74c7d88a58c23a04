//! The exits of two tapes, brought together by the instructions before them.

use crate::Error;
use vmtape_traces::{ExitGroup, Exits, Tape, reader::Events};

/// Exits of a tape one by one, with a look at the one to come.
pub trait Ahead {
    type Exit;

    fn ahead(&self) -> Option<&ExitGroup>;

    /// Takes the one to come and looks for the next.
    fn advance(&mut self) -> Result<Option<Self::Exit>, Error>;
}

/// Two tapes side by side.
pub struct Aligned<S> {
    pub expected: S,
    pub actual: S,
}

impl<S: Ahead> Aligned<S> {
    /// The instructions before the next exit of either; `None`: both are at their ends.
    pub fn icount(&self) -> Option<u64> {
        self.moments().into_iter().flatten().min().map(|(icount, _)| icount)
    }

    /// What both have at the next moment: of one vCPU, after so many instructions. Nothing: both are at their ends.
    pub fn advance(&mut self) -> Result<[Option<S::Exit>; 2], Error> {
        let moments = self.moments();
        let next = moments.into_iter().flatten().min();
        let [ours, theirs] = moments.map(|moment| moment.is_some() && moment == next);
        let take = |side: &mut S, is_next: bool| if is_next { side.advance() } else { Ok(None) };
        Ok([take(&mut self.expected, ours)?, take(&mut self.actual, theirs)?])
    }

    fn moments(&self) -> [Option<(u64, u32)>; 2] {
        [&self.expected, &self.actual]
            .map(|side| side.ahead().map(|group| (group.exit.icount, group.exit.vcpu)))
    }
}

/// All exits of a tape from somewhere on.
pub struct AllExits<'t> {
    exits: Exits<Events<'t>>,
    ahead: Option<ExitGroup>,
}

impl<'t> AllExits<'t> {
    pub fn new(mut exits: Exits<Events<'t>>) -> Result<Self, Error> {
        let ahead = exits.next().transpose()?;
        Ok(Self { exits, ahead })
    }

    /// From a chunk on.
    pub fn from_chunk(tape: &'t Tape, chunk: usize) -> Result<Self, Error> {
        let first = tape.chunks().get(chunk).map_or(0, |chunk| chunk.first_exit);
        Self::new(Exits::new(tape.events_from(chunk), first))
    }

    /// From an instruction count on.
    pub fn from_icount(tape: &'t Tape, icount: u64) -> Result<Self, Error> {
        let events = tape.events_from_icount(icount)?;
        let first = events.clock().exits;
        Self::new(Exits::new(events, first))
    }
}

impl Ahead for AllExits<'_> {
    type Exit = ExitGroup;

    fn ahead(&self) -> Option<&ExitGroup> {
        self.ahead.as_ref()
    }

    fn advance(&mut self) -> Result<Option<ExitGroup>, Error> {
        let next = self.exits.next().transpose()?;
        Ok(std::mem::replace(&mut self.ahead, next))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmtape_traces::event::ExitEvent;

    struct Listed(Vec<ExitGroup>);

    impl Ahead for Listed {
        type Exit = u64;

        fn ahead(&self) -> Option<&ExitGroup> {
            self.0.first()
        }

        fn advance(&mut self) -> Result<Option<u64>, Error> {
            Ok(Some(self.0.remove(0).exit.icount))
        }
    }

    fn listed(moments: &[(u64, u32)]) -> Listed {
        let group = |&(icount, vcpu)| {
            let exit = ExitEvent { icount, vcpu, ..ExitEvent::default() };
            ExitGroup { exit, ..ExitGroup::default() }
        };
        Listed(moments.iter().map(group).collect())
    }

    #[test]
    fn what_happens_at_one_moment_comes_together() {
        let mut aligned = Aligned {
            expected: listed(&[(1, 0), (5, 0), (5, 0), (9, 1)]),
            actual: listed(&[(5, 0), (7, 0), (9, 0)]),
        };
        let mut pairs = Vec::new();
        while aligned.icount().is_some() {
            pairs.push(aligned.advance().unwrap());
        }
        let (one, two) = (Some, |icount| [Some(icount), Some(icount)]);
        assert_eq!(
            pairs,
            [[one(1), None], two(5), [one(5), None], [None, one(7)], [None, one(9)], [one(9), None]]
        );
        assert_eq!(aligned.advance().unwrap(), [None, None]);
    }
}
