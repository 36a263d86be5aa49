//! `login` and `push` from end to end against a small admin API over real TLS.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex};

use axum::extract::{Path as Segment, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post, put};
use axum::{Json, Router};
use bytes::Bytes;
use hyper_util::rt::{TokioExecutor, TokioIo};
use marcato_api::{
    App, AppName, AppState, AppStatus, Digest, NewApp, NewRevision, NewService, OrgName, Problem, ProblemKind,
    Revision, RevisionConfig, RevisionNumber, RevisionPhase, Role, SpaceName, StoreRevision, Token,
};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls_pki_types::PrivateKeyDer;

/// What the small control plane keeps.
#[derive(Default)]
struct Cloud {
    app: Option<App>,
    revisions: Vec<Revision>,
    components: BTreeMap<String, usize>,
    services: Vec<String>,
    uploads: u32,
    /// The next revision fails with this.
    fails: Option<String>,
    /// How often a revision's status is asked before it is through.
    polls: u32,
}

type Shared = Arc<Mutex<Cloud>>;

fn problem(kind: ProblemKind) -> Response {
    let status = StatusCode::from_u16(kind.status()).unwrap();
    (status, Json(Problem::new(kind, "no such thing"))).into_response()
}

async fn put_app(State(cloud): State<Shared>, Segment(name): Segment<String>, Json(new): Json<NewApp>) -> Response {
    let mut cloud = cloud.lock().unwrap();
    let app = cloud.app.get_or_insert_with(|| App {
        name: AppName::new(&name).unwrap(),
        org: new.org,
        space: new.space,
        state: AppState::Started,
        instances: new.instances,
        current: None,
        stable: None,
        restarts: 0,
        routes: new.routes,
        created_at: jiff::Timestamp::UNIX_EPOCH,
        updated_at: jiff::Timestamp::UNIX_EPOCH,
    });
    ([("etag", "\"1\"")], Json(app.clone())).into_response()
}

async fn get_app(State(cloud): State<Shared>) -> Response {
    match &cloud.lock().unwrap().app {
        Some(app) => ([("etag", "\"1\"")], Json(app.clone())).into_response(),
        None => problem(ProblemKind::NotFound),
    }
}

async fn status(State(cloud): State<Shared>) -> Response {
    let mut cloud = cloud.lock().unwrap();
    cloud.polls += 1;
    if cloud.polls > 3
        && let Some(last) = cloud.revisions.last().filter(|r| r.phase == RevisionPhase::Rolling)
    {
        let mut last = last.clone();
        last.failure = cloud.fails.take();
        last.phase = if last.failure.is_some() { RevisionPhase::Failed } else { RevisionPhase::Serving };
        cloud.revisions.pop();
        cloud.revisions.push(last);
    }
    let Some(app) = cloud.app.clone() else { return problem(ProblemKind::NotFound) };
    let mut revision = cloud.revisions.last().cloned();
    for value in revision.iter_mut().flat_map(|r| r.config.env.values_mut()) {
        *value = "***".into();
    }
    let status = AppStatus {
        app,
        etag: StoreRevision(1),
        revision,
        instances: vec![],
        urls: vec!["https://shop.localhost:8443/".into()],
        notes: vec![],
    };
    Json(status).into_response()
}

async fn create_revision(State(cloud): State<Shared>, Json(new): Json<NewRevision>) -> Response {
    let mut cloud = cloud.lock().unwrap();
    let before = cloud.revisions.last().cloned();
    let digest = new.digest.or(before.as_ref().map(|b| b.digest.clone())).unwrap();
    assert!(cloud.components.contains_key(digest.as_str()), "uploaded before the revision");
    let mut config: RevisionConfig = new.config.or(before.as_ref().map(|b| b.config.clone())).unwrap();
    assert!(config.bindings.iter().all(|b| cloud.services.contains(&b.service.to_string())), "services before");
    config.env = before.map(|b| b.config.env).unwrap_or_default();
    for (key, value) in new.env {
        config.env.insert(key, value.unwrap());
    }
    let number = RevisionNumber(cloud.revisions.len() as u64 + 1);
    let app = cloud.app.as_mut().unwrap();
    app.current = Some(number);
    let revision = Revision {
        app: app.name.clone(),
        number,
        digest,
        size: marcato_api::Bytes(1),
        config,
        created_at: jiff::Timestamp::UNIX_EPOCH,
        created_by: "test".into(),
        reason: new.reason,
        phase: RevisionPhase::Rolling,
        failure: None,
    };
    cloud.polls = 0;
    cloud.revisions.push(revision.clone());
    Json(revision).into_response()
}

