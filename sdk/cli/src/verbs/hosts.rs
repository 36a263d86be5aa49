//! `hosts`: the fleet, and tokens for new hosts.

use anyhow::Result;
use clap::Subcommand;
use marcato_api::{AdminApi, HostDetail, HostId, HostState};

use crate::output::{Output, clean, dash, time};

/// Show hosts, or make a join token
#[derive(Debug, Subcommand)]
pub(crate) enum HostsCommand {
    /// Show all hosts
    List,
    /// Show a host, its worker processes, and what each could give up on that machine
    Show {
        /// Which host
        host: HostId,
    },
    /// Make a token that lets one host join once
    Token,
}

pub(crate) async fn run(command: Option<HostsCommand>, out: Output) -> Result<()> {
    let client = crate::login::client()?;
    if let Some(HostsCommand::Show { host }) = &command {
        let detail = client.get_host(host).await?;
        return if out.json { out.value(&detail) } else { show(out, &detail) };
    }
    if let Some(HostsCommand::Token) = command {
        let token = client.create_join_token().await?;
        if !out.json {
            out.note(format!("shown only now; valid once, until {}", time(token.expires_at)));
        }
        return out.done(&token, &token.token);
    }
    let page = client.list_hosts().await?;
    if out.json {
        return out.value(&page);
    }
    let rows = page
        .items
        .into_iter()
        .map(|h| {
            let memory = match (h.used, h.capacity) {
                (Some(used), Some(has)) => format!("{} of {}", used.sandbox_bytes, has.memory_bytes),
                _ => "-".into(),
            };
            vec![
                h.id.to_string(),
                state(h.state).into(),
                if h.zone.is_empty() { "-".into() } else { h.zone },
                h.instances.to_string(),
                h.workers.to_string(),
                confined(h.confined).into(),
                memory,
                dash(h.generation),
                dash(h.version),
                dash(h.last_seen.map(time)),
            ]
        })
        .collect();
    let head = ["HOST", "STATE", "ZONE", "INSTANCES", "WORKERS", "CONFINED", "MEMORY", "GENERATION", "VERSION", "SEEN"];
    out.table(&head, rows, "no hosts; next: marcato hosts token")
}

const fn state(state: HostState) -> &'static str {
    match state {
        HostState::Up => "up",
        HostState::Suspected => "suspected",
        HostState::Unknown => "unknown",
    }
}

const fn confined(confined: Option<bool>) -> &'static str {
    match confined {
        Some(true) => "full",
        Some(false) => "partial",
        None => "-",
    }
}

fn show(out: Output, detail: &HostDetail) -> Result<()> {
    let h = &detail.host;
    let seen = h.last_seen.map_or_else(|| "never seen".to_owned(), |at| format!("seen {}", time(at)));
    let version = dash(h.version.as_ref());
    out.line(format!("{}: {}, {seen}, {} instances, version {version}", h.id, state(h.state), h.instances))?;
    out.line(format!("  control {}, ingress {}", h.control, h.ingress))?;
    if let Some(error) = &detail.error {
        out.line(format!("  ! {}", clean(error)))?;
    }
    let rows = detail
        .worker_list
        .iter()
        .map(|w| {
            vec![
                w.name.clone(),
                w.class.to_string(),
                dash(w.pid),
                w.resident_bytes.to_string(),
                w.restarts.to_string(),
                confined(Some(w.confinement.is_full())).into(),
            ]
        })
        .collect();
    out.table(&["WORKER", "CLASS", "PID", "MEMORY", "RESTARTS", "CONFINED"], rows, "no worker processes")?;
    // The same is missing for every worker of a machine, mostly: each reason is said once.
    let mut said = Vec::new();
    for missing in detail.worker_list.iter().flat_map(|w| w.confinement.missing()) {
        let line = format!("  without {}: {}", missing.measure, clean(&missing.detail));
        if !said.contains(&line) {
            out.line(&line)?;
            said.push(line);
        }
    }
    Ok(())
}
