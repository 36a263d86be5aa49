//! `env`: an app's environment. Values are secrets: they come from a prompt, stdin or a file, never
//! from an argument, and are never shown again.

use std::path::PathBuf;

use anyhow::Result;
use clap::{Args, Subcommand};
use marcato_api::{AdminApi, AppName};

use super::revisions::{change, unchanged};
use crate::failure::{Code, Failure};
use crate::output::Output;
use crate::wait::WaitArgs;

/// Show or change an app's environment
#[derive(Debug, Subcommand)]
pub(crate) enum EnvCommand {
    /// Show the names; values are secrets and stay hidden
    List {
        /// Which app
        app: AppName,
    },
    /// Set a value, read from a prompt, from stdin or from a file
    Set(SetArgs),
    /// Remove values
    Unset {
        /// Which app
        app: AppName,
        /// Which names
        #[arg(required = true)]
        keys: Vec<String>,
        #[command(flatten)]
        wait: WaitArgs,
    },
}

/// What to set.
#[derive(Debug, Args)]
pub(crate) struct SetArgs {
    /// Which app
    app: AppName,
    /// Its name; the value never stands on the command line, where every process can read it
    key: String,
    /// Read the value from this file
    #[arg(long, value_name = "FILE")]
    from_file: Option<PathBuf>,
    #[command(flatten)]
    wait: WaitArgs,
}

pub(crate) async fn run(command: EnvCommand, out: Output) -> Result<()> {
    match command {
        EnvCommand::List { app } => {
            let status = crate::login::client()?.app_status(&app).await?;
            let keys: Vec<String> = status.revision.map(|r| r.config.env.into_keys().collect()).unwrap_or_default();
            if out.json {
                return out.value(&serde_json::json!({ "app": app, "keys": keys }));
            }
            let rows = keys.into_iter().map(|k| vec![k]).collect();
            out.table(&["NAME"], rows, &format!("no environment; next: marcato env set {app} NAME"))
        }
        EnvCommand::Set(args) => set(args, out).await,
        EnvCommand::Unset { app, keys, wait } => {
            let mut new = unchanged("env");
            new.env = keys.iter().map(|k| (k.clone(), None)).collect();
            change(out, &app, new, &wait, |n| format!("removed {}; revision {n} of {app}", keys.join(", "))).await
        }
    }
}

async fn set(args: SetArgs, out: Output) -> Result<()> {
    let SetArgs { app, key, from_file, wait } = args;
    if let Some((name, _)) = key.split_once('=') {
        return Err(Failure::new(Code::Usage, "a value on the command line is readable by every process")
            .next(format!("marcato env set {app} {name}, and give the value when asked, or by stdin or --from-file"))
            .into());
    }
    let value = super::secret(from_file.as_deref(), &format!("{key}: "))?;
    let mut new = unchanged("env");
    new.env.insert(key.clone(), Some(value));
    change(out, &app, new, &wait, |n| format!("set {key}; revision {n} of {app}")).await
}
