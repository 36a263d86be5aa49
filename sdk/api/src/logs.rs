//! Log lines of guests as they travel from a host to whoever reads them.

use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{AppName, InstanceId, Millis, RevisionNumber};

/// Where a line came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum LogStream {
    /// The guest's standard output.
    Stdout,
    /// The guest's standard error.
    Stderr,
    /// `wasi:logging`.
    Log,
    /// The platform: a limit fired, a sandbox trapped, lines were dropped.
    Platform,
}

/// A line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct LogLine {
    /// When.
    pub at: Timestamp,
    /// Which app.
    pub app: AppName,
    /// Which revision.
    pub revision: RevisionNumber,
    /// Which instance.
    pub instance: InstanceId,
    /// Which request; empty when none.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub request_id: String,
    /// Where it came from.
    pub stream: LogStream,
    /// The text, without a line end; invalid UTF-8 replaced, at most 16 KiB.
    pub text: String,
}

/// A place in a host's log. Opaque to clients; a host that restarted starts anew.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct LogCursor {
    /// Which start of the daemon.
    pub boot: u64,
    /// The last line seen.
    pub sequence: u64,
}

/// As a query spells it: `BOOT-SEQUENCE`, both decimal.
impl fmt::Display for LogCursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.boot, self.sequence)
    }
}

impl FromStr for LogCursor {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        s.split_once('-')
            .and_then(|(boot, sequence)| Some(Self { boot: boot.parse().ok()?, sequence: sequence.parse().ok()? }))
            .ok_or_else(|| format!("log cursor {:?}: expected BOOT-SEQUENCE", s.chars().take(80).collect::<String>()))
    }
}

/// A wish for log lines.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogQuery {
    /// Whose.
    pub app: AppName,
    /// Lines after this; the default gives the oldest that are kept.
    #[serde(default)]
    pub after: LogCursor,
    /// How long to wait when there is none yet (0 to 30,000).
    #[serde(default)]
    pub wait_ms: Millis,
    /// At most this many (1 to 10,000).
    pub limit: u32,
}

/// Log lines, oldest first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogPage {
    /// The lines.
    pub lines: Vec<LogLine>,
    /// Where the next page begins.
    pub next: LogCursor,
}
