//! Outbound HTTP of guests: which hosts they may ask, and which addresses nobody may reach.
//!
//! Which addresses may be reached is the dialer's to say (`dial`); which authorities are trusted is in `network`.

mod dial;
mod metered;
mod network;

use std::sync::Arc;
use std::time::Duration;

use http::uri::Scheme;
use http_body_util::BodyExt as _;
use hyper_util::rt::TokioIo;
use marcato_api::{InstanceId, Limits, OutboundHost};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::pki_types::ServerName;
use wasmtime_wasi_http::{Error, RequestOptions, WasiBody, WasiHttpHooks};

pub use self::dial::{DialError, Dialer, NetworkDialer};
use self::metered::{Direction, Metered, Permit};
pub(crate) use self::network::Network;
pub use self::network::check_outbound_ca;
use crate::budget::SandboxAccount;
use crate::limits::{Limit, LimitCounters};
use crate::logs::SandboxLog;

/// What the host may read of a response ahead of the guest; the head of a response has to fit.
const READ_AHEAD: usize = 64 << 10;

/// How long a connection, and the first byte of a response, may take when the guest does not say.
/// The request's own time limit ends them anyway.
const TIMEOUT: Duration = Duration::from_secs(60);

/// What is copied at once of a body of a WASI 0.3 guest; two such pieces wait in the host per body.
pub(crate) const P3_CHUNK: usize = 64 << 10;

/// How long the body of a refused request is still read.
const REFUSED_BODY: Duration = Duration::from_secs(1);

/// Whether this entry of the allow-list covers the host, which is in lower case.
fn covers(entry: &OutboundHost, host: &str, port: u16, default_port: u16) -> bool {
    let host_ok = if entry.subdomains {
        host.strip_suffix(&entry.host).is_some_and(|head| head.len() > 1 && head.ends_with('.'))
    } else {
        host == entry.host
    };
    host_ok && entry.port.unwrap_or(default_port) == port
}

/// Whether an allow-list covers the host, for whichever scheme. For a daemon that connects for others: the worker has
/// looked at the scheme as well.
#[must_use]
pub fn outbound_allows(hosts: &[String], host: &str, port: u16) -> bool {
    let host = host.trim_end_matches('.').to_ascii_lowercase();
    let entries = hosts.iter().filter_map(|text| OutboundHost::parse(text).ok());
    entries.into_iter().any(|entry| {
        let bare = OutboundHost { host: bare(&entry.host).to_owned(), ..entry };
        [80, 443].into_iter().any(|default| covers(&bare, &host, port, default))
    })
}

/// What the guests of one instance may reach.
pub(crate) struct Egress {
    instance: InstanceId,
    allowed: Vec<OutboundHost>,
    network: Network,
    limits: Limits,
    counters: Arc<LimitCounters>,
}

impl Egress {
    /// Errors: the pattern that is not valid.
    pub(crate) fn new(
        instance: InstanceId,
        hosts: &[String],
        limits: Limits,
        network: &Network,
        counters: Arc<LimitCounters>,
    ) -> Result<Self, String> {
        let allowed =
            hosts.iter().map(|text| OutboundHost::parse(text).map_err(|_| text.clone())).collect::<Result<_, _>>()?;
        Ok(Self { instance, allowed, network: network.clone(), limits, counters })
    }

    fn allows(&self, host: &str, port: u16, default_port: u16) -> bool {
        let host = host.trim_end_matches('.').to_ascii_lowercase();
        self.allowed.iter().any(|entry| covers(entry, &host, port, default_port))
    }
}

/// The hooks of one sandbox's `wasi:http`.
pub(crate) struct Hooks {
    pub(crate) egress: Arc<Egress>,
    pub(crate) log: Arc<SandboxLog>,
    pub(crate) account: Arc<SandboxAccount>,
}

type IoFuture = Box<dyn Future<Output = Result<(), Error>> + Send>;
type Sent = (http::Response<WasiBody>, IoFuture);

