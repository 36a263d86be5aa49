//! Components: what was uploaded gets compiled, one at a time, needed ones first; what nobody needs goes
//! after a grace.
//!
//! A failure that may be the host's (time, memory, disk) is tried again with back-off, one that is the
//! component's own at the longest pause, and both at once when the bytes are uploaded again. Bytes that do not hash to their name are
//! removed, so that the control plane sees them missing and sends them again.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use marcato_api::{ComponentState, ComponentStatus, Digest, HostConfig, OrgName};
use marcato_runtime::{CodeCache, CompileError};
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use super::{Reconciler, back_off};
use crate::components::{ComponentStore, StoredComponent};
use crate::error::chain;
use crate::metrics::Metrics;

/// A component that no instance needs stays this long, for a rollback or a scale-up from zero.
const GRACE: Duration = Duration::from_secs(600);
/// Longest pause before a compilation is tried again.
const LONGEST_PAUSE: Duration = Duration::from_secs(300);

/// Compilations at once. An org has one of them, so that whoever pushes what compiles slowly holds up nobody else.
const JOBS: usize = 2;

struct Job {
    digest: Digest,
    /// Whose instances need it; `None` when none does yet.
    org: Option<OrgName>,
    received_at: SystemTime,
    answer: oneshot::Receiver<Result<(), CompileError>>,
    _task: AbortOnDropHandle<()>,
}

struct Failure {
    /// Of the bytes that failed; other bytes are tried afresh.
    received_at: SystemTime,
    reason: String,
    count: u32,
    retry_at: Instant,
}

/// Takes code out of every worker's folder.
pub(crate) type Forget = Box<dyn Fn(&Digest) + Send + Sync>;

/// See the module.
pub(crate) struct Components {
    store: ComponentStore,
    cache: CodeCache,
    /// Has workers forget code too.
    forget: Forget,
    metrics: Arc<Metrics>,
    /// Wakes this reconciler when a compilation ends.
    wake: Arc<Notify>,
    jobs: Vec<Job>,
    failures: HashMap<Digest, Failure>,
    last_needed: HashMap<Digest, Instant>,
}

impl Components {
    /// A reconciler over this store and this cache.
    pub(crate) fn new(
        store: ComponentStore,
        cache: CodeCache,
        forget: Forget,
        metrics: Arc<Metrics>,
        wake: Arc<Notify>,
    ) -> Self {
        Self {
            store,
            cache,
            forget,
            metrics,
            wake,
            jobs: Vec::new(),
            failures: HashMap::new(),
            last_needed: HashMap::new(),
        }
    }

    fn finish_jobs(&mut self) {
        for mut job in std::mem::take(&mut self.jobs) {
            match job.answer.try_recv() {
                Ok(result) => self.finish(job, result),
                Err(oneshot::error::TryRecvError::Empty) => self.jobs.push(job),
                Err(oneshot::error::TryRecvError::Closed) => {
                    let given_up = std::io::Error::other("the compilation was given up");
                    self.finish(job, Err(CompileError::Process(given_up)));
                }
            }
        }
    }

    fn finish(&mut self, job: Job, result: Result<(), CompileError>) {
        let Err(error) = result else {
            self.failures.remove(&job.digest);
            return;
        };
        tracing::warn!(digest = %job.digest, error = %chain(&error), "a component does not compile");
        if matches!(error, CompileError::WrongDigest { .. })
            && let Err(error) = self.store.remove(&job.digest)
        {
            tracing::warn!(digest = %job.digest, %error, "damaged bytes cannot be removed");
        }
        let before = self.failures.get(&job.digest).filter(|f| f.received_at == job.received_at);
        let count = before.map_or(0, |f| f.count).saturating_add(1);
        let pause = match error {
            CompileError::Rejected(_) => LONGEST_PAUSE,
            _ => back_off(count, LONGEST_PAUSE),
        };
        let retry_at = Instant::now() + pause;
        let failure = Failure { received_at: job.received_at, reason: chain(&error), count, retry_at };
        self.failures.insert(job.digest, failure);
    }

