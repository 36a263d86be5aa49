//! What a worker asks its daemon for: code, connections, services, and to keep log lines.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures::FutureExt;
use futures::future::BoxFuture;
use marcato_api::{
    AccessError, AccessRequest, AccessResponse, Digest, InstanceId, KeyValueError, KeyValueRequest, KeyValueResponse,
    LogStream, ServiceKind,
};
use marcato_runtime::{AccessService, CodeSource, DialError, Dialer, KeyValueService, LoadError, LogSink, Services};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_util::task::TaskTracker;

use crate::channel::{Ask, AskAnswer, Asks, Line, NoCode, Orders, Peer, SocketReceiver};

/// The worker's end of the channel.
pub(super) type HostPeer = Peer<Asks, Orders>;

/// Lines that wait to be sent.
const LINES: usize = 16_384;
/// Lines sent at once.
const BATCH: usize = 512;

const GONE: &str = "the host daemon does not answer";

/// Code by the daemon, which verifies it and puts it into the worker's folder.
pub(super) struct HostCode {
    pub(super) peer: HostPeer,
    pub(super) dir: PathBuf,
}

impl CodeSource for HostCode {
    fn open<'a>(&'a self, digest: &'a Digest) -> BoxFuture<'a, Result<PathBuf, LoadError>> {
        async move {
            match self.peer.call(&Ask::Code(digest.clone())).await {
                Ok(AskAnswer::Code(Ok(name))) => Ok(self.dir.join(name)),
                Ok(AskAnswer::Code(Err(NoCode::NotCompiled))) => Err(LoadError::NotCompiled(digest.clone())),
                Ok(AskAnswer::Code(Err(NoCode::Unusable(why)))) => Err(LoadError::Read(std::io::Error::other(why))),
                _ => Err(LoadError::Read(std::io::Error::other(GONE))),
            }
        }
        .boxed()
    }
}

/// Connections by the daemon, which looks names up, refuses internal addresses and passes the socket on.
pub(super) struct HostDialer {
    peer: HostPeer,
    sockets: SocketReceiver,
    ticket: AtomicU64,
}

impl HostDialer {
    pub(super) fn new(peer: HostPeer, sockets: SocketReceiver) -> Self {
        Self { peer, sockets, ticket: AtomicU64::new(0) }
    }
}

impl Dialer for HostDialer {
    fn connect<'a>(
        &'a self,
        instance: &'a InstanceId,
        host: &'a str,
        port: u16,
    ) -> BoxFuture<'a, Result<TcpStream, DialError>> {
        async move {
            let failed = |why: &str| DialError::Connect { os: None, reason: why.to_owned() };
            let ticket = self.ticket.fetch_add(1, Ordering::Relaxed);
            let arriving = self.sockets.expect(ticket);
            let ask = Ask::Connect { instance: instance.clone(), host: host.to_owned(), port, ticket };
            match self.peer.call(&ask).await {
                Ok(AskAnswer::Connected(result)) => result?,
                _ => return Err(failed(GONE)),
            }
            let socket = std::net::TcpStream::from(arriving.socket().await.ok_or_else(|| failed(GONE))?);
            // It shares its state with the descriptor that the daemon had.
            socket.set_nonblocking(true).and_then(|()| TcpStream::from_std(socket)).map_err(|e| DialError::connect(&e))
        }
        .boxed()
    }
}

/// A service by the daemon, as one instance has it bound.
struct HostService {
    peer: HostPeer,
    instance: InstanceId,
    binding: String,
}

impl AccessService for HostService {
    fn call(&self, request: AccessRequest) -> BoxFuture<'_, Result<AccessResponse, AccessError>> {
        async move {
            let ask = Ask::Access { instance: self.instance.clone(), binding: self.binding.clone(), request };
            match self.peer.call(&ask).await {
                Ok(AskAnswer::Access(answer)) => answer,
                _ => Err(AccessError::Unavailable(GONE.into())),
            }
        }
        .boxed()
    }
}

impl KeyValueService for HostService {
    fn call(&self, request: KeyValueRequest) -> BoxFuture<'_, Result<KeyValueResponse, KeyValueError>> {
        async move {
            let ask = Ask::KeyValue { instance: self.instance.clone(), binding: self.binding.clone(), request };
            match self.peer.call(&ask).await {
                Ok(AskAnswer::KeyValue(answer)) => answer,
                _ => Err(KeyValueError::Unavailable(GONE.into())),
            }
        }
        .boxed()
    }
}

/// The services of an instance.
pub(super) fn services(peer: &HostPeer, instance: &InstanceId, bindings: BTreeMap<String, ServiceKind>) -> Services {
    let mut services = Services::default();
    for (binding, kind) in bindings {
        let service =
            Arc::new(HostService { peer: peer.clone(), instance: instance.clone(), binding: binding.clone() });
        match kind {
            ServiceKind::Access => drop(services.access.insert(binding, service)),
            ServiceKind::Keyvalue => drop(services.keyvalue.insert(binding, service)),
        }
    }
    services
}

/// Log lines on their way to the daemon. Cheap to clone.
#[derive(Clone)]
pub(super) struct HostLogs {
    queue: mpsc::Sender<Line>,
    lost: Arc<AtomicU64>,
}

impl HostLogs {
    /// Sends lines until the channel ends.
    pub(super) fn start(peer: HostPeer, tasks: &TaskTracker) -> Self {
        let (queue, mut lines) = mpsc::channel(LINES);
        tasks.spawn(async move {
            let mut batch = Vec::new();
            while lines.recv_many(&mut batch, BATCH).await > 0 {
                if peer.tell(&Ask::Lines(std::mem::take(&mut batch))).await.is_err() {
                    return;
                }
            }
        });
        Self { queue, lost: Arc::default() }
    }

    /// Where an instance writes.
    pub(super) fn sink(&self, instance: InstanceId) -> Arc<dyn LogSink> {
        Arc::new(HostSink { logs: self.clone(), instance })
    }

    /// Lines that found the queue full.
    pub(super) fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }
}

struct HostSink {
    logs: HostLogs,
    instance: InstanceId,
}

impl LogSink for HostSink {
    fn line(&self, request_id: &str, stream: LogStream, text: &str) {
        let line = Line { instance: self.instance.clone(), request_id: request_id.into(), stream, text: text.into() };
        // Never waits: it is called on the request path.
        if self.logs.queue.try_send(line).is_err() {
            self.logs.lost.fetch_add(1, Ordering::Relaxed);
        }
    }
}
