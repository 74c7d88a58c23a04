//! The other side of isolation: a process that serves one backend.

use crate::{embedded::Embedded, isolated::CHILD, load::LoadedPlugin};
use std::{
    env,
    io::stdin,
    os::{
        fd::AsFd,
        unix::{net::UnixStream, process::parent_id},
    },
    thread,
    time::Duration,
};
use vmtape_abi::remote::{CreateFn, Link, serve};

/// Serves a backend if this process was started for one, and says whether it was.
pub fn serve_if_child(embedded: &[Embedded]) -> bool {
    let mut arguments = env::args_os().skip(1);
    if arguments.next().is_none_or(|word| word != CHILD) {
        return false;
    }
    let which = arguments.next().unwrap_or_default();
    // The socket says when the host's process is gone, unless the backend never looks at it again.
    let host = parent_id();
    thread::spawn(move || {
        while parent_id() == host {
            thread::sleep(Duration::from_secs(1));
        }
        std::process::exit(1);
    });
    let Ok(socket) = stdin().as_fd().try_clone_to_owned() else { return true };
    let Ok(link) =
        Link::new(UnixStream::from(socket), None, Box::new(|| "the host's process ended".to_owned()))
    else {
        return true;
    };
    serve(link, || {
        let number = which.to_str().and_then(|text| text.parse::<usize>().ok());
        let plugin = match number.and_then(|number| embedded.get(number)) {
            Some(embedded) => LoadedPlugin::embedded(embedded),
            None => LoadedPlugin::load(which.as_ref()),
        };
        let plugin = plugin.map_err(|error| error.to_string())?;
        let (build, description) = (plugin.build.clone(), plugin.description.clone());
        let create: CreateFn = Box::new(move |config| plugin.create(config));
        Ok((build, description, create))
    });
    true
}
