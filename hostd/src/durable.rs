//! Files that are there whole or not at all, also after a power cut.
//!
//! A file is written beside its place under a name that no reader looks at, synced, renamed, and its
//! directory synced. What a crash leaves behind carries [`PARTIAL_PREFIX`] and is swept at start.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;

/// How the names of unfinished files begin.
pub(crate) const PARTIAL_PREFIX: &str = ".partial-";

/// Makes a directory of mode 0700, with parents; tightens one that is there.
pub(crate) fn ensure_private_dir(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o700))
}

/// Replaces the file by these bytes, mode 0600, durably.
pub(crate) fn write_private(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let dir = parent(path)?;
    let mut temp = partial_in(dir)?;
    temp.write_all(bytes)?;
    commit(temp, path)
}

/// A file for unfinished bytes in `dir`, mode 0600; removed when dropped before [`commit`].
pub(crate) fn partial_in(dir: &Path) -> io::Result<tempfile::NamedTempFile> {
    tempfile::Builder::new().prefix(PARTIAL_PREFIX).tempfile_in(dir)
}

/// Syncs the file, moves it to its place and syncs the directory.
pub(crate) fn commit(temp: tempfile::NamedTempFile, path: &Path) -> io::Result<()> {
    temp.as_file().sync_all()?;
    temp.persist(path).map_err(|e| e.error)?;
    sync_dir(parent(path)?)
}

/// Removes a file durably; one that is not there is fine.
pub(crate) fn ensure_removed(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(e),
        Ok(()) => sync_dir(parent(path)?),
    }
}

/// Makes renames and removals in a directory durable.
pub(crate) fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// Removes what a crash left unfinished.
pub(crate) fn sweep_partials(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(PARTIAL_PREFIX) {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

fn parent(path: &Path) -> io::Result<&Path> {
    path.parent().ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "a file needs a directory"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_private_and_partials_are_swept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        write_private(&path, b"one").unwrap();
        write_private(&path, b"two").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        fs::write(dir.path().join(".partial-x"), b"half").unwrap();
        sweep_partials(dir.path()).unwrap();
        let names: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(names, ["a"]);
    }
}
