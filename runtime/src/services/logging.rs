//! `wasi:logging`: messages become log lines.

use super::View;
use super::bindings::wasi::logging::logging::{Host, Level};

impl Host for View<'_> {
    async fn log(&mut self, level: Level, context: String, message: String) -> wasmtime::Result<()> {
        let level = match level {
            Level::Trace => "TRACE",
            Level::Debug => "DEBUG",
            Level::Info => "INFO",
            Level::Warn => "WARN",
            Level::Error => "ERROR",
            Level::Critical => "CRITICAL",
        };
        let colon = if context.is_empty() { "" } else { ": " };
        self.log.message(&format!("{level} {context}{colon}{message}"));
        Ok(())
    }
}
