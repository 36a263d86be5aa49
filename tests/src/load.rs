//! A steady load: some workers, each with one connection and one request at a time. Every request that
//! is not answered as it should be is kept with its reason; nothing is retried.

use std::sync::Arc;
use std::time::{Duration, Instant};

use http::Method;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::client::{Answer, Connection, Target, empty};

/// A pause between a worker's requests, so that the load leaves the machine to what it loads.
const PACE: Duration = Duration::from_millis(4);
/// A request that takes longer has failed.
const REQUEST_BOUND: Duration = Duration::from_secs(30);

/// A load that runs until it is stopped.
pub struct Load {
    stop: watch::Sender<bool>,
    workers: JoinSet<LoadReport>,
    progress: Arc<std::sync::atomic::AtomicU64>,
}

/// What came of it.
#[derive(Debug, Default)]
pub struct LoadReport {
    /// Requests answered as expected.
    pub ok: u64,
    /// The others.
    pub failures: Vec<Failure>,
    /// The longest that an answered request took.
    pub slowest: Duration,
}

/// A request that failed.
#[derive(Debug, Clone)]
pub struct Failure {
    /// When it was sent, since the load began.
    pub sent_after: Duration,
    /// Why.
    pub why: String,
}

impl Load {
    /// Starts `workers` workers that ask for `path` and expect 200 with a body that `expect` accepts.
    pub fn start(target: &Target, path: &str, workers: usize, expect: fn(&Answer) -> bool) -> Self {
        let (stop, stopped) = watch::channel(false);
        let progress = Arc::new(std::sync::atomic::AtomicU64::new(0));
        let mut set = JoinSet::new();
        for _ in 0..workers {
            set.spawn(work(target.clone(), path.to_owned(), expect, stopped.clone(), progress.clone()));
        }
        Self { stop, workers: set, progress }
    }

    /// Waits until this many more requests were answered.
    pub async fn answered(&self, more: u64) -> anyhow::Result<()> {
        let now = || self.progress.load(std::sync::atomic::Ordering::Relaxed);
        let goal = now() + more;
        crate::until("the load to be answered", Duration::from_secs(60), || async { Ok((now() >= goal).then_some(())) })
            .await
    }

    /// Ends it and adds up.
    pub async fn stop(mut self) -> LoadReport {
        self.stop.send_replace(true);
        let mut sum = LoadReport::default();
        while let Some(report) = self.workers.join_next().await {
            let report = report.expect("a load worker panicked");
            sum.ok += report.ok;
            sum.slowest = sum.slowest.max(report.slowest);
            sum.failures.extend(report.failures);
        }
        sum
    }
}

async fn work(
    target: Target,
    path: String,
    expect: fn(&Answer) -> bool,
    stopped: watch::Receiver<bool>,
    progress: Arc<std::sync::atomic::AtomicU64>,
) -> LoadReport {
    let begin = Instant::now();
    let mut report = LoadReport::default();
    let mut connection: Option<Connection> = None;
    while !*stopped.borrow() {
        let sent_after = begin.elapsed();
        let asked = tokio::time::timeout(REQUEST_BOUND, ask(&target, &path, &mut connection)).await;
        let took = begin.elapsed() - sent_after;
        match asked {
            Ok(Ok(answer)) if answer.status == 200 && expect(&answer) => {
                report.ok += 1;
                report.slowest = report.slowest.max(took);
                progress.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            }
            Ok(Ok(answer)) => {
                let text: String = answer.text().chars().take(160).collect();
                report.failures.push(Failure { sent_after, why: format!("{} {text}", answer.status) });
            }
            Ok(Err(error)) => {
                connection = None;
                report.failures.push(Failure { sent_after, why: format!("{error:#}") });
            }
            Err(_) => {
                connection = None;
                report
                    .failures
                    .push(Failure { sent_after, why: format!("no answer in {} s", REQUEST_BOUND.as_secs()) });
            }
        }
        tokio::time::sleep(PACE).await;
    }
    report
}

async fn ask(target: &Target, path: &str, connection: &mut Option<Connection>) -> anyhow::Result<Answer> {
    // A connection that the peer closed between two requests is replaced: nothing was in flight on it.
    let reusable = match connection {
        Some(open) => open.ready().await,
        None => false,
    };
    if !reusable {
        *connection = Some(target.connect().await?);
    }
    let open = connection.as_mut().expect("connected above");
    open.request(Method::GET, path, &[], empty()).await
}
