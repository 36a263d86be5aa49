//! The edge in process: real sockets on loopback, hosts played by small servers on Unix sockets.

mod fuzz;
mod life;
mod numbers;
mod owner;
mod retries;
mod routing;
mod streaming;
mod strict;
mod trailers;

use std::collections::HashMap;
use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use http::{Request, Response};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use marcato_api::{AppName, HostAddress, HostId, InstanceId, Limits, Millis, RevisionNumber, Route};
use marcato_balance::{AppSpec, DebugKey, EndpointSpec, RouteTable, TableCell};
use prometheus_client::registry::Registry;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixListener};
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::{Edge, EdgeConfig, EdgeError};

pub(crate) type Body = UnsyncBoxBody<Bytes, Infallible>;
pub(crate) type Answer = Response<Body>;

pub(crate) fn full(text: impl Into<Bytes>) -> Body {
    Full::new(text.into()).boxed_unsync()
}

pub(crate) fn answer(text: impl Into<Bytes>) -> Answer {
    Response::new(full(text))
}

/// A platform error, as ingress makes it.
pub(crate) fn platform(status: u16, slug: &str, not_started: bool) -> Answer {
    let mut builder = Response::builder().status(status).header("x-marcato-error", slug);
    if not_started {
        builder = builder.header("x-marcato-not-started", "1");
    }
    builder.body(full("internal words")).unwrap()
}

/// A host's ingress: what it saw, and how it answers.
pub(crate) struct Host {
    pub(crate) path: PathBuf,
    /// Heads of the requests that came, in order.
    pub(crate) seen: Arc<Mutex<Vec<http::request::Parts>>>,
    pub(crate) connections: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl Host {
    pub(crate) fn requests(&self) -> usize {
        self.seen.lock().unwrap().len()
    }

    pub(crate) fn last(&self) -> http::request::Parts {
        self.seen.lock().unwrap().last().unwrap().clone()
    }

    /// Stops it; its socket refuses afterwards.
    pub(crate) async fn stop(self) {
        self.task.abort();
        let _ = self.task.await;
    }
}

pub(crate) fn host<F, A>(path: &Path, answer: F) -> Host
where
    F: Fn(Request<Incoming>) -> A + Send + Sync + 'static,
    A: Future<Output = Answer> + Send + 'static,
{
    let _ = std::fs::remove_file(path);
    let listener = UnixListener::bind(path).unwrap();
    let seen: Arc<Mutex<Vec<http::request::Parts>>> = Arc::default();
    let connections = Arc::new(AtomicUsize::new(0));
    let answer: Arc<dyn Fn(Request<Incoming>) -> BoxFuture<'static, Answer> + Send + Sync> =
        Arc::new(move |r| Box::pin(answer(r)));
    let (log, count) = (Arc::clone(&seen), Arc::clone(&connections));
    let task = tokio::spawn(async move {
        // A set, so that stopping the host ends its connections too.
        let mut set = tokio::task::JoinSet::new();
        loop {
            let Ok((stream, _)) = listener.accept().await else { return };
            count.fetch_add(1, Ordering::SeqCst);
            let (log, answer) = (Arc::clone(&log), Arc::clone(&answer));
            let service = service_fn(move |request: Request<Incoming>| {
                let (parts, body) = request.into_parts();
                log.lock().unwrap().push(parts.clone());
                let answer = answer(Request::from_parts(parts, body));
                async move { Ok::<_, Infallible>(answer.await) }
            });
            set.spawn(async move {
                let _ =
                    hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
            });
        }
    });
    Host { path: path.to_owned(), seen, connections, task }
}

/// An edge that serves, and the hands of its control plane.
pub(crate) struct Rig {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) http: SocketAddr,
    pub(crate) https: SocketAddr,
    pub(crate) ca: rustls_pki_types::CertificateDer<'static>,
    pub(crate) table: Arc<TableCell>,
    changed: watch::Sender<u64>,
    pub(crate) shutdown: CancellationToken,
    pub(crate) served: JoinHandle<Result<(), EdgeError>>,
    pub(crate) registry: Registry,
    apps: Mutex<HashMap<String, AppSpec>>,
}

/// A leaf certificate under a CA of its own.
pub(crate) struct Tls {
    pub(crate) ca: rcgen::CertifiedIssuer<'static, rcgen::KeyPair>,
}

impl Tls {
    pub(crate) fn new() -> Self {
        let mut params = rcgen::CertificateParams::new(vec![]).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        Self { ca: rcgen::CertifiedIssuer::self_signed(params, rcgen::KeyPair::generate().unwrap()).unwrap() }
    }

    pub(crate) fn leaf(
        &self,
        name: &str,
    ) -> (rustls_pki_types::CertificateDer<'static>, rustls_pki_types::PrivateKeyDer<'static>) {
        let key = rcgen::KeyPair::generate().unwrap();
        let cert = rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap().signed_by(&key, &self.ca).unwrap();
        (cert.der().clone(), rustls_pki_types::PrivateKeyDer::Pkcs8(key.serialize_der().into()))
    }

    pub(crate) fn roots(&self) -> rustls::RootCertStore {
        roots(self.ca.der().clone())
    }
}

pub(crate) fn roots(ca: rustls_pki_types::CertificateDer<'static>) -> rustls::RootCertStore {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(ca).unwrap();
    roots
}

pub(crate) fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

pub(crate) fn client_tls(ca: rustls_pki_types::CertificateDer<'static>, alpn: &[&[u8]]) -> Arc<rustls::ClientConfig> {
    let mut config = rustls::ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots(ca))
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|p| p.to_vec()).collect();
    Arc::new(config)
}

