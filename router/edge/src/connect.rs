//! Opening a connection to a host's ingress: Unix socket, or TCP with mutual TLS.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use marcato_api::HostAddress;
use marcato_balance::Endpoint;
use marcato_socket::QuietUnix;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;
use tokio_util::task::TaskTracker;

use crate::metrics::Metrics;
use crate::upload::RequestBody;

/// Why a host could not be reached. Nothing was sent.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectError {
    #[error("connecting failed")]
    Io(#[from] io::Error),
    #[error("connecting took too long")]
    Timeout,
    #[error("the host's name is not a server name")]
    Name,
    #[error("the HTTP handshake failed")]
    Http(#[from] hyper::Error),
    #[error("the connection closed before the request was sent")]
    Closed(#[source] hyper::Error),
}

/// Largest response header, and bytes read ahead per connection.
const BUFFER: usize = 64 << 10;

/// Opens connections.
pub(crate) struct Connector {
    tls: TlsConnector,
    timeout: Duration,
    /// Owns the tasks that drive the connections.
    tasks: TaskTracker,
    metrics: Metrics,
}

impl Connector {
    pub(crate) fn new(tls: Arc<rustls::ClientConfig>, timeout: Duration, tasks: TaskTracker, metrics: Metrics) -> Self {
        Self { tls: TlsConnector::from(tls), timeout, tasks, metrics }
    }

    pub(crate) async fn connect(&self, endpoint: &Endpoint) -> Result<SendRequest<RequestBody>, ConnectError> {
        let opened = match tokio::time::timeout(self.timeout, self.open(endpoint)).await {
            Ok(opened) => opened,
            Err(_) => Err(ConnectError::Timeout),
        };
        match &opened {
            Ok(_) => self.metrics.upstream_opened.inc(),
            Err(_) => self.metrics.upstream_failed.inc(),
        };
        opened
    }

    async fn open(&self, endpoint: &Endpoint) -> Result<SendRequest<RequestBody>, ConnectError> {
        match &endpoint.address {
            HostAddress::Unix(path) => self.drive(QuietUnix::new(connect_unix(path).await?.into_std()?)?).await,
            HostAddress::Tcp(address) => {
                let stream = TcpStream::connect(address).await?;
                stream.set_nodelay(true)?;
                let name = format!("{}.ingress.marcato.internal", endpoint.host);
                let name = ServerName::try_from(name).map_err(|_| ConnectError::Name)?;
                self.drive(self.tls.connect(name, stream).await?).await
            }
        }
    }

    async fn drive<T>(&self, io: T) -> Result<SendRequest<RequestBody>, ConnectError>
    where
        T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (sender, conn) = http1::Builder::new().max_buf_size(BUFFER).handshake(TokioIo::new(io)).await?;
        let open = self.metrics.upstream_open.clone();
        open.inc();
        self.tasks.spawn(async move {
            // What ends a connection is told to the request that it carried.
            if let Err(error) = conn.await {
                tracing::debug!(%error, "a connection to a host ended");
            }
            open.dec();
        });
        Ok(sender)
    }
}

/// A full backlog makes a Unix connect fail at once where TCP would wait: so we wait.
async fn connect_unix(path: &std::path::Path) -> io::Result<UnixStream> {
    let mut pause = Duration::from_millis(2);
    loop {
        match UnixStream::connect(path).await {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => tokio::time::sleep(pause).await,
            other => return other,
        }
        pause = (pause * 2).min(Duration::from_millis(100));
    }
}
