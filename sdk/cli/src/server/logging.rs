//! The process's own log: tracing to stderr, filtered by `MARCATO_LOG`, a child's lines marked with its name.
//!
//! A thread of its own writes, some lines at a time. Whoever reads slowly loses lines, whose number the log ends with;
//! requests never wait for a log.

use std::io::{self, IsTerminal, Write};

use tracing_appender::non_blocking::{ErrorCounter, NonBlocking, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

/// How lines of a child of `up` are marked.
pub(crate) const NAME_VAR: &str = "MARCATO_PROCESS_NAME";
/// What is logged, in the syntax of `RUST_LOG`.
pub(crate) const FILTER_VAR: &str = "MARCATO_LOG";

/// Lines that may wait for the writing thread; more are dropped.
const WAITING: usize = 16 << 10;
/// Bytes that are written at once, at most.
const BUFFER: usize = 64 << 10;

/// Puts the process's name before each line.
struct Marked {
    name: String,
    out: NonBlocking,
}

struct Line<'a>(&'a Marked);

impl Write for Line<'_> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let Marked { name, out } = self.0;
        let mut out = out.clone();
        // The subscriber writes one whole event at a time; so does this, that processes do not mix lines.
        let mut whole = Vec::with_capacity(name.len() + line.len());
        whole.extend_from_slice(name.as_bytes());
        whole.extend_from_slice(line);
        out.write_all(&whole)?;
        Ok(line.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Marked {
    type Writer = Line<'a>;
    fn make_writer(&'a self) -> Line<'a> {
        Line(self)
    }
}

/// Lines that still wait are written when this is dropped.
#[must_use = "the log ends when this is dropped"]
pub(crate) struct Log {
    dropped: ErrorCounter,
    _writer: WorkerGuard,
}

impl Drop for Log {
    fn drop(&mut self) {
        let lines = self.dropped.dropped_lines();
        if lines > 0 {
            tracing::warn!(lines, "lines of this log were dropped: whoever reads it was too slow");
        }
    }
}

/// Starts logging; `default` holds when `MARCATO_LOG` is absent or wrong.
pub(crate) fn init(default: &str) -> Log {
    let filter = EnvFilter::try_from_env(FILTER_VAR).unwrap_or_else(|_| EnvFilter::new(default));
    let name = std::env::var(NAME_VAR).map(|n| format!("{n} | ")).unwrap_or_default();
    // Written out whenever no line waits.
    let buffer = io::BufWriter::with_capacity(BUFFER, io::stderr());
    let (out, writer) = NonBlockingBuilder::default().lossy(true).buffered_lines_limit(WAITING).finish(buffer);
    let dropped = out.error_counter();
    // Only fails when it was called before, which keeps the first one.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(io::stderr().is_terminal())
        .with_writer(Marked { name, out })
        .try_init();
    Log { dropped, _writer: writer }
}