    fn start_job(&mut self, next: &StoredComponent, org: Option<OrgName>) {
        let (answer_to, answer) = oneshot::channel();
        let (cache, wake, metrics) = (self.cache.clone(), self.wake.clone(), self.metrics.clone());
        let (digest, path) = (next.digest.clone(), self.store.path(&next.digest));
        let task = tokio::spawn(async move {
            let begun = Instant::now();
            let result = cache.compile(&digest, &path).await;
            metrics.compiled(begun.elapsed(), result.is_ok());
            tracing::info!(digest = %digest.short(), ok = result.is_ok(), ms = begun.elapsed().as_millis(), "compiled");
            // The reconciler may be gone by now.
            let _ = answer_to.send(result);
            wake.notify_one();
        });
        self.jobs.push(Job {
            org,
            digest: next.digest.clone(),
            received_at: next.received_at,
            answer,
            _task: AbortOnDropHandle::new(task),
        });
    }

    /// Whether it should be compiled now.
    fn is_due(&self, component: &StoredComponent) -> bool {
        match self.failures.get(&component.digest) {
            Some(f) if f.received_at == component.received_at => f.retry_at <= Instant::now(),
            _ => true,
        }
    }

    fn remove_unused(&mut self, needed: &HashSet<&Digest>, stored: &mut Vec<StoredComponent>) {
        let now = Instant::now();
        for digest in needed.iter().copied().chain(stored.iter().map(|s| &s.digest)) {
            let last = self.last_needed.entry(digest.clone()).or_insert(now);
            if needed.contains(digest) {
                *last = now;
            }
        }
        let compiling: HashSet<Digest> = self.jobs.iter().map(|j| j.digest.clone()).collect();
        let expired: Vec<Digest> = self
            .last_needed
            .iter()
            .filter(|(digest, last)| now.duration_since(**last) >= GRACE && !compiling.contains(*digest))
            .map(|(digest, _)| digest.clone())
            .collect();
        for digest in expired {
            // The code first: what is left after a crash in between is found again by its bytes.
            (self.forget)(&digest);
            if let Err(error) = self.cache.forget(&digest).and_then(|()| self.store.remove(&digest)) {
                tracing::warn!(%digest, %error, "an unused component cannot be removed");
                continue;
            }
            tracing::info!(digest = %digest.short(), "an unused component was removed");
            self.last_needed.remove(&digest);
            self.failures.remove(&digest);
            stored.retain(|s| s.digest != digest);
        }
    }

    fn status(&self, needed: &HashSet<&Digest>, stored: &[StoredComponent]) -> Vec<ComponentStatus> {
        let mut all = BTreeMap::new();
        for digest in needed.iter().copied().filter(|d| self.cache.is_compiled(d)) {
            all.insert(digest.clone(), (ComponentState::Ready, None));
        }
        for component in stored {
            let failure = self.failures.get(&component.digest).filter(|f| f.received_at == component.received_at);
            let state = if self.cache.is_compiled(&component.digest) {
                (ComponentState::Ready, None)
            } else if let Some(failure) = failure {
                (ComponentState::Failed, Some(failure.reason.clone()))
            } else {
                (ComponentState::Compiling, None)
            };
            all.insert(component.digest.clone(), state);
        }
        all.into_iter().map(|(digest, (state, reason))| ComponentStatus { digest, state, reason }).collect()
    }
}

impl Reconciler for Components {
    type Status = Vec<ComponentStatus>;
    const NAME: &'static str = "components";
    const PERIOD: Duration = Duration::from_secs(15);

    async fn reconcile(&mut self, config: &HostConfig) -> Vec<ComponentStatus> {
        self.finish_jobs();
        let needed: HashSet<&Digest> = config.instances.iter().map(|i| &i.digest).collect();
        let mut stored = self.store.list().unwrap_or_else(|error| {
            tracing::error!(%error, "the components cannot be listed");
            Vec::new()
        });
        self.remove_unused(&needed, &mut stored);
        let org = |digest: &Digest| config.instances.iter().find(|i| i.digest == *digest).map(|i| i.org.clone());
        while self.jobs.len() < JOBS {
            let free = |c: &&StoredComponent| {
                let org = org(&c.digest);
                self.jobs.iter().all(|j| j.digest != c.digest && j.org != org)
            };
            let next = stored
                .iter()
                .filter(|c| self.is_due(c) && !self.cache.is_compiled(&c.digest))
                .filter(free)
                .min_by_key(|c| (!needed.contains(&c.digest), c.received_at))
                .cloned();
            let Some(next) = next else { break };
            let org = org(&next.digest);
            self.start_job(&next, org);
        }
        self.status(&needed, &stored)
    }
}

#[cfg(test)]
mod tests;