impl WasiHttpHooks for Hooks {
    fn send_request(
        &mut self,
        request: http::Request<WasiBody>,
        options: Option<RequestOptions>,
        _processed: IoFuture,
    ) -> Box<dyn Future<Output = Result<Sent, Error>> + Send> {
        let (egress, log) = (Arc::clone(&self.egress), Arc::clone(&self.log));
        // Before anything is allocated for it, and in the order in which a guest can help itself.
        let admitted = target(&egress, &log, request.uri()).and_then(|target| {
            let permit = Permit::take(&self.account, &egress.limits)?;
            Ok((target, permit))
        });
        let limit = egress.limits.outbound_bytes;
        let request = request.map(|body| Metered::new(body, Direction::Request, limit, &self.account));
        let options = options.unwrap_or_default();
        Box::new(async move {
            match admitted {
                Ok((target, permit)) => send(&egress, &log, target, permit, request, options).await,
                Err(error) => {
                    // A guest that still writes the body would see the body fail, and not why.
                    let _ = tokio::time::timeout(REFUSED_BODY, discard(request.into_body())).await;
                    Err(error)
                }
            }
        })
    }

    // 512 KiB at most wait in the host per response, and most responses fit, so the guest can end at once.
    fn p2_outgoing_body_buffer_chunks(&mut self) -> usize {
        4
    }

    fn p2_outgoing_body_chunk_size(&mut self) -> usize {
        128 << 10
    }

    fn p3_outgoing_body_chunk_size(&mut self) -> usize {
        P3_CHUNK
    }
}

async fn send(
    egress: &Egress,
    log: &SandboxLog,
    target: Target,
    permit: Permit,
    request: http::Request<Metered>,
    options: RequestOptions,
) -> Result<Sent, Error> {
    let stream = match open(egress, log, &target, options).await {
        Ok(open) => open,
        Err(error) => {
            drop(permit);
            let _ = tokio::time::timeout(REFUSED_BODY, discard(request.into_body())).await;
            return Err(error);
        }
    };
    match stream {
        Stream::Plain(stream) => exchange(egress, stream, request, options, permit).await,
        Stream::Tls(stream) => exchange(egress, *stream, request, options, permit).await,
    }
}

async fn discard(mut body: Metered) {
    while let Some(Ok(_)) = body.frame().await {}
}

enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// A server that the guest may ask.
struct Target {
    host: String,
    port: u16,
    tls: bool,
}

/// Whether the guest may ask this server.
fn target(egress: &Egress, log: &SandboxLog, uri: &http::Uri) -> Result<Target, Error> {
    let tls = match uri.scheme() {
        Some(scheme) if *scheme == Scheme::HTTP => false,
        Some(scheme) if *scheme == Scheme::HTTPS => true,
        _ => return Err(Error::HttpRequestUriInvalid),
    };
    let authority = uri.authority().ok_or(Error::HttpRequestUriInvalid)?;
    if authority.as_str().contains('@') {
        return Err(Error::HttpRequestUriInvalid);
    }
    let default_port = if tls { 443 } else { 80 };
    let port = authority.port_u16().unwrap_or(default_port);
    let host = authority.host();
    if !egress.allows(host, port, default_port) {
        egress.counters.count(Limit::AllowedOutboundHosts);
        log.platform(&format!("outbound request to {host}:{port} refused: it is not in allowed_outbound_hosts"));
        return Err(Error::HttpRequestDenied);
    }
    Ok(Target { host: host.to_owned(), port, tls })
}

