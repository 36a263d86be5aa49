//! The runtime as a whole, with real guests in real sandboxes.

mod accounting;
mod budgets;
mod code;
mod commands;
mod fuzz;
mod guests;

use std::io::Write as _;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty, Full, StreamBody};
use marcato_api::{
    AppBudget, AppName, Bytes as ByteCount, Digest, InstanceId, LogStream, Millis, ProblemKind, RevisionConfig,
    RevisionNumber,
};

use crate::{
    CodeCache, CompileError, CompilerCommand, FiredLimit, Instance, InstanceSetup, LoadError, LogSink, NetworkDialer,
    PoolConfig, RequestBody, Runtime, RuntimeConfig, Services, StartError,
};

#[derive(Default)]
struct Lines(Mutex<Vec<(String, LogStream, String)>>);

impl LogSink for Lines {
    fn line(&self, request_id: &str, stream: LogStream, text: &str) {
        self.0.lock().expect("not poisoned").push((request_id.into(), stream, text.into()));
    }
}

struct Fixture {
    runtime: Runtime,
    cache: CodeCache,
    dir: tempfile::TempDir,
    lines: Arc<Lines>,
}

/// The compiler process of the tests is this very test binary, which runs [`compiler_process`] alone.
fn compiler() -> CompilerCommand {
    let script = r#"OUTPUT="$1" exec "$0" --exact tests::compiler_process --ignored --nocapture"#;
    let this = std::env::current_exe().expect("a path");
    CompilerCommand::new("/bin/sh", ["-c".into(), script.into(), this.into_os_string()])
}

#[test]
#[ignore = "is what other tests run as their compiler process"]
fn compiler_process() {
    let Some(output) = std::env::var_os("OUTPUT") else { return };
    if let Err(e) = crate::compile_child(&mut std::io::stdin(), output.as_ref()) {
        writeln!(std::io::stderr(), "error: {e}").expect("stderr is open");
        std::process::exit(1);
    }
}

fn runtime_config(pool: PoolConfig, cache: CodeCache) -> RuntimeConfig {
    let dialer = Arc::new(NetworkDialer { allow_private: false });
    RuntimeConfig { pool, code: Arc::new(cache), dialer, outbound_ca_pem: None, threads: Vec::new(), cpu_shares: true }
}

impl Fixture {
    fn new() -> Self {
        Self::sized(16, ByteCount::mib(1024))
    }

    fn sized(sandboxes: u32, memory: ByteCount) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let pool = PoolConfig { keep_resident: ByteCount::kib(64), ..PoolConfig::for_host(sandboxes, memory) };
        let cache = CodeCache::open(&dir.path().join("cache"), compiler()).expect("a cache");
        let runtime = Runtime::new(runtime_config(pool, cache.clone())).expect("a runtime");
        Self { runtime, cache, dir, lines: Arc::new(Lines::default()) }
    }

    async fn start(&self, component: &[u8], config: RevisionConfig) -> Instance {
        self.start_as("app", component, config, AppBudget::default()).await.expect("starts")
    }

    async fn start_as(
        &self,
        app: &str,
        component: &[u8],
        config: RevisionConfig,
        budget: AppBudget,
    ) -> Result<Instance, StartError> {
        let digest = self.cache.compile_here(component).expect("compiles");
        self.runtime
            .start(InstanceSetup { app: AppName::new(app).expect("a name"), budget, ..self.setup(config) }, &digest)
    }

    fn setup(&self, config: RevisionConfig) -> InstanceSetup {
        InstanceSetup {
            id: InstanceId::new("app-r1-0").expect("an id"),
            app: AppName::new("app").expect("a name"),
            revision: RevisionNumber(1),
            config,
            budget: AppBudget::default(),
            services: Services::default(),
            logs: Arc::clone(&self.lines) as Arc<dyn LogSink>,
        }
    }

    fn logged(&self, text: &str) -> bool {
        self.lines.0.lock().expect("not poisoned").iter().any(|(_, _, line)| line.contains(text))
    }
}

