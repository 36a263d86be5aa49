//! A certificate authority and an HTTP client for tests of this crate.

use std::sync::Arc;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use marcato_api::HostAddress;
use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, SanType};
use tokio_rustls::TlsConnector;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::config::{HostdConfig, Listen};
use crate::error::HostdError;
use crate::tls::{Certificate, Shown};

/// A key with its certificate.
pub(crate) struct Leaf {
    pub(crate) key_pem: String,
    pub(crate) cert_pem: String,
}

impl Leaf {
    pub(crate) fn shown(&self) -> Arc<Shown> {
        Shown::new(Certificate::from_pem(self.key_pem.as_bytes(), self.cert_pem.as_bytes()).unwrap())
    }
}

/// A cluster authority.
pub(crate) struct TestCa {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl TestCa {
    pub(crate) fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).unwrap().pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    pub(crate) fn pem(&self) -> String {
        self.pem.clone()
    }

    fn params(uris: &[&str], dns: &str) -> CertificateParams {
        let mut params = CertificateParams::new(vec![dns.to_owned()]).unwrap();
        for uri in uris {
            params.subject_alt_names.push(SanType::URI((*uri).try_into().unwrap()));
        }
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params
    }

    pub(crate) fn leaf(&self, uris: &[&str], dns: &str) -> Leaf {
        let key = KeyPair::generate().unwrap();
        let cert = Self::params(uris, dns).signed_by(&key, &self.issuer).unwrap();
        Leaf { key_pem: key.serialize_pem(), cert_pem: cert.pem() }
    }

    pub(crate) fn leaf_with_uris(&self, uris: &[&str]) -> Leaf {
        self.leaf(uris, "x.marcato.internal")
    }

    pub(crate) fn router(&self) -> Leaf {
        self.leaf(&["marcato://router"], "router.marcato.internal")
    }

    pub(crate) fn host(&self, id: &str) -> Leaf {
        self.leaf(&[&format!("marcato://host/{id}")], &format!("{id}.host.marcato.internal"))
    }

    /// Signs the request of a host's ingress as the control plane does.
    pub(crate) fn sign_ingress(&self, csr_pem: &str, id: &str) -> String {
        let mut csr = rcgen::CertificateSigningRequestParams::from_pem(csr_pem).unwrap();
        csr.params = CertificateParams::new(vec![format!("{id}.ingress.marcato.internal")]).unwrap();
        csr.params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        csr.signed_by(&self.issuer).unwrap().pem()
    }

    /// Signs a request as the control plane does.
    pub(crate) fn sign(&self, csr_pem: &str, id: &str) -> String {
        let mut csr = rcgen::CertificateSigningRequestParams::from_pem(csr_pem).unwrap();
        csr.params = Self::params(&[&format!("marcato://host/{id}")], &format!("{id}.host.marcato.internal"));
        csr.signed_by(&self.issuer).unwrap().pem()
    }
}

/// One HTTP/1.1 request over mutual TLS on a fresh connection.
pub(crate) async fn call_tls(
    address: &HostAddress,
    server_name: &str,
    leaf: &Leaf,
    ca_pem: &str,
    request: Request<Full<Bytes>>,
) -> Result<Response<Bytes>, String> {
    let mut config = crate::tls::peer_config(leaf.shown(), ca_pem.as_bytes()).unwrap();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    let name = rustls::pki_types::ServerName::try_from(server_name.to_owned()).unwrap();
    let connector = TlsConnector::from(Arc::new(config));
    match address {
        HostAddress::Tcp(a) => {
            let tcp = tokio::net::TcpStream::connect(a).await.map_err(|e| e.to_string())?;
            call_io(connector.connect(name, tcp).await.map_err(|e| e.to_string())?, request).await
        }
        HostAddress::Unix(p) => {
            let unix = tokio::net::UnixStream::connect(p).await.map_err(|e| e.to_string())?;
            call_io(connector.connect(name, unix).await.map_err(|e| e.to_string())?, request).await
        }
    }
}

