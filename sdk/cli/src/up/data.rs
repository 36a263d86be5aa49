//! The data folder of `up`: where it is, who may use it, and where things stand in it.
//!
//! ```text
//!     DATA/up.lock                 held while `up` runs
//!     DATA/ca.pem, admin.token     links into router/
//!     DATA/router/                 the router's own folder
//!     DATA/hosts/h1/               a host's own folder; run/ has its sockets
//! ```

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use marcato_api::HostId;
use sha2::{Digest, Sha256};

use crate::failure::{Code, Failure};

/// A Unix socket's path has room for 108 bytes with its end (unix(7)).
const SOCKET_PATH_BYTES: usize = 107;

/// The data folder, locked.
#[derive(Debug)]
pub(crate) struct DataDir {
    root: PathBuf,
    /// Released when the process ends, however it ends.
    _lock: File,
}

impl DataDir {
    /// Makes the folder (0700), locks it, and puts the links in place. Errors: another `up` has it.
    pub(super) fn open(given: Option<PathBuf>) -> Result<Self> {
        let root = match given {
            Some(root) => root,
            None => default_root()?,
        };
        make_private(&root)?;
        let root = root.canonicalize().with_context(|| format!("cannot find {}", root.display()))?;
        let lock = lock(&root)?;
        make_private(&root.join("router"))?;
        make_private(&root.join("hosts"))?;
        link(Path::new("router/ca.pem"), &root.join("ca.pem"))?;
        link(Path::new("router/admin.token"), &root.join("admin.token"))?;
        Ok(Self { root, _lock: lock })
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    pub(super) fn ca(&self) -> PathBuf {
        self.root.join("ca.pem")
    }

    pub(super) fn token_file(&self) -> PathBuf {
        self.root.join("admin.token")
    }

    pub(super) fn router(&self) -> PathBuf {
        self.root.join("router")
    }

    pub(super) fn host(&self, id: &HostId) -> PathBuf {
        self.root.join("hosts").join(id.as_str())
    }

    pub(super) fn join_token(&self, id: &HostId) -> PathBuf {
        self.host(id).join("join.token")
    }

    pub(super) fn remove_join_tokens(&self, ids: &[HostId]) -> Result<()> {
        for id in ids {
            let file = self.join_token(id);
            match std::fs::remove_file(&file) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                    return Err(e).with_context(|| format!("cannot remove {}", file.display()));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Where a host's sockets go, made with mode 0700. A path that is too long for a socket is replaced by one in /tmp
    /// that depends on it alone: the control plane keeps the address, so it must be the same at each start.
    pub(super) fn sockets(&self, id: &HostId) -> Result<PathBuf> {
        make_private(&self.host(id))?;
        let near = self.host(id).join("run");
        if near.join("control.sock").as_os_str().len() <= SOCKET_PATH_BYTES {
            make_private(&near)?;
            return Ok(near);
        }
        let hash = hex::encode(Sha256::digest(self.root.as_os_str().as_bytes()));
        let uid = nix::unistd::geteuid();
        let base = PathBuf::from(format!("/tmp/marcato-{uid}-{}", &hash[..16]));
        make_private(&base)?;
        let far = base.join(id.as_str());
        make_private(&far)?;
        Ok(far)
    }
}

fn default_root() -> Result<PathBuf> {
    let dir = |name| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    if let Some(home) = dir("MARCATO_HOME") {
        return Ok(home);
    }
    let data = dir("XDG_DATA_HOME").filter(|p| p.is_absolute()).or_else(|| dir("HOME").map(|h| h.join(".local/share")));
    Ok(data.context("none of MARCATO_HOME, XDG_DATA_HOME and HOME is set; pass --data DIR")?.join("marcato"))
}

/// Makes a folder of mode 0700, or checks that the one there is this user's and nobody else's.
fn make_private(dir: &Path) -> Result<()> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .with_context(|| format!("cannot make {}", dir.display()))?;
    let meta = std::fs::symlink_metadata(dir).with_context(|| format!("cannot look at {}", dir.display()))?;
    if meta.is_symlink() && !std::fs::metadata(dir)?.is_dir() || !meta.is_symlink() && !meta.is_dir() {
        bail!("{} is not a folder", dir.display());
    }
    let meta = std::fs::metadata(dir)?;
    if meta.uid() != nix::unistd::geteuid().as_raw() {
        bail!("{} belongs to another user", dir.display());
    }
    if meta.permissions().mode() & 0o077 != 0 {
        std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o700))
            .with_context(|| format!("cannot make {} private", dir.display()))?;
    }
    Ok(())
}

fn lock(root: &Path) -> Result<File> {
    let path = root.join("up.lock");
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .with_context(|| format!("cannot open {}", path.display()))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut pid = String::new();
            // Only for the message.
            let _ = (&mut file).take(20).read_to_string(&mut pid);
            return Err(Failure::new(
                Code::Conflict,
                format!("marcato up runs already on {} (process {})", root.display(), pid.trim()),
            )
            .next("marcato up --data OTHER --http 127.0.0.1:0 --https 127.0.0.1:0 --admin 127.0.0.1:0")
            .into());
        }
        Err(TryLockError::Error(e)) => return Err(e).with_context(|| format!("cannot lock {}", path.display())),
    }
    file.set_len(0)?;
    file.rewind()?;
    writeln!(file, "{}", std::process::id())?;
    Ok(file)
}

/// Makes the link, or leaves one that is right; a file in its place is an error.
fn link(target: &Path, link: &Path) -> Result<()> {
    match std::fs::read_link(link) {
        Ok(there) if there == target => return Ok(()),
        Ok(_) => std::fs::remove_file(link)?,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
        Err(e) => return Err(e).with_context(|| format!("{} is in the way", link.display())),
    }
    std::os::unix::fs::symlink(target, link).with_context(|| format!("cannot make {}", link.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id() -> HostId {
        HostId::new("h1").unwrap()
    }

    #[test]
    fn one_up_per_folder_and_the_folder_is_private() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("a/b");
        let first = DataDir::open(Some(root.clone())).unwrap();
        assert_eq!(std::fs::metadata(&root).unwrap().permissions().mode() & 0o777, 0o700);
        let second = DataDir::open(Some(root.clone())).unwrap_err();
        let verdict = crate::failure::judge(&second).unwrap();
        assert_eq!(verdict.code, Code::Conflict);
        assert!(verdict.message.contains(&std::process::id().to_string()), "{}", verdict.message);
        drop(first);
        let again = DataDir::open(Some(root.clone())).unwrap();
        std::fs::write(root.join("router/ca.pem"), "CA").unwrap();
        assert_eq!(std::fs::read_to_string(again.ca()).unwrap(), "CA");
    }

    #[test]
    fn sockets_have_a_short_path_that_stays_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let data = DataDir::open(Some(dir.path().join("d"))).unwrap();
        assert_eq!(data.sockets(&id()).unwrap(), data.host(&id()).join("run"));
        let long = dir.path().join("x".repeat(100));
        let data = DataDir::open(Some(long)).unwrap();
        let far = data.sockets(&id()).unwrap();
        assert!(far.starts_with("/tmp") && far.as_os_str().len() < 60, "{}", far.display());
        assert_eq!(far, data.sockets(&id()).unwrap());
        assert_eq!(std::fs::metadata(&far).unwrap().permissions().mode() & 0o777, 0o700);
        std::fs::remove_dir_all(far.parent().unwrap()).unwrap();
    }
}
