//! The client of a host's API, for the control plane and for hosts that use another host's service.

use std::sync::Arc;
use std::time::Duration;

use http::Method;
use marcato_api::{
    AccessError, AccessRequest, AccessResponse, ApiResult, CertificateRequest, CertificateTerm, Digest, Generation,
    HostAddress, HostApi, HostConfig, HostId, Inventory, KeyValueError, KeyValueRequest, KeyValueResponse, LogPage,
    LogQuery, NewCertificate, Problem, ProblemKind, ServiceId, UsageCursor, UsagePage, host_paths,
};
use rustls_pki_types::ServerName;
use serde::de::DeserializeOwned;

use crate::call::{BACKUP_LIMIT_BYTES, BACKUP_TIMEOUT, CALL_TIMEOUT, Call, Caller, Payload, UPLOAD_TIMEOUT, escape};
use crate::connect::Target;

/// How long a host may take to tell what it has: collect asks often, and a silent host must be noticed.
const INVENTORY_TIMEOUT: Duration = Duration::from_secs(5);

/// Calls one host over mutual TLS, on TCP and on Unix sockets alike. Cheap to clone; connections are pooled.
#[derive(Clone)]
pub struct HostClient {
    caller: Caller,
    host: HostId,
    address: HostAddress,
    target: Target,
}

impl std::fmt::Debug for HostClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HostClient").field("host", &self.host).field("address", &self.address).finish_non_exhaustive()
    }
}

impl HostClient {
    /// A client of `host` at `address`. `tls` holds the caller's certificate and the cluster's
    /// authority; the server must show a certificate for `{host}.host.marcato.internal`. Does not connect yet.
    #[must_use]
    pub fn new(address: HostAddress, host: HostId, tls: Arc<rustls::ClientConfig>) -> Self {
        let name = format!("{host}.host.marcato.internal");
        let target = match &address {
            HostAddress::Tcp(a) => Target::Tcp(a.ip().to_string(), a.port()),
            HostAddress::Unix(path) => Target::Unix(path.clone()),
        };
        let server_name = ServerName::try_from(name.clone())
            .unwrap_or_else(|_| unreachable!("a host id is one label of at most 63 characters"));
        let peer = format!("host {host} at {address}");
        let caller = Caller::new(target.clone(), server_name, tls, &format!("https://{name}"), &peer);
        Self { caller, host, address, target }
    }

    /// Which host.
    #[must_use]
    pub fn host(&self) -> &HostId {
        &self.host
    }

    /// Where it is.
    #[must_use]
    pub fn address(&self) -> &HostAddress {
        &self.address
    }

    /// Whether nobody listens where it should be: its daemon is gone, and not only slow.
    pub async fn refuses_connections(&self) -> bool {
        self.target.refuses().await
    }

    async fn json<T: DeserializeOwned>(&self, call: Call) -> ApiResult<T> {
        self.caller.send(call).await?.json()
    }
}

impl HostApi for HostClient {
    async fn put_config(&self, config: HostConfig) -> ApiResult<Generation> {
        let payload = Payload::json(&config)?;
        self.json(Call::new(Method::PUT, host_paths::CONFIG).payload(payload)).await
    }

    async fn inventory(&self) -> ApiResult<Inventory> {
        let inventory: Inventory = self.json(Call::get(host_paths::INVENTORY).timeout(INVENTORY_TIMEOUT)).await?;
        if inventory.host == self.host {
            return Ok(inventory);
        }
        // Its certificate says one host and its inventory another: a mixed-up data directory.
        Err(Problem::new(
            ProblemKind::Internal,
            format!("host {} at {} says that it is {}", self.host, self.address, inventory.host),
        ))
    }

    async fn put_component(&self, digest: &Digest, bytes: Vec<u8>) -> ApiResult<()> {
        let call = Call::new(Method::PUT, host_paths::component(digest))
            .payload(Payload::Octets(bytes.into(), None))
            .timeout(UPLOAD_TIMEOUT);
        self.caller.send(call).await.map(drop)
    }

    async fn logs(&self, query: LogQuery) -> ApiResult<LogPage> {
        let path = format!(
            "{}?app={}&after={}&wait_ms={}&limit={}",
            host_paths::LOGS,
            escape(query.app.as_str()),
            query.after,
            query.wait_ms.0,
            query.limit
        );
        self.json(Call::get(path).timeout(CALL_TIMEOUT + Duration::from(query.wait_ms))).await
    }

    async fn usage(&self, after: UsageCursor, limit: u32) -> ApiResult<UsagePage> {
        self.json(Call::get(format!("{}?after={after}&limit={limit}", host_paths::USAGE))).await
    }

    async fn metrics(&self) -> ApiResult<String> {
        Ok(self.caller.send(Call::get(host_paths::METRICS)).await?.text())
    }

    async fn access(
        &self,
        service: &ServiceId,
        request: AccessRequest,
    ) -> ApiResult<Result<AccessResponse, AccessError>> {
        let payload = Payload::json(&request)?;
        self.json(Call::new(Method::POST, host_paths::service(service, "access")).payload(payload)).await
    }

    async fn keyvalue(
        &self,
        service: &ServiceId,
        request: KeyValueRequest,
    ) -> ApiResult<Result<KeyValueResponse, KeyValueError>> {
        let payload = Payload::json(&request)?;
        self.json(Call::new(Method::POST, host_paths::service(service, "keyvalue")).payload(payload)).await
    }

    async fn backup(&self, service: &ServiceId) -> ApiResult<Vec<u8>> {
        let mut call = Call::get(host_paths::service(service, "backup")).timeout(BACKUP_TIMEOUT);
        call.limit_bytes = BACKUP_LIMIT_BYTES;
        Ok(self.caller.send(call).await?.bytes.into())
    }

    async fn restore(&self, service: &ServiceId, bytes: Vec<u8>) -> ApiResult<()> {
        let call = Call::new(Method::PUT, host_paths::service(service, "backup"))
            .payload(Payload::Octets(bytes.into(), None))
            .timeout(BACKUP_TIMEOUT);
        self.caller.send(call).await.map(drop)
    }

    async fn ingress_certificate_request(&self) -> ApiResult<CertificateRequest> {
        self.json(Call::new(Method::POST, host_paths::INGRESS_CERTIFICATE_REQUEST)).await
    }

    async fn put_ingress_certificate(&self, certificate: NewCertificate) -> ApiResult<CertificateTerm> {
        let payload = Payload::json(&certificate)?;
        self.json(Call::new(Method::PUT, host_paths::INGRESS_CERTIFICATE).payload(payload)).await
    }

    async fn certificate_request(&self) -> ApiResult<CertificateRequest> {
        self.json(Call::new(Method::POST, host_paths::CERTIFICATE_REQUEST)).await
    }

    async fn put_certificate(&self, certificate: NewCertificate) -> ApiResult<CertificateTerm> {
        let payload = Payload::json(&certificate)?;
        self.json(Call::new(Method::PUT, host_paths::CERTIFICATE).payload(payload)).await
    }
}
