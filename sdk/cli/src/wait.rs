//! Waiting until an app is as asked: one poller for push, scale, start, stop, restart, env, bind and rollback.
//!
//! Acts on the state it reads, never on the order of events. A control plane that is away for a moment
//! (a restart) is waited for, within the same bound.

use std::time::Duration;

use anyhow::Result;
use marcato_api::{AdminApi, AppName, AppState, AppStatus, InstancePhase, ProblemKind, RevisionNumber, RevisionPhase};
use tokio::time::Instant;

use crate::failure::{Code, Failure};
use crate::output::Output;

const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_millis(250);

/// Flags of every verb that waits.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct WaitArgs {
    /// Return as soon as the change is accepted, without waiting for it to take effect
    #[arg(long)]
    pub(crate) no_wait: bool,
    /// How long to wait, such as 90s or 5m
    #[arg(long, default_value = "120s", value_name = "TIME", value_parser = parse_timeout)]
    pub(crate) timeout: Duration,
}

fn parse_timeout(text: &str) -> Result<Duration, String> {
    text.parse::<crate::manifest::Interval>().map(|i| i.0.into())
}

/// Polls the app's status until `done` says so.
async fn until(
    client: &impl AdminApi,
    app: &AppName,
    timeout: Duration,
    mut done: impl FnMut(&AppStatus) -> Result<bool>,
) -> Result<AppStatus> {
    let started = Instant::now();
    let mut pause = FIRST_PAUSE;
    let mut last: Option<AppStatus> = None;
    loop {
        match client.app_status(app).await {
            Ok(status) if done(&status)? => return Ok(status),
            Ok(status) => last = Some(status),
            Err(problem) if problem.kind == ProblemKind::Unavailable && last.is_some() => {}
            Err(problem) => return Err(problem.into()),
        }
        if started.elapsed() + pause > timeout {
            return Err(late(app, timeout, last.as_ref()));
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 3 / 2).min(LONGEST_PAUSE);
    }
}

/// What is known when the time is over.
fn late(app: &AppName, timeout: Duration, last: Option<&AppStatus>) -> anyhow::Error {
    let mut known = Vec::new();
    if let Some(status) = last {
        let ready = status.instances.iter().filter(|i| i.phase == InstancePhase::Ready).count();
        known.push(format!("{ready} of {} instances are ready", status.app.instances));
        known.extend(status.notes.iter().cloned());
        known.extend(status.instances.iter().filter_map(|i| i.reason.as_ref().map(|r| format!("{}: {r}", i.id))));
    }
    let known = if known.is_empty() { String::new() } else { format!(": {}", known.join("; ")) };
    Failure::new(Code::Unavailable, format!("{app} is not there after {} s{known}", timeout.as_secs()))
        .next(format!("marcato app show {app}, marcato logs {app}"))
        .into()
}

/// Waits until a revision answers with all its instances. `failed` is the exit code when it cannot.
/// Does not wait for an app that is stopped or scaled to none.
pub(crate) async fn for_revision(
    client: &impl AdminApi,
    out: Output,
    app: &AppName,
    number: RevisionNumber,
    timeout: Duration,
    failed: Code,
) -> Result<AppStatus> {
    let bar = out.spinner(format!("revision {number} of {app} starts"));
    let outcome = until(client, app, timeout, |status| {
        if status.app.current != Some(number) {
            let other = status.app.current.map_or_else(|| "none".to_owned(), |n| n.to_string());
            return Err(Failure::new(
                Code::Conflict,
                format!("revision {other} of {app} took over while {number} was starting"),
            )
            .next(format!("marcato revisions {app}"))
            .into());
        }
        if status.app.state == AppState::Stopped || status.app.instances == 0 {
            return Ok(true);
        }
        let Some(revision) = status.revision.as_ref().filter(|r| r.number == number) else { return Ok(false) };
        match revision.phase {
            RevisionPhase::Serving => Ok(true),
            RevisionPhase::Failed => {
                let reason = revision.failure.clone().unwrap_or_else(|| "no reason was given".into());
                let rest = match status.app.stable {
                    Some(stable) => format!("; revision {stable} goes on serving"),
                    None => String::new(),
                };
                Err(Failure::new(failed, format!("revision {number} of {app} failed: {reason}{rest}"))
                    .next(format!("marcato logs {app}"))
                    .into())
            }
            RevisionPhase::Rolling | RevisionPhase::Superseded => Ok(false),
        }
    })
    .await;
    bar.finish_and_clear();
    outcome
}

/// Waits until as many instances of the current revision are ready as the app wants, and none of `gone` is left.
pub(crate) async fn for_instances(
    client: &impl AdminApi,
    out: Output,
    app: &AppName,
    timeout: Duration,
    gone: &[marcato_api::InstanceId],
) -> Result<AppStatus> {
    let bar = out.spinner(format!("{app} settles"));
    let outcome = until(client, app, timeout, |status| {
        if status.app.current.is_none() {
            return Ok(true);
        }
        let wanted = if status.app.state == AppState::Stopped { 0 } else { status.app.instances as usize };
        let ready = status.instances.iter().filter(|i| i.phase == InstancePhase::Ready);
        // A failed roll-out leaves the stable revision serving; its instances count as well.
        let current = ready.filter(|i| Some(i.revision) == status.app.current || Some(i.revision) == status.app.stable);
        let old = status.instances.iter().any(|i| gone.contains(&i.id) && i.phase != InstancePhase::Draining);
        bar.set_message(format!("{app} settles: {} of {wanted} ready", current.clone().count()));
        Ok(current.count() == wanted && !old)
    })
    .await;
    bar.finish_and_clear();
    outcome
}
