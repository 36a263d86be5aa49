//! The secret that debug tokens hang on: made once for the cluster, sealed in the store.
//!
//! Owns: the secret and the key that it gives an app. Does not own tokens (`marcato-balance`).

use marcato_api::App;
use marcato_balance::DebugKey;
use zeroize::Zeroizing;

use super::{Deed, SealError, State, StateResult, encode, keys};
use crate::store::{Expected, Txn};

/// The cluster's secret. Cheap to clone.
#[derive(Clone)]
pub struct DebugSecret(std::sync::Arc<Zeroizing<[u8; 32]>>);

impl std::fmt::Debug for DebugSecret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("DebugSecret(***)")
    }
}

impl DebugSecret {
    /// A known one.
    #[cfg(test)]
    pub(crate) fn of(bytes: [u8; 32]) -> Self {
        Self(Zeroizing::new(bytes).into())
    }

    /// What the app's tokens are made and checked with. Bound to when it was made: tokens of one that was deleted are no
    /// good for the next of its name.
    #[must_use]
    pub fn key(&self, app: &App) -> DebugKey {
        DebugKey::derive(&self.0, &app.name, app.created_at.as_nanosecond())
    }
}

impl State {
    /// The cluster's secret; the first call makes it. Errors: it cannot be opened with the present key.
    pub async fn ensure_debug_secret(&self) -> StateResult<DebugSecret> {
        let place = keys::DEBUG_SECRET;
        loop {
            if let Some((sealed, _)) = self.get::<String>(place).await? {
                let opened = self.seal.open(place, &sealed)?;
                let bytes: [u8; 32] = opened.as_slice().try_into().map_err(|_| SealError::Open(place.to_owned()))?;
                return Ok(DebugSecret(Zeroizing::new(bytes).into()));
            }
            let made = Zeroizing::new(rand::random::<[u8; 32]>());
            let sealed = self.seal.seal(place, &*made)?;
            let deed = Deed::system("debug-secret.create", "cluster", "debug tokens of apps hang on it");
            let txn = Txn::new().check(place, Expected::Absent).put(place, encode(&sealed)?);
            match self.commit(txn, &deed).await {
                Ok(_) => {}
                // Another router was first: its secret is the cluster's.
                Err(e) if e.conflict() == Some(place) => {}
                Err(e) => return Err(e),
            }
        }
    }
}
