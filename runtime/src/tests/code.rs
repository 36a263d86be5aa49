//! Code on the shelf: mapped when it is asked for, once, and dropped again.

use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures::future::BoxFuture;

use super::*;
use crate::CodeSource;

/// The cache, with a count of how often it was asked.
struct Counted(CodeCache, AtomicUsize);

impl CodeSource for Counted {
    fn open<'a>(&'a self, digest: &'a Digest) -> BoxFuture<'a, Result<PathBuf, LoadError>> {
        self.1.fetch_add(1, Ordering::SeqCst);
        self.0.open(digest)
    }
}

/// A runtime whose pool is changed, over the fixture's cache.
fn runtime(f: &Fixture, change: impl FnOnce(&mut PoolConfig)) -> (Runtime, Arc<Counted>) {
    let mut pool = PoolConfig { keep_resident: ByteCount::kib(64), ..PoolConfig::for_host(16, ByteCount::mib(1024)) };
    change(&mut pool);
    let source = Arc::new(Counted(f.cache.clone(), AtomicUsize::new(0)));
    let config =
        RuntimeConfig { code: Arc::clone(&source) as Arc<dyn CodeSource>, ..runtime_config(pool, f.cache.clone()) };
    (Runtime::new(config).expect("a runtime"), source)
}

fn started(f: &Fixture, runtime: &Runtime, digest: &Digest) -> Instance {
    runtime.start(f.setup(RevisionConfig::default()), digest).expect("starts")
}

async fn ask(instance: &Instance) {
    let response = instance.handle(request()).await.expect("an answer");
    response.into_body().collect().await.expect("a body");
}

#[tokio::test(flavor = "multi_thread")]
async fn code_is_mapped_by_the_first_requests_once() {
    let f = Fixture::new();
    let (runtime, source) = runtime(&f, |_| {});
    let digest = f.cache.compile_here(&guests::hello()).expect("compiles");
    let instances = [started(&f, &runtime, &digest), started(&f, &runtime, &digest)];
    assert_eq!((runtime.code_usage().mapped, source.1.load(Ordering::SeqCst)), (0, 0), "a start touches no code");
    // A request that is given up takes nothing from the others.
    drop(futures::poll!(Box::pin(instances[0].handle(request()))));
    let many: Vec<_> = (0..8).map(|n| instances[n % 2].clone()).collect();
    let tasks: Vec<_> = many.into_iter().map(|i| tokio::spawn(async move { ask(&i).await })).collect();
    for task in tasks {
        task.await.expect("no panic");
    }
    let usage = runtime.code_usage();
    assert_eq!((usage.mapped, usage.loads, source.1.load(Ordering::SeqCst)), (1, 1, 1));
    drop(instances);
    assert!(runtime.usage().sandboxes == 0);
}

#[tokio::test]
async fn what_was_not_used_for_longest_makes_room() {
    let f = Fixture::new();
    let digests =
        [guests::hello(), guests::once(), guests::trap()].map(|g| f.cache.compile_here(&g).expect("compiles"));
    // Room for two: each counts for its file and 128 KiB.
    let (runtime, _) = runtime(&f, |pool| pool.code_memory = ByteCount::kib(2 * 192));
    let instances = digests.each_ref().map(|d| started(&f, &runtime, d));
    ask(&instances[0]).await;
    ask(&instances[1]).await;
    ask(&instances[0]).await;
    assert_eq!(runtime.code_usage().drops, 0, "{:?}", runtime.code_usage());
    instances[2].handle(request()).await.expect_err("a trap");
    let usage = runtime.code_usage();
    assert_eq!((usage.mapped, usage.drops), (2, 1), "{usage:?}");
    ask(&instances[0]).await;
    assert_eq!(runtime.code_usage().loads, 3, "the one that was used twice stayed");
    ask(&instances[1]).await;
    assert_eq!(runtime.code_usage().loads, 4, "the other is mapped again");
}

#[tokio::test]
async fn cold_code_is_dropped_and_comes_back() {
    let f = Fixture::new();
    let (runtime, _) = runtime(&f, |pool| pool.code_idle_ms = Millis(40));
    let digest = f.cache.compile_here(&guests::hello()).expect("compiles");
    let instance = started(&f, &runtime, &digest);
    ask(&instance).await;
    until("the code is dropped", || runtime.code_usage().mapped == 0).await;
    ask(&instance).await;
    assert_eq!(runtime.code_usage().loads, 2);
    // The last instance takes its code with it.
    drop(instance);
    until("nothing is mapped", || runtime.code_usage().mapped == 0).await;
}

#[tokio::test]
async fn a_request_without_code_may_go_elsewhere_and_the_next_one_tries_again() {
    let f = Fixture::new();
    let (runtime, _) = runtime(&f, |_| {});
    let instance = started(&f, &runtime, &Digest::of(&guests::hello()));
    let error = instance.handle(request()).await.expect_err("not compiled yet");
    assert_eq!((error.kind, error.not_started), (ProblemKind::Unavailable, true));
    f.cache.compile_here(&guests::hello()).expect("compiles");
    ask(&instance).await;
}
