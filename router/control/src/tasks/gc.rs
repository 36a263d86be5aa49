//! Removes what nothing uses any more: components of no revision, join tokens long expired.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio_util::sync::CancellationToken;

use super::Shared;
use crate::state::StateResult;

const EVERY: Duration = Duration::from_secs(600);
/// A component may be uploaded well before the revision that uses it is made.
const GRACE: Duration = Duration::from_secs(3600);

pub(crate) async fn run(shared: Arc<Shared>, shutdown: CancellationToken) {
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(EVERY) => {}
        }
        if let Err(error) = collect(&shared).await {
            tracing::warn!(%error, "garbage cannot be collected; trying again later");
        }
    }
}

pub(crate) async fn collect(shared: &Shared) -> StateResult<()> {
    let (state, components) = (&shared.tasks.state, &shared.tasks.components);
    state.forget_join_tokens().await?;
    let limit = Timestamp::now() - GRACE;
    let used = state.used_digests().await?;
    for component in state.components().await? {
        if component.created_at > limit || used.contains(&component.digest) {
            continue;
        }
        state.forget_component(&component.digest).await?;
        if let Err(error) = components.remove(&component.digest).await {
            tracing::warn!(%error, digest = %component.digest, "an unused component stays on disk");
        }
    }
    Ok(())
}
