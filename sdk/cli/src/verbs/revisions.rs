//! `revisions` and `rollback`, and waiting for a revision that a change made.

use anyhow::Result;
use clap::Args;
use marcato_api::{AdminApi, AppName, AppUpdate, NewRevision, PageOf, Revision, RevisionNumber, RevisionPhase};
use marcato_client::AdminClient;

use crate::failure::{Code, Failure};
use crate::output::{Output, time};
use crate::verbs::apps::phase;
use crate::wait::{self, WaitArgs};

/// Show an app's revisions, newest first
#[derive(Debug, Args)]
pub(crate) struct RevisionsArgs {
    /// Which app
    app: AppName,
    /// At most this many
    #[arg(long, default_value_t = 20)]
    limit: u32,
}

/// Serve an earlier revision again
#[derive(Debug, Args)]
pub(crate) struct RollbackArgs {
    /// Which app
    app: AppName,
    /// Which revision; absent: the newest before the current one that did not fail
    revision: Option<u64>,
    #[command(flatten)]
    wait: WaitArgs,
}

pub(crate) async fn list(args: RevisionsArgs, out: Output) -> Result<()> {
    let client = crate::login::client()?;
    let items = super::all(args.limit as usize, |after, limit| client.list_revisions(&args.app, after, limit)).await?;
    if out.json {
        return out.value(&PageOf { items, next: None });
    }
    let current = client.get_app(&args.app).await?.value.current;
    let rows = items
        .into_iter()
        .map(|r| {
            vec![
                format!("{}{}", r.number, if Some(r.number) == current { " *" } else { "" }),
                phase(r.phase).into(),
                r.digest.short().into(),
                r.size.to_string(),
                r.reason,
                r.created_by,
                time(r.created_at),
                r.failure.unwrap_or_default(),
            ]
        })
        .collect();
    let head = ["REVISION", "STATE", "COMPONENT", "SIZE", "REASON", "BY", "MADE", ""];
    out.table(&head, rows, "no revisions; next: marcato push")
}

pub(crate) async fn rollback(args: RollbackArgs, out: Output) -> Result<()> {
    let client = crate::login::client()?;
    let app = client.get_app(&args.app).await?;
    let number = match args.revision {
        Some(number) => RevisionNumber(number),
        None => earlier(&client, &args.app, app.value.current).await?,
    };
    let update = AppUpdate { current: Some(number), ..AppUpdate::default() };
    client.update_app(&args.app, update, None).await?;
    settle(&client, out, &args.app, number, &args.wait, |n| format!("{} is back on revision {n}", args.app)).await
}

/// The newest revision below the current one that did not fail.
async fn earlier(client: &AdminClient, app: &AppName, current: Option<RevisionNumber>) -> Result<RevisionNumber> {
    let revisions = super::all(1000, |after, limit| client.list_revisions(app, after, limit)).await?;
    let fits = |r: &&Revision| Some(r.number) < current && r.phase != RevisionPhase::Failed;
    let found = revisions.iter().filter(fits).map(|r| r.number).max();
    found.ok_or_else(|| {
        Failure::new(Code::NotFound, format!("{app} has no earlier revision that served"))
            .next(format!("marcato revisions {app}"))
            .into()
    })
}

/// Makes a revision out of the current one with changes, and waits until it serves.
pub(super) async fn change(
    out: Output,
    app: &AppName,
    new: NewRevision,
    wait_args: &WaitArgs,
    sentence: impl Fn(RevisionNumber) -> String,
) -> Result<()> {
    let client = crate::login::client()?;
    let revision = client.create_revision(app, new, None).await?;
    settle(&client, out, app, revision.number, wait_args, sentence).await
}

async fn settle(
    client: &AdminClient,
    out: Output,
    app: &AppName,
    number: RevisionNumber,
    wait_args: &WaitArgs,
    sentence: impl Fn(RevisionNumber) -> String,
) -> Result<()> {
    if !wait_args.no_wait {
        wait::for_revision(client, out, app, number, wait_args.timeout, Code::Failed).await?;
    }
    let revision = client.get_revision(app, number).await?;
    out.done(&revision, sentence(number))
}

/// A revision that takes everything from the current one.
pub(super) fn unchanged(reason: &str) -> NewRevision {
    NewRevision {
        digest: None,
        config: None,
        env: Default::default(),
        bind: Vec::new(),
        unbind: Vec::new(),
        reason: reason.to_owned(),
    }
}
