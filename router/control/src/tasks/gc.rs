//! Removes what nothing uses any more: old revisions, components of no revision, join tokens long expired, old events.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use marcato_api::{AppName, RevisionNumber};
use marcato_plan::Placement;
use tokio_util::sync::CancellationToken;

use super::Shared;
use crate::state::{EventBounds, StateResult};

const EVERY: Duration = Duration::from_secs(600);
/// A component may be uploaded well before the revision that uses it is made.
const GRACE: Duration = Duration::from_secs(3600);
/// Revisions of an app that are kept beside those that serve, run, or may have to serve again.
pub(crate) const KEPT_REVISIONS: usize = 20;
/// The audit log: 400 days, and no more than 100,000 events.
const EVENTS: EventBounds = EventBounds { most: 100_000, age: Duration::from_secs(400 * 86_400) };

pub(crate) async fn run(shared: Arc<Shared>, shutdown: CancellationToken) {
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(EVERY) => {}
        }
        if let Err(error) = collect(&shared, Timestamp::now()).await {
            tracing::warn!(%error, "garbage cannot be collected; trying again later");
        }
    }
}

async fn collect(shared: &Shared, now: Timestamp) -> StateResult<()> {
    let (state, components) = (&shared.tasks.state, &shared.tasks.components);
    state.forget_join_tokens().await?;
    state.trim_revisions(KEPT_REVISIONS, &in_use(shared).await?).await?;
    state.trim_events(EVENTS, now).await?;
    let limit = now - GRACE;
    let used = state.used_digests().await?;
    for (component, version) in state.components().await? {
        let digest = &component.digest;
        if component.created_at > limit || used.contains(digest) || !state.forget_component(digest, version).await? {
            continue;
        }
        // Uploaded again a moment ago: its bytes are wanted.
        if state.component(digest).await?.is_some() {
            continue;
        }
        if let Err(error) = components.remove(digest).await {
            tracing::warn!(%error, %digest, "an unused component stays on disk");
        }
    }
    Ok(())
}

