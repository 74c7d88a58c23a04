//! A machine that replays taped exits, and what it did about the last one.

use super::events::{self, Answer, Compared, Waiting};
use crate::{
    Error,
    explain::{self, Widths},
    observer::{Log, Observation, Observer},
    player::Player,
    seen::visible,
    sides::Sides,
    spec,
};
use std::{
    cell::{Ref, RefCell},
    collections::{BTreeMap, BTreeSet},
    ops::ControlFlow,
    rc::Rc,
};
use vmtape_arch::{exception::Exception, exit::Resume, level::Place, note::Note};
use vmtape_machine::{ChangesTold, Machine, MachineSpec, Recorder, Resolved};
use vmtape_traces::{
    Event, ExitGroup, Rest,
    event::{Control, End},
};

/// How to feed a tape.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Method {
    /// The machine is the tape's own, whichever build of its backend it is.
    pub same: bool,
    /// Go on after a difference, and list them all.
    pub go_on: bool,
    /// The guest runs beside, on the tape's own machine, which lends its registers and memory before each exit: what the tape
    /// does not tell is known then. It shows whether tapes tell enough.
    pub beside: bool,
}

/// A replayed machine.
pub(super) struct Replayed {
    pub machine: Machine,
    answer: Rc<RefCell<Answer>>,
    /// The tape's own machine, from which this one takes what it has not done.
    guide: Option<Box<Self>>,
    /// The tape's own machine, running the guest.
    beside: Option<Player>,
    /// It is the tape's own machine itself.
    same: bool,
    /// It has done something else about the last exit.
    diverged: bool,
    /// What is to be said of the last exit, where it is the tape's own machine.
    compared: Compared,
    /// What the tape's entries give that come after a halt, by vCPU.
    halted: BTreeMap<u32, Vec<Note>>,
    /// Such an entry, where it gave something else here.
    woken: Option<Woken>,
    /// What entries told that no exit came before, where that is compared.
    waiting: Option<Waiting>,
    /// vCPUs whose last exit was unknown or different: so is what they entered with after it.
    astray: BTreeSet<u32>,
}

/// How the machine dealt with what it was given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Handling {
    /// Its silicon went on without an exit.
    Native,
    /// Its silicon gave the guest an exception without an exit.
    Fault(Exception),
    /// It took exits and handled them.
    Handled,
    /// It took exits without end.
    Endless,
    /// Its run ended. `alike`: so does the tape.
    Ended { alike: bool },
}

impl Handling {
    pub fn has_ended(&self) -> bool {
        matches!(self, Self::Ended { .. })
    }

    /// Whether silicon executed by itself what the tape has an exit for, and what came of it is on no tape. That an access
    /// just succeeds is all there is to know of it.
    pub fn is_untold(&self, group: &ExitGroup) -> bool {
        let silent = || visible(&group.notes).next().is_none();
        *self == Self::Native && explain::address_of(&group.exit.exit).is_none() && !silent()
    }
}

/// An entry that ended a halt and gave the guest something else than the tape's.
pub(super) struct Woken {
    pub expected: Vec<Note>,
    pub actual: Vec<Note>,
    /// The machine's devices ended the halt, too.
    pub known: bool,
}

struct Listener {
    answer: Rc<RefCell<Answer>>,
    /// Where everything is written down, for a look at one exit.
    log: Option<Log>,
}

impl Recorder for Listener {
    fn event(&mut self, event: Event) -> ControlFlow<()> {
        if let Some(log) = &self.log {
            log.push(Observation::Event(event.clone()));
        }
        if let Event::Resume { resume, changes, .. } = event {
            let mut answer = self.answer.borrow_mut();
            (answer.resume, answer.changes) = (Some(resume), changes);
            answer.handled = answer.notes.len();
        }
        ControlFlow::Continue(())
    }

    fn note(&mut self, vcpu: u32, place: Place, note: Note) -> ControlFlow<()> {
        if let Some(log) = &self.log {
            log.push(Observation::Event(Event::Note { vcpu, place, note }));
        }
        let mut answer = self.answer.borrow_mut();
        if place != Place::L1 {
            let index = answer.notes.len();
            answer.places.push((index, place));
        }
        answer.notes.push(note);
        answer.notes_of.push(vcpu);
        ControlFlow::Continue(())
    }

    fn halt_ends(&mut self, known: bool) {
        let mut answer = self.answer.borrow_mut();
        answer.woken = Some((answer.before.len() + answer.notes.len(), known));
    }

    fn wants_stimuli(&self) -> bool {
        self.log.as_ref().is_some_and(Log::is_on)
    }

