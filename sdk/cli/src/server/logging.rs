//! The process's own log: tracing to stderr, filtered by `MARCATO_LOG`, a child's lines marked with its name.

use std::io::{self, IsTerminal, Write};

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

/// How lines of a child of `up` are marked.
pub(crate) const NAME_VAR: &str = "MARCATO_PROCESS_NAME";
/// What is logged, in the syntax of `RUST_LOG`.
pub(crate) const FILTER_VAR: &str = "MARCATO_LOG";

struct Marked(String);

struct Line<'a>(&'a str);

impl Write for Line<'_> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        // The subscriber writes one whole event at a time; so does this, that processes do not mix lines.
        let mut whole = Vec::with_capacity(self.0.len() + line.len());
        whole.extend_from_slice(self.0.as_bytes());
        whole.extend_from_slice(line);
        io::stderr().write_all(&whole)?;
        Ok(line.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Marked {
    type Writer = Line<'a>;
    fn make_writer(&'a self) -> Line<'a> {
        Line(&self.0)
    }
}

/// Starts logging; `default` holds when `MARCATO_LOG` is absent or wrong.
pub(crate) fn init(default: &str) {
    let filter = EnvFilter::try_from_env(FILTER_VAR).unwrap_or_else(|_| EnvFilter::new(default));
    let mark = std::env::var(NAME_VAR).map(|n| format!("{n} | ")).unwrap_or_default();
    // Only fails when it was called before, which keeps the first one.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(io::stderr().is_terminal())
        .with_writer(Marked(mark))
        .try_init();
}
