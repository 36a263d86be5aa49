//! Errors of the runtime, one type per operation. Details are for operators; what a client may see is
//! decided by whoever turns an [`InvokeError`] into a response.

use std::io;

use marcato_api::{Digest, LimitsError, ProblemKind};

/// A runtime could not be made.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// The cache directory or its key cannot be used.
    #[error("the cache of compiled code at {path} cannot be used")]
    Cache {
        /// Where.
        path: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The pool of sandboxes cannot be had: address space or a limit of the system.
    #[error("the pool of {sandboxes} sandboxes cannot be had: {reason}")]
    Pool {
        /// How many were asked for.
        sandboxes: u32,
        /// Why, in wasmtime's words.
        reason: String,
    },
    /// The threads for guests that compute cannot be started.
    #[error("the threads for guests that compute cannot be started")]
    Lane(#[source] std::io::Error),
    /// A number of the pool's configuration is out of its range.
    #[error("pool.{field}: {value} is not within {min} to {max}")]
    PoolConfig {
        /// Which.
        field: &'static str,
        /// What was asked for.
        value: u64,
        /// The least allowed.
        min: u64,
        /// The most allowed.
        max: u64,
    },
    /// The authorities for outbound HTTPS cannot be used.
    #[error("the authorities for outbound HTTPS cannot be used: {0}")]
    OutboundCa(String),
    /// The platform's own interfaces do not link: a defect of this build.
    #[error("the platform's interfaces do not link: {0}")]
    Link(String),
}

/// A component could not be compiled.
#[derive(Debug, thiserror::Error)]
pub enum CompileError {
    /// The bytes are not what the digest names.
    #[error("the component's bytes hash to {actual}, not to {expected}")]
    WrongDigest {
        /// What was asked for.
        expected: Digest,
        /// What is there.
        actual: Digest,
    },
    /// The component cannot be read.
    #[error("the component cannot be read")]
    Read(#[source] io::Error),
    /// The bytes are not a component that compiles.
    #[error("not a component that compiles: {0}")]
    Rejected(String),
    /// The compilation took too long.
    #[error("the compilation reached its limit compile_time ({timeout_ms} ms)")]
    TimedOut {
        /// The limit.
        timeout_ms: u64,
    },
    /// The compiler ended without an answer: by a signal, as when its memory limit fires.
    #[error("the compiler ended by {how}; most likely its limit compile_memory ({memory}) was reached")]
    Killed {
        /// Signal or status.
        how: String,
        /// The limit on its memory.
        memory: marcato_api::Bytes,
    },
    /// The compiler could not be started or talked to.
    #[error("the compiler process failed")]
    Process(#[source] io::Error),
    /// The code cannot be written to the cache.
    #[error("compiled code cannot be stored")]
    Store(#[source] io::Error),
}

/// Compiled code could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// It is not in the cache: compile first.
    #[error("{0} is not compiled on this host")]
    NotCompiled(Digest),
    /// The file was changed by somebody, or is not from this cache. It was removed; compile again.
    #[error("the compiled code of {digest} is refused: {reason}")]
    Tampered {
        /// Whose code.
        digest: Digest,
        /// What is wrong with the file.
        reason: &'static str,
    },
    /// The file cannot be read.
    #[error("compiled code cannot be read")]
    Read(#[source] io::Error),
    /// The component imports something that the platform does not have.
    #[error("the component imports {import}, which this platform does not offer ({detail})")]
    MissingImport {
        /// The interface.
        import: String,
        /// Why, in wasmtime's words.
        detail: String,
    },
    /// The component exports no HTTP handler, and is no command.
    #[error(
        "the component exports no HTTP handler: expected wasi:http/handler@0.3, wasi:http/incoming-handler@0.2, or \
         wasi:cli/run for a CGI command"
    )]
    NoHandler,
    /// The component does not link for another reason.
    #[error("the component does not link: {0}")]
    Link(String),
}

/// An instance could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A setting is out of its range.
    #[error("the revision's configuration is not valid")]
    Config(#[from] LimitsError),
    /// An outbound host pattern is not valid.
    #[error("allowed_outbound_hosts: {0:?} is not host, host:port or *.host")]
    OutboundPattern(String),
}

/// A request was not answered by the guest.
#[derive(Debug, thiserror::Error)]
#[error("{}: {detail}", kind.title())]
pub struct InvokeError {
    /// What kind; gives the status.
    pub kind: ProblemKind,
    /// No guest code ran: the request may go to another instance.
    pub not_started: bool,
    /// For the app's owner: names the limit and its value, as the app's log does. A client is told no more than the
    /// kind.
    pub detail: String,
    /// For the app's owner: the limit that fired.
    pub limit: Option<FiredLimit>,
    /// For the app's owner: what the guest or its sandbox said; see [`InvokeError::reason_lines`].
    pub reason: Option<Box<str>>,
}

/// A limit that fired.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FiredLimit {
    /// As docs/limits.md names it.
    pub name: &'static str,
    /// What it is; the unit is the end of its name. `None` for those that are no number.
    pub value: Option<u64>,
    /// What was used or asked for, where that is known and the app's own.
    pub used: Option<u64>,
}

/// Lines of a trap's explanation that are told.
const REASON_LINES: usize = 16;

impl InvokeError {
    /// One from before any guest code ran.
    pub fn not_started(kind: ProblemKind, detail: impl Into<String>) -> Self {
        Self { kind, not_started: true, detail: detail.into(), limit: None, reason: None }
    }

    /// What the guest or its sandbox said, as the app's log has it: at most 16 lines, none of them blank.
    pub fn reason_lines(&self) -> impl Iterator<Item = &str> {
        told(self.reason.as_deref().unwrap_or_default())
    }
}

/// The lines of a reason that are told.
pub(crate) fn told(reason: &str) -> impl Iterator<Item = &str> {
    reason.lines().filter(|line| !line.trim().is_empty()).take(REASON_LINES)
}
