//! `hosts`: the fleet, and tokens for new hosts.

use anyhow::Result;
use clap::Subcommand;
use marcato_api::{AdminApi, HostState};

use crate::output::{Output, dash, time};

/// Show hosts, or make a join token
#[derive(Debug, Subcommand)]
pub(crate) enum HostsCommand {
    /// Show all hosts
    List,
    /// Make a token that lets one host join once
    Token,
}

pub(crate) async fn run(command: Option<HostsCommand>, out: Output) -> Result<()> {
    let client = crate::login::client()?;
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
            let state = match h.state {
                HostState::Up => "up",
                HostState::Suspected => "suspected",
                HostState::Unknown => "unknown",
            };
            let memory = match (h.used, h.capacity) {
                (Some(used), Some(has)) => format!("{} of {}", used.sandbox_bytes, has.memory_bytes),
                _ => "-".into(),
            };
            vec![
                h.id.to_string(),
                state.into(),
                if h.zone.is_empty() { "-".into() } else { h.zone },
                h.instances.to_string(),
                memory,
                dash(h.generation),
                dash(h.version),
                dash(h.last_seen.map(time)),
            ]
        })
        .collect();
    let head = ["HOST", "STATE", "ZONE", "INSTANCES", "MEMORY", "GENERATION", "VERSION", "SEEN"];
    out.table(&head, rows, "no hosts; next: marcato hosts token")
}
