//! The admin listener: accept, TLS handshake in a task of its own, HTTP/1.1 and HTTP/2.
//!
//! Owns: bounds on connections and on how long each step may take, and a bounded end. An accept error
//! never ends it, and a slow handshake never blocks accept.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt as _;

use super::extract::Peer;

/// Connections at once; more wait in the kernel's queue.
const CONNECTIONS: usize = 512;
/// From accept to the end of the handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// For the headers of a request, and between requests on HTTP/1.1.
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);
/// Requests at once on one HTTP/2 connection.
const STREAMS: u32 = 64;
/// How long requests in flight may take after shutdown began.
const DRAIN: Duration = Duration::from_secs(10);
/// After an accept error, most often too many open files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves until shutdown, then drains.
pub(crate) async fn serve(
    listener: TcpListener,
    tls: Arc<rustls::ServerConfig>,
    router: Router,
    shutdown: CancellationToken,
) {
    let acceptor = TlsAcceptor::from(tls);
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    let cut = CancellationToken::new();
    let tasks = TaskTracker::new();
    let accept = async {
        loop {
            let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
            match listener.accept().await {
                Ok((stream, peer)) => {
                    let one = connection(stream, peer, acceptor.clone(), router.clone(), shutdown.clone());
                    let cut = cut.clone();
                    tasks.spawn(async move {
                        cut.run_until_cancelled(one).await;
                        drop(place);
                    });
                }
                Err(e) => {
                    tracing::warn!(error = %e, "the admin listener could not accept");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    };
    shutdown.run_until_cancelled(accept).await;
    drop(listener);
    tasks.close();
    if tokio::time::timeout(DRAIN, tasks.wait()).await.is_err() {
        tracing::warn!("admin calls that did not end in time were cut");
        cut.cancel();
        tasks.wait().await;
    }
}

async fn connection(
    stream: TcpStream,
    peer: SocketAddr,
    acceptor: TlsAcceptor,
    router: Router,
    shutdown: CancellationToken,
) {
    if let Err(e) = stream.set_nodelay(true) {
        tracing::debug!(%peer, error = %e, "no TCP_NODELAY");
    }
    let handshake = tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream));
    let stream = match shutdown.run_until_cancelled(handshake).await {
        Some(Ok(Ok(stream))) => stream,
        Some(Ok(Err(e))) => return tracing::debug!(%peer, error = %e, "no TLS handshake"),
        Some(Err(_)) => return tracing::debug!(%peer, "the TLS handshake took too long"),
        None => return,
    };
    let service = hyper::service::service_fn(move |request: hyper::Request<hyper::body::Incoming>| {
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(Peer(peer.ip()));
        router.clone().oneshot(request)
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS)
        .keep_alive_interval(Some(HEADER_TIMEOUT))
        .max_header_list_size(32 << 10);
    let mut serving = std::pin::pin!(builder.serve_connection(TokioIo::new(stream), service));
    let ended = tokio::select! {
        ended = serving.as_mut() => ended,
        () = shutdown.cancelled() => {
            serving.as_mut().graceful_shutdown();
            serving.await
        }
    };
    if let Err(e) = ended {
        tracing::debug!(%peer, error = %e, "an admin connection ended with an error");
    }
}
