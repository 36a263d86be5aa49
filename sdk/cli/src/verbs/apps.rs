//! `apps`, `app show`, `app debug`, and what changes an app without a new revision: scale, start, stop, restart, delete.

use anyhow::Result;
use clap::{Args, Subcommand};
use marcato_api::{
    AdminApi, AppLimits, AppName, AppState, AppStatus, AppUpdate, InstancePhase, LimitScope, LimitSource, PageOf,
    RevisionConfig, RevisionPhase, amount,
};
use marcato_client::AdminClient;

use crate::output::{Output, clean, confirm, dash, time};
use crate::wait::{self, WaitArgs};

/// Verbs on one app
#[derive(Debug, Subcommand)]
pub(crate) enum AppCommand {
    /// Show what is wanted beside what is
    Show {
        /// Which app
        app: AppName,
        /// Every budget: its limit, who set it, how far it is used, how often it fired
        #[arg(long)]
        limits: bool,
    },
    Debug(super::debug::DebugArgs),
}

/// An app, and whether to wait.
#[derive(Debug, Args)]
pub(crate) struct AppArgs {
    /// Which app
    app: AppName,
    #[command(flatten)]
    wait: WaitArgs,
}

/// Change the number of instances
#[derive(Debug, Args)]
pub(crate) struct ScaleArgs {
    /// Which app
    app: AppName,
    /// How many instances (0 to 100)
    #[arg(value_parser = clap::value_parser!(u32).range(0..=100))]
    instances: u32,
    #[command(flatten)]
    wait: WaitArgs,
}

/// Delete an app with its revisions and routes; services stay
#[derive(Debug, Args)]
pub(crate) struct DeleteArgs {
    /// Which app
    app: AppName,
    /// Do not ask
    #[arg(long, short)]
    yes: bool,
}

pub(crate) async fn list(out: Output) -> Result<()> {
    let client = crate::login::client()?;
    let items = super::all(usize::MAX, |after, limit| client.list_apps(after, limit)).await?;
    if out.json {
        return out.value(&PageOf { items, next: None });
    }
    let rows = items
        .into_iter()
        .map(|a| {
            vec![
                a.app.name.to_string(),
                state(a.app.state).into(),
                format!("{}/{}", a.ready, a.app.instances),
                dash(a.app.current),
                a.app.routes.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
                time(a.app.updated_at),
            ]
        })
        .collect();
    out.table(&["APP", "STATE", "READY", "REVISION", "ROUTES", "CHANGED"], rows, "no apps; next: marcato push")
}

pub(crate) async fn run(command: AppCommand, out: Output) -> Result<()> {
    match command {
        AppCommand::Show { app, limits } => show(app, limits, out).await,
        AppCommand::Debug(args) => super::debug::run(args, out).await,
    }
}

async fn show(app: AppName, limits: bool, out: Output) -> Result<()> {
    if limits {
        let limits = crate::login::client()?.app_limits(&app).await?;
        return if out.json { out.value(&limits) } else { print_limits(out, &limits) };
    }
    let status = crate::login::client()?.app_status(&app).await?;
    if out.json { out.value(&status) } else { print(out, &status) }
}

fn print(out: Output, status: &AppStatus) -> Result<()> {
    let app = &status.app;
    let ready = status.instances.iter().filter(|i| i.phase == InstancePhase::Ready).count();
    out.line(format!(
        "{} ({}/{}): {}, {ready} of {} ready",
        app.name,
        app.org,
        app.space,
        state(app.state),
        app.instances
    ))?;
    for url in &status.urls {
        out.line(format!("  {}", clean(url)))?;
    }
    for note in &status.notes {
        out.line(format!("  ! {}", clean(note)))?;
    }
    if let Some(revision) = &status.revision {
        out.line(format!(
            "revision {} {}: {} ({}), {} by {} at {}",
            revision.number,
            phase(revision.phase),
            revision.digest.short(),
            revision.size,
            clean(&revision.reason),
            clean(&revision.created_by),
            time(revision.created_at)
        ))?;
        if let Some(failure) = &revision.failure {
            out.line(format!("  failed: {}", clean(failure)))?;
        }
        print_config(out, &revision.config)?;
    }
    let rows = status
        .instances
        .iter()
        .map(|i| {
            vec![
                i.id.to_string(),
                i.host.to_string(),
                i.revision.to_string(),
                instance_phase(i.phase).into(),
                i.in_flight.to_string(),
                i.reason.clone().unwrap_or_default(),
            ]
        })
        .collect();
    out.table(&["INSTANCE", "HOST", "REVISION", "STATE", "IN FLIGHT", ""], rows, "no instances")
}

fn print_limits(out: Output, limits: &AppLimits) -> Result<()> {
    let set_by = limits.isolation_set_by.as_ref().map_or_else(|| "default".to_owned(), ToString::to_string);
    let group = &limits.isolation.group;
    let group = if group.is_empty() { String::new() } else { format!(", group {}", clean(group)) };
    out.line(format!(
        "{} revision {}: isolation {}{group} ({set_by}); {} instances tell",
        limits.app,
        dash(limits.revision),
        limits.isolation.class,
        limits.instances
    ))?;
    let rows = limits.items.iter().map(|l| {
        let number = |n: u64| if n == 0 { "-".to_owned() } else { amount(&l.name, n) };
        let source = match (&l.set_by, &l.policy) {
            (LimitSource::Default, _) => "default".to_owned(),
            (LimitSource::Manifest, _) => "manifest".to_owned(),
            (LimitSource::Platform, _) => "platform".to_owned(),
            (LimitSource::Policy, scope) => scope.as_ref().map_or_else(|| "policy".to_owned(), ToString::to_string),
        };
        vec![
            l.name.clone(),
            scope(l.scope).into(),
            dash(l.limit.map(|n| amount(&l.name, n))),
            source,
            dash(l.quota.map(|n| amount(&l.name, n))),
            number(l.used),
            number(l.peak),
            l.fired.to_string(),
        ]
    });
    let head = ["LIMIT", "OVER", "VALUE", "SET BY", "QUOTA", "USED", "PEAK", "FIRED"];
    out.table(&head, rows.collect(), "no limits")
}

