//! Services that this host owns: their databases exist, and those of deleted services do not.
//!
//! A service that the config no longer names is left alone: only `deleted` removes data.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use marcato_api::{HostConfig, HostId, ServiceId};

use super::Reconciler;
use crate::remote::ServiceCalls;
use crate::services::ServiceHost;

/// How the services of the config stand.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct ServicesStatus {
    /// Those whose database was opened, or could not be.
    pub(crate) attempted: BTreeSet<ServiceId>,
    /// Why one could not be opened or removed.
    pub(crate) failures: BTreeMap<ServiceId, String>,
}

/// See the module.
pub(crate) struct Services {
    pub(crate) own: HostId,
    pub(crate) host: Arc<ServiceHost>,
    pub(crate) calls: Arc<ServiceCalls>,
}

impl Reconciler for Services {
    type Status = ServicesStatus;
    const NAME: &'static str = "services";
    const PERIOD: Duration = Duration::from_secs(10);

    async fn reconcile(&mut self, config: &HostConfig) -> ServicesStatus {
        self.calls.set_peers(&config.peers);
        let mut status = ServicesStatus::default();
        let (deleted, wanted): (Vec<_>, Vec<_>) =
            config.services.iter().filter(|s| s.owner == self.own).partition(|s| s.deleted);
        for spec in deleted {
            if let Err(error) = self.host.remove(&spec.id).await {
                tracing::warn!(service = %spec.id, %error, "a deleted service's database cannot be removed");
                status.failures.insert(spec.id.clone(), error.to_string());
            }
        }
        for spec in wanted {
            if let Err(error) = self.host.ensure(&spec.id, spec.kind).await {
                tracing::error!(service = %spec.id, %error, "a service's database cannot be used");
                status.failures.insert(spec.id.clone(), error.to_string());
            }
            status.attempted.insert(spec.id.clone());
        }
        status
    }
}
