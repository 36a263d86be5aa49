//! Lines, their length and their rate.

use super::*;

#[derive(Default)]
struct Lines(Mutex<Vec<(String, LogStream, String)>>);

impl LogSink for Lines {
    fn line(&self, request_id: &str, stream: LogStream, text: &str) {
        lock(&self.0).push((request_id.into(), stream, text.into()));
    }
}

fn log() -> (Arc<Lines>, Arc<LimitCounters>, SandboxLog) {
    let (lines, counters) = (Arc::new(Lines::default()), Arc::new(LimitCounters::default()));
    let sink = Arc::clone(&lines) as Arc<dyn LogSink>;
    let log = SandboxLog::new(Arc::new(InstanceLog::new(sink, Arc::default(), Arc::clone(&counters))));
    (lines, counters, log)
}

fn taken(lines: &Lines) -> Vec<(String, LogStream, String)> {
    std::mem::take(&mut *lock(&lines.0))
}

#[test]
fn streams_become_lines_of_their_request() {
    let (lines, _, log) = log();
    log.begin("r1".into());
    log.write(LogStream::Stdout, b"one\ntw");
    log.write(LogStream::Stderr, b"beside\n");
    log.write(LogStream::Stdout, b"o\r\n\nrest");
    log.begin("r2".into());
    log.message("bye");
    drop(log);
    let line = |id: &str, stream, text: &str| (id.to_owned(), stream, text.to_owned());
    assert_eq!(
        taken(&lines),
        [
            line("r1", LogStream::Stdout, "one"),
            line("r1", LogStream::Stderr, "beside"),
            line("r1", LogStream::Stdout, "two"),
            line("r1", LogStream::Stdout, ""),
            line("r1", LogStream::Stdout, "rest"),
            line("r2", LogStream::Log, "bye"),
        ]
    );
}

#[test]
fn long_and_broken_lines_are_cut() {
    let (lines, _, log) = log();
    log.write(LogStream::Stdout, &vec![b'x'; LINE_LIMIT + 10]);
    // Each byte that is no UTF-8 becomes three.
    log.write(LogStream::Stderr, &vec![0xff; LINE_LIMIT]);
    drop(log);
    let lines = taken(&lines);
    assert_eq!(lines.iter().map(|l| l.2.len()).collect::<Vec<_>>(), [LINE_LIMIT, LINE_LIMIT / 3 * 3, 10]);
}

#[test]
fn a_flood_is_cut_and_counted() {
    let (lines, counters, log) = log();
    let line = [vec![b'x'; 999], vec![b'\n']].concat();
    for _ in 0..10_000 {
        log.write(LogStream::Stdout, &line);
    }
    drop(log);
    let lines = taken(&lines);
    let kept = lines.iter().filter(|l| l.1 == LogStream::Stdout).count();
    let told: u64 = lines
        .iter()
        .filter(|l| l.1 == LogStream::Platform)
        .filter_map(|l| l.2.strip_prefix("limit log_rate (1 MiB/s) reached: ")?.split(' ').next()?.parse::<u64>().ok())
        .sum();
    assert!((1_900..6_000).contains(&kept), "{kept}");
    assert_eq!(kept as u64 + told, 10_000, "each line is kept or counted");
    let fired = counters.fired(Limit::LogRate);
    assert!(fired >= 1);
}

#[test]
fn a_bucket_fills_with_time_up_to_its_burst() {
    let start = Instant::now();
    let mut bucket = Bucket::new(1000, 2000, start);
    assert!(bucket.take(2000, start));
    assert!(!bucket.take(1, start));
    assert!(bucket.take(500, start + Duration::from_millis(500)));
    assert!(!bucket.take(1, start + Duration::from_millis(500)));
    assert!(!bucket.take(2001, start + Duration::from_secs(3600)));
    assert!(bucket.take(2000, start + Duration::from_secs(3600)));
}

#[test]
fn instances_of_an_app_share_its_rate_and_another_app_has_its_own() {
    let app = Arc::new(AppRate::default());
    app.set(10_000);
    let instance = |rate: &Arc<AppRate>| {
        let (lines, counters) = (Arc::new(Lines::default()), Arc::new(LimitCounters::default()));
        let sink = Arc::clone(&lines) as Arc<dyn LogSink>;
        let log = SandboxLog::new(Arc::new(InstanceLog::new(sink, Arc::clone(rate), Arc::clone(&counters))));
        (lines, counters, log)
    };
    let ((_, _, loud), (quiet_lines, quiet_fired, quiet)) = (instance(&app), instance(&app));
    let (other_lines, _, other) = instance(&Arc::default());
    let line = [vec![b'x'; 999], vec![b'\n']].concat();
    for _ in 0..100 {
        loud.write(LogStream::Stdout, &line);
    }
    quiet.write(LogStream::Stdout, &line);
    other.write(LogStream::Stdout, &line);
    assert_eq!(quiet_fired.fired(Limit::LogRate), 1, "the burst of 20,000 bytes is used up");
    drop(quiet);
    let told = taken(&quiet_lines);
    assert!(told.iter().any(|l| l.2.contains("limit log_rate (") && l.2.contains("1 lines")));
    drop(other);
    assert_eq!(taken(&other_lines).len(), 1);
}
