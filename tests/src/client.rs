//! A plain HTTP/1.1 client on one connection: it resolves nothing, retries nothing and hides nothing,
//! so that a test counts what a client on the wire would see.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};
use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Empty, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncRead, AsyncWrite};

/// A request's body.
pub type RequestBody = UnsyncBoxBody<Bytes, std::io::Error>;

/// No body.
pub fn empty() -> RequestBody {
    Empty::new().map_err(|never| match never {}).boxed_unsync()
}

/// These bytes.
pub fn full(bytes: impl Into<Bytes>) -> RequestBody {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

/// Where to connect and as whom to ask.
#[derive(Clone)]
pub struct Target {
    /// The socket.
    pub socket: Socket,
    /// The `Host` header.
    pub host: String,
    /// TLS, trusting this; the server name is `host` without its port.
    pub tls: Option<Arc<rustls::ClientConfig>>,
}

/// A TCP or Unix socket.
#[derive(Clone)]
pub enum Socket {
    /// TCP.
    Tcp(SocketAddr),
    /// Unix.
    Unix(PathBuf),
}

/// A whole response.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The status.
    pub status: u16,
    /// The headers.
    pub headers: HeaderMap,
    /// The body.
    pub body: Bytes,
}

impl Answer {
    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// A header as text; empty when absent.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or_default()
    }
}

/// Trusts only the authorities in this PEM file; a client certificate may be added.
pub fn tls_config(ca: &Path, identity: Option<(&Path, &Path)>) -> Result<Arc<rustls::ClientConfig>> {
    let mut roots = rustls::RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(ca).with_context(|| ca.display().to_string())? {
        roots.add(certificate?)?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots);
    let mut config = match identity {
        None => builder.with_no_client_auth(),
        Some((chain, key)) => {
            let chain = CertificateDer::pem_file_iter(chain)?.collect::<Result<Vec<_>, _>>()?;
            builder.with_client_auth_cert(chain, rustls::pki_types::PrivateKeyDer::from_pem_file(key)?)?
        }
    };
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// One open connection.
pub struct Connection {
    sender: http1::SendRequest<RequestBody>,
    host: String,
}

impl Target {
    /// A TCP target without TLS.
    pub fn plain(socket: SocketAddr, host: impl Into<String>) -> Self {
        Self { socket: Socket::Tcp(socket), host: host.into(), tls: None }
    }

    /// A TCP target with TLS.
    pub fn secure(socket: SocketAddr, host: impl Into<String>, tls: Arc<rustls::ClientConfig>) -> Self {
        Self { socket: Socket::Tcp(socket), host: host.into(), tls: Some(tls) }
    }

    /// A Unix socket without TLS.
    pub fn unix(path: impl Into<PathBuf>, host: impl Into<String>) -> Self {
        Self { socket: Socket::Unix(path.into()), host: host.into(), tls: None }
    }

    /// Opens a connection.
    pub async fn connect(&self) -> Result<Connection> {
        match &self.socket {
            Socket::Tcp(address) => {
                let stream = tokio::net::TcpStream::connect(address).await.context("connect")?;
                stream.set_nodelay(true)?;
                self.secure_and_start(stream).await
            }
            Socket::Unix(path) => {
                let stream = tokio::net::UnixStream::connect(path).await.context("connect")?;
                self.secure_and_start(stream).await
            }
        }
    }

    async fn secure_and_start(
        &self,
        stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    ) -> Result<Connection> {
        let Some(tls) = &self.tls else { return Connection::start(stream, &self.host).await };
        let name = self.host.rsplit_once(':').map_or(self.host.as_str(), |(name, _)| name).to_owned();
        let connector = tokio_rustls::TlsConnector::from(tls.clone());
        let stream = connector.connect(ServerName::try_from(name)?, stream).await.context("TLS handshake")?;
        Connection::start(stream, &self.host).await
    }

    /// One request on a connection of its own.
    pub async fn request(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: RequestBody,
    ) -> Result<Answer> {
        self.connect().await?.request(method, path, headers, body).await
    }

    /// GET on a connection of its own.
    pub async fn get(&self, path: &str) -> Result<Answer> {
        self.request(Method::GET, path, &[], empty()).await
    }
}

impl Connection {
    async fn start(stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static, host: &str) -> Result<Self> {
        let (sender, connection) = http1::Builder::new().handshake(TokioIo::new(stream)).await.context("handshake")?;
        // Ends by itself when the sender is dropped or the peer closes; its error shows at the sender.
        tokio::spawn(async move { drop(connection.await) });
        Ok(Self { sender, host: host.to_owned() })
    }

    /// Whether another request may be sent: waits for the last one's end. False: closed by the peer.
    pub async fn ready(&mut self) -> bool {
        self.sender.ready().await.is_ok()
    }

    /// Sends a request and gives the response as soon as its head is there.
    pub async fn open(
        &mut self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: RequestBody,
    ) -> Result<Response<Incoming>> {
        self.sender.ready().await.context("connection")?;
        let mut request = Request::builder().method(method).uri(path);
        if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) {
            request = request.header("host", &self.host);
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        self.sender.send_request(request.body(body)?).await.context("no response")
    }

    /// Sends a request and reads the whole response.
    pub async fn request(
        &mut self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: RequestBody,
    ) -> Result<Answer> {
        let response = self.open(method, path, headers, body).await?;
        let (head, body) = response.into_parts();
        let body = body.collect().await.context("response body cut short")?.to_bytes();
        Ok(Answer { status: head.status.as_u16(), headers: head.headers, body })
    }
}
