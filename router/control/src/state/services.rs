//! Services, and what is left of deleted ones until their owner has removed the database.

use marcato_api::{ServiceId, ServiceName, StoreRevision};

use super::{Deed, ServiceRecord, State, StateResult, encode, keys};
use crate::store::{Expected, Listing, Txn};

impl State {
    /// A service with its version.
    pub async fn service(&self, name: &ServiceName) -> StateResult<Option<(ServiceRecord, StoreRevision)>> {
        self.get(&keys::service(name)).await
    }

    /// Every service by name.
    pub async fn services(&self) -> StateResult<Vec<ServiceRecord>> {
        let found = self.list(Listing::of(keys::SERVICES, usize::MAX)).await?;
        Ok(found.into_iter().map(|(service, _)| service).collect())
    }

    /// Writes a new service. Errors: a conflict on its key.
    pub async fn create_service(&self, service: &ServiceRecord, deed: &Deed) -> StateResult<()> {
        let key = keys::service(&service.name);
        let txn = Txn::new()
            .check(&key, Expected::Absent)
            .check(keys::host(&service.owner), Expected::Present)
            .put(key, encode(service)?);
        self.commit(txn, deed).await.map(drop)
    }

    /// Removes a service whose apps are as `apps` says (nobody bound it since they were read).
    pub async fn remove_service(
        &self,
        old: &(ServiceRecord, StoreRevision),
        apps: Txn,
        deed: &Deed,
    ) -> StateResult<()> {
        let key = keys::service(&old.0.name);
        let mut txn = Txn::new()
            .check(&key, Expected::Revision(old.1))
            .delete(key)
            .put(keys::tombstone(&old.0.id), encode(&old.0)?);
        txn.checks.extend(apps.checks);
        self.commit(txn, deed).await.map(drop)
    }

    /// Forgets a deleted service whose owner says that the database is gone. For the garbage collector.
    pub async fn forget_deleted_service(&self, id: &ServiceId) -> StateResult<()> {
        let deed = Deed::system("service.purge", format!("service/{id}"), "its owner removed the database");
        let key = keys::tombstone(id);
        match self.commit(Txn::new().check(&key, Expected::Present).delete(&key), &deed).await {
            Err(e) if e.conflict() == Some(key.as_str()) => Ok(()),
            other => other.map(drop),
        }
    }
}
