//! Files that an app brings along (`files = "public/"`): from the component's section into a folder beside its code,
//! and from there, read-only, to `/` of its sandboxes.
//!
//! The section's form and its bounds are `marcato_api::files`. Nothing but plain files and folders is ever made, so
//! there is no link to follow; the folder is private, and what guests get of it is wasmtime-wasi's read-only view.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use marcato_api::{Digest, files};
use wasmtime_wasi::{FsPerms, WasiCtxBuilder};

use crate::error::CompileError;

/// The files of one component. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Files(Arc<Path>);

fn folder(dir: &Path, digest: &Digest) -> PathBuf {
    dir.join(format!("{}.files", digest.hex()))
}

impl Files {
    /// Unpacks the files in `component` into the cache at `dir`, durably; fine when there are none, or when they are
    /// there already. Errors: `Rejected` when they are not as they should be, `Store` when they cannot be written.
    pub(crate) fn extract(dir: &Path, digest: &Digest, component: &[u8]) -> Result<(), CompileError> {
        let wrong = |e: files::FilesError| CompileError::Rejected(e.to_string());
        let Some(archive) = files::section(component).map_err(wrong)? else { return Ok(()) };
        let entries = files::unpack(archive).map_err(wrong)?;
        Self::write(dir, &folder(dir, digest), entries).map_err(CompileError::Store)
    }

    fn write(dir: &Path, to: &Path, entries: Vec<(String, &[u8])>) -> io::Result<()> {
        if to.is_dir() {
            return Ok(());
        }
        let scratch = tempfile::Builder::new().prefix(".compile-").tempdir_in(dir)?;
        for (path, bytes) in entries {
            let path = scratch.path().join(path);
            if let Some(parent) = path.parent() {
                DirBuilder::new().recursive(true).mode(0o755).create(parent)?;
            }
            OpenOptions::new().write(true).create_new(true).mode(0o444).open(&path)?.write_all(bytes)?;
        }
        fs::set_permissions(scratch.path(), Permissions::from_mode(0o755))?;
        // One call in place of one for each file.
        nix::unistd::syncfs(File::open(scratch.path())?)?;
        fs::rename(scratch.path(), to)?;
        // It is not there any more.
        let _ = scratch.keep();
        File::open(dir)?.sync_all()
    }

    /// The files of `digest`, whose code is the file `code`; `None` when it has none.
    pub(crate) fn beside(code: &Path, digest: &Digest) -> io::Result<Option<Self>> {
        let folder = folder(code.parent().unwrap_or(Path::new(".")), digest);
        match fs::symlink_metadata(&folder) {
            Ok(found) if found.is_dir() => Ok(Some(Self(folder.into()))),
            Ok(_) => Err(io::Error::new(io::ErrorKind::NotADirectory, "the app's files are no folder")),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Gives the folder `to` the files that the cache at `dir` has of `digest`, as other names of the same bytes; fine
    /// when there are none, or when they are there already.
    pub(crate) fn link(dir: &Path, digest: &Digest, to: &Path) -> io::Result<()> {
        let (from, target) = (folder(dir, digest), folder(to, digest));
        if !from.is_dir() || target.is_dir() {
            return Ok(());
        }
        let scratch = tempfile::Builder::new().prefix(".files-").tempdir_in(to)?;
        link_all(&from, scratch.path())?;
        fs::set_permissions(scratch.path(), Permissions::from_mode(0o755))?;
        match fs::rename(scratch.path(), &target) {
            Ok(()) => {
                // It is not there any more.
                let _ = scratch.keep();
                Ok(())
            }
            // Another request for the same files was faster.
            Err(_) if target.is_dir() => Ok(()),
            Err(e) => Err(e),
        }
    }

    /// Removes the files of `digest` from the cache at `dir`; fine when there are none.
    pub(crate) fn remove(dir: &Path, digest: &Digest) -> io::Result<()> {
        match fs::remove_dir_all(folder(dir, digest)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            _ => Ok(()),
        }
    }

    /// Shows them to a guest, at `/`. Errors: they are gone.
    pub(crate) fn mount(&self, wasi: &mut WasiCtxBuilder) -> wasmtime::Result<()> {
        wasi.preopened_dir(&self.0, "/", FsPerms::ReadOnly)?.initial_cwd("/");
        Ok(())
    }
}

fn link_all(from: &Path, to: &Path) -> io::Result<()> {
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            DirBuilder::new().mode(0o755).create(&target)?;
            link_all(&entry.path(), &target)?;
        } else {
            fs::hard_link(entry.path(), &target)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn component(entries: &[(&str, &str)]) -> Vec<u8> {
        let entries = entries.iter().map(|(path, text)| ((*path).to_owned(), text.as_bytes().to_vec())).collect();
        files::append(b"\0asm\x0d\0\x01\0".to_vec(), &files::pack(&entries).expect("fits"))
    }

    #[test]
    fn files_come_out_as_they_went_in_and_go() {
        let dir = tempfile::tempdir().expect("a directory");
        let component = component(&[("index.html", "<p>"), ("a/b/c.txt", "deep"), ("empty", "")]);
        let digest = Digest::of(&component);
        for _ in 0..2 {
            Files::extract(dir.path(), &digest, &component).expect("unpacks");
        }
        let files = Files::beside(&dir.path().join("code"), &digest).expect("reads").expect("some");
        assert_eq!(fs::read_to_string(files.0.join("a/b/c.txt")).expect("there"), "deep");
        let mode = |path: &str| fs::metadata(files.0.join(path)).expect("there").permissions().mode() & 0o777;
        assert_eq!((mode("index.html"), mode("a")), (0o444, 0o755));
        let worker = tempfile::tempdir().expect("a directory");
        for _ in 0..2 {
            Files::link(dir.path(), &digest, worker.path()).expect("links");
        }
        let linked = Files::beside(&worker.path().join("code"), &digest).expect("reads").expect("some");
        assert_eq!(fs::read_to_string(linked.0.join("a/b/c.txt")).expect("there"), "deep");
        assert_eq!(fs::read_dir(worker.path()).expect("reads").count(), 1, "no scratch is left");
        Files::remove(dir.path(), &digest).expect("goes");
        Files::remove(dir.path(), &digest).expect("is gone");
        assert!(Files::beside(&dir.path().join("code"), &digest).expect("reads").is_none());
        assert_eq!(fs::read_dir(dir.path()).expect("reads").count(), 0, "nothing is left");
    }

    #[test]
    fn a_component_without_files_has_none_and_a_bad_section_is_refused() {
        let dir = tempfile::tempdir().expect("a directory");
        let plain = b"\0asm\x0d\0\x01\0".to_vec();
        let digest = Digest::of(&plain);
        Files::extract(dir.path(), &digest, &plain).expect("nothing to do");
        assert!(Files::beside(&dir.path().join("code"), &digest).expect("reads").is_none());
        let bad = files::append(plain, b"no archive");
        Files::extract(dir.path(), &digest, &bad).expect_err("is none");
        assert_eq!(fs::read_dir(dir.path()).expect("reads").count(), 0, "nothing is left");
    }
}
