//! One HTTP server for both listeners: accept, authenticate, serve HTTP/1.1 or 2, drain.
//!
//! An accept error never ends it; a TLS handshake runs in the connection's own task under a time limit.
//! Every connection is bounded in number, header size and, while it drains, in time.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::listen::{Accepted, Io, Listener};
use crate::threads::{Place, Threads};
use crate::tls::{self, Caller};

/// For a TLS handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// After an accept error such as "too many open files": others need time to close theirs.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Bytes of a request's head, in HTTP/1.1 and 2.
const HEAD_BYTES: usize = 64 << 10;
/// Header lines of a request.
const HEADERS: usize = 200;
/// Requests at once on one HTTP/2 connection.
const STREAMS: u32 = 1024;

/// Any error of a body.
pub(crate) type BoxError = Box<dyn std::error::Error + Send + Sync>;
/// A response's body.
pub(crate) type ReplyBody = UnsyncBoxBody<Bytes, BoxError>;

/// A whole body.
pub(crate) fn reply_body(bytes: Bytes) -> ReplyBody {
    Full::new(bytes).map_err(|never| match never {}).boxed_unsync()
}

/// How callers prove who they are.
#[derive(Clone)]
pub(crate) enum Security {
    /// By a certificate of the cluster.
    MutualTls(TlsAcceptor),
    /// By running as this user, on a Unix socket; they act as the router.
    SameUser(u32),
}

/// Bounds of a server.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    /// Its name in the log.
    pub(crate) name: &'static str,
    /// Connections at once; more wait in the listen queue.
    pub(crate) connections: usize,
    /// From the shutdown to the end of every connection.
    pub(crate) drain: Duration,
}

/// What answers requests. A clone serves each connection.
pub(crate) trait Handler: Clone + Send + Sync + 'static {
    /// Answers a request of this caller.
    fn handle(&self, caller: &Caller, request: Request<Incoming>) -> impl Future<Output = Response<ReplyBody>> + Send;
}

/// Serves until the shutdown, then lets requests in flight finish within the bound.
pub(crate) async fn serve<H: Handler>(
    listener: Listener,
    security: Security,
    bounds: Bounds,
    handler: H,
    threads: Threads,
    shutdown: CancellationToken,
) {
    let permits = Arc::new(Semaphore::new(bounds.connections));
    let graceful = GracefulShutdown::new();
    let connections = TaskTracker::new();
    let aborted = CancellationToken::new();
    loop {
        let next = async {
            let permit = permits.clone().acquire_owned().await;
            (permit, listener.accept().await)
        };
        let (permit, accepted) = tokio::select! {
            () = shutdown.cancelled() => break,
            next = next => next,
        };
        match (permit, accepted) {
            (Ok(permit), Ok(accepted)) => {
                let (security, handler, watcher) = (security.clone(), handler.clone(), graceful.watcher());
                let aborted = aborted.clone();
                threads.spawn(&connections, |place| async move {
                    let serving = connection(accepted, security, bounds, handler, watcher, place, permit);
                    tokio::select! {
                        () = aborted.cancelled() => {}
                        () = Box::pin(serving) => {}
                    }
                });
            }
            (_, Err(error)) => {
                tracing::warn!(server = bounds.name, %error, "accept failed; going on");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
            (Err(_), _) => break,
        }
    }
    drop(listener);
    connections.close();
    let drained = async {
        graceful.shutdown().await;
        connections.wait().await;
    };
    if tokio::time::timeout(bounds.drain, drained).await.is_err() {
        tracing::warn!(server = bounds.name, open = connections.len(), "connections were cut after the drain time");
        aborted.cancel();
        connections.wait().await;
    }
}

async fn connection<H: Handler>(
    accepted: Accepted,
    security: Security,
    bounds: Bounds,
    handler: H,
    watcher: Watcher,
    place: Place,
    _permit: OwnedSemaphorePermit,
) {
    let name = bounds.name;
    let stream = match accepted.socket.watch() {
        Ok(stream) => stream,
        Err(error) => return tracing::warn!(server = name, %error, "an accepted connection cannot be used"),
    };
    match security {
        Security::SameUser(user) => {
            if accepted.uid != Some(user) {
                tracing::warn!(server = name, uid = ?accepted.uid, "a connection of another user was refused");
                return;
            }
            http(stream, Caller::Router, bounds, handler, watcher, place).await;
        }
        Security::MutualTls(acceptor) => {
            let stream = match tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await {
                Ok(Ok(stream)) => stream,
                Ok(Err(error)) => return tracing::info!(server = name, %error, "a TLS handshake failed"),
                Err(_) => return tracing::info!(server = name, "a TLS handshake took too long"),
            };
            let certificate = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
            let Some(caller) = certificate.and_then(tls::caller_of) else {
                return tracing::warn!(server = name, "a certificate without a role was refused");
            };
            http(Box::new(stream), caller, bounds, handler, watcher, place).await;
        }
    }
}

async fn http<H: Handler>(
    stream: Box<dyn Io>,
    caller: Caller,
    bounds: Bounds,
    handler: H,
    watcher: Watcher,
    place: Place,
) {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .keep_alive(true)
        .pipeline_flush(false)
        // Callers are of the cluster and keep connections in pools: closing a quiet one would race with its
        // next request. Dead ones are found by TCP.
        .header_read_timeout(None)
        .max_buf_size(HEAD_BYTES)
        .max_headers(HEADERS);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_header_list_size(HEAD_BYTES as u32)
        .max_concurrent_streams(STREAMS)
        .keep_alive_interval(Duration::from_secs(20));
    let place = Arc::new(place);
    let service = service_fn(move |request| {
        let (handler, caller, place) = (handler.clone(), caller.clone(), Arc::clone(&place));
        async move { place.run(async move { handler.handle(&caller, request).await }).await }
    });
    let serving = watcher.watch(builder.serve_connection(TokioIo::new(stream), service).into_owned());
    if let Err(error) = serving.await {
        tracing::debug!(server = bounds.name, error = %error, "a connection ended early");
    }
}
