//! Compilation and removal against a real runtime; the compiler is this test program (see `testing`).

use bytes::Bytes;
use http_body_util::Full;
use marcato_api::Generation;

use super::*;
use crate::reconcile::tests::component;
use crate::testing::config as host_config;

struct Fixture {
    _dir: tempfile::TempDir,
    components: Components,
    store: ComponentStore,
    wake: Arc<Notify>,
}

fn fixture() -> Fixture {
    let dir = tempfile::tempdir().unwrap();
    let store = ComponentStore::open(dir.path().join("components")).unwrap();
    let cache = CodeCache::open(&dir.path().join("cache"), host_config("h1", dir.path()).compiler).unwrap();
    let wake = Arc::new(Notify::new());
    let components =
        Components::new(store.clone(), cache, Box::new(|_| {}), Arc::new(Metrics::new("h1")), wake.clone());
    Fixture { _dir: dir, components, store, wake }
}

impl Fixture {
    async fn upload(&self, bytes: &[u8]) -> Digest {
        let digest = Digest::of(bytes);
        self.store.receive(&digest, Full::new(Bytes::copy_from_slice(bytes))).await.unwrap();
        digest
    }

    async fn pass(&mut self) -> Vec<ComponentStatus> {
        let nothing =
            HostConfig { generation: Generation(1), instances: Vec::new(), services: Vec::new(), peers: Vec::new() };
        self.components.reconcile(&nothing).await
    }

    /// The status after the compilation that runs now.
    async fn compiled(&mut self) -> Vec<ComponentStatus> {
        let wake = self.wake.clone();
        tokio::time::timeout(Duration::from_secs(30), wake.notified()).await.expect("the compilation never ended");
        self.pass().await
    }
}

#[tokio::test]
async fn an_unused_component_goes_after_its_grace() {
    let mut f = fixture();
    let digest = f.upload(&component()).await;
    assert_eq!(f.pass().await[0].state, ComponentState::Compiling);
    assert_eq!(f.compiled().await[0].state, ComponentState::Ready);
    assert_eq!(f.pass().await.len(), 1, "within the grace it stays");
    *f.components.last_needed.get_mut(&digest).unwrap() = Instant::now() - GRACE;
    assert_eq!(f.pass().await, []);
    assert!(!f.components.cache.is_compiled(&digest) && f.store.list().unwrap().is_empty());
}

#[tokio::test]
async fn a_failure_is_remembered_until_the_next_upload() {
    let mut f = fixture();
    f.upload(b"no component at all").await;
    f.pass().await;
    let failed = f.compiled().await;
    assert_eq!(failed[0].state, ComponentState::Failed);
    assert!(failed[0].reason.as_ref().is_some_and(|r| r.contains("WebAssembly")), "{failed:?}");
    assert_eq!(f.pass().await, failed, "not tried at every pass");
    assert!(f.components.job.is_none());
    f.upload(b"no component at all").await;
    assert_eq!(f.pass().await[0].state, ComponentState::Compiling, "tried again");
    assert!(f.components.job.is_some());
}

#[tokio::test]
async fn bytes_that_rotted_are_removed_so_that_they_come_again() {
    let mut f = fixture();
    let digest = f.upload(&component()).await;
    std::fs::write(f.store.path(&digest), b"\0asm\x0d\0\x01\0rot").unwrap();
    f.pass().await;
    assert_eq!(f.compiled().await, [], "the control plane sees it missing");
    f.upload(&component()).await;
    f.pass().await;
    assert_eq!(f.compiled().await[0].state, ComponentState::Ready);
}
