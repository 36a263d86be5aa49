//! Component bytes by digest, through `object_store`: a directory today, S3-compatible when configured.
//!
//! Owns: that what was acknowledged is on disk, and that what comes back hashes to its digest.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use marcato_api::Digest;
use object_store::local::LocalFileSystem;
use object_store::{ObjectStore, PutPayload};

use crate::files::{self, FileError};

/// Why bytes could not be kept or had.
#[derive(Debug, thiserror::Error)]
pub enum BlobError {
    /// The folder cannot be made.
    #[error("the folder of components cannot be had")]
    Folder(#[source] FileError),
    /// The object store failed.
    #[error("the object store cannot {operation} a component")]
    Store {
        /// What was tried.
        operation: &'static str,
        /// Why.
        #[source]
        source: object_store::Error,
    },
    /// The bytes could not be made durable.
    #[error("a component could not be written to disk")]
    Sync(#[source] std::io::Error),
    /// The bytes on disk are not what they were.
    #[error("the component {0} is damaged on disk; push it again")]
    Damaged(Digest),
}

/// Where components are. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Blobs {
    store: Arc<dyn ObjectStore>,
    /// Set for the local engine, which does not sync by itself.
    local: Option<PathBuf>,
}

fn failed(operation: &'static str) -> impl FnOnce(object_store::Error) -> BlobError {
    move |source| BlobError::Store { operation, source }
}

fn name(digest: &Digest) -> String {
    format!("{}.wasm", digest.hex())
}

fn path(digest: &Digest) -> object_store::path::Path {
    object_store::path::Path::from(name(digest))
}

impl Blobs {
    /// Components in a directory, which is made when it is not there.
    pub fn local(dir: &Path) -> Result<Self, BlobError> {
        files::private_dir(dir).map_err(BlobError::Folder)?;
        let store = LocalFileSystem::new_with_prefix(dir).map_err(failed("open the folder of"))?;
        Ok(Self { store: Arc::new(store), local: Some(dir.to_owned()) })
    }

    /// Keeps a component, durably. The caller has checked the digest.
    pub async fn put(&self, digest: &Digest, bytes: Bytes) -> Result<(), BlobError> {
        self.store.put(&path(digest), PutPayload::from_bytes(bytes)).await.map_err(failed("keep"))?;
        let Some(dir) = &self.local else { return Ok(()) };
        let file = dir.join(name(digest));
        let sync = move || {
            std::fs::File::open(&file)?.sync_all()?;
            files::sync_dir(&file)
        };
        tokio::task::spawn_blocking(sync)
            .await
            .unwrap_or_else(|e| Err(std::io::Error::other(e)))
            .map_err(BlobError::Sync)
    }

    /// A component's bytes, checked against its digest; `None` when it is not there.
    pub async fn get(&self, digest: &Digest) -> Result<Option<Bytes>, BlobError> {
        let found = match self.store.get(&path(digest)).await {
            Ok(found) => found.bytes().await.map_err(failed("read"))?,
            Err(object_store::Error::NotFound { .. }) => return Ok(None),
            Err(e) => return Err(failed("read")(e)),
        };
        if Digest::of(&found) != *digest {
            return Err(BlobError::Damaged(digest.clone()));
        }
        Ok(Some(found))
    }

    /// Removes a component; removing what is not there is fine.
    pub async fn remove(&self, digest: &Digest) -> Result<(), BlobError> {
        match self.store.delete(&path(digest)).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(e) => Err(failed("remove")(e)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_comes_back_is_what_was_kept_or_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let blobs = Blobs::local(&dir.path().join("components")).unwrap();
        let digest = Digest::of(b"bytes");
        assert_eq!(blobs.get(&digest).await.unwrap(), None);
        blobs.put(&digest, Bytes::from_static(b"bytes")).await.unwrap();
        assert_eq!(blobs.get(&digest).await.unwrap().unwrap(), "bytes");
        std::fs::write(dir.path().join("components").join(name(&digest)), b"bytez").unwrap();
        assert!(matches!(blobs.get(&digest).await, Err(BlobError::Damaged(_))));
        blobs.remove(&digest).await.unwrap();
        blobs.remove(&digest).await.unwrap();
        assert_eq!(blobs.get(&digest).await.unwrap(), None);
    }
}
