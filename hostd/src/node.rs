//! The host as others see it: the one object behind HostApi. Owns no task; `run` makes its parts.

use std::collections::HashSet;
use std::sync::Arc;

use bytes::Bytes;
use http_body::Body;
use http_body_util::Full;
use jiff::Timestamp;
use marcato_api::{
    AccessError, AccessRequest, AccessResponse, ApiResult, CertificateRequest, CertificateTerm, ComponentStatus,
    Digest, Generation, HostApi, HostCapacity, HostConfig, HostId, Inventory, KeyValueError, KeyValueRequest,
    KeyValueResponse, LogPage, LogQuery, NewCertificate, Problem, ProblemKind, ServiceId, UsageCursor, UsagePage,
};
use tokio::sync::{Notify, watch};

use crate::components::{ComponentStore, ReceiveError};
use crate::error::chain;
use crate::ingress_identity::IngressIdentity;
use crate::inventory;
use crate::ledger::{Ledger, LedgerError};
use crate::logs::Logs;
use crate::metrics::{InstanceNumbers, Metrics, Moment};
use crate::pool::Pool;
use crate::reconcile::instances::InstancesStatus;
use crate::reconcile::services::ServicesStatus;
use crate::renewal::{Renewal, RenewalError};
use crate::serve::BoxError;
use crate::services::{ServiceError, ServiceHost};
use crate::usage::UsageLedger;

/// Most instances that a config may name.
const INSTANCES: usize = 10_000;

/// See the module.
pub(crate) struct Node {
    pub(crate) id: HostId,
    pub(crate) started_at: Timestamp,
    pub(crate) capacity: HostCapacity,
    pub(crate) ledger: Ledger,
    pub(crate) renewal: Arc<Renewal>,
    pub(crate) ingress_identity: Arc<IngressIdentity>,
    pub(crate) store: ComponentStore,
    pub(crate) pool: Pool,
    pub(crate) services: Arc<ServiceHost>,
    pub(crate) logs: Logs,
    pub(crate) usage: UsageLedger,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) component_status: watch::Receiver<Vec<ComponentStatus>>,
    pub(crate) instance_status: watch::Receiver<InstancesStatus>,
    pub(crate) service_status: watch::Receiver<ServicesStatus>,
    pub(crate) wake_components: Arc<Notify>,
    pub(crate) wake_services: Arc<Notify>,
}

impl Node {
    /// Whether the router lets this host use a service of ours: an instance there is bound to it.
    pub(crate) fn may_use(&self, host: &HostId, service: &ServiceId) -> bool {
        let config = self.ledger.current();
        config.services.iter().any(|s| s.id == *service && !s.deleted && s.users.contains(host))
    }

    /// Takes a component from a stream and has it compiled.
    pub(crate) async fn receive_component<B>(&self, digest: &Digest, body: B) -> ApiResult<()>
    where
        B: Body<Data = Bytes> + Unpin,
        B::Error: Into<BoxError>,
    {
        let received = self.store.receive(digest, body).await;
        received.map_err(|error| {
            let kind = match &error {
                ReceiveError::TooLarge => ProblemKind::TooLarge,
                ReceiveError::WrongDigest { .. } => ProblemKind::DigestMismatch,
                ReceiveError::Cut(_) => ProblemKind::BadRequest,
                ReceiveError::Store(_) => ProblemKind::Unavailable,
            };
            Problem::new(kind, chain(&error))
        })?;
        self.wake_components.notify_one();
        Ok(())
    }
}

fn duplicate(config: &HostConfig) -> Option<String> {
    let mut seen = HashSet::new();
    let twice = config.instances.iter().find(|i| !seen.insert(&i.id)).map(|i| format!("instance {}", i.id));
    let mut seen = HashSet::new();
    twice.or_else(|| config.services.iter().find(|s| !seen.insert(&s.id)).map(|s| format!("service {}", s.id)))
}

fn service_problem(error: &ServiceError) -> Problem {
    let kind = match error {
        ServiceError::NotFound(_) => ProblemKind::NotFound,
        ServiceError::BadBackup(_) | ServiceError::WrongKind { .. } => ProblemKind::Invalid,
        _ => ProblemKind::Unavailable,
    };
    Problem::new(kind, chain(error))
}

fn renewal_problem(error: &RenewalError) -> Problem {
    let kind = match error {
        RenewalError::NotAsked => ProblemKind::Conflict,
        RenewalError::Unusable(_) | RenewalError::OtherHost | RenewalError::TooMuch => ProblemKind::Invalid,
        RenewalError::Key(_) => ProblemKind::Internal,
        RenewalError::Store(_) => ProblemKind::Unavailable,
    };
    tracing::warn!(error = %chain(error), "the certificate was not renewed");
    Problem::new(kind, chain(error))
}

fn no_service(id: &ServiceId, kind: &str) -> Problem {
    Problem::new(ProblemKind::NotFound, format!("this host has no {kind} service {id}"))
}

