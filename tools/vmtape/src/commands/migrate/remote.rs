//! A move between two processes.

use super::{Args, NO_FILE, live::Display, print};
use crate::output::{ExitCode, print_json, printable, tell, usage};
use anyhow::{Context, Result};
use std::{cell::RefCell, rc::Rc};
use vmtape_machine::vmm::When;
use vmtape_migrate::{
    handover::{FileJournal, Journal, State, Witness},
    link::{Address, Link, Listener, Socket},
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

/// The device that the other process has, too.
fn witness(args: &Args) -> Result<Option<Witness>> {
    match &args.witness {
        None => Ok(None),
        Some(path) if path.as_os_str() == NO_FILE => {
            Err(usage("--witness: two processes share a file: --witness=FILE, the same for both"))
        }
        Some(path) => Ok(Some(Witness::shared(path).with_context(|| path.display().to_string())?)),
    }
}

fn boxed(socket: Socket) -> Box<dyn Link> {
    Box::new(socket)
}

/// Takes a guest.
pub fn listen(
    args: &Args,
    address: &Address,
    sides: &Sides,
    journey: &Journey,
    display: &Display,
) -> Result<ExitCode> {
    let witness = witness(args)?;
    let listener = Listener::new(address).with_context(|| address.to_string())?;
    let address = listener.address()?;
    tell(format!("listening on {address}"));
    let link = boxed(listener.accept().with_context(|| address.to_string())?);
    // A link that breaks is awaited again; what goes wrong with it then is as if nobody came.
    let renew = Box::new(move || listener.accept_again().ok().flatten().map(boxed));
    let peer = Peer { link, renew, journal: journal(args)?, witness };
    let mut tick = |instructions| display.message(format!("{instructions} instructions"));
    let moved = sides.receive(journey, peer, &mut tick)?;
    display.finish();
    print(args, &moved)
}

/// Has a guest leave.
pub fn connect(
    args: &Args,
    address: &Address,
    at: When,
    sides: &Sides,
    journey: &Journey,
    display: &Display,
) -> Result<ExitCode> {
    let witness = witness(args)?;
    let link = boxed(Socket::connect(address).with_context(|| address.to_string())?);
    let again = address.clone();
    let renew = Box::new(move || Socket::connect_again(&again).ok().flatten().map(boxed));
    let outcome = sides.send(journey, at, Peer { link, renew, journal: journal(args)?, witness })?;
    display.finish();
    if args.json {
        print_json(&outcome)?;
    } else {
        super::text::write_outcome(&mut printable(), &outcome)?;
    }
    let gone = outcome.source == State::Gone && outcome.failure.is_none();
    Ok(if gone { ExitCode::SAME } else { ExitCode::DIFFERENT })
}
