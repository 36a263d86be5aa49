//! Hosts, and the one-time tokens with which they join.

use jiff::Timestamp;
use marcato_api::{HostDuty, HostId, JoinRequest, StoreRevision};

use super::{Deed, HostRecord, JoinTokenRecord, State, StateResult, encode, keys};
use crate::store::{Expected, Listing, Txn};

/// How a try to join ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JoinOutcome {
    /// The host is recorded and the token is used up.
    Joined(HostRecord),
    /// No such token.
    Unknown,
    /// The token was used before.
    Used {
        /// By this host.
        by: HostId,
    },
    /// The token is too old.
    Expired,
}

impl State {
    /// A host.
    pub async fn host(&self, id: &HostId) -> StateResult<Option<HostRecord>> {
        Ok(self.get(&keys::host(id)).await?.map(|(host, _)| host))
    }

    /// Every host by id.
    pub async fn hosts(&self) -> StateResult<Vec<HostRecord>> {
        let found = self.list(Listing::of(keys::HOSTS, usize::MAX)).await?;
        Ok(found.into_iter().map(|(host, _)| host).collect())
    }

    /// A host with its version.
    pub async fn host_at(&self, id: &HostId) -> StateResult<Option<(HostRecord, StoreRevision)>> {
        self.get(&keys::host(id)).await
    }

    /// Replaces a host that is as `version`. Errors: a conflict on its key.
    pub async fn replace_host(&self, version: StoreRevision, host: &HostRecord, deed: &Deed) -> StateResult<()> {
        let key = keys::host(&host.id);
        let txn = Txn::new().check(&key, Expected::Revision(version)).put(&key, encode(host)?);
        self.commit(txn, deed).await.map(drop)
    }

    /// Forgets a host that is as `version`. Errors: a conflict on its key.
    pub async fn remove_host(&self, version: StoreRevision, id: &HostId, deed: &Deed) -> StateResult<()> {
        let key = keys::host(id);
        self.commit(Txn::new().check(&key, Expected::Revision(version)).delete(key), deed).await.map(drop)
    }

    /// Keeps a join token by the hash of its secret.
    pub async fn create_join_token(&self, hash: &str, token: &JoinTokenRecord) -> StateResult<()> {
        let key = keys::join_token(hash);
        let txn = Txn::new().check(&key, Expected::Absent).put(&key, encode(token)?);
        let detail = format!("valid until {}", token.expires_at);
        self.commit(txn, &Deed::new(&token.created_by, "join-token.create", "hosts", detail)).await.map(drop)
    }

    /// Whether a token may be used now; changes nothing.
    pub async fn join_token_stands(&self, hash: &str) -> StateResult<Result<(), JoinOutcome>> {
        Ok(self.usable_join_token(hash).await?.map(drop))
    }

    /// Uses a join token up and records the host, in one transaction. A host that joined before and
    /// lost its data joins again with a fresh token: its addresses are replaced.
    pub async fn join(&self, hash: &str, request: &JoinRequest) -> StateResult<JoinOutcome> {
        let (token, version) = match self.usable_join_token(hash).await? {
            Ok(found) => found,
            Err(refused) => return Ok(refused),
        };
        let host = HostRecord {
            id: request.id.clone(),
            control: request.control.clone(),
            ingress: request.ingress.clone(),
            zone: request.zone.clone(),
            labels: request.labels.clone(),
            joined_at: Timestamp::now(),
            duty: HostDuty::Active,
        };
        let used = JoinTokenRecord { used_by: Some(host.id.clone()), ..token };
        let key = keys::join_token(hash);
        let txn = Txn::new()
            .check(&key, Expected::Revision(version))
            .put(&key, encode(&used)?)
            .put(keys::host(&host.id), encode(&host)?);
        let detail = format!("token of {}, control {}, ingress {}", used.created_by, host.control, host.ingress);
        let deed = Deed::new(format!("host:{}", host.id), "host.join", format!("host/{}", host.id), detail);
        match self.commit(txn, &deed).await {
            Ok(_) => Ok(JoinOutcome::Joined(host)),
            // Someone used it between our look and our commit.
            Err(e) if e.conflict() == Some(key.as_str()) => match self.usable_join_token(hash).await? {
                Err(refused) => Ok(refused),
                Ok(_) => Err(e),
            },
            Err(e) => Err(e),
        }
    }

    async fn usable_join_token(
        &self,
        hash: &str,
    ) -> StateResult<Result<(JoinTokenRecord, StoreRevision), JoinOutcome>> {
        let Some((token, version)) = self.get::<JoinTokenRecord>(&keys::join_token(hash)).await? else {
            return Ok(Err(JoinOutcome::Unknown));
        };
        if let Some(by) = token.used_by {
            return Ok(Err(JoinOutcome::Used { by }));
        }
        if token.expires_at <= Timestamp::now() {
            return Ok(Err(JoinOutcome::Expired));
        }
        Ok(Ok((token, version)))
    }

    /// Forgets join tokens that ended more than a day ago. For the garbage collector.
    pub async fn forget_join_tokens(&self) -> StateResult<usize> {
        let limit = Timestamp::now() - std::time::Duration::from_secs(86_400);
        let mut txn = Txn::new();
        for found in self.store.list(Listing::of(keys::JOIN_TOKENS, 10_000)).await? {
            let key = found.key.clone();
            let (token, _) = super::decode::<JoinTokenRecord>(found)?;
            if token.expires_at < limit {
                txn = txn.delete(key);
            }
        }
        let forgotten = txn.writes.len();
        if forgotten > 0 {
            self.store.commit(txn).await?;
        }
        Ok(forgotten)
    }
}
