//! Policies by scope. One outlives the app or space that it is for: who makes the same again gets the same bounds.

use std::collections::BTreeMap;

use jiff::Timestamp;
use marcato_api::{App, Effective, Policy, PolicyScope, StoreRevision};
use serde::{Deserialize, Serialize};

use super::{Deed, State, StateResult, encode, keys};
use crate::store::{Expected, Listing, Txn};

/// A policy as the store keeps it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyRecord {
    /// Which scope.
    pub scope: PolicyScope,
    /// What it sets.
    pub policy: Policy,
    /// When it was last set.
    pub updated_at: Timestamp,
    /// Who set it.
    pub updated_by: String,
}

/// Every policy of one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Policies(BTreeMap<PolicyScope, Policy>);

impl Policies {
    /// What holds at these scopes, the nearest first.
    #[must_use]
    pub fn at(&self, scopes: impl IntoIterator<Item = PolicyScope>) -> Effective {
        Effective::of(scopes.into_iter().filter_map(|scope| self.0.get(&scope).map(|policy| (scope, policy))))
    }

    /// What holds for an app.
    #[must_use]
    pub fn of(&self, app: &App) -> Effective {
        if self.0.is_empty() { Effective::default() } else { self.at(PolicyScope::of(app)) }
    }
}

impl FromIterator<PolicyRecord> for Policies {
    fn from_iter<I: IntoIterator<Item = PolicyRecord>>(records: I) -> Self {
        Self(records.into_iter().map(|r| (r.scope, r.policy)).collect())
    }
}

impl State {
    /// What one scope sets itself, with its version.
    pub async fn policy(&self, scope: &PolicyScope) -> StateResult<Option<(PolicyRecord, StoreRevision)>> {
        self.get(&keys::policy(scope)).await
    }

    /// Every policy with its version, by scope.
    pub async fn policies(&self) -> StateResult<Vec<(PolicyRecord, StoreRevision)>> {
        self.list(Listing::of(keys::POLICIES, usize::MAX)).await
    }

    /// Writes a policy over one that is as `old` (`None`: there is none). Errors: a conflict on its key.
    pub async fn put_policy(
        &self,
        old: Option<StoreRevision>,
        new: &PolicyRecord,
        deed: &Deed,
    ) -> StateResult<StoreRevision> {
        let key = keys::policy(&new.scope);
        let expected = old.map_or(Expected::Absent, Expected::Revision);
        self.commit(Txn::new().check(&key, expected).put(key, encode(new)?), deed).await
    }

    /// Removes a policy that is at this version. Errors: a conflict on its key.
    pub async fn remove_policy(&self, scope: &PolicyScope, version: StoreRevision, deed: &Deed) -> StateResult<()> {
        let key = keys::policy(scope);
        self.commit(Txn::new().check(&key, Expected::Revision(version)).delete(&key), deed).await.map(drop)
    }

    /// What makes two apps that are made in one org at once see each other: to be added to the transaction that makes
    /// one, read before the apps are counted.
    pub(crate) async fn one_more_app(&self, org: &marcato_api::OrgName) -> StateResult<Txn> {
        let key = keys::app_count(org);
        let found = self.get::<u64>(&key).await?;
        let expected = found.map_or(Expected::Absent, |(_, version)| Expected::Revision(version));
        Ok(Txn::new().check(&key, expected).put(key, encode(&found.map_or(1, |(n, _)| n.wrapping_add(1)))?))
    }
}
