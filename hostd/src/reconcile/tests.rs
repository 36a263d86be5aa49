//! Intent to traffic on a whole daemon with a real component: upload, compile, start, serve, drain, restart.
//!
//! The component is the tests' guest `behaviour`; `cargo xtask guests` builds it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use marcato_api::{
    AppName, ComponentState, Digest, Generation, HostConfig, InstanceId, InstancePhase, InstanceSpec, InstanceState,
    Inventory, LogPage, OrgName, ProblemKind, RevisionConfig, RevisionNumber, ServiceId, SpaceName, headers,
};

use crate::testing::{TestCa, TestHost, call_io, config, eventually, problem_of};

pub(crate) fn component() -> Vec<u8> {
    let folder = std::env::var_os("MARCATO_GUESTS")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/guests"), PathBuf::from);
    let path = folder.join("guest-behaviour.wasm");
    std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}; run `cargo xtask guests`", path.display()))
}

pub(super) fn spec(id: &str, digest: &Digest) -> InstanceSpec {
    InstanceSpec {
        id: InstanceId::new(id).unwrap(),
        app: AppName::new("behave").unwrap(),
        org: OrgName::default_org(),
        space: SpaceName::default_space(),
        revision: RevisionNumber(1),
        digest: digest.clone(),
        config: RevisionConfig { env: [("REVISION".into(), "one".into())].into(), ..RevisionConfig::default() },
        bindings: BTreeMap::new(),
        state: InstanceState::Running,
        isolation: marcato_api::Isolation::default(),
        budget: marcato_api::AppBudget::default(),
    }
}

fn told(generation: u64, instances: Vec<InstanceSpec>) -> HostConfig {
    HostConfig { generation: Generation(generation), instances, services: Vec::new(), peers: Vec::new() }
}

async fn upload(host: &TestHost, bytes: &[u8]) -> Digest {
    let digest = Digest::of(bytes);
    let request = Request::builder()
        .method("PUT")
        .uri(format!("/v1/components/{digest}"))
        .body(Full::new(Bytes::copy_from_slice(bytes)))
        .unwrap();
    assert_eq!(host.call(request).await.unwrap().status(), 204);
    digest
}

fn get(instance: &str, path: &str) -> Request<Full<Bytes>> {
    Request::builder()
        .uri(path)
        .header("host", "behave.localhost")
        .header(headers::INSTANCE, instance)
        .header(headers::REQUEST_ID, "req-1")
        .body(Full::default())
        .unwrap()
}

fn phase(inventory: &Inventory, id: &str) -> Option<InstancePhase> {
    inventory.instances.iter().find(|i| i.id.as_str() == id).map(|i| i.phase)
}

async fn wait_for(host: &TestHost, id: &str, wanted: InstancePhase) -> Inventory {
    eventually(|| async {
        let inventory = host.inventory().await;
        (phase(&inventory, id) == Some(wanted)).then_some(inventory)
    })
    .await
}

/// A daemon that serves instance `a-1`.
async fn serving() -> (TestHost, Digest) {
    let host = TestHost::start("h1", Arc::new(TestCa::new())).await;
    let digest = Digest::of(&component());
    // Told first: an instance waits for its component.
    assert_eq!(host.put_config(&told(1, vec![spec("a-1", &digest)])).await.status(), 200);
    wait_for(&host, "a-1", InstancePhase::Pending).await;
    upload(&host, &component()).await;
    let inventory = wait_for(&host, "a-1", InstancePhase::Ready).await;
    assert_eq!(inventory.components[0].state, ComponentState::Ready);
    (host, digest)
}

fn is_gone(response: &Response<Bytes>) -> bool {
    problem_of(response).kind == ProblemKind::InstanceGone && response.headers()[headers::NOT_STARTED] == "1"
}

