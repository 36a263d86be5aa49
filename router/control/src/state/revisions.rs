//! Revisions: numbered in the transaction that makes them, env sealed, phase written by the planner.

use std::collections::BTreeMap;

use jiff::Timestamp;
use marcato_api::{
    App, AppName, Bytes, Digest, Revision, RevisionConfig, RevisionNumber, RevisionPhase, StoreRevision,
};

use super::apps::replacement;
use super::records::StoredRevision;
use super::{Deed, State, StateError, StateResult, encode, keys, page};
use crate::store::{Expected, Listing, Order, Txn};

/// Changes of a phase that may lose a race before we give up.
const ATTEMPTS: usize = 50;

/// A revision before it has its number.
#[derive(Debug, Clone)]
pub struct RevisionDraft {
    /// Its component.
    pub digest: Digest,
    /// The component's size.
    pub size: Bytes,
    /// What it runs with, env in clear.
    pub config: RevisionConfig,
    /// Who makes it.
    pub created_by: String,
    /// Why.
    pub reason: String,
}

impl State {
    /// A revision, env opened.
    pub async fn revision(&self, app: &AppName, number: RevisionNumber) -> StateResult<Option<Revision>> {
        let key = keys::revision(app, number);
        let found = self.get::<StoredRevision>(&key).await?;
        found.map(|(stored, _)| self.opened(stored)).transpose()
    }

    /// A page of an app's revisions, newest first, without their env values.
    pub async fn revisions(
        &self,
        app: &AppName,
        after: Option<RevisionNumber>,
        limit: usize,
    ) -> StateResult<(Vec<Revision>, Option<String>)> {
        let listing = Listing {
            prefix: keys::revisions(app),
            after: after.map(|n| keys::revision(app, n)),
            limit: limit.saturating_add(1),
            order: Order::Descending,
        };
        let found = self.list::<StoredRevision>(listing).await?;
        let found = found.into_iter().map(|(stored, _)| self.opened(stored)).collect::<StateResult<_>>()?;
        Ok(page(found, limit, |r: &Revision| r.number.to_string()))
    }

    /// Makes the next revision of an app that is as `old`, and makes it the app's current one.
    /// `extra` adds checks, for example that bound services are there.
    /// Errors: a conflict on the app's key when it changed, or on one of `extra`'s.
    pub async fn create_revision(
        &self,
        old: &(App, StoreRevision),
        draft: RevisionDraft,
        extra: Txn,
        actor: &str,
    ) -> StateResult<Revision> {
        let name = &old.0.name;
        let counter_key = keys::last_revision(name);
        let counter = self.get::<u64>(&counter_key).await?;
        let number = RevisionNumber(counter.map_or(0, |(n, _)| n) + 1);
        let now = Timestamp::now();
        let revision = Revision {
            app: name.clone(),
            number,
            digest: draft.digest,
            size: draft.size,
            config: draft.config,
            created_at: now,
            created_by: draft.created_by,
            reason: draft.reason,
            phase: RevisionPhase::Rolling,
            failure: None,
        };
        let app = App { current: Some(number), updated_at: now, ..old.0.clone() };
        let expected = counter.map_or(Expected::Absent, |(_, version)| Expected::Revision(version));
        let key = keys::revision(name, number);
        let mut txn = replacement(old, &app)?
            .check(&counter_key, expected)
            .check(&key, Expected::Absent)
            .put(counter_key, encode(&number)?)
            .put(&key, encode(&self.sealed(&key, &revision)?)?);
        txn.checks.extend(extra.checks);
        txn.writes.extend(extra.writes);
        let detail = format!("revision {number} from {} ({})", revision.digest, revision.reason);
        self.commit(txn, &Deed::new(actor, "revision.create", format!("app/{name}"), detail)).await?;
        Ok(revision)
    }

    /// Writes how a roll-out went. `Serving` also makes the revision the app's stable one and the
    /// stable one before it `Superseded`. Answers false when nothing had to change or app or revision
    /// are gone. For the planner.
    pub async fn set_revision_phase(
        &self,
        app: &AppName,
        number: RevisionNumber,
        phase: RevisionPhase,
        failure: Option<String>,
    ) -> StateResult<bool> {
        let failure: Option<String> = failure.map(|f| f.chars().take(2_000).collect());
        for _ in 0..ATTEMPTS {
            let Some(txn) = self.phase_change(app, number, phase, failure.clone()).await? else { return Ok(false) };
            let (action, words) = match phase {
                RevisionPhase::Rolling => ("revision.rolling", "rolls out".to_owned()),
                RevisionPhase::Serving => ("revision.serving", "serves".to_owned()),
                RevisionPhase::Superseded => ("revision.superseded", "was superseded".to_owned()),
                RevisionPhase::Failed => {
                    ("revision.failed", format!("failed: {}", failure.as_deref().unwrap_or("no reason given")))
                }
            };
            let deed = Deed::system(action, format!("app/{app}"), format!("revision {number} {words}"));
            match self.commit(txn, &deed).await {
                Ok(_) => return Ok(true),
                Err(e) if e.conflict().is_some() => {}
                Err(e) => return Err(e),
            }
        }
        Err(StateError::Contended)
    }

    async fn phase_change(
        &self,
        app: &AppName,
        number: RevisionNumber,
        phase: RevisionPhase,
        failure: Option<String>,
    ) -> StateResult<Option<Txn>> {
        let (Some(old), Some((mut stored, version))) =
            (self.app(app).await?, self.get::<StoredRevision>(&keys::revision(app, number)).await?)
        else {
            return Ok(None);
        };
        let stable = old.0.stable;
        let settled = phase != RevisionPhase::Serving || stable == Some(number);
        if stored.revision.phase == phase && stored.revision.failure == failure && settled {
            return Ok(None);
        }
        stored.revision.phase = phase;
        stored.revision.failure = failure;
        let key = keys::revision(app, number);
        if phase != RevisionPhase::Serving {
            // The app is not written: a roll-out that ends must not make an operator's `If-Match` stale.
            let txn = Txn::new().check(keys::app(app), Expected::Present).check(&key, Expected::Revision(version));
            return Ok(Some(txn.put(key, encode(&stored)?)));
        }
        let new = App { stable: Some(number), ..old.0.clone() };
        let mut txn = replacement(&old, &new)?.check(&key, Expected::Revision(version)).put(&key, encode(&stored)?);
        if let Some(before) = stable.filter(|s| *s != number) {
            let key = keys::revision(app, before);
            if let Some((mut stored, version)) = self.get::<StoredRevision>(&key).await? {
                stored.revision.phase = RevisionPhase::Superseded;
                txn = txn.check(&key, Expected::Revision(version)).put(key, encode(&stored)?);
            }
        }
        Ok(Some(txn))
    }

    pub(super) fn sealed(&self, key: &str, revision: &Revision) -> StateResult<StoredRevision> {
        let mut revision = revision.clone();
        let env = std::mem::take(&mut revision.config.env);
        let clear = zeroize::Zeroizing::new(serde_json::to_vec(&env).map_err(StateError::Encode)?);
        Ok(StoredRevision { revision, sealed_env: self.seal.seal(key, &clear)? })
    }

    pub(super) fn opened(&self, stored: StoredRevision) -> StateResult<Revision> {
        let mut revision = stored.revision;
        let key = keys::revision(&revision.app, revision.number);
        let clear = self.seal.open(&key, &stored.sealed_env)?;
        revision.config.env = serde_json::from_slice::<BTreeMap<String, String>>(&clear)
            .map_err(|source| StateError::Decode { key, source })?;
        Ok(revision)
    }
}
