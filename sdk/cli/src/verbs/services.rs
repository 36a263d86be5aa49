//! `services`, `bind`, `unbind`: what an app may use beyond compute.

use std::io::{IsTerminal, Write};
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use clap::{Args, Subcommand};
use marcato_api::{AdminApi, AppName, Binding, Bytes, NewService, OrgName, ServiceKind, ServiceName, SpaceName};

use super::revisions::{change, unchanged};
use crate::failure::{Code, Failure};
use crate::output::{Output, confirm, dash};
use crate::wait::WaitArgs;

/// Show, make, delete, back up and restore services
#[derive(Debug, Subcommand)]
pub(crate) enum ServicesCommand {
    /// Show all services
    List,
    /// Make a service
    Create(CreateArgs),
    /// Delete a service with its data; refused while an app is bound to it
    Delete {
        /// Which service
        service: ServiceName,
        /// Do not ask
        #[arg(long, short)]
        yes: bool,
    },
    /// Write a consistent copy of a service's data while it runs
    Backup {
        /// Which service
        service: ServiceName,
        /// The file to write (mode 0600); - is stdout
        #[arg(long, short, value_name = "FILE")]
        output: PathBuf,
    },
    /// Check a copy and put it in the place of a service's data
    Restore {
        /// Which service
        service: ServiceName,
        /// The file to read
        #[arg(value_name = "FILE")]
        input: PathBuf,
        /// Do not ask
        #[arg(long, short)]
        yes: bool,
    },
}

/// What to make.
#[derive(Debug, Args)]
pub(crate) struct CreateArgs {
    /// Its name
    service: ServiceName,
    /// access or keyvalue
    #[arg(long)]
    kind: ServiceKind,
    /// Its organization
    #[arg(long, default_value_t = OrgName::default_org())]
    org: OrgName,
    /// Its space
    #[arg(long, default_value_t = SpaceName::default_space())]
    space: SpaceName,
}

/// Let an app use a service: a new revision
#[derive(Debug, Args)]
pub(crate) struct BindArgs {
    /// Which app
    app: AppName,
    /// Which service
    service: ServiceName,
    /// The name that the guest opens; absent: the service's name
    #[arg(long = "as", value_name = "NAME")]
    name: Option<String>,
    #[command(flatten)]
    wait: WaitArgs,
}

/// Take a binding away from an app: a new revision
#[derive(Debug, Args)]
pub(crate) struct UnbindArgs {
    /// Which app
    app: AppName,
    /// The binding's name
    name: String,
    #[command(flatten)]
    wait: WaitArgs,
}

pub(crate) async fn run(command: Option<ServicesCommand>, out: Output) -> Result<()> {
    let client = crate::login::client()?;
    match command.unwrap_or(ServicesCommand::List) {
        ServicesCommand::List => list(&client, out).await,
        ServicesCommand::Create(CreateArgs { service, kind, org, space }) => {
            let made = client.put_service(&service, NewService { kind, org, space }).await?;
            let sentence = format!(
                "{} ({}) is on host {}; next: marcato bind APP {}",
                made.name, made.kind, made.owner, made.name
            );
            out.done(&made, sentence)
        }
        ServicesCommand::Delete { service, yes } => {
            confirm(&format!("Delete {service} with all its data?"), yes)?;
            client.delete_service(&service).await?;
            out.done(&serde_json::json!({ "deleted": service }), format!("{service} is deleted"))
        }
        ServicesCommand::Backup { service, output } => backup(&client, &service, &output, out).await,
        ServicesCommand::Restore { service, input, yes } => {
            let bytes = std::fs::read(&input).with_context(|| format!("cannot read {}", input.display()))?;
            confirm(&format!("Replace all data of {service} by {}?", input.display()), yes)?;
            let size = Bytes(bytes.len() as u64);
            let bar = out.spinner(format!("restoring {size}"));
            let done = client.restore_service(&service, bytes).await;
            bar.finish_and_clear();
            done?;
            out.done(
                &serde_json::json!({ "restored": service, "bytes": size }),
                format!("{service} has the data of {}", input.display()),
            )
        }
    }
}

async fn list(client: &impl AdminApi, out: Output) -> Result<()> {
    let page = client.list_services().await?;
    if out.json {
        return out.value(&page);
    }
    let rows = page
        .items
        .into_iter()
        .map(|s| {
            vec![
                s.name.to_string(),
                s.kind.to_string(),
                format!("{}/{}", s.org, s.space),
                s.owner.to_string(),
                if s.ready { "ready".into() } else { "not ready".into() },
                dash(s.bytes),
                s.bound_by.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
            ]
        })
        .collect();
    let head = ["SERVICE", "KIND", "ORG/SPACE", "HOST", "STATE", "SIZE", "BOUND BY"];
    out.table(&head, rows, "no services; next: marcato services create NAME --kind keyvalue")
}

async fn backup(client: &impl AdminApi, service: &ServiceName, output: &std::path::Path, out: Output) -> Result<()> {
    let to_stdout = output.as_os_str() == "-";
    if to_stdout && std::io::stdout().is_terminal() {
        return Err(Failure::new(Code::Usage, "a database does not belong on a terminal").next("--output FILE").into());
    }
    let bar = out.spinner(format!("backing up {service}"));
    let bytes = client.backup_service(service).await;
    bar.finish_and_clear();
    let bytes = bytes?;
    if to_stdout {
        let mut stdout = std::io::stdout().lock();
        stdout.write_all(&bytes)?;
        return Ok(stdout.flush()?);
    }
    // Whole or not at all: a cut backup is worse than none. tempfile makes it with mode 0600.
    let dir = output.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(std::path::Path::new("."));
    let write = || -> std::io::Result<()> {
        let mut temp = tempfile::NamedTempFile::new_in(dir)?;
        temp.write_all(&bytes)?;
        temp.as_file().sync_all()?;
        temp.persist(output).map_err(|e| e.error)?;
        Ok(())
    };
    write().with_context(|| format!("cannot write {}", output.display()))?;
    let size = Bytes(bytes.len() as u64);
    out.done(
        &serde_json::json!({ "service": service, "file": output, "bytes": size }),
        format!("{service}: {size} in {}", output.display()),
    )
}

pub(crate) async fn bind(args: BindArgs, out: Output) -> Result<()> {
    let BindArgs { app, service, name, wait } = args;
    let name = name.unwrap_or_else(|| service.to_string());
    let mut new = unchanged("bind");
    new.bind.push(Binding { name: name.clone(), service: service.clone() });
    change(out, &app, new, &wait, |n| format!("{app} opens {service} as {name:?}; revision {n}")).await
}

pub(crate) async fn unbind(args: UnbindArgs, out: Output) -> Result<()> {
    let UnbindArgs { app, name, wait } = args;
    let mut new = unchanged("unbind");
    new.unbind.push(name.clone());
    change(out, &app, new, &wait, |n| format!("{app} has no binding {name:?} any more; revision {n}")).await
}