    fn exit_begins(&mut self) {
        let Answer { before, before_of, notes, notes_of, places, .. } = &mut *self.answer.borrow_mut();
        before.append(notes);
        before_of.append(notes_of);
        places.clear();
    }
}

impl Replayed {
    pub fn new(
        machine: &MachineSpec,
        sides: &Sides,
        method: Method,
        log: Option<Log>,
    ) -> Result<Self, Error> {
        let own = Method { same: true, ..Method::default() };
        let guide = match method.go_on {
            true => Some(Box::new(Self::new(&sides.expected, sides, own, None)?)),
            false => None,
        };
        let beside = match method.beside {
            true => Some(Player::new(
                sides.expected.clone(),
                Box::new(spec::inputs(sides.tape)?),
                spec::budget(sides.tape),
                sides.create,
                false,
            )?),
            false => None,
        };
        let answer = Rc::new(RefCell::new(Answer::default()));
        let mut backend = (sides.create)(machine)?;
        if let Some(log) = &log {
            backend = Box::new(Observer::new(backend, log.clone()));
        }
        let listener = Listener { answer: answer.clone(), log };
        let inputs = Box::new(spec::inputs(sides.tape)?);
        let mut machine = Machine::new(machine.clone(), backend, inputs, Some(Box::new(listener)))?;
        machine.start_feeding(sides.tape.schema(), method.same);
        let chained = method.same && machine.spec().register_changes == ChangesTold::Chained;
        let waiting = chained.then(Waiting::default);
        let compared = Compared::Equal;
        Ok(Self {
            machine,
            answer,
            guide,
            beside,
            same: method.same,
            diverged: false,
            compared,
            halted: BTreeMap::new(),
            woken: None,
            waiting,
            astray: BTreeSet::new(),
        })
    }

    /// Gives the machine an exit, or if it is not the tape's own what caused the exit.
    pub fn take(&mut self, group: &ExitGroup) -> Result<Handling, Error> {
        if let Some(mut guide) = self.guide.take() {
            if self.diverged {
                self.machine.copy_memory(&guide.machine);
                if self.beside.is_none() {
                    self.machine.copy_registers(&guide.machine);
                }
            }
            guide.take(group)?;
            self.guide = Some(guide);
        }
        self.look_beside(group)?;
        let handling = self.give(group);
        self.diverged = match self.same {
            true => {
                self.compared = self.compare(group, handling.has_ended());
                let diverged = matches!(self.compared, Compared::Different(..));
                if diverged {
                    self.goes_astray(group.exit.vcpu);
                }
                diverged
            }
            false => !self.is_alike(group, &handling),
        };
        Ok(handling)
    }

    /// The entry before this exit, if it ended a halt: the tape has it with the exit that halted.
    fn compare_woken(&mut self, group: &ExitGroup) {
        let answer = self.answer.borrow();
        if let (Some(expected), Some((at, known))) = (self.halted.remove(&group.exit.vcpu), answer.woken) {
            let actual = events::given(answer.before.get(at..).unwrap_or_default());
            self.woken = (actual != expected).then_some(Woken { expected, actual, known });
        }
        let behind = &group.notes[group.handled..];
        if group.is_halted() && behind.iter().any(|note| matches!(note, Note::Entry { .. })) {
            self.halted.insert(group.exit.vcpu, events::given(behind));
        }
    }

    /// A vCPU's last exit is unknown or different.
    pub fn goes_astray(&mut self, vcpu: u32) {
        self.astray.insert(vcpu);
    }

    fn compare(&mut self, group: &ExitGroup, ended: bool) -> Compared {
        self.compare_woken(group);
        let astray = self.astray.remove(&group.exit.vcpu);
        if astray || self.woken.as_ref().is_some_and(|woken| !woken.known) {
            // Nobody knows what that entry was to give.
            self.answer.borrow_mut().changes.entry = group.changes.entry;
        }
        let answer = self.answer.borrow();
        let compared = events::compare(group, &answer, ended);
        let Some(waiting) = &mut self.waiting else { return compared };
        let expected = waiting.before(group, answer.woken.is_some());
        waiting.keep(group);
        let before = match astray || ended && answer.resume.is_none() {
            true => Compared::Equal,
            false => events::compare_before(&expected, &answer),
        };
        if let Compared::Equal = before { compared } else { before }
    }

