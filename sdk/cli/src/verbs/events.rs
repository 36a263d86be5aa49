//! `events`: who changed what, and what was refused.

use anyhow::Result;
use clap::Args;
use marcato_api::{AdminApi, Outcome, PageOf};

use crate::output::{Output, time};

/// Show the audit log, newest first
#[derive(Debug, Args)]
pub(crate) struct EventsArgs {
    /// At most this many
    #[arg(long, short = 'n', default_value_t = 50)]
    limit: u32,
}

pub(crate) async fn events(args: EventsArgs, out: Output) -> Result<()> {
    let client = crate::login::client()?;
    let items = super::all(args.limit as usize, |after, limit| client.list_events(after, limit)).await?;
    if out.json {
        return out.value(&PageOf { items, next: None });
    }
    let rows = items
        .into_iter()
        .map(|e| {
            let outcome = match e.outcome {
                Outcome::Ok => "ok",
                Outcome::Denied => "denied",
                Outcome::Failed => "failed",
            };
            vec![time(e.at), e.actor, e.action, e.target, outcome.into(), e.detail]
        })
        .collect();
    out.table(&["AT", "WHO", "WHAT", "ON", "OUTCOME", "DETAIL"], rows, "no events")
}