fn request() -> http::Request<RequestBody> {
    with_body(Empty::new().map_err(|e| match e {}).boxed_unsync())
}

fn with_body(body: RequestBody) -> http::Request<RequestBody> {
    http::Request::builder()
        .uri("/")
        .header("host", "app.localhost")
        .header("x-request-id", "r1")
        .body(body)
        .expect("valid")
}

fn config(change: impl FnOnce(&mut RevisionConfig)) -> RevisionConfig {
    let mut config = RevisionConfig::default();
    change(&mut config);
    config
}

fn fired(instance: &Instance, limit: &str) -> u64 {
    instance.limits_used().into_iter().find(|l| l.name == limit).map_or(0, |l| l.fired)
}

/// Lets other tasks run until the condition holds; fails after a bounded time.
async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let wait = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), wait).await.unwrap_or_else(|_| panic!("waited too long: {what}"));
}

#[tokio::test]
async fn a_guest_answers_and_everything_is_given_back() {
    let f = Fixture::new();
    let instance = f.start(&guests::hello(), RevisionConfig::default()).await;
    // More than a task's cooperative budget, without a yield in between.
    for _ in 0..300 {
        let response = instance.handle(request()).await.expect("an answer");
        assert_eq!(response.status(), 200);
        let body = response.into_body().collect().await.expect("a body").to_bytes();
        assert!(body.is_empty());
    }
    instance.idle().await;
    assert_eq!((instance.in_flight(), instance.queued()), (0, 0));
    let counters = instance.counters();
    assert_eq!((counters.requests, counters.failures, counters.sandboxes), (300, 0, 300));
    assert!(counters.cpu_us > 0);
    let usage = f.runtime.usage();
    assert_eq!((usage.sandboxes, usage.sandbox_bytes), (0, ByteCount(0)));
    assert!(usage.resident_bytes.0 > 0);
}

#[tokio::test]
async fn each_request_has_a_fresh_sandbox_unless_reuse_is_allowed() {
    let f = Fixture::new();
    let fresh = f.start(&guests::once(), RevisionConfig::default()).await;
    for _ in 0..2 {
        fresh.handle(request()).await.expect("a sandbox of its own");
    }
    let reused = f.start(&guests::once(), config(|c| c.reuse.max_requests = 10)).await;
    drop(reused.handle(request()).await.expect("the first request"));
    let error = reused.handle(request()).await.expect_err("the same sandbox, which traps on its second");
    assert_eq!(error.kind, ProblemKind::GuestFailed);
    // The sandbox that trapped is gone; the next request has a new one.
    reused.handle(request()).await.expect("a new sandbox");
    assert_eq!(reused.counters().sandboxes, 2);
}

#[tokio::test]
async fn idle_sandboxes_are_ended() {
    let f = Fixture::new();
    let reuse = |c: &mut RevisionConfig| {
        c.reuse.max_requests = 10;
        c.reuse.idle_ms = Millis(20);
    };
    let instance = f.start(&guests::hello(), config(reuse)).await;
    drop(instance.handle(request()).await.expect("an answer"));
    assert_eq!(f.runtime.usage().sandboxes, 1);
    until("the sandbox is swept", || f.runtime.usage().sandboxes == 0).await;
}

#[tokio::test]
async fn a_trap_is_the_guests_failure_and_its_reason_stays_in_the_log() {
    let f = Fixture::new();
    let instance = f.start(&guests::trap(), RevisionConfig::default()).await;
    let error = instance.handle(request()).await.expect_err("a trap");
    assert_eq!((error.kind, error.not_started), (ProblemKind::GuestFailed, false));
    assert!(!error.detail.contains("unreachable"), "{}", error.detail);
    assert!(f.logged("unreachable"));
    // The owner reads the same lines.
    assert_eq!(error.limit, None);
    let reason: Vec<_> = error.reason_lines().collect();
    assert!(reason.iter().any(|line| line.contains("unreachable")) && reason.len() <= 16, "{reason:?}");
    assert!(reason.iter().all(|line| f.logged(line)), "{reason:?}");
    assert_eq!(instance.counters().failures, 1);
    assert_eq!(f.runtime.usage().sandboxes, 0);

    let silent = f.start(&guests::silent(), RevisionConfig::default()).await;
    assert_eq!(silent.handle(request()).await.expect_err("no answer").kind, ProblemKind::GuestFailed);
    assert!(f.logged("without a response"));
}