fn router(cloud: Shared) -> Router {
    let whoami = || async {
        Json(Token {
            name: "test".into(),
            role: Role::Deployer,
            org: None,
            created_at: jiff::Timestamp::UNIX_EPOCH,
            expires_at: None,
        })
    };
    let has = |State(cloud): State<Shared>, Segment(digest): Segment<String>| async move {
        let known = cloud.lock().unwrap().components.contains_key(&digest);
        if known { StatusCode::OK } else { StatusCode::NOT_FOUND }
    };
    let upload = |State(cloud): State<Shared>, Segment(digest): Segment<String>, body: Bytes| async move {
        assert_eq!(Digest::of(&body).as_str(), digest);
        let mut cloud = cloud.lock().unwrap();
        cloud.uploads += 1;
        cloud.components.insert(digest, body.len());
        StatusCode::NO_CONTENT
    };
    let service = |State(cloud): State<Shared>, Segment(name): Segment<String>, Json(new): Json<NewService>| async move {
        assert_eq!(new.org, OrgName::default_org());
        cloud.lock().unwrap().services.push(name.clone());
        Json(serde_json::json!({
            "id": "s1", "name": name, "kind": new.kind, "org": new.org, "space": SpaceName::default_space(),
            "owner": "h1", "created_at": jiff::Timestamp::UNIX_EPOCH,
        }))
    };
    Router::new()
        .route("/v1/whoami", get(whoami))
        .route("/v1/apps/{app}", get(get_app).put(put_app))
        .route("/v1/apps/{app}/status", get(status))
        .route("/v1/apps/{app}/revisions", post(create_revision))
        .route("/v1/components/{digest}", put(upload).head(has))
        .route("/v1/services/{name}", put(service))
        .with_state(cloud)
}

struct Server {
    url: String,
    ca_pem: String,
    cloud: Shared,
    home: tempfile::TempDir,
    _runtime: tokio::runtime::Runtime,
}

impl Server {
    fn start() -> Self {
        let ca_key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = params.self_signed(&ca_key).unwrap();
        let issuer = Issuer::new(params, ca_key);
        let key = KeyPair::generate().unwrap();
        let leaf = CertificateParams::new(vec!["localhost".to_owned()]).unwrap().signed_by(&key, &issuer).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(
                vec![leaf.der().clone(), ca.der().clone()],
                PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
            )
            .unwrap();
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(tls));
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
        let url = format!("https://localhost:{}", listener.local_addr().unwrap().port());
        let cloud = Shared::default();
        let app = router(Arc::clone(&cloud));
        runtime.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, app) = (acceptor.clone(), app.clone());
                tokio::spawn(async move {
                    let Ok(tls) = acceptor.accept(stream).await else { return };
                    let service = hyper_util::service::TowerToHyperService::new(app);
                    // A connection that breaks is the client's to notice.
                    let _ = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new())
                        .serve_connection(TokioIo::new(tls), service)
                        .await;
                });
            }
        });
        let home = tempfile::tempdir().unwrap();
        Self { url, ca_pem: ca.pem(), cloud, home, _runtime: runtime }
    }

    fn file(&self, name: &str, bytes: impl AsRef<[u8]>) -> String {
        let path = self.home.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, bytes).unwrap();
        path.to_str().unwrap().to_owned()
    }

    fn run(&self, args: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_marcato"));
        command.env_clear().env("HOME", self.home.path()).stdin(Stdio::null());
        command.args(args).output().unwrap()
    }

    fn login(&self) {
        let ca = self.file("ca.pem", &self.ca_pem);
        let token = self.file("token", "mt_secret\n");
        let done = self.run(&["login", &self.url, "--ca", &ca, "--token-file", &token]);
        assert!(done.status.success(), "{done:?}");
    }
}

