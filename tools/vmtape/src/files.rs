//! Files that the program writes: whole or not at all, through symbolic links, and never in the place of what is no file.

use crate::output::usage;
use anyhow::{Context, Result};
use std::{
    fs::{self, File, Permissions},
    io::{self, BufWriter, Write},
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
    let target = behind_links(path);
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

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::bail;

    fn text(text: &'static str) -> impl FnOnce(&mut dyn Write) -> Result<()> {
        move |out| Ok(out.write_all(text.as_bytes())?)
    }

    #[test]
    fn a_file_is_written_whole_or_not_at_all() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let file = folder.path().join("a.txt");
        write(&file, text("first"))?;
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
    fn links_are_followed_and_devices_stay() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let (link, target) = (folder.path().join("link"), folder.path().join("target"));
        std::os::unix::fs::symlink("target", &link)?;
        for word in ["new", "again"] {
            write(&link, text(word))?;
            assert!(link.is_symlink());
            assert_eq!(fs::read_to_string(&target)?, word);
        }
        let null = Path::new("/dev/null");
        write(null, text("gone"))?;
        assert!(null.exists() && !null.is_file());
        assert!(tape(Path::new("-")).is_err() && tape(&target).is_ok());
        Ok(())
    }
}
