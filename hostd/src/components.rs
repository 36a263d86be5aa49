//! Components on disk, by digest: received whole or not at all, listed, removed.
//!
//! Owns the bytes only. Whether they compile, and when they go, is the component reconciler's business.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http_body::Body;
use http_body_util::BodyExt;
use marcato_api::Digest;
use sha2::{Digest as _, Sha256};
use tokio::io::AsyncWriteExt;

use crate::durable;
use crate::serve::BoxError;

/// Largest component.
pub(crate) const COMPONENT_BYTES: u64 = 64 << 20;
/// Between two pieces of an upload.
const PIECE_TIMEOUT: Duration = Duration::from_secs(30);
const EXTENSION: &str = "wasm";

/// Why a component was not taken. Nothing of it is left then.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReceiveError {
    /// More bytes than allowed.
    #[error("a component may have at most {COMPONENT_BYTES} bytes")]
    TooLarge,
    /// Other bytes than the digest names.
    #[error("the bytes hash to {actual}, not to {expected}")]
    WrongDigest {
        /// What was announced.
        expected: Digest,
        /// What came.
        actual: Digest,
    },
    /// The sender stopped.
    #[error("the upload was cut short: {0}")]
    Cut(BoxError),
    /// The disk refuses.
    #[error("the component cannot be stored")]
    Store(#[from] io::Error),
}

/// A component on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct StoredComponent {
    /// Which.
    pub(crate) digest: Digest,
    /// When its bytes came; another time means another upload.
    pub(crate) received_at: SystemTime,
}

/// The folder of components.
#[derive(Debug, Clone)]
pub(crate) struct ComponentStore {
    dir: PathBuf,
}

impl ComponentStore {
    /// Opens the folder, made when it is not there, and sweeps unfinished uploads.
    pub(crate) fn open(dir: PathBuf) -> io::Result<Self> {
        durable::ensure_private_dir(&dir)?;
        durable::sweep_partials(&dir)?;
        Ok(Self { dir })
    }

    /// Where a component's bytes are, or would be.
    pub(crate) fn path(&self, digest: &Digest) -> PathBuf {
        self.dir.join(digest.hex()).with_extension(EXTENSION)
    }

    /// All components.
    pub(crate) fn list(&self) -> io::Result<Vec<StoredComponent>> {
        let mut all = Vec::new();
        for entry in fs::read_dir(&self.dir)? {
            let entry = entry?;
            let Some(digest) = digest_of_file(&entry.path()) else { continue };
            // A file may go between listing and asking.
            let Ok(received_at) = entry.metadata().and_then(|m| m.modified()) else { continue };
            all.push(StoredComponent { digest, received_at });
        }
        Ok(all)
    }

    /// Removes a component; fine when it is not there.
    pub(crate) fn remove(&self, digest: &Digest) -> io::Result<()> {
        match fs::remove_file(self.path(digest)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            _ => durable::sync_dir(&self.dir),
        }
    }

    /// Takes a component from a stream: hashed while it arrives, in its place and durable once this answers.
    pub(crate) async fn receive<B>(&self, digest: &Digest, mut body: B) -> Result<(), ReceiveError>
    where
        B: Body<Data = Bytes> + Unpin,
        B::Error: Into<BoxError>,
    {
        let temp = durable::partial_in(&self.dir)?;
        let mut file = tokio::fs::File::from_std(temp.reopen()?);
        let mut hash = Sha256::new();
        let mut size = 0u64;
        loop {
            let piece = match tokio::time::timeout(PIECE_TIMEOUT, body.frame()).await {
                Ok(Some(Ok(frame))) => frame.into_data().unwrap_or_default(),
                Ok(Some(Err(e))) => return Err(ReceiveError::Cut(e.into())),
                Ok(None) => break,
                Err(elapsed) => return Err(ReceiveError::Cut(elapsed.into())),
            };
            size += piece.len() as u64;
            if size > COMPONENT_BYTES {
                return Err(ReceiveError::TooLarge);
            }
            hash.update(&piece);
            file.write_all(&piece).await?;
        }
        file.flush().await?;
        drop(file);
        let actual = Digest::from_sha256(hash.finalize().into());
        if actual != *digest {
            return Err(ReceiveError::WrongDigest { expected: digest.clone(), actual });
        }
        let path = self.path(digest);
        let stored = tokio::task::spawn_blocking(move || durable::commit(temp, &path)).await;
        Ok(stored.unwrap_or_else(|e| Err(io::Error::other(e)))?)
    }
}

fn digest_of_file(path: &Path) -> Option<Digest> {
    let hex = path.file_stem()?.to_str()?;
    (path.extension()? == EXTENSION).then(|| format!("sha256:{hex}").parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::{Full, StreamBody};

    fn store() -> (tempfile::TempDir, ComponentStore) {
        let dir = tempfile::tempdir().unwrap();
        let store = ComponentStore::open(dir.path().join("c")).unwrap();
        (dir, store)
    }

    fn files(store: &ComponentStore) -> usize {
        fs::read_dir(&store.dir).unwrap().count()
    }

    #[tokio::test]
    async fn what_hashes_right_is_kept() {
        let (_dir, store) = store();
        let digest = Digest::of(b"component");
        for _ in 0..2 {
            store.receive(&digest, Full::new(Bytes::from_static(b"component"))).await.unwrap();
        }
        assert_eq!(store.list().unwrap().len(), 1);
        assert_eq!(fs::read(store.path(&digest)).unwrap(), b"component");
        store.remove(&digest).unwrap();
        store.remove(&digest).unwrap();
        assert_eq!(files(&store), 0);
    }

    #[tokio::test]
    async fn what_does_not_leaves_nothing() {
        let (_dir, store) = store();
        let digest = Digest::of(b"component");
        let wrong = store.receive(&digest, Full::new(Bytes::from_static(b"other"))).await;
        assert!(matches!(wrong, Err(ReceiveError::WrongDigest { .. })));
        let pieces = std::iter::repeat_n(Bytes::from(vec![0; 1 << 20]), 65)
            .map(|b| Ok::<_, io::Error>(http_body::Frame::data(b)));
        let large = store.receive(&digest, StreamBody::new(futures::stream::iter(pieces))).await;
        assert!(matches!(large, Err(ReceiveError::TooLarge)));
        let cut = [Ok(http_body::Frame::data(Bytes::from_static(b"comp"))), Err(io::Error::other("gone"))];
        let cut = store.receive(&digest, StreamBody::new(futures::stream::iter(cut))).await;
        assert!(matches!(cut, Err(ReceiveError::Cut(_))));
        assert_eq!(files(&store), 0);
    }

    #[test]
    fn left_overs_and_strangers_are_not_components() {
        let (_dir, store) = store();
        for name in [".partial-abc", "x.wasm", "0.wasm", "README", &format!("{}.cwasm", "a".repeat(64))] {
            fs::write(store.dir.join(name), b"x").unwrap();
        }
        assert_eq!(store.list().unwrap(), []);
        let again = ComponentStore::open(store.dir.clone()).unwrap();
        assert_eq!(files(&again), 4, "only the unfinished one is swept");
    }
}
