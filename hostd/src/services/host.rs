//! `ServiceHost`: every service that this host owns, by id. Verbs are idempotent and one at a time;
//! calls never wait for them (they get an error while a restore swaps the file).

use std::collections::BTreeMap;
use std::future::Future;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use futures::FutureExt;
use futures::future::BoxFuture;
use marcato_api::{
    AccessError, AccessRequest, AccessResponse, Bytes, KeyValueError, KeyValueRequest, KeyValueResponse, ServiceId,
    ServiceKind, ServiceStatus,
};
use marcato_runtime::{AccessService, KeyValueService};

use super::access::Access;
use super::database::{remove_if_there, side_files, sync_parent};
use super::error::ServiceError;
use super::keyvalue::KeyValue;
use super::restore;
use super::worker::{Engine, Worker};

/// Room of one database: 4 GiB of 4 KiB pages, so that one tenant does not fill the host.
const MAX_PAGES: u32 = 1 << 20;

/// The services that this host owns.
pub struct ServiceHost {
    dir: PathBuf,
    max_pages: u32,
    services: RwLock<BTreeMap<ServiceId, Entry>>,
    /// Held through a verb that opens, swaps or removes a file.
    verbs: Arc<tokio::sync::Mutex<()>>,
}

#[derive(Clone)]
enum Entry {
    Access(Arc<Worker<Access>>),
    KeyValue(Arc<Worker<KeyValue>>),
}

/// Runs the same expression for either kind of worker.
macro_rules! with_worker {
    ($entry:expr, $worker:ident => $body:expr) => {
        match $entry {
            Entry::Access($worker) => $body,
            Entry::KeyValue($worker) => $body,
        }
    };
}

impl std::fmt::Debug for ServiceHost {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServiceHost").field("dir", &self.dir).finish_non_exhaustive()
    }
}

impl ServiceHost {
    /// Services with their files in `dir`, which is made (0700) when missing. Opens no database.
    pub fn new(dir: PathBuf) -> std::io::Result<Self> {
        Self::with_room(dir, MAX_PAGES)
    }

    pub(super) fn with_room(dir: PathBuf, max_pages: u32) -> std::io::Result<Self> {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir)?;
        let verbs = Arc::new(tokio::sync::Mutex::new(()));
        Ok(Self { dir, max_pages, services: RwLock::default(), verbs })
    }

    /// Makes the service, or opens it, or tries again to open it. A damaged database stays known (its
    /// calls fail with that error) so that it can be restored.
    pub async fn ensure(&self, id: &ServiceId, kind: ServiceKind) -> Result<(), ServiceError> {
        let path = self.path(id);
        let max_pages = self.max_pages;
        let entry = {
            let mut services = self.services.write().unwrap_or_else(PoisonError::into_inner);
            services
                .entry(id.clone())
                .or_insert_with(|| match kind {
                    ServiceKind::Access => Entry::Access(Arc::new(Worker::new(path, max_pages))),
                    ServiceKind::Keyvalue => Entry::KeyValue(Arc::new(Worker::new(path, max_pages))),
                })
                .clone()
        };
        if entry.kind() != kind {
            return Err(ServiceError::WrongKind { expected: kind });
        }
        self.verb(move || with_worker!(entry, w => w.ensure_open()).map_err(|f| f.into_service_error(kind))).await
    }

    /// Removes the service and its data. Fine when it is not there.
    pub async fn remove(&self, id: &ServiceId) -> Result<(), ServiceError> {
        let entry = self.services.write().unwrap_or_else(PoisonError::into_inner).remove(id);
        let path = self.path(id);
        self.verb(move || {
            if let Some(entry) = entry {
                with_worker!(entry, w => w.retire());
            }
            let [wal, shm] = side_files(&path);
            [&path, &wal, &shm]
                .into_iter()
                .try_for_each(|file| remove_if_there(file))
                .and_then(|()| sync_parent(&path))
                .map_err(ServiceError::io("remove the database"))
        })
        .await
    }

    /// The service, when it is of kind access. Works across restores; a copy may be kept.
    pub fn access(&self, id: &ServiceId) -> Option<Arc<dyn AccessService>> {
        match self.entry(id)? {
            Entry::Access(worker) => Some(worker),
            Entry::KeyValue(_) => None,
        }
    }

    /// The service, when it is of kind keyvalue. Works across restores; a copy may be kept.
    pub fn keyvalue(&self, id: &ServiceId) -> Option<Arc<dyn KeyValueService>> {
        match self.entry(id)? {
            Entry::KeyValue(worker) => Some(worker),
            Entry::Access(_) => None,
        }
    }

    /// Every service with its state and its size on disk.
    pub fn statuses(&self) -> Vec<ServiceStatus> {
        let services = self.services.read().unwrap_or_else(PoisonError::into_inner).clone();
        services
            .into_iter()
            .map(|(id, entry)| {
                let (trouble, bytes) = with_worker!(&entry, w => (w.trouble(), size(w.path())));
                ServiceStatus { id, ready: trouble.is_none(), bytes: Bytes(bytes), reason: trouble }
            })
            .collect()
    }

    /// A copy of the database as of now, while it goes on serving: SQLite's file format.
    pub async fn backup(&self, id: &ServiceId) -> Result<Vec<u8>, ServiceError> {
        let entry = self.entry(id).ok_or_else(|| ServiceError::NotFound(id.clone()))?;
        self.verb(move || with_worker!(entry, w => restore::backup(&w))).await
    }

    /// Replaces the data by that of a backup. A backup that does not pass every check changes nothing.
    pub async fn restore(&self, id: &ServiceId, bytes: Vec<u8>) -> Result<(), ServiceError> {
        let entry = self.entry(id).ok_or_else(|| ServiceError::NotFound(id.clone()))?;
        self.verb(move || with_worker!(entry, w => restore::restore(&w, &bytes))).await
    }

    fn entry(&self, id: &ServiceId) -> Option<Entry> {
        self.services.read().unwrap_or_else(PoisonError::into_inner).get(id).cloned()
    }

    fn path(&self, id: &ServiceId) -> PathBuf {
        self.dir.join(format!("{id}.sqlite"))
    }

    /// Runs blocking work, one at a time; it ends even when the caller goes away.
    fn verb<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, ServiceError> + Send + 'static,
    ) -> impl Future<Output = Result<T, ServiceError>> + Send + 'static {
        let verbs = Arc::clone(&self.verbs);
        async move {
            let guard = verbs.lock_owned().await;
            let run = tokio::task::spawn_blocking(move || {
                let result = work();
                drop(guard);
                result
            });
            run.await.map_err(|e| ServiceError::Unavailable(e.to_string()))?
        }
    }
}

impl Entry {
    fn kind(&self) -> ServiceKind {
        match self {
            Self::Access(_) => Access::LAYOUT.kind,
            Self::KeyValue(_) => KeyValue::LAYOUT.kind,
        }
    }
}

impl AccessService for Worker<Access> {
    fn call(&self, request: AccessRequest) -> BoxFuture<'_, Result<AccessResponse, AccessError>> {
        Worker::call(self, request).boxed()
    }
}

impl KeyValueService for Worker<KeyValue> {
    fn call(&self, request: KeyValueRequest) -> BoxFuture<'_, Result<KeyValueResponse, KeyValueError>> {
        Worker::call(self, request).boxed()
    }
}

fn size(path: &Path) -> u64 {
    let [wal, _] = side_files(path);
    [path, wal.as_path()].into_iter().filter_map(|p| std::fs::metadata(p).ok()).map(|m| m.len()).sum()
}
