//! A control plane on a port of its own, and a client that sends whatever it is told to.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, Request};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use marcato_api::Digest;
use marcato_client::{AdminClient, Trust};
use prometheus_client::registry::Registry;
use serde_json::Value;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::{Control, ControlConfig};

pub(super) struct Cluster {
    pub(super) dir: tempfile::TempDir,
    pub(super) control: Arc<Control>,
    pub(super) admin_token: String,
    address: SocketAddr,
    tls: Arc<rustls::ClientConfig>,
    shutdown: CancellationToken,
    served: JoinHandle<()>,
}

pub(super) struct Answer {
    pub(super) status: u16,
    headers: HeaderMap,
    pub(super) body: Bytes,
}

impl Answer {
    pub(super) fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or_default()
    }

    pub(super) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    #[track_caller]
    pub(super) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {}", self.text()))
    }
}

impl Cluster {
    pub(super) async fn start() -> Self {
        Self::in_dir(tempfile::tempdir().unwrap()).await
    }

    async fn in_dir(dir: tempfile::TempDir) -> Self {
        let config = ControlConfig {
            data_dir: dir.path().to_owned(),
            cluster_domain: "cloud.test".into(),
            names: Vec::new(),
            http_port: Some(80),
            https_port: Some(8443),
            version: "0.0.test".into(),
        };
        let control = Arc::new(Control::open(config).await.unwrap());
        let mut registry = Registry::default();
        control.register_metrics(&mut registry);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shutdown = CancellationToken::new();
        let (serving, stop) = (Arc::clone(&control), shutdown.clone());
        let served =
            tokio::spawn(async move { serving.serve_admin(listener, Arc::new(registry), stop).await.unwrap() });
        let tls = Trust::from_pem_file(&control.ca_file()).unwrap().client_config().unwrap();
        let admin_token = std::fs::read_to_string(control.token_file()).unwrap().trim().to_owned();
        Self { dir, control, admin_token, address, tls, shutdown, served }
    }

    pub(super) async fn stop(self) -> tempfile::TempDir {
        self.shutdown.cancel();
        tokio::time::timeout(Duration::from_secs(30), self.served).await.expect("it stops in time").unwrap();
        self.dir
    }

    pub(super) async fn restart(self) -> Self {
        Self::in_dir(self.stop().await).await
    }

    pub(super) fn client(&self) -> AdminClient {
        let trust = Trust::from_pem_file(&self.control.ca_file()).unwrap();
        AdminClient::new(&format!("https://{}", self.address), &trust, Some(&self.admin_token)).unwrap()
    }

    /// Sends exactly this as the admin.
    pub(super) async fn raw(&self, method: Method, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        let auth = format!("Bearer {}", self.admin_token);
        let headers: Vec<_> = headers.iter().copied().chain([("authorization", auth.as_str())]).collect();
        self.send(method, path, &headers, Bytes::copy_from_slice(body)).await
    }

    pub(super) async fn admin(&self, method: Method, path: &str, body: Option<Value>) -> Answer {
        self.call(method, path, Some(&self.admin_token), body).await
    }

    pub(super) async fn call(&self, method: Method, path: &str, token: Option<&str>, body: Option<Value>) -> Answer {
        let auth = token.map(|t| format!("Bearer {t}"));
        let mut headers = Vec::new();
        headers.extend(auth.as_ref().map(|a| ("authorization", a.as_str())));
        headers.extend(body.as_ref().map(|_| ("content-type", "application/json")));
        let body = body.map(|b| b.to_string()).unwrap_or_default();
        self.send(method, path, &headers, body.into()).await
    }

    async fn send(&self, method: Method, path: &str, headers: &[(&str, &str)], body: Bytes) -> Answer {
        let tcp = TcpStream::connect(self.address).await.unwrap();
        let name = rustls::pki_types::ServerName::try_from("localhost").unwrap();
        let tls = tokio_rustls::TlsConnector::from(Arc::clone(&self.tls)).connect(name, tcp).await.unwrap();
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(tls)).await.unwrap();
        let driver = tokio::spawn(connection);
        let mut request = Request::builder().method(method).uri(path).header("host", "localhost");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = sender.send_request(request.body(Full::new(body)).unwrap()).await.unwrap();
        let (parts, body) = response.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        drop(sender);
        drop(driver.await);
        Answer { status: parts.status.as_u16(), headers: parts.headers, body }
    }

    /// Makes a token and gives its secret.
    pub(super) async fn token(&self, name: &str, new: Value) -> String {
        let made = self.admin(Method::PUT, &format!("/v1/tokens/{name}"), Some(new)).await;
        assert_eq!(made.status, 200, "{}", made.text());
        made.json()["secret"].as_str().unwrap().to_owned()
    }
}

/// Bytes that begin as a component does.
pub(super) fn component(tail: &[u8]) -> (Digest, Vec<u8>) {
    let bytes = [b"\0asm\x0d\0\x01\0".as_slice(), tail].concat();
    (Digest::of(&bytes), bytes)
}

/// Waits for a condition, bounded.
pub(super) async fn until(what: &str, holds: impl AsyncFn() -> bool) {
    let waiting = async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), waiting).await.unwrap_or_else(|_| panic!("not in time: {what}"));
}