    /// What the tape has behind its last exit: what entries told otherwise, and the vCPUs whose registers changed otherwise. `None`:
    /// what ended a halt there is not known.
    pub fn take_rest(&mut self, rest: &Rest) -> Option<(Compared, Vec<u32>)> {
        let nothing = Some((Compared::Equal, Vec::new()));
        let Some(waiting) = self.waiting.as_mut().filter(|_| self.astray.is_empty()) else { return nothing };
        let (woken, cut) = (waiting.woken(), waiting.cut());
        let expected = waiting.behind(rest);
        self.answer.borrow_mut().clear();
        let Ok(changed) = self.machine.feed_rest(rest, &woken, &cut) else {
            // Its run ended, which the tape's may have done there.
            return nothing;
        };
        let mut answer = self.answer.borrow_mut();
        let Answer { before, before_of, notes, notes_of, .. } = &mut *answer;
        before.append(notes);
        before_of.append(notes_of);
        Some((events::compare_before(&expected, &answer), changed?))
    }

    /// The guest that runs beside comes to the exit. Where an event's delivery exits it may be beyond.
    fn look_beside(&mut self, group: &ExitGroup) -> Result<(), Error> {
        let Some(player) = &mut self.beside else { return Ok(()) };
        player.advance(u64::MAX, group.number)?;
        player.advance(group.exit.icount, u64::MAX)?;
        let state = player.machine.state(group.exit.vcpu);
        let is_there =
            player.machine.exits() == group.number && state.is_some_and(|state| state.rip == group.exit.rip);
        self.machine.know_all_of(group, is_there.then_some(&player.machine));
        Ok(())
    }

    fn give(&mut self, group: &ExitGroup) -> Handling {
        self.answer.borrow_mut().clear();
        if self.same {
            return match self.machine.feed(group) {
                None => Handling::Handled,
                Some(end) => {
                    self.is_taken(&end);
                    Handling::Ended { alike: false }
                }
            };
        }
        match self.machine.resolve(group) {
            Ok(Resolved::Native) => Handling::Native,
            Ok(Resolved::Fault(fault)) => Handling::Fault(fault),
            Ok(Resolved::Handled) => Handling::Handled,
            Ok(Resolved::Endless) | Err(End::NoProgress { .. }) => Handling::Endless,
            Err(end) => {
                let goes_on = group.notes.iter().any(|note| matches!(note, Note::Entry { .. }));
                Handling::Ended { alike: self.is_taken(&end) && !goes_on }
            }
        }
    }

    /// Whether the run ended with the exit, or before: then the end is all the answer that there is.
    fn is_taken(&self, end: &End) -> bool {
        let mut answer = self.answer.borrow_mut();
        if let (None, End::Fatal { resume, .. }) = (answer.resume, end) {
            answer.resume = Some(*resume);
            return false;
        }
        true
    }

    /// What is to be said of the last exit, to be asked once, of the tape's own machine.
    pub fn take_compared(&mut self) -> Compared {
        std::mem::replace(&mut self.compared, Compared::Equal)
    }

    /// The entry before the last exit, where it ended a halt and gave something else.
    pub fn take_woken(&mut self) -> Option<Woken> {
        self.woken.take()
    }

    pub fn answer(&self) -> Ref<'_, Answer> {
        self.answer.borrow()
    }

    /// The ioctls that were done for the last exit, this being the first one.
    pub fn controls(&self, first: usize) -> Vec<Control> {
        self.machine.controls()[first..].iter().map(|(_, control)| control.clone()).collect()
    }

    /// The width by which the guest's entries are judged.
    pub fn guest_width(&self) -> u8 {
        Widths::of_machine(self.machine.spec()).guest
    }

    /// Whether the machine does the same about an exit, and then enters the guest with something, where the tape ends before that.
    pub fn goes_on_behind(&self, group: &ExitGroup) -> bool {
        let answer = self.answer.borrow();
        let (mut told, mut actual) = (visible(&group.notes), visible(&answer.notes));
        events::is_cut(group) && told.all(|note| actual.next() == Some(note)) && actual.next().is_some()
    }

    /// Whether the tape and the machine do the same about an exit, at one look: what most exits are.
    pub fn is_alike(&self, group: &ExitGroup, handling: &Handling) -> bool {
        let answer = self.answer.borrow();
        // To the letter, with all walks: so are the guest's entries.
        if *handling == Handling::Handled
            && answer.notes == group.notes
            && answer.places == group.places
            && answer.before == group.before
            && answer.resume == group.resume
        {
            return true;
        }
        let quiet = |note: &&Note| !matches!(note, Note::InjException { .. } | Note::Mmio { .. });
        let (expected, actual) = (visible(&group.notes), visible(&answer.notes));
        let stays = |resume: &Option<Resume>| resume.is_none_or(|resume| !explain::leaves(&resume));
        matches!(handling, Handling::Native | Handling::Handled)
            && expected.clone().all(|note| quiet(&note))
            && expected.eq(actual)
            && stays(&group.resume)
            && stays(&answer.resume)
    }
}
