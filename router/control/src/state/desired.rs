//! The snapshot that the planner decides from, the planner's own memory, and components.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use marcato_api::{App, AppName, Bytes, Digest, RevisionNumber, ServiceKind, StoreRevision};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::records::StoredRevision;
use super::{ComponentRecord, Deed, Desired, PolicyRecord, State, StateResult, decode, encode, keys};
use crate::store::{Expected, Listing, StoreError, Txn, Versioned, Wish};

fn all<T: DeserializeOwned>(found: Vec<Versioned>) -> StateResult<Vec<T>> {
    found.into_iter().map(|v| decode(v).map(|(value, _)| value)).collect()
}

impl State {
    /// Everything that should be, of one moment; `also` names revisions beyond the current and stable
    /// ones that are wanted (instances of older ones that still drain).
    pub async fn desired(&self, also: &[(AppName, RevisionNumber)]) -> StateResult<Desired> {
        let prefixes = [keys::APPS, keys::HOSTS, keys::SERVICES, keys::TOMBSTONES, keys::POLICIES];
        let wishes = prefixes.iter().map(|p| Wish::Prefix((*p).to_owned())).collect();
        let (revision, answers) = self.store.read(wishes).await?;
        let mut answers = answers.into_iter();
        let mut next = || answers.next().unwrap_or_default();
        let apps: Vec<(App, StoreRevision)> = next().into_iter().map(decode).collect::<StateResult<_>>()?;
        let (hosts, services, deleted_services) = (all(next())?, all(next())?, all(next())?);
        let policies = all::<PolicyRecord>(next())?.into_iter().collect();
        let mut wanted: Vec<(AppName, RevisionNumber)> = also.to_vec();
        for (app, _) in &apps {
            wanted.extend([app.current, app.stable].into_iter().flatten().map(|n| (app.name.clone(), n)));
        }
        wanted.sort();
        wanted.dedup();
        // A second read: revisions never change but for their phase, so the two moments agree on what matters.
        let wishes = wanted.iter().map(|(app, number)| Wish::Key(keys::revision(app, *number))).collect();
        let (_, found) = self.store.read(wishes).await?;
        let mut revisions = BTreeMap::new();
        for stored in found.into_iter().flatten() {
            let (stored, _) = decode::<StoredRevision>(stored)?;
            let opened = self.opened(stored)?;
            revisions.insert((opened.app.clone(), opened.number), opened);
        }
        Ok(Desired { revision, apps, revisions, hosts, services, policies, deleted_services })
    }

    /// What the planner remembers, with its version. `None` before the first plan.
    pub async fn placements<T: DeserializeOwned>(&self) -> StateResult<Option<(T, StoreRevision)>> {
        self.get(keys::PLACEMENTS).await
    }

    /// Keeps what the planner remembers, if it is still as it was read. Must not hold secrets.
    /// Errors: a conflict when another planner wrote.
    pub async fn put_placements(
        &self,
        placements: &(impl Serialize + Sync),
        read_at: Option<StoreRevision>,
    ) -> StateResult<StoreRevision> {
        let expected = read_at.map_or(Expected::Absent, Expected::Revision);
        let txn = Txn::new().check(keys::PLACEMENTS, expected).put(keys::PLACEMENTS, encode(placements)?);
        Ok(self.store.commit(txn).await?)
    }

    /// A component that was uploaded, with its version.
    pub async fn component(&self, digest: &Digest) -> StateResult<Option<(ComponentRecord, StoreRevision)>> {
        self.get(&keys::component(digest)).await
    }

    /// Every component with its version, for the garbage collector.
    pub async fn components(&self) -> StateResult<Vec<(ComponentRecord, StoreRevision)>> {
        self.list(Listing::of(keys::COMPONENTS, usize::MAX)).await
    }

    /// Records an upload. Of a component that is known, only that it was asked for again and what it needs.
    pub async fn record_component(
        &self,
        digest: &Digest,
        size: Bytes,
        needs: Option<BTreeSet<ServiceKind>>,
        actor: &str,
    ) -> StateResult<()> {
        let key = keys::component(digest);
        let record = ComponentRecord { digest: digest.clone(), size, created_at: Timestamp::now(), needs };
        if self.component(digest).await?.is_some() {
            let txn = Txn::new().check(&key, Expected::Present).put(&key, encode(&record)?);
            match self.store.commit(txn).await {
                Err(StoreError::Conflict { .. }) => {}
                other => return Ok(other.map(drop)?),
            }
        }
        let txn = Txn::new().check(&key, Expected::Absent).put(&key, encode(&record)?);
        let deed = Deed::new(actor, "component.upload", format!("component/{}", digest.short()), format!("{size}"));
        match self.commit(txn, &deed).await {
            Err(e) if e.conflict() == Some(key.as_str()) => Ok(()),
            other => other.map(drop),
        }
    }

    /// What a transaction that uses a component adds: it is still there, and young again for the collector, which may
    /// just have found that no revision uses it.
    pub(crate) fn use_component(
        &self,
        (component, version): &(ComponentRecord, StoreRevision),
        txn: Txn,
    ) -> StateResult<Txn> {
        let key = keys::component(&component.digest);
        let fresh = ComponentRecord { created_at: Timestamp::now(), ..component.clone() };
        Ok(txn.check(&key, Expected::Revision(*version)).put(key, encode(&fresh)?))
    }

    /// Forgets a component that no revision uses and that is as it was read. For the garbage collector, before the
    /// bytes go. Answers false when it was asked for meanwhile.
    pub async fn forget_component(&self, digest: &Digest, version: StoreRevision) -> StateResult<bool> {
        let deed = Deed::system("component.forget", format!("component/{}", digest.short()), "no revision uses it");
        let key = keys::component(digest);
        match self.commit(Txn::new().check(&key, Expected::Revision(version)).delete(&key), &deed).await {
            Ok(_) => Ok(true),
            Err(e) if e.conflict() == Some(key.as_str()) => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// Digests that any revision of any app uses. For the garbage collector.
    pub async fn used_digests(&self) -> StateResult<BTreeSet<Digest>> {
        let (_, found) = self.store.read(vec![Wish::Prefix("revisions/".into())]).await?;
        found.into_iter().flatten().map(|v| decode::<StoredRevision>(v).map(|(s, _)| s.revision.digest)).collect()
    }
}
