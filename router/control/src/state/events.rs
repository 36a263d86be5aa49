//! The audit log, and the one way to commit: with an event.

use std::sync::atomic::Ordering;

use jiff::Timestamp;
use marcato_api::{Event, Outcome, StoreRevision};

use super::{State, StateError, StateResult, encode, keys, page};
use crate::store::{Expected, Listing, Order, StoreError, Txn};

/// Commits that may lose the race for the next event number before we give up.
const ATTEMPTS: usize = 200;

/// What an event will say; number and time are added when it is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Deed {
    /// Who: a token's name, `host:ID` or `system`.
    pub actor: String,
    /// What, as `noun.verb`.
    pub action: &'static str,
    /// On what, as `kind/name`.
    pub target: String,
    /// In words; never a secret.
    pub detail: String,
}

impl Deed {
    /// Someone did something to something.
    pub fn new(
        actor: impl Into<String>,
        action: &'static str,
        target: impl Into<String>,
        detail: impl Into<String>,
    ) -> Self {
        Self { actor: actor.into(), action, target: target.into(), detail: detail.into() }
    }

    /// The platform did it by itself.
    pub fn system(action: &'static str, target: impl Into<String>, detail: impl Into<String>) -> Self {
        Self::new("system", action, target, detail)
    }
}

impl State {
    /// Commits a change together with its event.
    /// Errors: [`StoreError::Conflict`] with the caller's key that did not hold.
    pub async fn commit(&self, txn: Txn, deed: &Deed) -> StateResult<StoreRevision> {
        self.commit_as(txn, deed, Outcome::Ok).await
    }

    /// Records an attempt that was refused or that failed.
    pub async fn record(&self, deed: &Deed, outcome: Outcome) -> StateResult<()> {
        self.commit_as(Txn::new(), deed, outcome).await.map(drop)
    }

    pub(crate) async fn commit_as(&self, txn: Txn, deed: &Deed, outcome: Outcome) -> StateResult<StoreRevision> {
        let detail: String = deed.detail.chars().take(2_000).collect();
        for _ in 0..ATTEMPTS {
            let mut sequence = self.next_event.load(Ordering::Relaxed);
            if sequence == 0 {
                sequence = self.last_event().await? + 1;
            }
            let event = Event {
                sequence,
                at: Timestamp::now(),
                actor: deed.actor.clone(),
                action: deed.action.to_owned(),
                target: deed.target.clone(),
                outcome,
                detail: detail.clone(),
            };
            let key = keys::event(sequence);
            let whole = txn.clone().check(&key, Expected::Absent).put(&key, encode(&event)?);
            match self.store.commit(whole).await {
                Ok(revision) => {
                    self.next_event.fetch_max(sequence + 1, Ordering::Relaxed);
                    return Ok(revision);
                }
                // The number is taken: by us a moment ago, or by another router.
                Err(StoreError::Conflict { key: taken }) if taken == key => {
                    let last = self.last_event().await?;
                    self.next_event.fetch_max(last + 1, Ordering::Relaxed);
                }
                Err(e) => return Err(e.into()),
            }
        }
        Err(StateError::Contended)
    }

    async fn last_event(&self) -> StateResult<u64> {
        let newest = Listing { order: Order::Descending, ..Listing::of(keys::EVENTS, 1) };
        Ok(self.list::<Event>(newest).await?.first().map_or(0, |(e, _)| e.sequence))
    }

    /// A page of events, newest first; `after` is a sequence number.
    pub async fn events(&self, after: Option<u64>, limit: usize) -> StateResult<(Vec<Event>, Option<String>)> {
        let listing = Listing {
            prefix: keys::EVENTS.into(),
            after: after.map(keys::event),
            limit: limit.saturating_add(1),
            order: Order::Descending,
        };
        let found = self.list::<Event>(listing).await?.into_iter().map(|(e, _)| e).collect();
        Ok(page(found, limit, |e: &Event| e.sequence.to_string()))
    }
}
