//! SIGTERM and SIGINT: the first asks for a drain, the second ends it at once.

use anyhow::{Context as _, Result};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Both signals as one stream.
pub(crate) struct Stop {
    term: Signal,
    int: Signal,
}

impl Stop {
    /// Starts to listen; from here on the signals no longer end the process by themselves.
    pub(crate) fn listen() -> Result<Self> {
        let listen = |kind| signal(kind).context("signals cannot be listened for");
        Ok(Self { term: listen(SignalKind::terminate())?, int: listen(SignalKind::interrupt())? })
    }

    /// The next one.
    pub(crate) async fn next(&mut self) {
        tokio::select! {
            _ = self.term.recv() => {}
            _ = self.int.recv() => {}
        }
    }
}

/// Runs a server: its token is cancelled by the first signal; the second ends the process.
pub(crate) async fn until_stopped<F, T, E>(server: impl FnOnce(CancellationToken) -> F) -> Result<T>
where
    F: Future<Output = Result<T, E>>,
    E: std::error::Error + Send + Sync + 'static,
{
    let mut stop = Stop::listen()?;
    let shutdown = CancellationToken::new();
    let mut running = std::pin::pin!(server(shutdown.clone()));
    tokio::select! {
        ended = &mut running => return Ok(ended?),
        () = stop.next() => shutdown.cancel(),
    }
    tokio::select! {
        ended = &mut running => Ok(ended?),
        () = stop.next() => {
            tracing::warn!("second signal: not waiting for what is in flight");
            std::process::exit(130);
        }
    }
}
