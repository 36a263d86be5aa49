//! The cache of compiled code: one file per component, readable by this user only.
//!
//! Machine code runs with the daemon's rights, so a file is loaded only when its trailer is an
//! HMAC-SHA256, by this cache's own key, over the component's digest, the code key and the code. The
//! trailer stands behind the code, for wasmtime maps the file from its first byte.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use hmac::{Hmac, Mac};
use marcato_api::Digest;
use sha2::Sha256;
use wasmtime::Engine;
use wasmtime::component::Component;

use crate::error::{LoadError, RuntimeError};

const MAGIC: &[u8; 8] = b"MARCATO1";
const MAC_LEN: usize = 32;
const TRAILER_LEN: u64 = (MAGIC.len() + MAC_LEN) as u64;
const KEY_LEN: usize = 32;

/// The cache.
pub(crate) struct ArtifactCache {
    dir: PathBuf,
    key: [u8; KEY_LEN],
    code_key: String,
    /// Files whose trailers were found right, as they were then. A copy lies beside each file, signed, for the next start.
    known: Mutex<HashMap<Digest, Stamp>>,
}

/// What changes when a file is replaced or written to. Not the change time: each link that a worker is given changes it,
/// and whoever could set the other times by hand could as well read the key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
}

impl Stamp {
    fn of(m: &fs::Metadata) -> Self {
        Self { device: m.dev(), inode: m.ino(), size: m.size(), modified: (m.mtime(), m.mtime_nsec()) }
    }

    fn bytes(&self) -> Vec<u8> {
        let numbers =
            [self.device, self.inode, self.size, self.modified.0.cast_unsigned(), self.modified.1.cast_unsigned()];
        numbers.iter().flat_map(|n| n.to_le_bytes()).collect()
    }
}

impl ArtifactCache {
    /// Opens the cache, or makes it: directory 0700, key file 0600.
    pub(crate) fn open(dir: &Path, code_key: &str) -> Result<Self, RuntimeError> {
        let unusable = |source| RuntimeError::Cache { path: dir.display().to_string(), source };
        fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(unusable)?;
        fs::set_permissions(dir, Permissions::from_mode(0o700)).map_err(unusable)?;
        let key = ensure_key(&dir.join("key")).map_err(unusable)?;
        remove_leftovers(dir).map_err(unusable)?;
        Ok(Self { dir: dir.to_owned(), key, code_key: code_key.to_owned(), known: Mutex::default() })
    }