#[tokio::test]
async fn cpu_and_wall_time_end_a_guest_that_loops() {
    let f = Fixture::new();
    let instance = f.start(&guests::endless(), config(|c| c.limits.cpu_ms = Millis(30))).await;
    let error = instance.handle(request()).await.expect_err("loops");
    assert_eq!((error.kind, error.kind.status()), (ProblemKind::CpuExhausted, 504));
    assert_eq!(fired(&instance, "cpu_ms"), 1);
    assert_eq!(error.limit, Some(FiredLimit { name: "cpu_ms", value: Some(30), used: None }));
    assert!(f.logged("limit cpu_ms (30 ms) reached"));
    assert!(instance.counters().cpu_us >= 29_000, "{:?}", instance.counters());

    let slow = f.start(&guests::endless(), config(|c| c.limits.time_ms = Millis(30))).await;
    let error = slow.handle(request()).await.expect_err("loops");
    assert_eq!(error.kind, ProblemKind::TimedOut);
    assert_eq!(fired(&slow, "time_ms"), 1);

    let afterwards = f.start(&guests::answer_then_loop(), config(|c| c.limits.cpu_ms = Millis(30))).await;
    let outcome = match afterwards.handle(request()).await {
        Ok(response) => response.into_body().collect().await.err().map(|e| e.to_string()),
        Err(e) => Some(e.detail),
    };
    until("the loop is ended", || fired(&afterwards, "cpu_ms") == 1).await;
    until("the sandbox is gone", || f.runtime.usage().sandboxes == 0).await;
    assert!(outcome.is_none_or(|detail| detail.contains("cpu_ms")));
}

#[tokio::test]
async fn memory_is_limited_per_sandbox_and_per_instance() {
    let f = Fixture::new();
    let small = |c: &mut RevisionConfig| c.limits.memory_bytes = ByteCount::mib(1);
    let instance = f.start(&guests::grow(32), config(small)).await;
    let error = instance.handle(request()).await.expect_err("may not grow");
    assert_eq!(error.kind, ProblemKind::GuestFailed);
    assert!(error.detail.contains("memory_bytes (1 MiB)"), "{}", error.detail);
    assert_eq!(error.limit, Some(FiredLimit { name: "memory_bytes", value: Some(1 << 20), used: None }));
    assert!(error.reason_lines().any(|line| line.contains("the guest trapped")), "{error:?}");
    assert_eq!(fired(&instance, "memory_bytes"), 1);

    let patient = f.start(&guests::grow_and_go_on(32), config(small)).await;
    patient.handle(request()).await.expect("goes on without");
    assert_eq!(fired(&patient, "memory_bytes"), 1);

    let enough = f.start(&guests::grow(32), RevisionConfig::default()).await;
    enough.handle(request()).await.expect("may grow");

    // Two sandboxes of 64 KiB own memory and 64 KiB of the adapter each: the third does not fit.
    let tight = |c: &mut RevisionConfig| {
        c.limits.memory_bytes = ByteCount::kib(128);
        c.limits.instance_memory_bytes = ByteCount::kib(256);
        c.limits.cpu_ms = Millis::secs(60);
    };
    let instance = f.start(&guests::endless(), config(tight)).await;
    let running: Vec<_> = (0..2)
        .map(|_| {
            tokio::spawn({
                let i = instance.clone();
                async move { i.handle(request()).await.map(drop) }
            })
        })
        .collect();
    until("both run", || f.runtime.usage().sandbox_bytes == ByteCount::kib(256)).await;
    let error = instance.handle(request()).await.expect_err("no memory left");
    assert_eq!((error.kind, error.not_started), (ProblemKind::MemoryExhausted, true));
    let full = FiredLimit { name: "instance_memory_bytes", value: Some(256 << 10), used: Some(256 << 10) };
    assert_eq!((error.limit, fired(&instance, "instance_memory_bytes")), (Some(full), 1));
    running.iter().for_each(tokio::task::JoinHandle::abort);
    until("all is given back", || f.runtime.usage().sandbox_bytes == ByteCount(0)).await;
}