fn component(marker: &str) -> Vec<u8> {
    wat::parse_str(format!(
        r#"(component (@custom "marker" "{marker}") (import "wasi:keyvalue/store@0.2.0-draft" (instance))
            (instance $i) (export "wasi:http/incoming-handler@0.2.6" (instance $i)))"#
    ))
    .unwrap()
}

const MANIFEST: &str = r#"
name = "shop"
component = "build/shop.wasm"
[env]
GREETING = "hi"
TOKEN = { generate = 8 }
[[bindings]]
name = "cart"
service = "shop-cart"
kind = "keyvalue"
"#;

fn json(output: &Output) -> serde_json::Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {output:?}"))
}

#[test]
fn the_authority_is_compared_before_the_token_goes_out() {
    let server = Server::start();
    let token = server.file("token", "mt_secret");
    let login =
        |extra: &[&str]| server.run(&[&["login", &server.url, "--token-file", &token, "--json"], extra].concat());
    let unconfirmed = login(&[]);
    assert_eq!(unconfirmed.status.code(), Some(2), "nobody is there to confirm it");
    let wrong = login(&["--fingerprint", &"0".repeat(64)]);
    assert_eq!(wrong.status.code(), Some(3));
    let said = String::from_utf8(wrong.stderr).unwrap();
    let seen = said.split("sha256:").nth(1).unwrap().split([',', ' ']).next().unwrap();
    let right = login(&["--fingerprint", seen]);
    assert!(right.status.success(), "{right:?}");
    assert_eq!(json(&right)["token"]["name"], "test");
    let file = server.home.path().join(".config/marcato/login.json");
    let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&file).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
    assert!(server.run(&["whoami"]).status.success());
    assert!(server.run(&["logout"]).status.success());
    assert!(!Path::new(&file).exists());
    assert_eq!(server.run(&["whoami"]).status.code(), Some(3));
}

#[test]
fn a_push_makes_app_service_and_revision_and_uploads_once() {
    let server = Server::start();
    server.login();
    server.file("app/build/shop.wasm", component("one"));
    let manifest = server.file("app/marcato.toml", MANIFEST);
    let dir = Path::new(&manifest).parent().unwrap().to_str().unwrap().to_owned();

    let first = server.run(&["push", &dir, "--json"]);
    assert!(first.status.success(), "{first:?}");
    let answer = json(&first);
    assert_eq!(
        (&answer["revision"], &answer["phase"], &answer["uploaded"]),
        (&1.into(), &"serving".into(), &true.into())
    );
    assert_eq!(answer["urls"][0], "https://shop.localhost:8443/");
    let generated = answer["generated"]["TOKEN"].as_str().unwrap().to_owned();
    assert_eq!(generated.len(), 16);

    let second = server.run(&["push", &dir, "--json"]);
    let answer = json(&second);
    assert_eq!((&answer["uploaded"], &answer["generated"]), (&false.into(), &serde_json::json!({})));
    {
        let cloud = server.cloud.lock().unwrap();
        assert_eq!((cloud.uploads, cloud.services.len()), (1, 2));
        let env = &cloud.revisions[1].config.env;
        assert_eq!((env["TOKEN"].as_str(), env["GREETING"].as_str()), (generated.as_str(), "hi"));
    }

    server.cloud.lock().unwrap().fails = Some("missing import wasi:nn".into());
    server.file("app/build/shop.wasm", component("two"));
    let failed = server.run(&["push", &dir]);
    let said = String::from_utf8_lossy(&failed.stderr).into_owned();
    assert_eq!(failed.status.code(), Some(8), "{said}");
    assert!(said.contains("missing import wasi:nn") && said.contains("marcato logs shop"), "{said}");
}

#[test]
fn a_bare_component_that_needs_a_binding_is_refused_before_the_upload() {
    let server = Server::start();
    server.login();
    let file = server.file("shop.wasm", component("bare"));
    let refused = server.run(&["push", &file]);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(8), "{said}");
    assert!(said.contains("kind keyvalue"), "{said}");
    assert_eq!(server.cloud.lock().unwrap().uploads, 0);
}