impl HostApi for Node {
    async fn put_config(&self, config: HostConfig) -> ApiResult<Generation> {
        if let Some(what) = duplicate(&config) {
            return Err(Problem::new(ProblemKind::Invalid, format!("{what} is there twice")));
        }
        if config.instances.len() > INSTANCES {
            let most = format!("at most {INSTANCES} instances");
            return Err(Problem::new(ProblemKind::Invalid, most).with_field("instances"));
        }
        let (generation, instances) = (config.generation, config.instances.len());
        match self.ledger.put(config).await {
            Ok(held) => {
                tracing::info!(%generation, instances, "config held");
                Ok(held)
            }
            Err(error @ (LedgerError::Stale { .. } | LedgerError::Differs(_))) => {
                Err(Problem::new(ProblemKind::StaleGeneration, error.to_string()))
            }
            Err(error) => {
                tracing::error!(error = %chain(&error), "a config was not taken");
                Err(Problem::new(ProblemKind::Unavailable, chain(&error)))
            }
        }
    }

    async fn inventory(&self) -> ApiResult<Inventory> {
        self.pool.refresh().await;
        Ok(inventory::inventory(inventory::Sources {
            host: self.id.clone(),
            started_at: self.started_at,
            generation: self.ledger.current().generation,
            capacity: self.capacity,
            used: self.pool.usage(),
            workers: self.pool.statuses(),
            components: self.component_status.borrow().clone(),
            instances: self.instance_status.borrow().clone(),
            services: self.service_status.borrow().clone(),
            databases: self.services.statuses(),
            certificate: self.renewal.term(),
            ingress_tls: self.pool.is_tcp(),
            ingress_certificate: self.ingress_identity.term(),
        }))
    }

    async fn put_component(&self, digest: &Digest, bytes: Vec<u8>) -> ApiResult<()> {
        self.receive_component(digest, Full::new(Bytes::from(bytes))).await
    }

    async fn logs(&self, query: LogQuery) -> ApiResult<LogPage> {
        Ok(self.logs.read(&query).await)
    }

    async fn usage(&self, after: UsageCursor, limit: u32) -> ApiResult<UsagePage> {
        let ledger = self.usage.clone();
        let page = tokio::task::spawn_blocking(move || ledger.page(after, limit)).await;
        let page = page.map_err(|e| Problem::new(ProblemKind::Internal, e.to_string()))?;
        page.map_err(|e| Problem::new(ProblemKind::Unavailable, chain(&e)))
    }

    async fn metrics(&self) -> ApiResult<String> {
        self.pool.refresh().await;
        let moment = Moment {
            instances: self.instance_status.borrow().entries.iter().map(InstanceNumbers::of).collect(),
            usage: self.pool.usage(),
            ingress: self.pool.ingress(),
            workers: self.pool.statuses(),
            log_lines_evicted: self.logs.evicted(),
            generation: self.ledger.current().generation.0,
        };
        self.metrics.text(moment).ok_or_else(|| Problem::new(ProblemKind::Internal, "metrics cannot be written"))
    }

    async fn access(
        &self,
        service: &ServiceId,
        request: AccessRequest,
    ) -> ApiResult<Result<AccessResponse, AccessError>> {
        let access = self.services.access(service).ok_or_else(|| no_service(service, "access"))?;
        Ok(access.call(request).await)
    }

    async fn keyvalue(
        &self,
        service: &ServiceId,
        request: KeyValueRequest,
    ) -> ApiResult<Result<KeyValueResponse, KeyValueError>> {
        let keyvalue = self.services.keyvalue(service).ok_or_else(|| no_service(service, "keyvalue"))?;
        Ok(keyvalue.call(request).await)
    }

    async fn backup(&self, service: &ServiceId) -> ApiResult<Vec<u8>> {
        self.services.backup(service).await.map_err(|e| service_problem(&e))
    }

    async fn restore(&self, service: &ServiceId, bytes: Vec<u8>) -> ApiResult<()> {
        let restored = self.services.restore(service, bytes).await.map_err(|e| service_problem(&e));
        self.wake_services.notify_one();
        restored
    }

    async fn certificate_request(&self) -> ApiResult<CertificateRequest> {
        let csr_pem = self.renewal.request().map_err(|e| renewal_problem(&e))?;
        Ok(CertificateRequest { csr_pem })
    }

    async fn ingress_certificate_request(&self) -> ApiResult<CertificateRequest> {
        let csr_pem = self.ingress_identity.request().map_err(|e| renewal_problem(&e))?;
        Ok(CertificateRequest { csr_pem })
    }

    async fn put_ingress_certificate(&self, certificate: NewCertificate) -> ApiResult<CertificateTerm> {
        let taken = self.ingress_identity.take(&certificate.certificate_pem, Timestamp::now());
        taken.map_err(|e| renewal_problem(&e))
    }

    async fn put_certificate(&self, certificate: NewCertificate) -> ApiResult<CertificateTerm> {
        let renewal = Arc::clone(&self.renewal);
        let taking = move || renewal.take(&certificate.certificate_pem, Timestamp::now());
        let taken = tokio::task::spawn_blocking(taking).await;
        let taken = taken.map_err(|e| Problem::new(ProblemKind::Internal, e.to_string()))?;
        taken.map_err(|e| renewal_problem(&e))
    }
}