/// Each sandbox has 64 KiB of its own and 64 KiB of the adapter; the host has room for three in all, whichever
/// app they belong to.
#[tokio::test]
async fn the_memory_of_the_host_is_shared_and_never_exceeded() {
    let f = Fixture::sized(16, ByteCount::kib(384));
    let long = |c: &mut RevisionConfig| c.limits.cpu_ms = Millis::secs(60);
    let one = f.start(&guests::endless(), config(long)).await;
    let other = f.start(&guests::hello(), RevisionConfig::default()).await;
    let patient = f.start(&guests::grow_and_go_on(32), RevisionConfig::default()).await;
    let running: Vec<_> = (0..2)
        .map(|_| {
            tokio::spawn({
                let i = one.clone();
                async move { i.handle(request()).await.map(drop) }
            })
        })
        .collect();
    until("both run", || f.runtime.usage().sandbox_bytes == ByteCount::kib(256)).await;
    patient.handle(request()).await.expect("memory.grow gives -1 and the guest goes on");
    // Its answer may be out before its sandbox has ended.
    until("it is counted", || fired(&patient, "host_memory") == 1).await;
    until("it is gone", || f.runtime.usage().sandbox_bytes == ByteCount::kib(256)).await;

    let third = tokio::spawn({
        let i = one.clone();
        async move { i.handle(request()).await.map(drop) }
    });
    until("three run", || f.runtime.usage().sandbox_bytes == ByteCount::kib(384)).await;
    for app in [&other, &one] {
        let error = app.handle(request()).await.map(drop).expect_err("no memory left on the host");
        assert_eq!((error.kind, error.not_started), (ProblemKind::Unavailable, true));
        assert_eq!(error.kind.status(), 503);
        assert!(error.detail.contains("host_memory (384 KiB)"), "{}", error.detail);
        // What others use is not told.
        assert_eq!(error.limit, Some(FiredLimit { name: "host_memory", value: Some(384 << 10), used: None }));
        assert_eq!(fired(app, "host_memory"), 1);
    }
    assert_eq!(f.runtime.usage().sandbox_bytes, ByteCount::kib(384), "what was refused is not counted");
    running.iter().chain([&third]).for_each(tokio::task::JoinHandle::abort);
    until("all is given back", || f.runtime.usage().sandbox_bytes == ByteCount(0)).await;
    other.handle(request()).await.expect("there is room again");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_memory_of_the_host_is_given_back_by_requests_at_once() {
    let f = Fixture::sized(64, ByteCount::kib(512));
    let apps = [
        f.start(&guests::grow(1), RevisionConfig::default()).await,
        f.start(&guests::grow_and_go_on(2), RevisionConfig::default()).await,
        f.start(&guests::hello(), RevisionConfig::default()).await,
    ];
    let work: Vec<_> = (0..24)
        .map(|n| {
            let app = apps[n % apps.len()].clone();
            tokio::spawn(async move {
                let mut answered = 0_u32;
                for _ in 0..40 {
                    match app.handle(request()).await {
                        Ok(response) => {
                            response.into_body().collect().await.expect("a body");
                            answered += 1;
                        }
                        Err(e) => assert!(e.detail.contains("host_memory"), "{e}"),
                    }
                }
                answered
            })
        })
        .collect();
    let mut answered = 0;
    for task in work {
        answered += task.await.expect("no panic");
        assert!(f.runtime.usage().sandbox_bytes <= ByteCount::kib(512));
    }
    assert!(answered > 0);
    until("all is given back", || f.runtime.usage().sandbox_bytes == ByteCount(0)).await;
    assert_eq!(f.runtime.usage().sandboxes, 0);
}

#[tokio::test]
async fn a_client_that_goes_away_takes_its_sandbox_along() {
    let f = Fixture::new();
    let instance = f.start(&guests::endless(), config(|c| c.limits.cpu_ms = Millis::secs(60))).await;
    let task = tokio::spawn({
        let i = instance.clone();
        async move { i.handle(request()).await.map(drop) }
    });
    until("it runs", || f.runtime.usage().sandboxes == 1).await;
    task.abort();
    instance.idle().await;
    until("the sandbox is gone", || f.runtime.usage().sandboxes == 0).await;
}

#[tokio::test]
async fn the_queue_is_bounded_in_length_and_time() {
    let f = Fixture::new();
    let one = |c: &mut RevisionConfig| {
        c.concurrency = 1;
        c.queue = 1;
        c.queue_timeout_ms = Millis(50);
        c.limits.cpu_ms = Millis::secs(60);
    };
    let instance = f.start(&guests::endless(), config(one)).await;
    let spawn = || {
        tokio::spawn({
            let i = instance.clone();
            async move { i.handle(request()).await.map(drop) }
        })
    };
    let first = spawn();
    until("the first runs", || instance.in_flight() == 1).await;
    let second = spawn();
    until("the second waits", || instance.queued() == 1).await;
    let error = instance.handle(request()).await.expect_err("no place and no queue");
    assert_eq!((error.kind, error.not_started), (ProblemKind::QueueFull, true));
    assert_eq!(error.limit, Some(FiredLimit { name: "queue", value: Some(1), used: Some(1) }));
    let error = second.await.expect("no panic").expect_err("waited too long");
    assert_eq!((error.kind, error.not_started), (ProblemKind::QueueTimeout, true));
    assert_eq!((fired(&instance, "queue"), fired(&instance, "queue_timeout_ms")), (1, 1));
    first.abort();
    instance.idle().await;
}

#[tokio::test]
async fn a_draining_instance_refuses_and_becomes_idle() {
    let f = Fixture::new();
    let instance = f.start(&guests::hello(), RevisionConfig::default()).await;
    let response = instance.handle(request()).await.expect("an answer");
    instance.drain();
    let error = instance.handle(request()).await.expect_err("drains");
    assert_eq!((error.kind, error.not_started), (ProblemKind::InstanceGone, true));
    assert_eq!(instance.in_flight(), 1, "until the response is sent");
    drop(response);
    instance.idle().await;
}

#[tokio::test]
async fn request_bodies_over_the_limit_are_refused() {
    let f = Fixture::new();
    let instance = f.start(&guests::hello(), config(|c| c.limits.request_body_bytes = ByteCount(10))).await;
    let long = Full::new(Bytes::from_static(b"eleven byte")).map_err(|e| match e {}).boxed_unsync();
    let error = instance.handle(with_body(long)).await.expect_err("too long");
    assert_eq!((error.kind, error.kind.status()), (ProblemKind::TooLarge, 413));
    let eleven = FiredLimit { name: "request_body_bytes", value: Some(10), used: Some(11) };
    assert_eq!(error.limit, Some(eleven));
    assert_eq!(instance.counters().sandboxes, 0);
    assert_eq!(fired(&instance, "request_body_bytes"), 1);
    let frames = futures::stream::iter([Ok(http_body::Frame::data(Bytes::from_static(b"ten bytes!")))]);
    instance.handle(with_body(StreamBody::new(frames).boxed_unsync())).await.expect("short enough");
}

#[tokio::test]
async fn what_does_not_link_is_told_in_words() {
    let f = Fixture::new();
    let digest = f.cache.compile_here(&guests::alien()).expect("compiles");
    match f.runtime.check(&digest).await {
        Err(LoadError::MissingImport { import, .. }) => assert_eq!(import, "acme:rocket/launch@1.0.0"),
        other => panic!("{other:?}"),
    }
    let digest = f.cache.compile_here(&guests::empty()).expect("compiles");
    assert!(matches!(f.runtime.check(&digest).await, Err(LoadError::NoHandler)));
    let unknown = Digest::of(b"never seen");
    assert!(matches!(f.runtime.check(&unknown).await, Err(LoadError::NotCompiled(_))));
}

#[tokio::test]
async fn changed_code_is_refused() {
    let f = Fixture::new();
    let digest = f.cache.compile_here(&guests::hello()).expect("compiles");
    let cache = f.dir.path().join("cache");
    let file = || {
        let entries = std::fs::read_dir(&cache).expect("a directory").map(|e| e.expect("an entry").path());
        entries.into_iter().find(|p| p.extension().is_some_and(|e| e == "cwasm")).expect("a file")
    };
    let path = file();
    let good = std::fs::read(&path).expect("readable");
    let mut flipped = good.clone();
    flipped[good.len() / 2] ^= 1;
    let mut unsigned = good.clone();
    unsigned.truncate(good.len() - 40);
    for bad in [flipped, unsigned, good[..20].to_vec(), Vec::new(), b"MARCATO1".repeat(100)] {
        std::fs::write(&path, &bad).expect("writable");
        assert!(matches!(f.runtime.check(&digest).await, Err(LoadError::Tampered { .. })));
        assert!(!f.cache.is_compiled(&digest), "a refused file is removed");
    }
    // What was found right once is looked at again when the file changes.
    std::fs::write(&path, &good).expect("writable");
    f.runtime.check(&digest).await.expect("as it was");
    f.runtime.check(&digest).await.expect("still");
    let mut longer = good.clone();
    longer.push(0);
    let fresh = cache.join("fresh");
    std::fs::write(&fresh, &longer).expect("writable");
    std::fs::rename(&fresh, &path).expect("renamed");
    assert!(matches!(f.runtime.check(&digest).await, Err(LoadError::Tampered { .. })));
    // What was verified before a restart is known after it, while the file stays as it was; a note of other bytes is nothing.
    std::fs::write(&path, &good).expect("writable");
    f.runtime.check(&digest).await.expect("as it was");
    let note = path.with_extension("seen");
    let said = std::fs::read(&note).expect("a note");
    let again = || CodeCache::open(&cache, compiler()).expect("the cache");
    again().verified(&digest).await.expect("known");
    std::fs::write(&note, b"anything").expect("writable");
    again().verified(&digest).await.expect("read again");
    assert_eq!(std::fs::read(&note).expect("a note"), said);
    let mut flipped = good.clone();
    flipped[good.len() / 2] ^= 1;
    std::fs::write(&path, &flipped).expect("writable");
    assert!(matches!(again().verified(&digest).await, Err(LoadError::Tampered { .. })));
    // The code of one component is not the code of another.
    std::fs::write(&path, &good).expect("writable");
    f.runtime.check(&digest).await.expect("as it was");
    let other = f.cache.compile_here(&guests::trap()).expect("compiles");
    let other_path = cache.join(path.file_name().expect("a name").to_string_lossy().replace(digest.hex(), other.hex()));
    std::fs::write(&other_path, &good).expect("writable");
    assert!(matches!(f.runtime.check(&other).await, Err(LoadError::Tampered { .. })));
    f.cache.forget(&digest).expect("removed");
    f.cache.forget(&digest).expect("fine when it is gone");
    assert!(!f.cache.is_compiled(&digest));
}

#[tokio::test]
async fn components_compile_in_a_process_of_their_own() {
    let f = Fixture::new();
    let path = f.dir.path().join("hello.wasm");
    let hello = guests::hello();
    std::fs::write(&path, &hello).expect("writable");
    let digest = Digest::of(&hello);
    f.cache.compile(&digest, &path).await.expect("compiles");
    f.cache.compile(&digest, &path).await.expect("fine again");
    f.runtime.check(&digest).await.expect("loads");

    let wrong = Digest::of(b"other");
    assert!(matches!(f.cache.compile(&wrong, &path).await, Err(CompileError::WrongDigest { .. })));
    assert!(matches!(f.cache.compile(&wrong, f.dir.path()).await, Err(CompileError::Read(_))));

    let mut cut = hello.clone();
    cut.truncate(hello.len() / 2);
    let module = wat::parse_str("(module)").expect("a module");
    let greedy = |what: &str| {
        let text = format!("(component (core module $m {what}) (core instance (instantiate $m)))");
        wat::parse_str(text).expect("a component")
    };
    for (bad, says) in [
        (greedy(&"(memory 1)".repeat(5)), "5 memories"),
        (greedy(&"(table 1 funcref)".repeat(17)), "17 tables"),
        (greedy("(memory 20000)"), "20000 pages"),
        (greedy("(table 200000 funcref)"), "200000 elements"),
        (cut, "end-of-file"),
        (module, "core module"),
        (guests::alien(), "acme:rocket/launch@1.0.0"),
        (guests::empty(), "exports no HTTP handler"),
        (b"#!/bin/sh\nrm -rf /".to_vec(), "not WebAssembly"),
        (Vec::new(), "not WebAssembly"),
        (vec![0; 1 << 20], "not WebAssembly"),
        ([&b"\0asm\x0d\0\x01\0"[..], &[0xff; 64]].concat(), ""),
    ] {
        std::fs::write(&path, &bad).expect("writable");
        match f.cache.compile(&Digest::of(&bad), &path).await {
            Err(CompileError::Rejected(text)) => assert!(text.contains(says) && !text.is_empty(), "{text}"),
            other => panic!("{other:?}"),
        }
    }
    let leftovers = std::fs::read_dir(f.dir.path().join("cache")).expect("a directory").count();
    assert_eq!(leftovers, 3, "the key, one artifact, and the note that it was verified");
}

#[tokio::test]
async fn a_compiler_that_hangs_or_dies_is_told_apart() {
    let dir = tempfile::tempdir().expect("a directory");
    let compile = |script: &str, timeout_ms| {
        let command = CompilerCommand {
            timeout_ms: Millis(timeout_ms),
            ..CompilerCommand::new("/bin/sh", ["-c".into(), script.into()])
        };
        let output = dir.path().join("out");
        async move { crate::compile::run(&command, &[0; 1 << 20], &output).await }
    };
    assert!(matches!(compile("exec sleep 60", 50).await, Err(CompileError::TimedOut { timeout_ms: 50 })));
    assert!(matches!(compile("kill -9 $$", 10_000).await, Err(CompileError::Killed { .. })));
    match compile("echo 'error: too odd' >&2; exit 1", 10_000).await {
        Err(CompileError::Rejected(text)) => assert_eq!(text, "too odd"),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_pool_that_cannot_be_had_is_an_error() {
    let dir = tempfile::tempdir().expect("a directory");
    let cache = CodeCache::open(&dir.path().join("cache"), compiler()).expect("a cache");
    let runtime =
        |sandboxes| Runtime::new(runtime_config(PoolConfig::for_host(sandboxes, ByteCount::mib(1024)), cache.clone()));
    assert!(matches!(runtime(0), Err(crate::RuntimeError::PoolConfig { field: "sandboxes", .. })));
    // 100,000 sandboxes of 4 GiB address space each are more than the 128 TiB of a process.
    assert!(matches!(runtime(100_000), Err(crate::RuntimeError::Pool { .. })));
}