/// One HTTP/1.1 request over a plain stream.
pub(crate) async fn call_io<I>(io: I, request: Request<Full<Bytes>>) -> Result<Response<Bytes>, String>
where
    I: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(io)).await.map_err(|e| e.to_string())?;
    let driver = tokio::spawn(connection);
    let response = sender.send_request(request).await.map_err(|e| e.to_string())?;
    let (head, body) = response.into_parts();
    let bytes = body.collect().await.map_err(|e| e.to_string())?.to_bytes();
    drop(sender);
    driver.abort();
    Ok(Response::from_parts(head, bytes))
}

/// The problem in a response, which must be one and fit its status.
pub(crate) fn problem_of(response: &Response<Bytes>) -> marcato_api::Problem {
    assert_eq!(response.headers()["content-type"], marcato_api::Problem::CONTENT_TYPE);
    let problem: marcato_api::Problem = serde_json::from_slice(response.body()).unwrap();
    assert_eq!(StatusCode::from_u16(problem.status).unwrap(), response.status());
    problem
}

/// A whole daemon on Unix sockets in a directory of its own. It has joined already.
pub(crate) struct TestHost {
    pub(crate) id: String,
    pub(crate) ca: Arc<TestCa>,
    pub(crate) dir: Arc<tempfile::TempDir>,
    pub(crate) control: HostAddress,
    pub(crate) ingress: std::path::PathBuf,
    shutdown: CancellationToken,
    daemon: AbortOnDropHandle<Result<(), HostdError>>,
}

impl TestHost {
    pub(crate) async fn start(id: &str, ca: Arc<TestCa>) -> Self {
        Self::start_in(id, ca, Arc::new(tempfile::tempdir().unwrap())).await
    }

    /// A daemon over a directory that another one may have left.
    pub(crate) async fn start_in(id: &str, ca: Arc<TestCa>, dir: Arc<tempfile::TempDir>) -> Self {
        let config = config(id, dir.path());
        Self::start_with(id, ca, dir, config).await
    }

    pub(crate) async fn start_with(
        id: &str,
        ca: Arc<TestCa>,
        dir: Arc<tempfile::TempDir>,
        config: HostdConfig,
    ) -> Self {
        ensure_joined(id, &ca, dir.path());
        let (control, ingress) = (dir.path().join("c.sock"), dir.path().join("i.sock"));
        let control = HostAddress::Unix(control);
        let shutdown = CancellationToken::new();
        let daemon = tokio::spawn(crate::run(config, shutdown.clone()));
        let mut host =
            Self { id: id.to_owned(), ca, dir, control, ingress, shutdown, daemon: AbortOnDropHandle::new(daemon) };
        let answers = eventually(|| async {
            match host.get("/healthz").await {
                Ok(_) => Some(true),
                Err(_) => host.daemon.is_finished().then_some(false),
            }
        });
        if !answers.await {
            panic!("the daemon ended: {:?}", (&mut host.daemon).await);
        }
        host
    }

    /// A call by the router.
    pub(crate) async fn call(&self, request: Request<Full<Bytes>>) -> Result<Response<Bytes>, String> {
        self.call_as(&self.ca.router(), request).await
    }

    pub(crate) async fn call_as(&self, leaf: &Leaf, request: Request<Full<Bytes>>) -> Result<Response<Bytes>, String> {
        let name = format!("{}.host.marcato.internal", self.id);
        call_tls(&self.control, &name, leaf, &self.ca.pem(), request).await
    }

    pub(crate) async fn get(&self, path: &str) -> Result<Response<Bytes>, String> {
        self.call(Request::builder().uri(path).body(Full::default()).unwrap()).await
    }

    pub(crate) async fn put_config(&self, config: &marcato_api::HostConfig) -> Response<Bytes> {
        self.call(json_request("PUT", "/v1/config", &serde_json::to_vec(config).unwrap())).await.unwrap()
    }

    pub(crate) async fn inventory(&self) -> marcato_api::Inventory {
        serde_json::from_slice(self.get("/v1/inventory").await.unwrap().body()).unwrap()
    }

    /// A request on the ingress.
    pub(crate) async fn request(&self, request: Request<Full<Bytes>>) -> Response<Bytes> {
        let stream = tokio::net::UnixStream::connect(&self.ingress).await.unwrap();
        call_io(stream, request).await.unwrap()
    }