    /// Where it lies.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    fn path(&self, digest: &Digest) -> PathBuf {
        self.dir.join(format!("{}-{}.cwasm", digest.hex(), self.code_key))
    }

    pub(crate) fn contains(&self, digest: &Digest) -> bool {
        self.path(digest).is_file()
    }

    /// A file in the cache's directory for a compiler to write; removed when dropped.
    pub(crate) fn scratch(&self) -> io::Result<tempfile::NamedTempFile> {
        tempfile::Builder::new().prefix(".compile-").permissions(Permissions::from_mode(0o600)).tempfile_in(&self.dir)
    }

    /// Signs what is in `scratch` and makes it the code of `digest`, durably.
    pub(crate) fn commit(&self, digest: &Digest, scratch: tempfile::NamedTempFile) -> io::Result<()> {
        let mut file = OpenOptions::new().read(true).append(true).open(scratch.path())?;
        let mac = self.mac(digest, &mut file, None)?;
        file.write_all(MAGIC)?;
        file.write_all(&mac.finalize().into_bytes())?;
        file.sync_all()?;
        scratch.persist(self.path(digest)).map_err(|e| e.error)?;
        File::open(&self.dir)?.sync_all()?;
        // It was read and signed just now.
        let stamp = Stamp::of(&file.metadata()?);
        self.known().insert(digest.clone(), stamp);
        self.remember(digest, &stamp);
        Ok(())
    }

    /// The file of `digest`, after its trailer was found right. A file that is not is removed. What was verified once
    /// is not read again while the file stays as it is.
    pub(crate) fn verified(&self, digest: &Digest) -> Result<PathBuf, LoadError> {
        let path = self.path(digest);
        let mut file = match File::open(&path) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Err(LoadError::NotCompiled(digest.clone())),
            Err(e) => return Err(LoadError::Read(e)),
        };
        let metadata = file.metadata().map_err(LoadError::Read)?;
        let stamp = Stamp::of(&metadata);
        if self.known().get(digest) == Some(&stamp) {
            return Ok(path);
        }
        if self.was_verified(digest, &stamp) {
            self.known().insert(digest.clone(), stamp);
            return Ok(path);
        }
        let refuse = |reason| {
            // Best effort: a file that stays is refused again.
            let _ = fs::remove_file(&path);
            LoadError::Tampered { digest: digest.clone(), reason }
        };
        let Some(code_len) = metadata.len().checked_sub(TRAILER_LEN).filter(|n| *n > 0) else {
            return Err(refuse("it is too short"));
        };
        let mac = self.mac(digest, &mut file, Some(code_len)).map_err(LoadError::Read)?;
        let mut trailer = [0; TRAILER_LEN as usize];
        file.read_exact(&mut trailer).map_err(LoadError::Read)?;
        let (magic, tag) = trailer.split_at(MAGIC.len());
        if magic != MAGIC {
            return Err(refuse("it has no signature"));
        }
        if mac.verify_slice(tag).is_err() {
            return Err(refuse("its signature is not by this host's key"));
        }
        self.known().insert(digest.clone(), stamp);
        self.remember(digest, &stamp);
        Ok(path)
    }

    /// The file beside the code that says how the code was when it was verified.
    fn note(&self, digest: &Digest) -> PathBuf {
        self.path(digest).with_extension("seen")
    }

    fn note_mac(&self, digest: &Digest, stamp: &Stamp) -> io::Result<Hmac<Sha256>> {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.key).map_err(io::Error::other)?;
        mac.update(b"seen\0");
        mac.update(digest.as_str().as_bytes());
        mac.update(&[0]);
        mac.update(self.code_key.as_bytes());
        mac.update(&[0]);
        mac.update(&stamp.bytes());
        Ok(mac)
    }

    /// Whether this very file was verified before, by this process or one before it.
    fn was_verified(&self, digest: &Digest, stamp: &Stamp) -> bool {
        let Ok(tag) = fs::read(self.note(digest)) else { return false };
        self.note_mac(digest, stamp).is_ok_and(|mac| mac.verify_slice(&tag).is_ok())
    }

    /// Best effort, and not durable: without it the file is read once more.
    fn remember(&self, digest: &Digest, stamp: &Stamp) {
        let written = self.note_mac(digest, stamp).and_then(|mac| {
            let mut note = self.scratch()?;
            note.write_all(&mac.finalize().into_bytes())?;
            note.persist(self.note(digest)).map(drop).map_err(|e| e.error)
        });
        if let Err(error) = written {
            tracing::debug!(%digest, %error, "what was verified cannot be noted");
        }
    }

    fn known(&self) -> MutexGuard<'_, HashMap<Digest, Stamp>> {
        // A map of whole stamps: usable whatever panicked.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Removes the code of `digest`, for every version of the code key.
    pub(crate) fn remove(&self, digest: &Digest) -> io::Result<()> {
        self.known().remove(digest);
        for entry in fs::read_dir(&self.dir)? {
            let entry = entry?;
            let name = entry.file_name();
            if name
                .to_str()
                .is_some_and(|n| n.starts_with(digest.hex()) && (n.ends_with(".cwasm") || n.ends_with(".seen")))
            {
                match fs::remove_file(entry.path()) {
                    Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                    _ => {}
                }
            }
        }
        Ok(())
    }

    fn mac(&self, digest: &Digest, file: &mut File, len: Option<u64>) -> io::Result<Hmac<Sha256>> {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.key).map_err(io::Error::other)?;
        mac.update(digest.as_str().as_bytes());
        mac.update(&[0]);
        mac.update(self.code_key.as_bytes());
        mac.update(&[0]);
        file.seek(SeekFrom::Start(0))?;
        let mut left = len.unwrap_or(u64::MAX);
        let mut buffer = vec![0; 256 << 10];
        while left > 0 {
            let want = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
            let n = file.read(&mut buffer[..want])?;
            if n == 0 {
                break;
            }
            mac.update(&buffer[..n]);
            left -= n as u64;
        }
        Ok(mac)
    }
}

/// Maps code that was verified. Errors: it is for another engine.
pub(crate) fn map(engine: &Engine, verified: &Path) -> wasmtime::Result<Component> {
    // SAFETY: the bytes were written by `commit` from this host's own compiler process: nobody else has the key. The
    // directories are the host daemon's own and files are replaced by rename only, so the mapping does not change.
    #[allow(unsafe_code, reason = "the only way to load code that was compiled ahead; see SAFETY")]
    let load = || unsafe { Component::deserialize_file(engine, verified) };
    crate::code_memory::loading(verified, load)?
}

fn ensure_key(path: &Path) -> io::Result<[u8; KEY_LEN]> {
    match fs::read(path) {
        Ok(bytes) => {
            if let Ok(key) = <[u8; KEY_LEN]>::try_from(bytes.as_slice()) {
                return Ok(key);
            }
            // Cut short by a crash at the first start: a new key only means that code is compiled again.
            fs::remove_file(path)?;
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => return Err(e),
    }
    let key: [u8; KEY_LEN] = rand::random();
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(&key)?;
    file.sync_all()?;
    Ok(key)
}

/// Files of compilers that were cut off by a crash.
fn remove_leftovers(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_name().to_str().is_some_and(|n| n.starts_with(".compile-")) {
            let is_folder = entry.file_type()?.is_dir();
            if is_folder { fs::remove_dir_all(entry.path()) } else { fs::remove_file(entry.path()) }?;
        }
    }
    Ok(())
}
