//! What ends a process that was to be confined.

use std::io;
use std::path::PathBuf;

/// The plan is wrong, or the process is half way in and must end.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfineError {
    /// Forking with threads loses them, and Landlock would not bind them.
    #[error("this process has {0} threads; it must be confined while it has one")]
    Threads(usize),
    /// Folders are named by absolute paths without `..`.
    #[error("{0}: a folder of a confined process is named by an absolute path without `..`")]
    BadPath(PathBuf),
    /// A folder that the plan names cannot be opened.
    #[error("cannot open {path}")]
    Open {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// No second process.
    #[error("cannot fork")]
    Fork(#[source] io::Error),
    /// A step that had begun could not be finished.
    #[error("cannot {step}")]
    Step {
        /// Which.
        step: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The process that waits for this one died before it was watched.
    #[error("the parent died")]
    Orphaned,
    /// The filter could not be built: a fault of its list.
    #[error("no filter of system calls can be made: {0}")]
    Filter(String),
}

/// Makes the error of a step.
pub(crate) fn step(step: &'static str) -> impl Fn(nix::Error) -> ConfineError {
    move |e| ConfineError::Step { step, source: e.into() }
}