impl Rig {
    pub(crate) async fn new(adjust: impl FnOnce(&mut EdgeConfig)) -> Self {
        let tls = Tls::new();
        let ca = tls.ca.der().clone();
        Self::with_upstream(adjust, client_tls(ca, &[]), &tls).await
    }

    pub(crate) async fn with_upstream(
        adjust: impl FnOnce(&mut EdgeConfig),
        upstream: Arc<rustls::ClientConfig>,
        tls: &Tls,
    ) -> Self {
        let mut cfg = EdgeConfig::standard();
        cfg.drain_ms = Millis(3_000);
        cfg.instance_wait_ms = Millis(200);
        cfg.reconnect_wait_ms = Millis(200);
        cfg.refusal_hold_ms = Millis(0);
        adjust(&mut cfg);
        let (cert, key) = tls.leaf("localhost");
        let key = rustls::crypto::ring::sign::any_supported_type(&key).unwrap();
        let resolver = rustls::sign::SingleCertAndKey::from(rustls::sign::CertifiedKey::new(vec![cert], key));
        let mut registry = Registry::default();
        let (changed, receiver) = watch::channel(0);
        let table = Arc::new(TableCell::new());
        let edge = Edge::new(
            cfg,
            Arc::clone(&table),
            &receiver,
            &upstream,
            Arc::new(resolver),
            vec![Handle::current()],
            &mut registry,
        );
        let http = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let https = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let shutdown = CancellationToken::new();
        Self {
            dir: tempfile::tempdir().unwrap(),
            http: http.local_addr().unwrap(),
            https: https.local_addr().unwrap(),
            ca: tls.ca.der().clone(),
            table,
            changed,
            served: tokio::spawn(edge.serve(vec![http], vec![https], shutdown.clone())),
            shutdown,
            registry,
            apps: Mutex::default(),
        }
    }

    pub(crate) fn socket(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Publishes an app whose instances are at these sockets, and answers at `{name}.test`.
    pub(crate) fn app(&self, name: &str, sockets: &[&Path]) {
        self.publish(spec(name, &[&format!("{name}.test")], sockets));
    }

    pub(crate) fn publish(&self, spec: AppSpec) {
        let mut apps = self.apps.lock().unwrap();
        apps.insert(spec.app.to_string(), spec);
        let version = self.table.load().version() + 1;
        let next = RouteTable::build(version, apps.values().cloned().collect(), &self.table.load());
        self.table.store(next);
        self.changed.send_replace(version);
    }

    /// Sends raw bytes and reads to the end; the request should ask for `Connection: close`.
    pub(crate) async fn raw(&self, bytes: impl AsRef<[u8]>) -> String {
        let mut stream = TcpStream::connect(self.http).await.unwrap();
        let _ = stream.write_all(bytes.as_ref()).await;
        read_all(&mut stream).await
    }

    /// A GET on a connection of its own.
    pub(crate) async fn get(&self, host: &str, path: &str) -> String {
        self.raw(format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")).await
    }

    /// Takes an app out of the table.
    pub(crate) fn withdraw(&self, name: &str) {
        let mut apps = self.apps.lock().unwrap();
        apps.remove(name);
        let version = self.table.load().version() + 1;
        self.table.store(RouteTable::build(version, apps.values().cloned().collect(), &self.table.load()));
        self.changed.send_replace(version);
    }

    /// All of the edge's numbers.
    pub(crate) fn scrape(&self) -> String {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry).unwrap();
        text
    }

    /// A number of the edge's own.
    pub(crate) fn metric(&self, line: &str) -> f64 {
        let text = self.scrape();
        let found = text.lines().find_map(|l| l.strip_prefix(line)?.strip_prefix(' '));
        found.unwrap_or_else(|| panic!("no {line} in\n{text}")).parse().unwrap()
    }
}

pub(crate) fn spec(name: &str, routes: &[&str], sockets: &[&Path]) -> AppSpec {
    let endpoint = |(n, path): (usize, &&Path)| EndpointSpec {
        instance: InstanceId::new(format!("{name}-{n}")).unwrap(),
        host: HostId::new("h1").unwrap(),
        address: HostAddress::Unix(path.to_path_buf()),
        revision: RevisionNumber(1),
        concurrency: 64,
    };
    AppSpec {
        app: AppName::new(name).unwrap(),
        stopped: false,
        limits: Limits::default(),
        routes: routes.iter().map(|r| Route::parse(r).unwrap()).collect(),
        endpoints: sockets.iter().enumerate().map(endpoint).collect(),
        debug: debug_key(name),
    }
}

/// The key of an app's debug tokens.
pub(crate) fn debug_key(name: &str) -> DebugKey {
    DebugKey::derive(&[7; 32], &AppName::new(name).unwrap(), 1)
}

/// Reads to the end of the stream, at most 10 s; a reset is an end, too.
pub(crate) async fn read_all<T: tokio::io::AsyncRead + Unpin>(stream: &mut T) -> String {
    let mut all = Vec::new();
    let read = async { while matches!(stream.read_buf(&mut all).await, Ok(n) if n > 0) {} };
    tokio::time::timeout(Duration::from_secs(10), read).await.expect("the edge closes the connection");
    String::from_utf8_lossy(&all).into_owned()
}

/// Waits until something holds, at most 10 s.
pub(crate) async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..2_000 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("not in time: {what}");
}

pub(crate) fn status(response: &str) -> u16 {
    response.get(9..12).and_then(|s| s.parse().ok()).unwrap_or_else(|| panic!("no status in {response:?}"))
}

pub(crate) fn body(response: &str) -> &str {
    response.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no body in {response:?}")).1
}
