//! Calls on services, wherever their owner is: the database on this host, or the owner's HostApi.
//!
//! A call that may have reached a remote owner is sent again only when it changes nothing. Owners are looked
//! up per call in a swap cell, so a peer's new address needs no new instance.

use std::collections::HashMap;
use std::sync::Arc;

use arc_swap::ArcSwap;
use futures::FutureExt;
use futures::future::BoxFuture;
use http::StatusCode;
use marcato_api::{
    AccessError, AccessRequest, AccessResponse, HostAddress, HostId, KeyValueError, KeyValueRequest, KeyValueResponse,
    Peer, ServiceId, ServiceSpec, host_paths,
};
use marcato_runtime::{AccessService, KeyValueService};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::client::{CallError, PeerClient};
use crate::services::ServiceHost;

/// Longest answer of a call: 1,000 values of a key-value batch may be large, as JSON.
const ANSWER_BYTES: usize = 64 << 20;

/// Makes services callable.
pub(crate) struct ServiceCalls {
    own: HostId,
    local: Arc<ServiceHost>,
    client: PeerClient,
    peers: ArcSwap<HashMap<HostId, HostAddress>>,
}

/// A service of this host, opened late when it was not usable at first.
struct Local {
    calls: Arc<ServiceCalls>,
    id: ServiceId,
}

/// A service of another host.
struct Remote {
    calls: Arc<ServiceCalls>,
    id: ServiceId,
    owner: HostId,
}

impl ServiceCalls {
    /// Calls with this host's databases and certificate.
    pub(crate) fn new(own: HostId, local: Arc<ServiceHost>, client: PeerClient) -> Arc<Self> {
        Arc::new(Self { own, local, client, peers: ArcSwap::default() })
    }

    /// Where the other hosts are from now on.
    pub(crate) fn set_peers(&self, peers: &[Peer]) {
        self.peers.store(Arc::new(peers.iter().map(|p| (p.id.clone(), p.control.clone())).collect()));
    }

    /// An access service.
    pub(crate) fn access(self: &Arc<Self>, spec: &ServiceSpec) -> Arc<dyn AccessService> {
        let (calls, id, owner) = (self.clone(), spec.id.clone(), spec.owner.clone());
        if owner != self.own {
            return Arc::new(Remote { calls, id, owner });
        }
        self.local.access(&id).unwrap_or_else(|| Arc::new(Local { calls, id }))
    }

    /// A key-value service.
    pub(crate) fn keyvalue(self: &Arc<Self>, spec: &ServiceSpec) -> Arc<dyn KeyValueService> {
        let (calls, id, owner) = (self.clone(), spec.id.clone(), spec.owner.clone());
        if owner != self.own {
            return Arc::new(Remote { calls, id, owner });
        }
        self.local.keyvalue(&id).unwrap_or_else(|| Arc::new(Local { calls, id }))
    }
}

fn reads_only_access(request: &AccessRequest) -> bool {
    use AccessRequest as R;
    matches!(
        request,
        R::GetSubject { .. } | R::ListSubjects { .. } | R::ListRights { .. } | R::Check { .. } | R::History { .. }
    )
}

fn reads_only_keyvalue(request: &KeyValueRequest) -> bool {
    use KeyValueRequest as R;
    matches!(request, R::Get { .. } | R::GetMany { .. } | R::Exists { .. } | R::ListKeys { .. })
}

impl Remote {
    /// One call. The error is for a guest's log: it names the host and never the request.
    async fn call<Q: Serialize, A: DeserializeOwned>(
        &self,
        verb: &str,
        request: &Q,
        reads_only: bool,
    ) -> Result<A, String> {
        let owner = &self.owner;
        let address = self.calls.peers.load().get(owner).cloned();
        let address = address.ok_or_else(|| format!("its owner, host {owner}, is not known here"))?;
        let json = bytes::Bytes::from(serde_json::to_vec(request).map_err(|e| e.to_string())?);
        let path = host_paths::service(&self.id, verb);
        let client = &self.calls.client;
        let mut answer = client.post(owner, &address, &path, json.clone(), ANSWER_BYTES).await;
        if reads_only && matches!(answer, Err(CallError::Broken(_))) {
            answer = client.post(owner, &address, &path, json, ANSWER_BYTES).await;
        }
        match answer {
            Ok(response) if response.status() == StatusCode::OK => {
                serde_json::from_slice(response.body()).map_err(|_| format!("host {owner} gave an unreadable answer"))
            }
            Ok(response) => Err(format!("host {owner} answered with status {}", response.status().as_u16())),
            Err(e @ (CallError::Broken(_) | CallError::TimedOut | CallError::Body(_))) if !reads_only => {
                Err(format!("host {owner}: {e}; the call may have been done"))
            }
            Err(e) => Err(format!("host {owner}: {e}")),
        }
    }
}

impl AccessService for Remote {
    fn call(&self, request: AccessRequest) -> BoxFuture<'_, Result<AccessResponse, AccessError>> {
        async move {
            let reads_only = reads_only_access(&request);
            Remote::call(self, "access", &request, reads_only)
                .await
                .unwrap_or_else(|why| Err(AccessError::Unavailable(why)))
        }
        .boxed()
    }
}

impl KeyValueService for Remote {
    fn call(&self, request: KeyValueRequest) -> BoxFuture<'_, Result<KeyValueResponse, KeyValueError>> {
        async move {
            let reads_only = reads_only_keyvalue(&request);
            Remote::call(self, "keyvalue", &request, reads_only)
                .await
                .unwrap_or_else(|why| Err(KeyValueError::Unavailable(why)))
        }
        .boxed()
    }
}

impl AccessService for Local {
    fn call(&self, request: AccessRequest) -> BoxFuture<'_, Result<AccessResponse, AccessError>> {
        async move {
            match self.calls.local.access(&self.id) {
                Some(service) => service.call(request).await,
                None => Err(AccessError::Unavailable(format!("the database of service {} is not open", self.id))),
            }
        }
        .boxed()
    }
}

impl KeyValueService for Local {
    fn call(&self, request: KeyValueRequest) -> BoxFuture<'_, Result<KeyValueResponse, KeyValueError>> {
        async move {
            match self.calls.local.keyvalue(&self.id) {
                Some(service) => service.call(request).await,
                None => Err(KeyValueError::Unavailable(format!("the database of service {} is not open", self.id))),
            }
        }
        .boxed()
    }
}

#[cfg(test)]
mod tests;
