//! A host from what a user writes: a name, or a file that describes it.

use super::{
    named::{ALL, PHYS_BITS, by_width},
    passport::{Passport, backing_shift},
};
use crate::Error;
use std::{
    fs,
    io::{self, Read},
    path::Path,
};
use vmtape_arch::host::Silicon;

/// The silicon of [`passport`]; `NAME,backing=4K` changes how memory is backed, `NAME,phys-bits=43` its width alone.
pub fn find(text: &str) -> Result<Silicon, Error> {
    let mut words = text.split(',');
    let mut silicon = passport(words.next().unwrap_or_default())?.silicon;
    for word in words {
        let changed = match word.split_once('=') {
            Some(("backing", value)) => backing_shift(value).map(|shift| silicon.backing_shift = shift),
            Some(("phys-bits", value)) => width(value).map(|width| silicon.phys_bits = width),
            _ => Err(format!("`{word}` is neither backing=SIZE nor phys-bits=N")),
        };
        changed.map_err(|cause| error(text, cause))?;
    }
    Ok(silicon)
}

/// The host with this name, or the one described in the TOML file with this path.
pub fn passport(name: &str) -> Result<Passport, Error> {
    let path = Path::new(name);
    if let Some(silicon) =
        ALL.iter().find(|host| host.name == name).map(|host| host.silicon).or(by_width(name))
    {
        Ok(Passport::new(name, silicon))
    } else if path.extension().is_some_and(|extension| extension == "toml") {
        let unreadable = |cause| Error::Passport { path: name.to_owned(), cause };
        let text = read(path).map_err(|cause| unreadable(cause.to_string()))?;
        let stem = path.file_stem().unwrap_or_default().to_string_lossy();
        Passport::parse(&stem, &text).map_err(unreadable)
    } else {
        let names: Vec<_> = ALL.iter().map(|host| host.name).collect();
        Err(error(
            name,
            format!("neither a .toml file, nor VENDOR-BITS (32 to 52), nor one of {}", names.join(", ")),
        ))
    }
}

/// A file that is no larger than a description of a host. A pipe would make whoever opens it wait, and a device has no end.
fn read(path: &Path) -> io::Result<String> {
    const LARGEST: u64 = 1 << 20;
    if !fs::metadata(path)?.is_file() {
        return Err(io::Error::other("it is no regular file"));
    }
    let mut text = String::new();
    let length = fs::File::open(path)?.take(LARGEST + 1).read_to_string(&mut text)?;
    if length as u64 > LARGEST { Err(io::Error::other("it is larger than 1 MiB")) } else { Ok(text) }
}

fn error(text: &str, cause: String) -> Error {
    Error::Host { text: text.to_owned(), cause }
}

fn width(text: &str) -> Result<u8, String> {
    let width = text.parse().ok().filter(|width| PHYS_BITS.contains(width));
    width.ok_or_else(|| format!("phys-bits={text} is not within 32 to 52"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hosts::passport::check;

    #[test]
    fn every_named_host_is_possible() {
        for host in ALL {
            assert_eq!(check(&Passport::new(host.name, host.silicon)), Ok(()), "{}", host.name);
            assert_eq!(find(host.name).expect("named"), host.silicon);
        }
    }

    #[test]
    fn any_width_has_a_host() {
        assert_eq!(find("intel-43").expect("any width").phys_bits, 43);
        for name in ["intel-31", "intel-53", "via-40", "intel-", "intel"] {
            assert!(find(name).is_err(), "{name}");
        }
    }
}
