//! A move between two processes.

use super::{Args, print};
use crate::output::{ExitCode, print_json, progress, tell};
use anyhow::{Context, Result};
use std::{cell::RefCell, io, rc::Rc};
use vmtape_machine::vmm::When;
use vmtape_migrate::{
    handover::{FileJournal, Journal, State},
    link::{Address, Listener, Socket},
};
use vmtape_replay::{
    across::Sides,
    migration::{Journey, Peer},
};

fn journal(args: &Args) -> Result<Rc<RefCell<dyn Journal>>> {
    Ok(match &args.journal {
        Some(path) => {
            let journal = FileJournal::create(path).with_context(|| path.display().to_string())?;
            Rc::new(RefCell::new(journal))
        }
        None => Rc::new(RefCell::new(())),
    })
}

/// Takes a guest.
pub fn listen(args: &Args, address: &Address, sides: &Sides, journey: &Journey) -> Result<ExitCode> {
    let listener = Listener::new(address).with_context(|| address.to_string())?;
    let address = listener.address()?;
    tell(format!("listening on {address}"));
    let link = Box::new(listener.accept().with_context(|| address.to_string())?);
    let bar = progress("migrate");
    let mut tick = |instructions| bar.set_message(format!("{instructions} instructions"));
    let moved = sides.receive(journey, Peer { link, journal: journal(args)? }, &mut tick)?;
    bar.finish_and_clear();
    print(args, &moved)
}

/// Has a guest leave.
pub fn connect(
    args: &Args,
    address: &Address,
    at: When,
    sides: &Sides,
    journey: &Journey,
) -> Result<ExitCode> {
    let link = Box::new(Socket::connect(address).with_context(|| address.to_string())?);
    let outcome = sides.send(journey, at, Peer { link, journal: journal(args)? })?;
    if args.json {
        print_json(&outcome)?;
    } else {
        super::text::write_outcome(&mut io::stdout().lock(), &outcome)?;
    }
    Ok(if outcome.source == State::Gone { ExitCode::SAME } else { ExitCode::DIFFERENT })
}
