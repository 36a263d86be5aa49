//! Log lines of guests, in memory: one bounded ring per app, read by long polling.
//!
//! Writers are request tasks and must never wait for a reader: a line is formed first, then pushed under a
//! lock that is held for a push or a copy of a page, never across an await. Old lines make room for new ones.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use marcato_api::{AppName, InstanceId, LogCursor, LogLine, LogPage, LogQuery, LogStream, Millis, RevisionNumber};
use marcato_runtime::LogSink;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Most lines kept per app.
const LINES: usize = 10_000;
/// Most bytes kept per app: texts plus [`LINE_OVERHEAD`] each.
const BYTES: usize = 1 << 20;
/// What a line costs beside its text and request id.
const LINE_OVERHEAD: usize = 128;
/// Longest text of a line; the wire type promises it.
const TEXT_BYTES: usize = 16 << 10;
/// Longest request id that is kept.
const REQUEST_ID_BYTES: usize = 128;
/// Longest wait of a poll.
const WAIT: Millis = Millis::secs(30);
/// Rings kept for apps that have no instance here any more.
const IDLE_RINGS: usize = 32;

/// All logs of this host. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Logs(Arc<Inner>);

struct Inner {
    boot: u64,
    /// Over all apps, so that a cursor stays true when a ring is dropped and made again.
    sequence: AtomicU64,
    evicted: AtomicU64,
    /// Ends every wait: a reader must not hold the daemon's end up.
    closing: CancellationToken,
    rings: Mutex<HashMap<AppName, Arc<Ring>>>,
}

struct Ring {
    lines: Mutex<Lines>,
    /// The sequence of the newest line.
    newest: watch::Sender<u64>,
}

#[derive(Default)]
struct Lines {
    kept: VecDeque<(u64, LogLine)>,
    bytes: usize,
}

/// Takes the lines of one instance.
struct Sink {
    logs: Logs,
    ring: Arc<Ring>,
    app: AppName,
    revision: RevisionNumber,
    instance: InstanceId,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic while the lock was held leaves at worst a wrong byte count, never a wrong line.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn cut(text: &str, most: usize) -> &str {
    &text[..text.floor_char_boundary(most)]
}

fn wait_of(query: &LogQuery) -> Duration {
    query.wait_ms.min(WAIT).into()
}

fn cost(line: &LogLine) -> usize {
    line.text.len() + line.request_id.len() + LINE_OVERHEAD
}

impl Logs {
    /// Empty logs. `boot` tells this start of the daemon from others; no poll waits once it is `closing`.
    pub(crate) fn new(boot: u64, closing: CancellationToken) -> Self {
        Self(Arc::new(Inner {
            boot,
            sequence: AtomicU64::new(0),
            evicted: AtomicU64::new(0),
            closing,
            rings: Mutex::new(HashMap::new()),
        }))
    }

    fn ring(&self, app: &AppName) -> Arc<Ring> {
        lock(&self.0.rings)
            .entry(app.clone())
            .or_insert_with(|| Arc::new(Ring { lines: Mutex::default(), newest: watch::Sender::new(0) }))
            .clone()
    }

    /// Where an instance writes its lines.
    pub(crate) fn sink(&self, app: &AppName, revision: RevisionNumber, instance: &InstanceId) -> Arc<dyn LogSink> {
        Arc::new(Sink {
            logs: self.clone(),
            ring: self.ring(app),
            app: app.clone(),
            revision,
            instance: instance.clone(),
        })
    }

    /// Lines that made room for newer ones, over all apps.
    pub(crate) fn evicted(&self) -> u64 {
        self.0.evicted.load(Ordering::Relaxed)
    }

    /// Drops rings of apps that have nothing here any more, when there are too many of them: oldest first.
    pub(crate) fn retain(&self, apps: &BTreeSet<AppName>) {
        let mut rings = lock(&self.0.rings);
        let mut idle: Vec<(u64, AppName)> = rings
            .iter()
            .filter(|(app, _)| !apps.contains(*app))
            .map(|(app, ring)| (*ring.newest.borrow(), app.clone()))
            .collect();
        idle.sort_unstable();
        let surplus = idle.len().saturating_sub(IDLE_RINGS);
        for (_, app) in idle.into_iter().take(surplus) {
            rings.remove(&app);
        }
    }

    fn push(&self, ring: &Ring, line: LogLine) {
        let size = cost(&line);
        let mut lines = lock(&ring.lines);
        // Under the lock, so that a ring's sequences grow.
        let sequence = self.0.sequence.fetch_add(1, Ordering::Relaxed) + 1;
        lines.kept.push_back((sequence, line));
        lines.bytes += size;
        while lines.kept.len() > LINES || lines.bytes > BYTES {
            let Some((_, old)) = lines.kept.pop_front() else { break };
            lines.bytes -= cost(&old);
            self.0.evicted.fetch_add(1, Ordering::Relaxed);
        }
        drop(lines);
        ring.newest.send_if_modified(|newest| {
            let grew = *newest < sequence;
            *newest = (*newest).max(sequence);
            grew
        });
    }

