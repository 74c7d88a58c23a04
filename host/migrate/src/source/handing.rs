//! The source's part in the last messages.

use super::{Phase, Source, Step};
use crate::{
    Error,
    handover::{Moment, State},
    link::Incoming,
    points::MovePoint,
    stream::Record,
};
use vmtape_machine::Phase as MovePhase;

impl Source<'_> {
    pub(super) fn await_ready(&mut self) -> Result<Step, Error> {
        if self.around.dies(Moment::BEFORE_READY) {
            return Ok(self.dead());
        }
        match self.wire.receive()? {
            Incoming::Record(Record::Ready { epoch }) if epoch == self.plan.epoch => {
                self.phase = Phase::Hand;
                Ok(Step::Worked)
            }
            other => self.other(other),
        }
    }

    /// From here on the guest is not run here, whatever comes, unless it is certain that it does not run elsewhere.
    pub(super) fn hand(&mut self) -> Result<Step, Error> {
        let rules = self.plan.handover.rules();
        if self.around.dies(Moment::BEFORE_GO) {
            return Ok(self.dead());
        }
        self.around.becomes(State::Handed)?;
        let epoch =
            self.around.points.ask(MovePoint::GO_EPOCH, self.plan.epoch, 0).unwrap_or(self.plan.epoch);
        if let Err(broken) = self.wire.send(&Record::Go { epoch }) {
            if self.around.dies(Moment::WITHIN_GO) {
                return Ok(self.dead());
            }
            // Of nothing that was not sent the destination can have read anything.
            let state = if broken.written == 0 { State::Running } else { rules.go_cut };
            return self.without_answer(state, broken.to_string());
        }
        if self.around.dies(Moment::AFTER_GO) {
            return Ok(self.dead());
        }
        if rules.done {
            self.phase = Phase::AwaitDone;
            return Ok(Step::Worked);
        }
        self.gone()
    }

    /// The guest runs elsewhere. Its memory may still be here.
    fn gone(&mut self) -> Result<Step, Error> {
        let phase = if self.plan.method.is_postcopy() { MovePhase::POST_COPY } else { MovePhase::DONE };
        self.around.points.at(self.sent.instructions, phase);
        self.around.becomes(State::Gone)?;
        self.phase = Phase::Over;
        Ok(Step::Over)
    }

    pub(super) fn await_done(&mut self) -> Result<Step, Error> {
        if self.around.dies(Moment::AFTER_DONE) {
            return Ok(self.dead());
        }
        let lost = self.plan.handover.rules().done_lost;
        match self.wire.receive() {
            Ok(Incoming::Record(Record::Done { epoch })) if epoch == self.plan.epoch => self.gone(),
            Ok(Incoming::Nothing) => Ok(Step::Waits),
            Ok(Incoming::Record(Record::Dropped { .. } | Record::Note(_))) => Ok(Step::Worked),
            // An explicit no: the destination does not run the guest.
            Ok(Incoming::Record(Record::Refused { epoch, why })) if epoch == self.plan.epoch => {
                self.without_answer(State::Running, why)
            }
            Ok(Incoming::Record(record)) => {
                self.without_answer(lost, format!("{} instead of done", record.kind()))
            }
            Ok(Incoming::Closed) => {
                self.without_answer(lost, "the destination has left without DONE".to_owned())
            }
            Err(error) => self.without_answer(lost, error.to_string()),
        }
    }

    /// What the source becomes where it does not hear that the guest runs elsewhere. The witness may know.
    fn without_answer(&mut self, state: State, why: String) -> Result<Step, Error> {
        self.failure = Some(why);
        self.phase = Phase::Over;
        let free = state == State::Parked && self.around.witness.borrow_mut().fence(self.plan.epoch);
        let state = if free { State::Running } else { state };
        match state {
            State::Running => self.goes_on(State::Running)?,
            state => self.around.becomes(state)?,
        }
        self.wire.close();
        Ok(Step::Over)
    }

    fn dead(&mut self) -> Step {
        self.failure = Some(Error::Killed("source").to_string());
        self.phase = Phase::Over;
        self.wire.close();
        Step::Over
    }
}