/// Connects.
async fn open(egress: &Egress, log: &SandboxLog, target: &Target, options: RequestOptions) -> Result<Stream, Error> {
    let Target { host, port, tls } = target;
    let timeout = options.connect_timeout.unwrap_or(TIMEOUT);
    let connected = tokio::time::timeout(timeout, async {
        let stream = connect(egress, log, host, *port).await?;
        if !tls {
            return Ok::<_, Error>(Stream::Plain(stream));
        }
        let name = ServerName::try_from(bare(host).to_owned()).map_err(|_| Error::HttpRequestUriInvalid)?;
        let stream = TlsConnector::from(Arc::clone(&egress.network.tls)).connect(name, stream).await.map_err(|e| {
            log.platform(&format!("outbound request to {host}:{port} failed: TLS: {e}"));
            tls_error(e)
        })?;
        Ok(Stream::Tls(Box::new(stream)))
    });
    connected.await.map_err(|_| Error::ConnectionTimeout)?
}

/// A certificate that is refused has a code of its own in `wasi:http`.
fn tls_error(error: std::io::Error) -> Error {
    let inner = error.get_ref().and_then(|e| e.downcast_ref::<rustls::Error>());
    match inner {
        Some(rustls::Error::InvalidCertificate(_)) => Error::TlsCertificateError,
        _ => Error::Tls(error),
    }
}

/// An address in a URI without its brackets.
fn bare(host: &str) -> &str {
    host.trim_start_matches('[').trim_end_matches(']')
}

/// Has the host connect, which looks the name up and refuses internal addresses.
async fn connect(egress: &Egress, log: &SandboxLog, host: &str, port: u16) -> Result<TcpStream, Error> {
    egress.network.dialer.connect(&egress.instance, bare(host), port).await.map_err(|error| {
        if matches!(error, DialError::Internal) {
            log.platform(&format!("outbound request to {host}:{port} refused: its address is internal"));
        }
        match error {
            DialError::Name => Error::DnsError { rcode: None, info_code: None },
            DialError::NoAddress => Error::DestinationNotFound,
            DialError::Internal => Error::DestinationIpProhibited,
            DialError::Connect { os: Some(code), .. } => Error::Connect(std::io::Error::from_raw_os_error(code)),
            DialError::Connect { os: None, reason } => Error::Connect(std::io::Error::other(reason)),
        }
    })
}

async fn exchange(
    egress: &Egress,
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    mut request: http::Request<Metered>,
    options: RequestOptions,
    permit: Permit,
) -> Result<Sent, Error> {
    let (mut sender, connection) =
        hyper::client::conn::http1::Builder::new().max_buf_size(READ_AHEAD).handshake(TokioIo::new(stream)).await?;
    // To an origin server the request line has the path alone (RFC 9112, 3.2.1).
    let path = request.uri().path_and_query().map_or("/", |p| p.as_str());
    *request.uri_mut() = path.parse().map_err(|_| Error::HttpRequestUriInvalid)?;
    let over = request.body().over();
    let mut connection = Box::pin(connection);
    let response = tokio::time::timeout(options.first_byte_timeout.unwrap_or(TIMEOUT), async {
        let mut response = std::pin::pin!(sender.send_request(request));
        tokio::select! {
            biased;
            result = &mut response => result.map(|r| (r, true)),
            closed = &mut connection => match closed {
                Ok(()) => response.await.map(|r| (r, false)),
                Err(e) => Err(e),
            },
        }
    })
    .await
    .map_err(|_| Error::ConnectionReadTimeout)?;
    let limit = egress.limits.outbound_bytes;
    // hyper says of a body that failed only that it did.
    let size = |e| if over.is_set() { Error::HttpRequestBodySize(Some(limit.0)) } else { Error::from(e) };
    let (response, open) = response.map_err(size)?;
    let io = async move { if open { connection.await.map_err(Error::from) } else { Ok(()) } };
    let response = response.map(|body| {
        let body = body.map_err(Error::from).boxed_unsync();
        let account = Arc::clone(permit.account());
        Metered::new(body, Direction::Response, limit, &account)
            .with_permit(permit)
            .with_gap(options.between_bytes_timeout)
            .boxed_unsync()
    });
    Ok((response, Box::new(io)))
}

#[cfg(test)]
use dial::is_internal;
#[cfg(test)]
mod tests;
