//! The desired state: typed objects over the store.
//!
//! Owns: keys, encoding, sealing of secrets, and the rule that whatever changes state writes its event
//! in the same transaction. Does not own what is allowed (`api`) nor what follows (`tasks`, plan).
//! Flow: admin API -> state -> store; tasks read snapshots ([`State::desired`]) and write outcomes.

mod apps;
mod debug;
mod desired;
mod events;
mod hosts;
pub(crate) mod keys;
mod policies;
mod records;
mod revisions;
mod seal;
mod services;
#[cfg(test)]
mod tests;
mod tokens;
mod trim;

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use marcato_api::StoreRevision;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::store::{Listing, Store, StoreError, Versioned};

pub use debug::DebugSecret;
pub use events::Deed;
pub use hosts::JoinOutcome;
pub use policies::{Policies, PolicyRecord};
pub use records::{ComponentRecord, Desired, HostRecord, JoinTokenRecord, ServiceRecord, TokenRecord};
pub use revisions::RevisionDraft;
pub use seal::{SealError, SealKey};
pub(crate) use trim::EventBounds;

/// What every call on the state gives.
pub type StateResult<T> = Result<T, StateError>;

/// Why the state could not be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The store failed, or a check of the transaction did not hold.
    #[error("the store refused")]
    Store(#[from] StoreError),
    /// An object cannot be read as what its key says.
    #[error("the object {key} cannot be read")]
    Decode {
        /// Where it is.
        key: String,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// An object cannot be written as JSON.
    #[error("an object cannot be encoded")]
    Encode(#[source] serde_json::Error),
    /// A secret cannot be sealed or opened.
    #[error("a secret cannot be handled")]
    Seal(#[from] SealError),
    /// Others wrote at the same time, too often in a row.
    #[error("too many changes at once; try again")]
    Contended,
}

impl StateError {
    /// The key whose check failed, when one did.
    #[must_use]
    pub fn conflict(&self) -> Option<&str> {
        match self {
            Self::Store(StoreError::Conflict { key }) => Some(key),
            _ => None,
        }
    }
}

/// The desired state. Cheap to clone.
#[derive(Clone)]
pub struct State {
    store: Arc<dyn Store>,
    seal: SealKey,
    /// Where the next event probably goes; the store has the last word.
    next_event: Arc<AtomicU64>,
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("State")
    }
}

impl State {
    /// The state in this store, its secrets under this key.
    #[must_use]
    pub fn new(store: Arc<dyn Store>, seal: SealKey) -> Self {
        Self { store, seal, next_event: Arc::default() }
    }

    /// The store beneath, for leases and watches.
    #[must_use]
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    async fn get<T: DeserializeOwned>(&self, key: &str) -> StateResult<Option<(T, StoreRevision)>> {
        self.store.get(key).await?.map(decode).transpose()
    }

    async fn list<T: DeserializeOwned>(&self, listing: Listing) -> StateResult<Vec<(T, StoreRevision)>> {
        self.store.list(listing).await?.into_iter().map(decode).collect()
    }
}

fn decode<T: DeserializeOwned>(found: Versioned) -> StateResult<(T, StoreRevision)> {
    let revision = found.revision;
    serde_json::from_value(found.value)
        .map(|value| (value, revision))
        .map_err(|source| StateError::Decode { key: found.key, source })
}

fn encode(value: &impl Serialize) -> StateResult<serde_json::Value> {
    serde_json::to_value(value).map_err(StateError::Encode)
}

/// A page: the limit plus one is asked for, to know whether more follow.
fn page<T>(mut found: Vec<T>, limit: usize, key: impl Fn(&T) -> String) -> (Vec<T>, Option<String>) {
    if found.len() <= limit {
        return (found, None);
    }
    found.truncate(limit);
    let next = found.last().map(key);
    (found, next)
}