    /// Lines after the cursor, oldest first; waits for one when there is none yet.
    pub(crate) async fn read(&self, query: &LogQuery) -> LogPage {
        let ring = self.ring(&query.app);
        // A cursor of another start counts from this start's first line.
        let after = if query.after.boot == self.0.boot { query.after.sequence } else { 0 };
        let mut newest = ring.newest.subscribe();
        let wait = wait_of(query);
        tokio::select! {
            biased;
            // The sender lives in `ring`, so this only ends with a line.
            _ = newest.wait_for(|newest| *newest > after) => {}
            () = self.0.closing.cancelled() => {}
            () = tokio::time::sleep(wait) => {}
        }
        self.page(&ring, after, query.limit.clamp(1, LINES as u32) as usize)
    }

    fn page(&self, ring: &Ring, after: u64, limit: usize) -> LogPage {
        let lines = lock(&ring.lines);
        let start = lines.kept.partition_point(|(sequence, _)| *sequence <= after);
        let mut last = after;
        let page = lines
            .kept
            .range(start..)
            .take(limit)
            .map(|(sequence, line)| {
                last = *sequence;
                line.clone()
            })
            .collect();
        LogPage { lines: page, next: LogCursor { boot: self.0.boot, sequence: last } }
    }
}

impl LogSink for Sink {
    fn line(&self, request_id: &str, stream: LogStream, text: &str) {
        let line = LogLine {
            at: Timestamp::now(),
            app: self.app.clone(),
            revision: self.revision,
            instance: self.instance.clone(),
            request_id: cut(request_id, REQUEST_ID_BYTES).to_owned(),
            stream,
            text: cut(text, TEXT_BYTES).to_owned(),
        };
        self.logs.push(&self.ring, line);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query(app: &str, after: LogCursor, wait_ms: u64, limit: u32) -> LogQuery {
        LogQuery { app: AppName::new(app).unwrap(), after, wait_ms: Millis(wait_ms), limit }
    }

    fn sink(logs: &Logs, app: &str) -> Arc<dyn LogSink> {
        logs.sink(&AppName::new(app).unwrap(), RevisionNumber(1), &InstanceId::new("i-1").unwrap())
    }

    #[tokio::test]
    async fn pages_follow_each_other() {
        let logs = Logs::new(7, CancellationToken::new());
        let (a, b) = (sink(&logs, "a"), sink(&logs, "b"));
        for n in 0..5 {
            a.line("r", LogStream::Stdout, &format!("a{n}"));
            b.line("r", LogStream::Stdout, &format!("b{n}"));
        }
        let first = logs.read(&query("a", LogCursor::default(), 0, 3)).await;
        let texts = |page: &LogPage| page.lines.iter().map(|l| l.text.clone()).collect::<Vec<_>>();
        assert_eq!(texts(&first), ["a0", "a1", "a2"]);
        let second = logs.read(&query("a", first.next, 0, 3)).await;
        assert_eq!(texts(&second), ["a3", "a4"]);
        let third = logs.read(&query("a", second.next, 0, 3)).await;
        assert!(third.lines.is_empty());
        assert_eq!(third.next, second.next);
        let old_boot = LogCursor { boot: 6, sequence: 1000 };
        assert_eq!(texts(&logs.read(&query("a", old_boot, 0, 1)).await), ["a0"], "another start begins anew");
    }

    #[tokio::test]
    async fn a_poll_waits_for_a_line_and_not_for_ever() {
        let logs = Logs::new(1, CancellationToken::new());
        assert_eq!(wait_of(&query("a", LogCursor::default(), 600_000, 10)), Duration::from(WAIT), "bounded");
        assert!(logs.read(&query("a", LogCursor::default(), 1, 10)).await.lines.is_empty());
        let waiting = {
            let logs = logs.clone();
            tokio::spawn(async move { logs.read(&query("a", LogCursor::default(), 30_000, 10)).await })
        };
        tokio::task::yield_now().await;
        sink(&logs, "a").line("r", LogStream::Stderr, "hello");
        assert_eq!(waiting.await.unwrap().lines[0].text, "hello");
        logs.0.closing.cancel();
        assert!(logs.read(&query("b", LogCursor::default(), 30_000, 10)).await.lines.is_empty(), "at once");
    }

    #[tokio::test]
    async fn rings_are_bounded_in_lines_and_bytes() {
        let logs = Logs::new(1, CancellationToken::new());
        let a = sink(&logs, "a");
        for _ in 0..LINES + 10 {
            a.line("", LogStream::Stdout, "");
        }
        let page = logs.read(&query("a", LogCursor::default(), 0, 10_000)).await;
        assert!(page.lines.len() <= LINES);
        let long = "é".repeat(TEXT_BYTES);
        for _ in 0..200 {
            a.line(&long, LogStream::Stdout, &long);
        }
        let page = logs.read(&query("a", LogCursor::default(), 0, 10_000)).await;
        assert!(page.lines.iter().map(cost).sum::<usize>() <= BYTES);
        assert!(page.lines.iter().all(|l| l.text.len() <= TEXT_BYTES && l.request_id.len() <= REQUEST_ID_BYTES));
        assert!(logs.evicted() > 0);
    }

    #[test]
    fn rings_of_gone_apps_are_bounded() {
        let logs = Logs::new(1, CancellationToken::new());
        for n in 0..100 {
            sink(&logs, &format!("app-{n}")).line("", LogStream::Stdout, "x");
        }
        logs.retain(&BTreeSet::from([AppName::new("app-0").unwrap()]));
        let rings = lock(&logs.0.rings);
        assert_eq!(rings.len(), IDLE_RINGS + 1);
        assert!(
            rings.contains_key(&AppName::new("app-0").unwrap()) && rings.contains_key(&AppName::new("app-99").unwrap())
        );
    }
}