    /// Ends the daemon in order.
    pub(crate) async fn stop(self) -> Arc<tempfile::TempDir> {
        self.shutdown.cancel();
        self.daemon.await.unwrap().unwrap();
        self.dir
    }

    /// Ends the daemon without giving it time for anything, as far as a test can within its own process.
    pub(crate) async fn kill(self) -> Arc<tempfile::TempDir> {
        self.daemon.abort();
        let _ = self.daemon.await;
        // The tasks that it owned end a moment later; only a process takes its sockets along at once.
        for socket in ["c.sock", "i.sock"].map(|name| self.dir.path().join(name)) {
            eventually(|| async { tokio::net::UnixStream::connect(&socket).await.is_err().then_some(()) }).await;
        }
        self.dir
    }
}

/// Makes a data directory look as after joining.
pub(crate) fn ensure_joined(id: &str, ca: &TestCa, dir: &std::path::Path) {
    let identity = dir.join("identity");
    if !identity.exists() {
        let leaf = ca.host(id);
        crate::durable::ensure_private_dir(&identity).unwrap();
        for (file, text) in [("key.pem", &leaf.key_pem), ("ca.pem", &ca.pem()), ("cert.pem", &leaf.cert_pem)] {
            std::fs::write(identity.join(file), text).unwrap();
        }
    }
}

/// The config of a test's daemon.
pub(crate) fn config(id: &str, dir: &std::path::Path) -> HostdConfig {
    let listen = |file: &str| Listen { address: HostAddress::Unix(dir.join(file)), inherited: None };
    // The test program compiles by itself and is its own worker: see `compile_child` and `worker` below.
    let worker = ["--exact", "testing::worker", "--ignored", "--nocapture"].map(Into::into);
    let compile = ["--exact", "testing::compile_child", "--ignored", "--nocapture"].map(Into::into);
    HostdConfig {
        data_dir: dir.to_owned(),
        id: marcato_api::HostId::new(id).unwrap(),
        control: listen("c.sock"),
        ingress: listen("i.sock"),
        join: None,
        zone: "z1".into(),
        labels: Default::default(),
        sandboxes: 8,
        memory: marcato_api::Bytes::mib(512),
        compiler: marcato_runtime::CompilerCommand::new(std::env::current_exe().unwrap(), compile),
        allow_private_egress: false,
        outbound_ca_file: None,
        worker: crate::WorkerCommand {
            program: std::env::current_exe().unwrap(),
            args: worker.into(),
            env: Vec::new(),
        },
        require_confinement: false,
    }
}

/// What the compiler process of a test runs; the output path comes as the last argument.
#[test]
#[ignore = "run by the runtime, with a component on standard input"]
fn compile_child() {
    let output = std::env::args_os().next_back().unwrap();
    if let Err(error) = marcato_runtime::compile_child(&mut std::io::stdin(), output.as_ref()) {
        eprintln!("{error}");
        std::process::exit(1);
    }
}

/// What a worker of a test runs. It is not confined: this program has threads already.
#[test]
#[ignore = "run by a daemon, as its worker"]
fn worker() {
    let prepared = crate::worker::Prepared::unconfined().unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(crate::run_worker(prepared, Vec::new(), true)).unwrap();
}

/// A worker whose memory is not what it says: as one that was taken over. It would live on.
#[test]
#[ignore = "run by a daemon, as its worker"]
fn greedy_worker() {
    let taken = vec![1_u8; 512 << 20];
    worker();
    assert_eq!(std::hint::black_box(taken).last(), Some(&1));
}

pub(crate) fn json_request(method: &str, path: &str, body: &[u8]) -> Request<Full<Bytes>> {
    Request::builder()
        .method(method)
        .uri(path)
        .header("host", "test")
        .header("content-type", "application/json")
        .body(Full::new(Bytes::copy_from_slice(body)))
        .unwrap()
}

/// Waits, bounded, until the probe gives something.
pub(crate) async fn eventually<T, F: Future<Output = Option<T>>>(mut probe: impl FnMut() -> F) -> T {
    let tries = async {
        loop {
            if let Some(value) = probe().await {
                return value;
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(30), tries).await.expect("the condition never came true")
}
