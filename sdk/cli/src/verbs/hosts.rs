//! `hosts`: the fleet, and tokens for new hosts.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::Result;
use clap::Subcommand;
use marcato_api::{AdminApi, HostDetail, HostDuty, HostId, HostRemoval, HostState, HostUpdate, HostView};
use marcato_client::AdminClient;

use crate::output::{Output, clean, dash, time};
use crate::wait::WaitArgs;

/// How often a host that drains is looked at.
const POLL: Duration = Duration::from_millis(300);

/// Show hosts, let them in, empty them, take them out
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
    /// Let nothing new come to a host; what it has stays
    Cordon {
        /// Which host
        host: HostId,
    },
    /// Let instances come to a host again, after cordon or drain
    Uncordon {
        /// Which host
        host: HostId,
    },
    /// Move everything from a host, and wait until it is empty; no request fails
    Drain {
        /// Which host
        host: HostId,
        #[command(flatten)]
        wait: WaitArgs,
    },
    /// Take a host out of the fleet; its certificate is good for nothing any more
    Remove {
        /// Which host
        host: HostId,
        /// Also where it has instances, which are placed elsewhere, or services' data, which is then out of reach
        #[arg(long)]
        force: bool,
    },
    /// Set or remove labels of a host, by which apps choose: disk=ssd sets one, disk- removes it
    Label {
        /// Which host
        host: HostId,
        /// NAME=VALUE or NAME-
        #[arg(required = true, value_name = "LABEL", value_parser = label)]
        labels: Vec<Label>,
    },
}

/// A change of one label.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Label {
    name: String,
    /// `None`: it goes.
    value: Option<String>,
}

fn label(text: &str) -> Result<Label, String> {
    let (name, value) = match (text.split_once('='), text.strip_suffix('-')) {
        (Some((name, value)), _) => (name, Some(value.to_owned())),
        (None, Some(name)) => (name, None),
        (None, None) => ("", None),
    };
    if name.is_empty() { Err("expected NAME=VALUE or NAME-".into()) } else { Ok(Label { name: name.into(), value }) }
}

pub(crate) async fn run(command: Option<HostsCommand>, out: Output) -> Result<()> {
    let client = crate::login::client()?;
    match command {
        None | Some(HostsCommand::List) => list(&client, out).await,
        Some(HostsCommand::Show { host }) => {
            let detail = client.get_host(&host).await?;
            if out.json { out.value(&detail) } else { show(out, &detail) }
        }
        Some(HostsCommand::Token) => {
            let token = client.create_join_token().await?;
            if !out.json {
                out.note(format!("shown only now; valid once, until {}", time(token.expires_at)));
            }
            out.done(&token, &token.token)
        }
        Some(HostsCommand::Cordon { host }) => {
            let view = set(&client, &host, HostDuty::Cordoned).await?;
            out.done(&view, format!("{host} is cordoned: its {} instances stay, nothing new comes", view.placed))
        }
        Some(HostsCommand::Uncordon { host }) => {
            let view = set(&client, &host, HostDuty::Active).await?;
            out.done(&view, format!("{host} takes instances"))
        }
        Some(HostsCommand::Drain { host, wait }) => drain(&client, &host, &wait, out).await,
        Some(HostsCommand::Remove { host, force }) => {
            client.remove_host(&host, HostRemoval { force }).await?;
            out.done(&serde_json::json!({ "removed": host }), format!("{host} is removed; stop its daemon"))
        }
        Some(HostsCommand::Label { host, labels }) => {
            let mut now = client.get_host(&host).await?.host.labels;
            for Label { name, value } in labels {
                match value {
                    Some(value) => drop(now.insert(name, value)),
                    None => drop(now.remove(&name)),
                }
            }
            let update = HostUpdate { labels: Some(now), ..HostUpdate::default() };
            let view = client.update_host(&host, update).await?;
            out.done(&view, format!("{host}: {}", labels_text(&view.labels)))
        }
    }
}

async fn set(client: &AdminClient, host: &HostId, duty: HostDuty) -> Result<HostView> {
    Ok(client.update_host(host, HostUpdate { duty: Some(duty), ..HostUpdate::default() }).await?)
}

/// Progress goes to standard error. What does not go in time is named by the apps' own status.
async fn drain(client: &AdminClient, host: &HostId, wait: &WaitArgs, out: Output) -> Result<()> {
    let mut view = set(client, host, HostDuty::Draining).await?;
    let until = Instant::now() + wait.timeout;
    // What the planner makes of it is seen a moment later.
    let mut quiet = 0;
    let mut said = None;
    while !wait.no_wait && quiet < 2 {
        if said != Some(view.placed) && !out.json {
            out.note(format!("{host}: {} instances to go", view.placed));
            said = Some(view.placed);
        }
        anyhow::ensure!(
            Instant::now() < until,
            "{host} still has {} instances; it goes on draining. next: marcato apps, and marcato app show APP says what is in the way",
            view.placed
        );
        tokio::time::sleep(POLL).await;
        view = client.get_host(host).await?.host;
        quiet = if view.placed == 0 { quiet + 1 } else { 0 };
    }
    let left =
        if view.placed == 0 { "is empty".to_owned() } else { format!("drains: {} instances to go", view.placed) };
    out.done(&view, format!("{host} {left}; next: marcato hosts remove {host}, or marcato hosts uncordon {host}"))
}

fn labels_text(labels: &BTreeMap<String, String>) -> String {
    if labels.is_empty() {
        return "no labels".into();
    }
    labels.iter().map(|(name, value)| clean(&format!("{name}={value}")).to_string()).collect::<Vec<_>>().join(" ")
}

async fn list(client: &AdminClient, out: Output) -> Result<()> {
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
                standing(&h),
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

/// State and duty in one word or two.
fn standing(host: &HostView) -> String {
    let duty = match host.duty {
        HostDuty::Active => host.held_until.map_or("", |_| ", flapping"),
        HostDuty::Cordoned => ", cordoned",
        HostDuty::Draining => ", draining",
    };
    format!("{}{duty}", state(host.state))
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
    out.line(format!("{}: {}, {seen}, {} instances, version {version}", h.id, standing(h), h.instances))?;
    out.line(format!("  control {}, ingress {}", h.control, h.ingress))?;
    let zone = if h.zone.is_empty() { "none" } else { &h.zone };
    out.line(format!("  zone {}, {}", clean(zone), labels_text(&h.labels)))?;
    if let Some(until) = h.held_until {
        out.line(format!(
            "  ! it fell silent again and again: the last choice for new instances until {}",
            time(until)
        ))?;
    }
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
