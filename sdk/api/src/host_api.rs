//! HostApi: what the control plane asks of a host, served by hostd and by simulated hosts alike.
//!
//! Transport: HTTP/1.1 or 2 over mutual TLS on the host's control listener. The caller's role comes
//! from its certificate (`router`, or `host` for service calls between hosts).

use std::future::Future;

use crate::{
    AccessError, AccessRequest, AccessResponse, ApiResult, CertificateRequest, CertificateTerm, Digest, Generation,
    HostConfig, Inventory, KeyValueError, KeyValueRequest, KeyValueResponse, LogPage, LogQuery, NewCertificate,
    ServiceId, UsageCursor, UsagePage,
};

/// What a host can be asked to do. Every verb is idempotent.
pub trait HostApi: Send + Sync {
    /// `PUT /v1/config`. Answers the generation that the host holds afterwards, durably: a JSON number.
    /// Errors: `StaleGeneration` (409) when the host holds a newer one.
    fn put_config(&self, config: HostConfig) -> impl Future<Output = ApiResult<Generation>> + Send;

    /// `GET /v1/inventory`.
    fn inventory(&self) -> impl Future<Output = ApiResult<Inventory>> + Send;

    /// `PUT /v1/components/{digest}`: the component's bytes. Compilation follows; see the inventory.
    /// Errors: `DigestMismatch` (422) when the bytes do not hash to `digest`; `TooLarge` (413).
    fn put_component(&self, digest: &Digest, bytes: Vec<u8>) -> impl Future<Output = ApiResult<()>> + Send;

    /// `GET /v1/logs?app=&after=BOOT-SEQUENCE&wait_ms=&limit=`: log lines after a cursor, oldest first.
    fn logs(&self, query: LogQuery) -> impl Future<Output = ApiResult<LogPage>> + Send;

    /// `GET /v1/usage?after=LEDGER-CHANGE&limit=`: hours of apps whose total changed after a cursor. A cursor of
    /// another ledger is one before all.
    fn usage(&self, after: UsageCursor, limit: u32) -> impl Future<Output = ApiResult<UsagePage>> + Send;

    /// `GET /metrics`: Prometheus text format.
    fn metrics(&self) -> impl Future<Output = ApiResult<String>> + Send;

    /// `POST /v1/services/{id}/access`: a call on an access service that this host owns. The answer to
    /// this and to `keyvalue` is `{"Ok": …}` or `{"Err": …}` with status 200.
    fn access(
        &self,
        service: &ServiceId,
        request: AccessRequest,
    ) -> impl Future<Output = ApiResult<Result<AccessResponse, AccessError>>> + Send;

    /// `POST /v1/services/{id}/keyvalue`: a call on a key-value service that this host owns.
    fn keyvalue(
        &self,
        service: &ServiceId,
        request: KeyValueRequest,
    ) -> impl Future<Output = ApiResult<Result<KeyValueResponse, KeyValueError>>> + Send;

    /// `GET /v1/services/{id}/backup`: a consistent copy of the database, as SQLite writes it.
    fn backup(&self, service: &ServiceId) -> impl Future<Output = ApiResult<Vec<u8>>> + Send;

    /// `PUT /v1/services/{id}/backup`: replaces the database by a copy, after an integrity check.
    fn restore(&self, service: &ServiceId, bytes: Vec<u8>) -> impl Future<Output = ApiResult<()>> + Send;

    /// `POST /v1/certificate-request`: a request for the certificate that follows the present one, for a new
    /// key that stays on the host. The same request is answered until its certificate comes.
    fn certificate_request(&self) -> impl Future<Output = ApiResult<CertificateRequest>> + Send;

    /// `POST /v1/ingress-certificate-request`: a request for the certificate that the ingress of the host's workers
    /// shows on TCP, for a key of its own. The same request is answered until its certificate comes.
    fn ingress_certificate_request(&self) -> impl Future<Output = ApiResult<CertificateRequest>> + Send;

    /// `PUT /v1/ingress-certificate`: the certificate that was asked for. Answers its term once it is shown.
    fn put_ingress_certificate(
        &self,
        certificate: NewCertificate,
    ) -> impl Future<Output = ApiResult<CertificateTerm>> + Send;

    /// `PUT /v1/certificate`: the certificate that was asked for. Answers its term once it is on disk with its
    /// key; connections made from then on see it. Errors: `Conflict` (409) when none was asked for (by this
    /// process); `Invalid` (422) when it is of another key, host or authority, or is not good now.
    fn put_certificate(&self, certificate: NewCertificate) -> impl Future<Output = ApiResult<CertificateTerm>> + Send;
}

/// Paths of HostApi.
pub mod host_paths {
    use crate::{Digest, ServiceId};

    /// Config.
    pub const CONFIG: &str = "/v1/config";
    /// Inventory.
    pub const INVENTORY: &str = "/v1/inventory";
    /// A request for the next certificate.
    pub const CERTIFICATE_REQUEST: &str = "/v1/certificate-request";
    /// A request for the ingress's certificate.
    pub const INGRESS_CERTIFICATE_REQUEST: &str = "/v1/ingress-certificate-request";
    /// The ingress's certificate.
    pub const INGRESS_CERTIFICATE: &str = "/v1/ingress-certificate";
    /// The next certificate.
    pub const CERTIFICATE: &str = "/v1/certificate";
    /// Usage.
    pub const USAGE: &str = "/v1/usage";
    /// Logs.
    pub const LOGS: &str = "/v1/logs";
    /// Prometheus metrics.
    pub const METRICS: &str = "/metrics";
    /// Liveness.
    pub const HEALTH: &str = "/healthz";
    /// Release.
    pub const VERSION: &str = "/version";

    /// A component.
    #[must_use]
    pub fn component(digest: &Digest) -> String {
        format!("/v1/components/{digest}")
    }

    /// A call on a service: `verb` is `access`, `keyvalue` or `backup`.
    #[must_use]
    pub fn service(id: &ServiceId, verb: &str) -> String {
        format!("/v1/services/{id}/{verb}")
    }
}

/// Headers between edge and ingress. The edge removes every `x-marcato-` header that a client sends
/// and every one that a host answers; only the request id goes on.
pub mod headers {
    /// Edge to ingress: the instance that should serve the request.
    pub const INSTANCE: &str = "x-marcato-instance";
    /// Edge to ingress and to the guest as `x-request-id`: the request's id.
    pub const REQUEST_ID: &str = "x-request-id";
    /// Ingress to edge: the platform, not the guest, made this response; the value says why
    /// (a [`crate::ProblemKind`] in kebab-case). Absent on a guest's own response.
    pub const PLATFORM_ERROR: &str = "x-marcato-error";
    /// Ingress to edge, beside [`PLATFORM_ERROR`]: `1` when no guest code has run for this request,
    /// so that it may be sent to another instance.
    pub const NOT_STARTED: &str = "x-marcato-not-started";
    /// Edge to ingress: `1` when the app's owner asks. A platform error then has an [`crate::OwnerProblem`] as its body.
    pub const EXPLAIN: &str = "x-marcato-explain";
    /// Client to edge: a debug token of the app. It goes no further. On the response, what it was worth: `valid`, `expired`
    /// or `invalid`.
    pub const DEBUG: &str = "marcato-debug";
    /// Between edge and ingress, both ways: the one trailer, which holds all others ([`crate::trailers`]).
    pub const TRAILERS: &str = "x-marcato-trailers";
    /// Prefix of all internal headers.
    pub const INTERNAL_PREFIX: &str = "x-marcato-";
}