/// Revisions that instances are placed for, or that a host says it still runs.
async fn in_use(shared: &Shared) -> StateResult<BTreeSet<(AppName, RevisionNumber)>> {
    let placed = shared.tasks.state.placements::<Placement>().await?.map(|(p, _)| p.instances).unwrap_or_default();
    let mut used: BTreeSet<_> = placed.into_iter().map(|p| (p.app, p.revision)).collect();
    for host in shared.tasks.observed.load().hosts.values() {
        let instances = host.inventory.iter().flat_map(|i| &i.instances);
        used.extend(instances.map(|i| (i.app.clone(), i.revision)));
    }
    Ok(used)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use marcato_api::{
        App, AppState, Bytes, Digest, HostCapacity, HostId, HostState, HostUsage, InstanceId, InstancePhase,
        InstanceStatus, Inventory, RevisionConfig,
    };
    use marcato_balance::TableCell;
    use serde_json::json;
    use tokio::sync::{Notify, watch};

    use marcato_plan::Settings;

    use super::*;
    use crate::blobs::Blobs;
    use crate::ca::Authority;
    use crate::observed::{ObservedCell, ObservedHost};
    use crate::state::{DebugSecret, Deed, RevisionDraft, SealKey, State};
    use crate::store::{SqliteStore, Txn};
    use crate::tasks::Tasks;

    fn shared(dir: &std::path::Path) -> Shared {
        let store = SqliteStore::open(&dir.join("state.sqlite")).unwrap();
        let tasks = Tasks {
            state: State::new(Arc::new(store), SealKey::ensure(&dir.join("seal.key")).unwrap()),
            debug: DebugSecret::of([0; 32]),
            observed: Arc::new(ObservedCell::new()),
            components: Blobs::local(&dir.join("components")).unwrap(),
            host_tls: Arc::new(
                rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
                    .with_safe_default_protocol_versions()
                    .unwrap()
                    .with_root_certificates(rustls::RootCertStore::empty())
                    .with_no_client_auth(),
            ),
            authority: Arc::new(Authority::ensure(dir).unwrap()),
            usage: crate::usage::UsageStore::open(&dir.join("usage.sqlite")).unwrap(),
            table: Arc::new(TableCell::new()),
            changed: watch::Sender::new(0),
            settings: Settings::standard(),
        };
        Shared {
            tasks,
            plans: watch::Sender::new(Arc::default()),
            observed: Notify::new(),
            unsettled: AtomicBool::new(false),
        }
    }

    fn bytes(n: u64) -> Vec<u8> {
        format!("component {n}").into_bytes()
    }

    /// An app with one revision per component, 1 to `revisions`.
    async fn pushed(shared: &Shared, name: &AppName, revisions: u64) {
        let (state, now) = (&shared.tasks.state, Timestamp::now());
        let app = App {
            name: name.clone(),
            org: "default".parse().unwrap(),
            space: "default".parse().unwrap(),
            state: AppState::Started,
            instances: 1,
            current: None,
            stable: None,
            restarts: 0,
            routes: vec![],
            created_at: now,
            updated_at: now,
        };
        state.create_app(&app, &Deed::system("app.create", "app/x", "")).await.unwrap();
        for n in 1..=revisions {
            let digest = Digest::of(&bytes(n));
            shared.tasks.components.put(&digest, bytes(n).into()).await.unwrap();
            state.record_component(&digest, Bytes(9), None, "ann").await.unwrap();
            let draft = RevisionDraft {
                digest,
                size: Bytes(9),
                config: RevisionConfig::default(),
                created_by: "ann".into(),
                reason: "push".into(),
            };
            let old = state.app(name).await.unwrap().unwrap();
            state.create_revision(&old, draft, Txn::new(), "ann").await.unwrap();
        }
    }

    fn runs(shared: &Shared, app: &AppName, revision: u64) {
        let instance = InstanceStatus {
            id: InstanceId::new("i1").unwrap(),
            app: app.clone(),
            revision: RevisionNumber(revision),
            phase: InstancePhase::Draining,
            in_flight: 1,
            queued: 0,
            ingress: None,
            counters: Default::default(),
            limits: Vec::new(),
            reason: None,
        };
        let host = HostId::new("h1").unwrap();
        let inventory = Inventory {
            host: host.clone(),
            version: "0".into(),
            started_at: Timestamp::UNIX_EPOCH,
            generation: marcato_api::Generation(1),
            capacity: HostCapacity { memory_bytes: Bytes(0), cpu_millis: 0, sandboxes: 0 },
            used: HostUsage::default(),
            components: vec![],
            instances: vec![instance],
            services: vec![],
            certificate: None,
            ingress_tls: false,
            ingress_certificate: None,
            workers: Vec::new(),
        };
        let seen =
            ObservedHost { state: HostState::Up, inventory: Some(Arc::new(inventory)), ..ObservedHost::unknown() };
        shared.tasks.observed.update(|o| drop(o.hosts.insert(host.clone(), seen.clone())));
    }

    #[tokio::test]
    async fn old_revisions_go_with_their_components_and_what_runs_stays() {
        let dir = tempfile::tempdir().unwrap();
        let shared = shared(dir.path());
        let (state, name) = (&shared.tasks.state, AppName::new("x").unwrap());
        pushed(&shared, &name, 25).await;
        runs(&shared, &name, 1);
        let placed = json!({"id": "i2", "app": "x", "revision": 3, "restarts": 0, "host": "h1", "state": "draining", "since_ms": 0});
        state.put_placements(&json!({"next_nonce": 1, "instances": [placed]}), None).await.unwrap();

        collect(&shared, Timestamp::now()).await.unwrap();
        let (kept, _) = state.revisions(&name, None, 100).await.unwrap();
        let numbers: Vec<u64> = kept.iter().map(|r| r.number.0).collect();
        assert_eq!(numbers, (6..=25).rev().chain([3, 1]).collect::<Vec<u64>>());
        assert_eq!(state.components().await.unwrap().len(), 25, "young components have their grace");

        let later = Timestamp::now() + GRACE * 2;
        collect(&shared, later).await.unwrap();
        for n in 1..=25 {
            let digest = Digest::of(&bytes(n));
            let gone = [2, 4, 5].contains(&n);
            assert_eq!(state.component(&digest).await.unwrap().is_none(), gone, "component {n}");
            assert_eq!(shared.tasks.components.get(&digest).await.unwrap().is_none(), gone, "bytes of {n}");
        }
        let before = *state.store().latest().borrow();
        collect(&shared, later).await.unwrap();
        assert_eq!(*state.store().latest().borrow(), before, "nothing is left to do");
    }
}
