//! Accepting clients: TCP, TLS, and which HTTP they speak.
//!
//! An accept error never ends a listener, and a handshake never delays an accept: each connection
//! has a task of its own on one of the worker threads, and those before their first request end at once
//! when the edge drains.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::conns::{ConnGuard, Connections, Watched};
use crate::edge::Shared;
use crate::forwarded::Peer;
use crate::metrics::Metrics;
use crate::proxy;
use crate::workers::Workers;

/// What a listener needs.
#[derive(Clone)]
pub(crate) struct Acceptor {
    pub(crate) workers: Workers,
    pub(crate) metrics: Metrics,
    pub(crate) connections: Arc<Connections>,
    pub(crate) places: Arc<Semaphore>,
    pub(crate) tasks: TaskTracker,
    /// `None`: plain HTTP.
    pub(crate) tls: Option<TlsAcceptor>,
}

/// The two that the edge speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Http {
    One,
    Two,
}

/// Bytes read ahead per HTTP/1 connection (hyper's least is 8 KiB).
const READ_AHEAD: usize = 64 << 10;

impl Acceptor {
    /// Accepts until shutdown.
    pub(crate) async fn run(self, listener: TcpListener, shutdown: CancellationToken) {
        let shutdown = shutdown.cancelled();
        tokio::pin!(shutdown);
        let mut backoff = Duration::ZERO;
        loop {
            let accepted = tokio::select! {
                () = &mut shutdown => return,
                accepted = self.accept(&listener, backoff) => accepted,
            };
            match accepted {
                Ok((stream, address, place)) => {
                    backoff = Duration::ZERO;
                    self.metrics.accepted.inc();
                    let guard = self.connections.register();
                    let acceptor = self.clone();
                    self.workers.spawn(&self.tasks, stream, move |shared, stream| async move {
                        acceptor.serve(&shared, stream, address, &guard).await;
                        drop((guard, place));
                    });
                }
                Err(error) => {
                    // Out of descriptors, or a client that left while it waited.
                    self.metrics.accept_errors.inc();
                    backoff = (backoff * 2).clamp(Duration::from_millis(5), Duration::from_secs(1));
                    tracing::warn!(%error, "accept failed");
                }
            }
        }
    }

    /// Without a place, one connection per listener waits here and the others in the kernel's backlog.
    /// The place comes second, for a listener without clients must not hold one.
    async fn accept(
        &self,
        listener: &TcpListener,
        backoff: Duration,
    ) -> std::io::Result<(TcpStream, SocketAddr, OwnedSemaphorePermit)> {
        if !backoff.is_zero() {
            tokio::time::sleep(backoff).await;
        }
        let (stream, address) = listener.accept().await?;
        let place = Arc::clone(&self.places).acquire_owned().await.map_err(std::io::Error::other)?;
        Ok((stream, address, place))
    }

    async fn serve(&self, shared: &Arc<Shared>, stream: TcpStream, address: SocketAddr, guard: &ConnGuard) {
        let cfg = &shared.cfg;
        // Only delays: a connection without it still works.
        let _ = stream.set_nodelay(true);
        let https = self.tls.is_some();
        let peer = Peer::new(address.ip(), https, &cfg.trusted_proxies, Arc::clone(guard.state()));
        let peer = Arc::new(peer);
        match &self.tls {
            None => {
                let version = guard.state().until_drain(timeout(cfg.header_timeout_ms.into(), peek(&stream))).await;
                if let Some(Ok(Some(version))) = version {
                    speak(shared, version, stream, peer, guard).await;
                }
            }
            Some(tls) => {
                let handshake = timeout(cfg.tls_handshake_ms.into(), tls.accept(stream));
                // Boxed: a handshake's state is large, and is not kept for the connection's life.
                match guard.state().until_drain(Box::pin(handshake)).await {
                    Some(Ok(Ok(stream))) => {
                        let version = match stream.get_ref().1.alpn_protocol() {
                            Some(b"h2") => Http::Two,
                            _ => Http::One,
                        };
                        speak(shared, version, stream, peer, guard).await;
                    }
                    Some(Ok(Err(error))) => {
                        self.metrics.tls_failures.inc();
                        tracing::debug!(%error, %address, "a TLS handshake failed");
                    }
                    Some(Err(_)) => {
                        self.metrics.tls_failures.inc();
                        tracing::debug!(%address, "a TLS handshake took too long");
                    }
                    None => {}
                }
            }
        }
    }
}

/// Serves a connection to its end.
async fn speak<T>(shared: &Arc<Shared>, version: Http, stream: T, peer: Arc<Peer>, guard: &ConnGuard)
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let cfg = &shared.cfg;
    let state = guard.state();
    let io = TokioIo::new(Watched::new(stream, Arc::clone(state)));
    let shared = Arc::clone(shared);
    let service = service_fn(move |request| proxy::serve(Arc::clone(&shared), Arc::clone(&peer), request));
    let header_bytes = usize::try_from(cfg.max_header_bytes.0).unwrap_or(READ_AHEAD).max(1);
    let ended = match version {
        Http::One => {
            let mut builder = http1::Builder::new();
            builder
                .timer(TokioTimer::new())
                .header_read_timeout(Duration::from(cfg.header_timeout_ms))
                .max_header_size(header_bytes)
                .max_buf_size(READ_AHEAD.max(header_bytes));
            state.drive(builder.serve_connection(io, service)).await
        }
        Http::Two => {
            state.is_http2();
            let mut builder = http2::Builder::new(TokioExecutor::new());
            builder
                .timer(TokioTimer::new())
                .max_concurrent_streams(cfg.http2_streams)
                .max_header_list_size(u32::try_from(header_bytes).unwrap_or(u32::MAX))
                .initial_stream_window_size(256 << 10)
                .initial_connection_window_size(1 << 20)
                .max_send_buf_size(256 << 10)
                // Resets that a client provokes (CVE-2023-44487 and its kin).
                .max_pending_accept_reset_streams(32)
                .keep_alive_interval(Duration::from_secs(30))
                .keep_alive_timeout(Duration::from_secs(15));
            state.drive(builder.serve_connection(io, service)).await
        }
    };
    if let Some(Err(error)) = ended {
        tracing::debug!(%error, "a client connection ended");
    }
}

/// HTTP/2 with prior knowledge begins with `PRI * HTTP/2.0` (RFC 9113, 3.4); nothing else begins with
/// `PRI `. The bytes stay in the socket. `None`: the client left.
async fn peek(stream: &TcpStream) -> Option<Http> {
    const PREFACE: &[u8; 4] = b"PRI ";
    let mut start = [0; PREFACE.len()];
    loop {
        let count = stream.peek(&mut start).await.ok()?;
        if count == 0 {
            return None;
        }
        if !PREFACE.starts_with(&start[..count]) {
            return Some(Http::One);
        }
        if count == PREFACE.len() {
            return Some(Http::Two);
        }
        // One to three bytes that could become either (`P`, `PR`, `PRI`): rare, and no event tells
        // of more bytes behind those that were only peeked at.
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