#[tokio::test(flavor = "multi_thread")]
async fn an_uploaded_component_serves_and_is_counted() {
    let (host, _) = serving().await;
    let hello = host.request(get("a-1", "/")).await;
    assert_eq!((hello.status().as_u16(), hello.body().as_ref()), (200, b"hello\n".as_slice()));
    assert!(hello.headers().keys().all(|name| !name.as_str().starts_with(headers::INTERNAL_PREFIX)));
    assert_eq!(host.request(get("a-1", "/id")).await.body().as_ref(), b"one");
    let trap = host.request(get("a-1", "/trap")).await;
    assert_eq!(problem_of(&trap).kind, ProblemKind::GuestFailed);
    assert!(!trap.headers().contains_key(headers::NOT_STARTED), "guest code ran");
    host.request(get("a-1", "/say?text=here")).await;
    let page = host.get("/v1/logs?app=behave&wait_ms=5000&limit=100").await.unwrap();
    let page: LogPage = serde_json::from_slice(page.body()).unwrap();
    let line = page.lines.iter().find(|l| l.text == "here").expect("what the guest printed");
    assert_eq!((line.request_id.as_str(), line.instance.as_str()), ("req-1", "a-1"));
    let counters = host.inventory().await.instances[0].counters;
    assert!(counters.requests >= 3 && counters.failures >= 1 && counters.cpu_us > 0, "{counters:?}");
    let metrics = host.get("/metrics").await.unwrap();
    let text = std::str::from_utf8(metrics.body()).unwrap();
    let labels = "{app=\"behave\",revision=\"1\",instance=\"a-1\"}";
    assert!(text.contains(&format!("marcato_host_requests_total{labels}")), "{text}");
    assert!(text.contains("marcato_host_compile_seconds_count 1"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_host_serves_its_ledger_without_a_compiler() {
    let (host, _) = serving().await;
    let (ca, dir) = (host.ca.clone(), host.kill().await);
    std::fs::write(dir.path().join("components/.partial-left"), b"half").unwrap();
    std::fs::write(dir.path().join(".partial-left"), b"half").unwrap();
    let mut again = config("h1", dir.path());
    again.compiler.program = "/bin/false".into();
    let host = TestHost::start_with("h1", ca, dir, again).await;
    // The very first request is answered: the ingress opens once the ledger's instances run.
    assert_eq!(host.request(get("a-1", "/")).await.body().as_ref(), b"hello\n");
    assert_eq!(host.inventory().await.generation, Generation(1));
    assert!(!host.dir.path().join("components/.partial-left").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_draining_instance_finishes_what_it_has() {
    let (host, digest) = serving().await;
    let in_flight = host.request(get("a-1", "/sleep?ms=1500"));
    let draining = async {
        eventually(|| async { (host.inventory().await.instances[0].in_flight == 1).then_some(()) }).await;
        let drain = InstanceSpec { state: InstanceState::Draining, ..spec("a-1", &digest) };
        assert_eq!(host.put_config(&told(2, vec![drain, spec("a-2", &digest)])).await.status(), 200);
        wait_for(&host, "a-1", InstancePhase::Draining).await;
        assert!(is_gone(&host.request(get("a-1", "/")).await), "takes no more");
        wait_for(&host, "a-2", InstancePhase::Ready).await;
        assert_eq!(host.request(get("a-2", "/")).await.status(), 200);
        // Told to forget it at once: what runs is finished all the same.
        assert_eq!(host.put_config(&told(3, vec![spec("a-2", &digest)])).await.status(), 200);
        eventually(|| async { (host.inventory().await.instances.len() == 1).then_some(()) }).await;
        assert!(is_gone(&host.request(get("a-1", "/")).await));
    };
    let (finished, ()) = tokio::join!(in_flight, draining);
    assert_eq!(finished.body().as_ref(), b"awake\n");
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_spec_is_a_new_instance() {
    let (host, digest) = serving().await;
    let mut changed = spec("a-1", &digest);
    changed.config.env.insert("REVISION".into(), "two".into());
    assert_eq!(host.put_config(&told(2, vec![changed])).await.status(), 200);
    eventually(|| async { (host.request(get("a-1", "/id")).await.body().as_ref() == b"two").then_some(()) }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_run_says_why_and_harms_nothing() {
    let (host, digest) = serving().await;
    let garbage = upload(&host, b"\0asm\x0d\0\x01\0 and then nonsense").await;
    let mut unbound = spec("a-3", &digest);
    unbound.bindings.insert("default".into(), ServiceId::new("s-none").unwrap());
    let mut invalid = spec("a-4", &digest);
    invalid.config.concurrency = 0;
    let instances = vec![spec("a-1", &digest), spec("a-2", &garbage), unbound, invalid];
    assert_eq!(host.put_config(&told(2, instances)).await.status(), 200);
    for (id, part) in [("a-2", "component"), ("a-3", "s-none"), ("a-4", "concurrency")] {
        let inventory = wait_for(&host, id, InstancePhase::Failed).await;
        let failed = inventory.instances.iter().find(|i| i.id.as_str() == id).unwrap();
        assert!(failed.reason.as_ref().is_some_and(|r| r.contains(part)), "{id}: {:?}", failed.reason);
        assert!(is_gone(&host.request(get(id, "/")).await));
    }
    let inventory = host.inventory().await;
    let component = inventory.components.iter().find(|c| c.digest == garbage).unwrap();
    assert!(component.state == ComponentState::Failed && component.reason.is_some());
    assert_eq!(host.request(get("a-1", "/")).await.status(), 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn damaged_code_is_compiled_again() {
    let (host, _) = serving().await;
    let (ca, dir) = (host.ca.clone(), host.kill().await);
    for entry in std::fs::read_dir(dir.path().join("cache")).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() && std::fs::metadata(&path).unwrap().len() > 100_000 {
            // A new file: what the first daemon mapped in this process must not shrink under it.
            std::fs::remove_file(&path).unwrap();
            std::fs::write(&path, b"damaged").unwrap();
        }
    }
    let host = TestHost::start_in("h1", ca, dir).await;
    // The first request finds out.
    eventually(|| async { (host.request(get("a-1", "/")).await.status() == 200).then_some(()) }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_without_memory_for_a_sandbox_names_its_limit() {
    let dir = Arc::new(tempfile::tempdir().unwrap());
    let small = crate::HostdConfig { memory: marcato_api::Bytes::kib(64), ..config("h1", dir.path()) };
    let host = TestHost::start_with("h1", Arc::new(TestCa::new()), dir, small).await;
    let digest = upload(&host, &component()).await;
    assert_eq!(host.put_config(&told(1, vec![spec("a-1", &digest)])).await.status(), 200);
    wait_for(&host, "a-1", InstancePhase::Ready).await;
    let response = host.request(get("a-1", "/")).await;
    assert_eq!(
        (response.status(), &response.headers()[headers::NOT_STARTED]),
        (http::StatusCode::SERVICE_UNAVAILABLE, &http::HeaderValue::from_static("1"))
    );
    let problem = problem_of(&response);
    assert!(!problem.detail.contains("host_memory"), "a client is told no internals: {problem:?}");
    eventually(|| async {
        let limits = host.inventory().await.instances.remove(0).limits;
        limits.iter().any(|l| l.name == "host_memory" && l.fired == 1).then_some(())
    })
    .await;
    assert_eq!(host.inventory().await.used.sandbox_bytes, marcato_api::Bytes(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_waits_for_requests_and_a_client_that_left_is_not_waited_for() {
    let (host, _) = serving().await;
    let connect = || tokio::net::UnixStream::connect(&host.ingress);
    let in_flight = async |wanted: u32| {
        eventually(|| async { (host.inventory().await.instances[0].in_flight == wanted).then_some(()) }).await;
    };
    let left = tokio::spawn(call_io(connect().await.unwrap(), get("a-1", "/sleep?ms=25000")));
    in_flight(1).await;
    let begun = std::time::Instant::now();
    left.abort();
    in_flight(0).await;
    assert!(begun.elapsed() < Duration::from_secs(10), "it was not slept out");
    let stays = tokio::spawn(call_io(connect().await.unwrap(), get("a-1", "/sleep?ms=1000")));
    in_flight(1).await;
    host.stop().await;
    assert_eq!(stays.await.unwrap().unwrap().body().as_ref(), b"awake\n");
}

/// The process of a worker; its instances take requests.
async fn worker(host: &TestHost, name: &str) -> marcato_api::WorkerStatus {
    eventually(|| async { host.inventory().await.workers.into_iter().find(|w| w.name == name && w.pid.is_some()) })
        .await
}

fn kill(worker: &marcato_api::WorkerStatus) {
    let pid = nix::unistd::Pid::from_raw(i32::try_from(worker.pid.unwrap()).unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_dies_comes_back_with_its_instances() {
    let (host, _) = serving().await;
    assert_eq!(host.request(get("a-1", "/")).await.status(), 200);
    let before = host.inventory().await.instances[0].counters;
    let first = worker(&host, "shared").await;
    assert_eq!((first.restarts, first.class), (0, marcato_api::IsolationClass::Shared));
    kill(&first);
    // Connections wait in the listen queue, which the daemon holds.
    let answered = eventually(|| async {
        let stream = tokio::net::UnixStream::connect(&host.ingress).await.ok()?;
        call_io(stream, get("a-1", "/")).await.ok()
    });
    assert_eq!(answered.await.body().as_ref(), b"hello\n");
    let again = worker(&host, "shared").await;
    assert!(again.restarts == 1 && again.pid != first.pid, "{again:?}");
    let after = host.inventory().await.instances[0].counters;
    assert!(after.requests > before.requests, "what was counted stays counted: {before:?} {after:?}");
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_app_of_the_class_process_has_a_worker_and_an_ingress_of_its_own() {
    let (host, digest) = serving().await;
    let isolation = marcato_api::Isolation { class: marcato_api::IsolationClass::Process, group: String::new() };
    let alone = InstanceSpec { app: AppName::new("alone").unwrap(), isolation, ..spec("b-1", &digest) };
    assert_eq!(host.put_config(&told(2, vec![spec("a-1", &digest), alone])).await.status(), 200);
    let inventory = wait_for(&host, "b-1", InstancePhase::Ready).await;
    let own = worker(&host, "app-alone").await;
    let address = inventory.instances.iter().find(|i| i.id.as_str() == "b-1").unwrap().ingress.clone();
    let Some(marcato_api::HostAddress::Unix(path)) = address else { panic!("{address:?}") };
    let ask = async |path: &Path, id| {
        call_io(tokio::net::UnixStream::connect(path).await.unwrap(), get(id, "/")).await.unwrap()
    };
    assert_eq!(ask(&path, "b-1").await.status(), 200);
    assert!(is_gone(&ask(&path, "a-1").await), "another app's instance is not in it");
    assert!(is_gone(&ask(&host.ingress, "b-1").await), "nor its instance in the shared worker");
    // Its death is nobody else's.
    kill(&own);
    assert_eq!(ask(&host.ingress, "a-1").await.status(), 200);
    eventually(|| async {
        let stream = tokio::net::UnixStream::connect(&path).await.ok()?;
        call_io(stream, get("b-1", "/")).await.ok()
    })
    .await;
    assert_eq!(worker(&host, "shared").await.restarts, 0);
    // It goes with its last instance.
    assert_eq!(host.put_config(&told(3, vec![spec("a-1", &digest)])).await.status(), 200);
    eventually(|| async { (host.inventory().await.workers.len() == 1).then_some(()) }).await;
    eventually(|| async { (!path.exists()).then_some(()) }).await;
    host.stop().await;
}

/// An app of the class `process` whose sandboxes, and so their memory, wait to be used again for a long time.
fn hoarder(app: &str, digest: &Digest) -> InstanceSpec {
    let mut alone = InstanceSpec {
        app: AppName::new(app).unwrap(),
        isolation: marcato_api::Isolation { class: marcato_api::IsolationClass::Process, group: String::new() },
        ..spec(&format!("{app}-1"), digest)
    };
    alone.config.reuse.max_requests = 1000;
    alone.config.reuse.idle_ms = marcato_api::Millis::secs(3600);
    alone
}

/// A host of 96 MiB, with two such apps and where each takes requests.
async fn hoarders() -> (TestHost, [std::path::PathBuf; 2]) {
    let dir = Arc::new(tempfile::tempdir().unwrap());
    let small = crate::HostdConfig { memory: marcato_api::Bytes::mib(96), ..config("h1", dir.path()) };
    let host = TestHost::start_with("h1", Arc::new(TestCa::new()), dir, small).await;
    let digest = upload(&host, &component()).await;
    let both = vec![hoarder("a", &digest), hoarder("b", &digest)];
    assert_eq!(host.put_config(&told(1, both)).await.status(), 200);
    wait_for(&host, "a-1", InstancePhase::Ready).await;
    let inventory = wait_for(&host, "b-1", InstancePhase::Ready).await;
    let paths = ["a-1", "b-1"].map(|id| {
        let instance = inventory.instances.iter().find(|i| i.id.as_str() == id).unwrap();
        let Some(marcato_api::HostAddress::Unix(path)) = instance.ingress.clone() else { panic!("{instance:?}") };
        path
    });
    (host, paths)
}

/// Asks until it has so much memory. Growth that the lease has no room for fails in the guest, and is there soon after.
async fn takes(host: &TestHost, path: &Path, id: &str, mb: u32) {
    eventually(|| async {
        let stream = tokio::net::UnixStream::connect(path).await.ok()?;
        let answer = call_io(stream, get(id, &format!("/alloc?mb={mb}"))).await.ok()?;
        let used = host.inventory().await.used.sandbox_bytes;
        assert!(used <= marcato_api::Bytes::mib(96), "more than the host has: {used}");
        (answer.status() == 200).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn workers_share_the_memory_of_the_host_and_none_keeps_what_another_needs() {
    let (host, [a, b]) = hoarders().await;
    // Nobody else needs it: more than its share.
    takes(&host, &a, "a-1", 60).await;
    // Both are not within what the host has. The first one's sandbox only waits to be used again.
    takes(&host, &b, "b-1", 40).await;
    takes(&host, &a, "a-1", 40).await;
    for name in ["app-a", "app-b", "shared"] {
        assert_eq!(worker(&host, name).await.restarts, 0, "nobody had to be ended for it: {name}");
    }
    // What a worker holds is free when it is dead.
    kill(&worker(&host, "app-b").await);
    takes(&host, &a, "a-1", 60).await;
    takes(&host, &b, "b-1", 40).await;
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_holds_more_memory_than_it_was_given_is_ended() {
    let dir = Arc::new(tempfile::tempdir().unwrap());
    let mut small = crate::HostdConfig { memory: marcato_api::Bytes::mib(32), ..config("h1", dir.path()) };
    small.worker.args[1] = "testing::greedy_worker".into();
    let host = TestHost::start_with("h1", Arc::new(TestCa::new()), dir, small).await;
    eventually(|| async {
        let workers = host.inventory().await.workers;
        workers.iter().any(|w| w.name == "shared" && w.restarts > 0).then_some(())
    })
    .await;
    host.stop().await;
}
