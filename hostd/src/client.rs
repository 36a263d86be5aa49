//! The host's own HTTP client: one call to join, and calls to other hosts for services that they own.
//!
//! Calls to a peer share one HTTP/2 connection per peer over mutual TLS. A call that may have reached the
//! peer is never sent twice: the error says which case it is.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, Uri, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use marcato_api::{HostAddress, HostId};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;
use tokio_util::task::AbortOnDropHandle;

use crate::listen::Io;
use crate::tls::host_server_name;

/// For connecting, TLS included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// For a whole call on an open connection.
const CALL_TIMEOUT: Duration = Duration::from_secs(15);
/// A dead peer is noticed after this much silence.
const PING_EVERY: Duration = Duration::from_secs(10);

/// Why a call gave no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CallError {
    /// No connection: nothing was sent.
    #[error("cannot connect: {0}")]
    Connect(io::Error),
    /// The address is not one that can be called.
    #[error("{0:?} is not an https URL")]
    Url(String),
    /// The request cannot be formed.
    #[error("the request cannot be formed: {0}")]
    Form(#[from] http::Error),
    /// The connection broke; the peer may or may not have done what was asked.
    #[error("the connection broke: {0}")]
    Broken(hyper::Error),
    /// No answer in time; the peer may or may not have done what was asked.
    #[error("no answer within {} s", CALL_TIMEOUT.as_secs())]
    TimedOut,
    /// The answer is longer than expected, or cut short.
    #[error("the answer cannot be read: {0}")]
    Body(Box<dyn std::error::Error + Send + Sync>),
}

type Sender = http2::SendRequest<Full<Bytes>>;

/// Calls other hosts. Cheap to share.
pub(crate) struct PeerClient {
    tls: Arc<ClientConfig>,
    open: Mutex<HashMap<HostId, Arc<Connection>>>,
}

/// Whoever uses a connection holds it; the last one ends its driver.
struct Connection {
    address: HostAddress,
    sender: Sender,
    _driver: AbortOnDropHandle<Result<(), hyper::Error>>,
}

impl PeerClient {
    /// A client that shows this host's certificate.
    pub(crate) fn new(tls: ClientConfig) -> Self {
        Self { tls: Arc::new(tls), open: Mutex::default() }
    }

    /// `POST`s JSON to a path of the peer's HostApi and reads at most `most` bytes of the answer.
    pub(crate) async fn post(
        &self,
        peer: &HostId,
        address: &HostAddress,
        path: &str,
        json: Bytes,
        most: usize,
    ) -> Result<Response<Bytes>, CallError> {
        let uri = Uri::builder().scheme("https").authority(host_server_name(peer)).path_and_query(path).build()?;
        let request = Request::builder()
            .method(Method::POST)
            .uri(uri)
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(json))?;
        let connection = self.connection(peer, address).await?;
        let mut sender = connection.sender.clone();
        let call = async move {
            let response = sender.send_request(request).await.map_err(CallError::Broken)?;
            read(response, most).await
        };
        tokio::time::timeout(CALL_TIMEOUT, call).await.unwrap_or(Err(CallError::TimedOut))
    }

    fn open_connection(&self, peer: &HostId, address: &HostAddress) -> Option<Arc<Connection>> {
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.get(peer).filter(|c| c.address == *address && !c.sender.is_closed()).cloned()
    }

    async fn connection(&self, peer: &HostId, address: &HostAddress) -> Result<Arc<Connection>, CallError> {
        if let Some(connection) = self.open_connection(peer, address) {
            return Ok(connection);
        }
        // Two callers may connect at once; the later one's connection is kept, the other ends with its call.
        let connecting = connect_peer(self.tls.clone(), peer, address);
        let connection = tokio::time::timeout(CONNECT_TIMEOUT, connecting)
            .await
            .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
            .map_err(CallError::Connect)?;
        let connection = Arc::new(connection);
        self.open.lock().unwrap_or_else(PoisonError::into_inner).insert(peer.clone(), connection.clone());
        Ok(connection)
    }
}

async fn connect_peer(tls: Arc<ClientConfig>, peer: &HostId, address: &HostAddress) -> io::Result<Connection> {
    let stream: Box<dyn Io> = match address {
        HostAddress::Tcp(a) => {
            let stream = TcpStream::connect(a).await?;
            stream.set_nodelay(true)?;
            Box::new(stream)
        }
        HostAddress::Unix(p) => Box::new(UnixStream::connect(p).await?),
    };
    let name = ServerName::try_from(host_server_name(peer)).map_err(io::Error::other)?;
    let stream = TlsConnector::from(tls).connect(name, stream).await?;
    let (sender, driver) = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_EVERY)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(io::Error::other)?;
    Ok(Connection { address: address.clone(), sender, _driver: AbortOnDropHandle::new(tokio::spawn(driver)) })
}

/// `POST`s JSON with a bearer token to an https URL on a connection of its own.
pub(crate) async fn post_with_bearer(
    tls: ClientConfig,
    base_url: &str,
    path: &str,
    bearer: &str,
    json: Bytes,
    most: usize,
) -> Result<Response<Bytes>, CallError> {
    let bad = || CallError::Url(base_url.to_owned());
    let base: Uri = base_url.parse().map_err(|_| bad())?;
    let host = base.host().ok_or_else(bad)?.to_owned();
    if base.scheme_str() != Some("https") {
        return Err(bad());
    }
    let mut authorization = header::HeaderValue::try_from(format!("Bearer {bearer}")).map_err(http::Error::from)?;
    authorization.set_sensitive(true);
    let request = Request::builder()
        .method(Method::POST)
        .uri(path)
        .header(header::HOST, base.authority().map_or(host.as_str(), |a| a.as_str()))
        .header(header::CONTENT_TYPE, "application/json")
        .header(header::AUTHORIZATION, authorization)
        .body(Full::new(json))?;
    let plain_host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
    let port = base.port_u16().unwrap_or(443);
    let connecting = async {
        let stream = TcpStream::connect((plain_host.as_str(), port)).await?;
        let name = ServerName::try_from(plain_host.clone()).map_err(io::Error::other)?;
        TlsConnector::from(Arc::new(tls)).connect(name, stream).await
    };
    let stream = tokio::time::timeout(CONNECT_TIMEOUT, connecting)
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
        .map_err(CallError::Connect)?;
    let (mut sender, driver) = http1::handshake(TokioIo::new(stream)).await.map_err(CallError::Broken)?;
    let _driver = AbortOnDropHandle::new(tokio::spawn(driver));
    let call = async {
        let response = sender.send_request(request).await.map_err(CallError::Broken)?;
        read(response, most).await
    };
    tokio::time::timeout(CALL_TIMEOUT, call).await.unwrap_or(Err(CallError::TimedOut))
}

async fn read(response: Response<Incoming>, most: usize) -> Result<Response<Bytes>, CallError> {
    let (head, body) = response.into_parts();
    let bytes = Limited::new(body, most).collect().await.map_err(CallError::Body)?.to_bytes();
    Ok(Response::from_parts(head, bytes))
}

/// Whether trying again later may help: the other side is not there yet, or busy.
pub(crate) fn is_passing(status: StatusCode) -> bool {
    status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS
}
