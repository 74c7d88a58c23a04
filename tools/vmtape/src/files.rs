//! Files that the program writes: whole or not at all, through symbolic links, and never in the place of what is no file; and
//! those that it reads as a whole.

use crate::output::usage;
use anyhow::{Context, Result, ensure};
use indicatif::HumanBytes;
use std::{
    fs::{self, File, Permissions},
    io::{self, BufWriter, Read, Write},
    os::unix::fs::PermissionsExt,
    path::Path,
};
use vmtape_traces::writer::behind_links;

/// Standard output, as programs call it.
const STDOUT: &str = "-";

/// Writes a file by what `fill` gives, or standard output where the name is `-`. What fails leaves what was there before.
pub fn write(path: &Path, fill: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<()> {
    let name = || path.display().to_string();
    if path.as_os_str() == STDOUT {
        let mut out = BufWriter::new(io::stdout().lock());
        fill(&mut out)?;
        return Ok(out.flush()?);
    }
    // A device or a pipe is written to as it is.
    if path.exists() && !path.is_file() {
        let mut out = BufWriter::new(File::options().write(true).open(path).with_context(name)?);
        fill(&mut out).with_context(name)?;
        return out.flush().with_context(name);
    }
    let target = behind_links(path).with_context(name)?;
    let folder = target.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // A new file has what the umask leaves of this; one that was there keeps its own.
    let permissions =
        fs::metadata(&target).map_or_else(|_| Permissions::from_mode(0o666), |m| m.permissions());
    let temporary = tempfile::Builder::new().prefix(".vmtape-").permissions(permissions).tempfile_in(folder);
    let temporary = temporary.with_context(name)?;
    let mut out = BufWriter::new(temporary.as_file());
    fill(&mut out).with_context(name)?;
    out.flush().with_context(name)?;
    drop(out);
    temporary.as_file().sync_all().with_context(name)?;
    temporary.persist(&target).map_err(|error| error.error).with_context(name)?;
    Ok(())
}

/// The name of a tape that is to be written: it is not written from its beginning to its end, so it has to be a file.
pub fn tape(path: &Path) -> Result<&Path> {
    match path.as_os_str() == STDOUT {
        true => Err(usage(
            "-o -: a tape is written here and there, not from its beginning to its end: name a file",
        )),
        false => Ok(path),
    }
}

/// What a person writes (plans, hosts, scenarios, command lines) is no larger.
pub const BY_HAND: u64 = 1 << 20;

/// Reads a file of at most so many bytes. What has no end, or makes whoever opens it wait, is refused.
pub fn read(path: &Path, largest: u64) -> Result<Vec<u8>> {
    let name = || path.display().to_string();
    let metadata = fs::metadata(path).with_context(name)?;
    // To open a pipe is to wait for who writes to it, unless a shell has opened it already: `<(COMMAND)`.
    let is_open = ["/dev/fd", "/proc/self/fd"].iter().any(|folder| path.starts_with(folder));
    ensure!(metadata.is_file() || is_open, "{}: is no regular file: copy it to one first", name());
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|file| file.take(largest.saturating_add(1)).read_to_end(&mut bytes));
    let length = read.with_context(name)?;
    ensure!(length as u64 <= largest, "{}: more than {}: not what belongs here", name(), HumanBytes(largest));
    Ok(bytes)
}

/// Reads a text in the same way.
pub fn text(path: &Path, largest: u64) -> Result<String> {
    decode(read(path, largest)?).with_context(|| format!("{}: no text", path.display()))
}

/// A text in UTF-8, or in UTF-16 if it begins with that one's mark.
pub fn decode(bytes: Vec<u8>) -> Result<String> {
    let units = |word: fn([u8; 2]) -> u16| {
        let units: Vec<u16> = bytes[2..].chunks_exact(2).map(|pair| word([pair[0], pair[1]])).collect();
        String::from_utf16(&units)
    };
    match bytes.get(..2) {
        Some([0xff, 0xfe]) => Ok(units(u16::from_le_bytes)?),
        Some([0xfe, 0xff]) => Ok(units(u16::from_be_bytes)?),
        _ => Ok(String::from_utf8(bytes)?),
    }
}

/// A text without the `>` of a mail that quotes all of it.
pub fn unquoted(text: &str) -> String {
    let quoted = |line: &str| line.trim().is_empty() || line.starts_with('>');
    if !text.starts_with('>') || !text.lines().all(quoted) {
        return text.to_owned();
    }
    text.lines().map(|line| line.trim_start_matches(['>', ' ']).to_owned() + "\n").collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::bail;

    fn filling(text: &'static str) -> impl FnOnce(&mut dyn Write) -> Result<()> {
        move |out| Ok(out.write_all(text.as_bytes())?)
    }

    #[test]
    fn a_file_is_written_whole_or_not_at_all() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let file = folder.path().join("a.txt");
        write(&file, filling("first"))?;
        let fails = |out: &mut dyn Write| {
            out.write_all(b"half")?;
            bail!("no more")
        };
        let told = format!("{:#}", write(&file, fails).unwrap_err());
        assert!(told.contains("a.txt") && told.contains("no more"), "{told}");
        assert_eq!(fs::read_to_string(&file)?, "first");
        assert_eq!(fs::read_dir(folder.path())?.count(), 1, "nothing is left behind");
        Ok(())
    }

    #[test]
    fn what_is_read_has_an_end() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let file = folder.path().join("a.txt");
        fs::write(&file, "12345")?;
        assert_eq!(text(&file, 5)?, "12345");
        fs::write(&file, b"\xff\xfe1\x002\0")?;
        assert_eq!(text(&file, 9)?, "12");
        for (path, largest, mentions) in
            [(file.as_path(), 4, "more than 4 B"), (Path::new("/dev/zero"), 4, "no regular file")]
        {
            let told = format!("{:#}", read(path, largest).unwrap_err());
            assert!(told.contains(mentions) && told.contains(&path.display().to_string()), "{told}");
        }
        Ok(())
    }

    #[test]
    fn links_are_followed_and_devices_stay() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let (link, target) = (folder.path().join("link"), folder.path().join("target"));
        std::os::unix::fs::symlink("target", &link)?;
        for word in ["new", "again"] {
            write(&link, filling(word))?;
            assert!(link.is_symlink());
            assert_eq!(fs::read_to_string(&target)?, word);
        }
        let null = Path::new("/dev/null");
        write(null, filling("gone"))?;
        assert!(null.exists() && !null.is_file());
        assert!(tape(Path::new("-")).is_err() && tape(&target).is_ok());
        Ok(())
    }
}