const fn scope(scope: LimitScope) -> &'static str {
    match scope {
        LimitScope::Call => "call",
        LimitScope::Request => "request",
        LimitScope::Sandbox => "sandbox",
        LimitScope::Instance => "instance",
        LimitScope::App => "app on host",
        LimitScope::Host => "host",
    }
}

fn print_config(out: Output, c: &RevisionConfig) -> Result<()> {
    let l = &c.limits;
    out.line(format!("  concurrency {}, queue {} (up to {})", c.concurrency, c.queue, c.queue_timeout_ms))?;
    out.line(format!(
        "  limits: memory {} (instance {}), time {}, cpu {}, request {}, response {}",
        l.memory_bytes, l.instance_memory_bytes, l.time_ms, l.cpu_ms, l.request_body_bytes, l.response_body_bytes
    ))?;
    out.line(if c.reuse.max_requests == 1 {
        "  sandbox: a fresh one for every request".to_owned()
    } else {
        format!("  sandbox: up to {} requests, {} at once", c.reuse.max_requests, c.reuse.concurrent)
    })?;
    if !c.env.is_empty() {
        out.line(format!("  env: {}", c.env.keys().map(|k| clean(k)).collect::<Vec<_>>().join(", ")))?;
    }
    for binding in &c.bindings {
        out.line(format!("  binding {} -> {}", clean(&binding.name), binding.service))?;
    }
    if !c.allowed_outbound_hosts.is_empty() {
        out.line(format!("  outbound: {}", clean(&c.allowed_outbound_hosts.join(", "))))?;
    }
    Ok(())
}

/// Sends an update and waits until the instances are as wanted.
async fn update(
    out: Output,
    app: &AppName,
    update: AppUpdate,
    wait_args: &WaitArgs,
    sentence: impl Fn(&AppStatus) -> String,
) -> Result<()> {
    let client = crate::login::client()?;
    let gone = if update.restart == Some(true) { instances(&client, app).await? } else { Vec::new() };
    client.update_app(app, update, None).await?;
    let status = if wait_args.no_wait {
        client.app_status(app).await?
    } else {
        wait::for_instances(&client, out, app, wait_args.timeout, &gone).await?
    };
    out.done(&status, sentence(&status))
}

async fn instances(client: &AdminClient, app: &AppName) -> Result<Vec<marcato_api::InstanceId>> {
    Ok(client.app_status(app).await?.instances.into_iter().map(|i| i.id).collect())
}

pub(crate) async fn scale(args: ScaleArgs, out: Output) -> Result<()> {
    let wanted = AppUpdate { instances: Some(args.instances), ..AppUpdate::default() };
    update(out, &args.app, wanted, &args.wait, |s| format!("{} has {} instances", s.app.name, s.app.instances)).await
}

pub(crate) async fn start(args: AppArgs, out: Output) -> Result<()> {
    let wanted = AppUpdate { state: Some(AppState::Started), ..AppUpdate::default() };
    update(out, &args.app, wanted, &args.wait, |s| format!("{} is started", s.app.name)).await
}

pub(crate) async fn stop(args: AppArgs, out: Output) -> Result<()> {
    let wanted = AppUpdate { state: Some(AppState::Stopped), ..AppUpdate::default() };
    update(out, &args.app, wanted, &args.wait, |s| format!("{} is stopped", s.app.name)).await
}

pub(crate) async fn restart(args: AppArgs, out: Output) -> Result<()> {
    let wanted = AppUpdate { restart: Some(true), ..AppUpdate::default() };
    update(out, &args.app, wanted, &args.wait, |s| format!("{} was restarted", s.app.name)).await
}

pub(crate) async fn delete(args: DeleteArgs, out: Output) -> Result<()> {
    let client = crate::login::client()?;
    // A wrong name is told before the question.
    client.get_app(&args.app).await?;
    confirm(&format!("Delete {} with its revisions and routes?", args.app), args.yes)?;
    client.delete_app(&args.app, None).await?;
    out.done(&serde_json::json!({ "deleted": args.app }), format!("{} is deleted", args.app))
}

pub(super) fn state(state: AppState) -> &'static str {
    match state {
        AppState::Started => "started",
        AppState::Stopped => "stopped",
    }
}

pub(super) fn phase(phase: RevisionPhase) -> &'static str {
    match phase {
        RevisionPhase::Rolling => "rolling",
        RevisionPhase::Serving => "serving",
        RevisionPhase::Superseded => "superseded",
        RevisionPhase::Failed => "failed",
    }
}

fn instance_phase(phase: InstancePhase) -> &'static str {
    match phase {
        InstancePhase::Pending => "pending",
        InstancePhase::Ready => "ready",
        InstancePhase::Draining => "draining",
        InstancePhase::Failed => "failed",
    }
}
