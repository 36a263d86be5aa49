//! Exit codes, and how an error is shown: what happened, and which command to run next.
//!
//! | code | meaning |
//! |---|---|
//! | 0 | done |
//! | 1 | failed |
//! | 2 | usage: an argument is not valid |
//! | 3 | not logged in, or the token is not accepted |
//! | 4 | the token's role does not allow it |
//! | 5 | not found |
//! | 6 | conflict: it exists, is in use, or changed in the meantime |
//! | 7 | not available, or timed out: worth another try |
//! | 8 | a bad component or manifest |

use std::io;

use marcato_api::{Problem, ProblemKind};

use crate::component::ComponentError;
use crate::manifest::ManifestError;

/// The numbers that scripts see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Code {
    Failed = 1,
    Usage = 2,
    NotLoggedIn = 3,
    Forbidden = 4,
    NotFound = 5,
    Conflict = 6,
    Unavailable = 7,
    BadComponent = 8,
}

/// An error of the CLI's own, with its code and what to do next.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub(crate) struct Failure {
    code: Code,
    message: String,
    next: Option<String>,
}

impl Failure {
    pub(crate) fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), next: None }
    }

    /// Adds the command to run next.
    pub(crate) fn next(mut self, next: impl Into<String>) -> Self {
        self.next = Some(next.into());
        self
    }
}

/// What an error comes to.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Verdict {
    pub(crate) code: Code,
    pub(crate) message: String,
    pub(crate) next: Option<String>,
    /// The problem's kind, when a server said it.
    pub(crate) kind: Option<&'static str>,
}

fn code_of(kind: ProblemKind) -> Code {
    match kind {
        ProblemKind::Unauthenticated => Code::NotLoggedIn,
        ProblemKind::Forbidden => Code::Forbidden,
        ProblemKind::NotFound | ProblemKind::NoRoute => Code::NotFound,
        ProblemKind::Conflict | ProblemKind::PreconditionFailed | ProblemKind::StaleGeneration => Code::Conflict,
        ProblemKind::Unavailable
        | ProblemKind::RateLimited
        | ProblemKind::TimedOut
        | ProblemKind::BadGateway
        | ProblemKind::NoInstance
        | ProblemKind::QueueFull
        | ProblemKind::QueueTimeout
        | ProblemKind::MemoryExhausted
        | ProblemKind::InstanceGone
        | ProblemKind::AppStopped
        | ProblemKind::CpuExhausted => Code::Unavailable,
        ProblemKind::BadComponent | ProblemKind::DigestMismatch => Code::BadComponent,
        ProblemKind::Invalid | ProblemKind::TooLarge => Code::Usage,
        ProblemKind::BadRequest
        | ProblemKind::MethodNotAllowed
        | ProblemKind::UnsupportedMediaType
        | ProblemKind::GuestFailed
        | ProblemKind::Internal => Code::Failed,
    }
}

fn next_of(problem: &Problem) -> Option<String> {
    let text = match problem.kind {
        ProblemKind::Unauthenticated => "marcato login URL --token-file FILE",
        ProblemKind::Forbidden => "marcato whoami (shows the token's role)",
        ProblemKind::NotFound => "marcato apps (or services, hosts, tokens) lists what there is",
        ProblemKind::PreconditionFailed => "the same command again: it changed in the meantime",
        ProblemKind::Unavailable if problem.detail.contains("certificate") => {
            "marcato login URL (the server's authority is not the one that was pinned)"
        }
        ProblemKind::Unavailable => "marcato up (is it running?), or marcato login URL for another server",
        _ => return None,
    };
    Some(text.to_owned())
}

/// Sorts an error. `None`: the reader of our output went away, which is not an error.
pub(crate) fn judge(error: &anyhow::Error) -> Option<Verdict> {
    let message = error.chain().map(ToString::to_string).collect::<Vec<_>>().join(": ");
    let plain = |code| Verdict { code, message: message.clone(), next: None, kind: None };
    for cause in error.chain() {
        if let Some(failure) = cause.downcast_ref::<Failure>() {
            return Some(Verdict { next: failure.next.clone(), ..plain(failure.code) });
        }
        if let Some(problem) = cause.downcast_ref::<Problem>() {
            return Some(Verdict {
                next: next_of(problem),
                kind: Some(problem.kind.slug()),
                ..plain(code_of(problem.kind))
            });
        }
        if cause.is::<ComponentError>() {
            return Some(plain(Code::BadComponent));
        }
        if cause.is::<ManifestError>() {
            return Some(Verdict {
                next: Some("marcato manifest schema (for your editor), or docs/manifest.md".into()),
                ..plain(Code::BadComponent)
            });
        }
        if cause.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe) {
            return None;
        }
    }
    Some(plain(Code::Failed))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_problem_has_a_code_and_the_documented_ones_are_kept() {
        let code = |kind| judge(&Problem::new(kind, "x").into()).unwrap().code as u8;
        for (kind, expected) in [
            (ProblemKind::Internal, 1),
            (ProblemKind::Invalid, 2),
            (ProblemKind::Unauthenticated, 3),
            (ProblemKind::Forbidden, 4),
            (ProblemKind::NotFound, 5),
            (ProblemKind::Conflict, 6),
            (ProblemKind::PreconditionFailed, 6),
            (ProblemKind::Unavailable, 7),
            (ProblemKind::TimedOut, 7),
            (ProblemKind::BadComponent, 8),
        ] {
            assert_eq!(code(kind), expected, "{kind:?}");
        }
        for kind in ProblemKind::ALL {
            assert!((1..=8).contains(&code(*kind)));
        }
    }

    #[test]
    fn context_keeps_the_code_and_a_closed_pipe_is_no_error() {
        let wrapped = anyhow::Error::from(Problem::new(ProblemKind::NotFound, "no app x")).context("cannot scale");
        let verdict = judge(&wrapped).unwrap();
        assert_eq!(verdict.code, Code::NotFound);
        assert!(verdict.message.contains("cannot scale") && verdict.message.contains("no app x"));
        let pipe = anyhow::Error::from(io::Error::from(io::ErrorKind::BrokenPipe)).context("cannot write");
        assert_eq!(judge(&pipe), None);
        let own = anyhow::Error::from(Failure::new(Code::Conflict, "m").next("n"));
        assert_eq!(judge(&own).unwrap().next.as_deref(), Some("n"));
        assert_eq!(judge(&anyhow::anyhow!("x")).unwrap().code, Code::Failed);
    }
}
