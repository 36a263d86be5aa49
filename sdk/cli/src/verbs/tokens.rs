//! `tokens`: who may call the admin API.

use anyhow::Result;
use clap::{Args, Subcommand};
use marcato_api::{AdminApi, NewToken, OrgName, Role};

use crate::manifest::Interval;
use crate::output::{Output, confirm, dash, time};
use crate::verbs::login::role;

/// Show, make and delete tokens
#[derive(Debug, Subcommand)]
pub(crate) enum TokensCommand {
    /// Show all tokens, without their secrets
    List,
    /// Make a token; its secret is shown once
    Create(CreateArgs),
    /// Delete a token: it is refused at once
    Delete {
        /// Which token
        name: String,
        /// Do not ask
        #[arg(long, short)]
        yes: bool,
    },
}

/// What to make.
#[derive(Debug, Args)]
pub(crate) struct CreateArgs {
    /// Its name: the actor in events
    name: String,
    /// admin, deployer or viewer
    #[arg(long)]
    role: Role,
    /// Only apps and services of this organization
    #[arg(long)]
    org: Option<OrgName>,
    /// How long it is valid, such as 720h; absent: until it is deleted
    #[arg(long, value_name = "TIME", value_parser = |t: &str| t.parse::<Interval>())]
    ttl: Option<Interval>,
}

pub(crate) async fn run(command: Option<TokensCommand>, out: Output) -> Result<()> {
    let client = crate::login::client()?;
    match command.unwrap_or(TokensCommand::List) {
        TokensCommand::List => {
            let page = client.list_tokens().await?;
            if out.json {
                return out.value(&page);
            }
            let rows = page
                .items
                .into_iter()
                .map(|t| {
                    vec![t.name, role(t.role).into(), dash(t.org), time(t.created_at), dash(t.expires_at.map(time))]
                })
                .collect();
            out.table(&["TOKEN", "ROLE", "ORG", "MADE", "EXPIRES"], rows, "no tokens")
        }
        TokensCommand::Create(CreateArgs { name, role, org, ttl }) => {
            let ttl_s = ttl.map(|t| t.0.0.div_ceil(1000));
            let made = client.create_token(&name, NewToken { role, org, ttl_s }).await?;
            if !out.json {
                out.note(format!("{name}, shown only now:"));
            }
            out.done(&made, &made.secret)
        }
        TokensCommand::Delete { name, yes } => {
            confirm(&format!("Delete the token {name:?}? Whoever uses it is refused at once."), yes)?;
            client.delete_token(&name).await?;
            out.done(&serde_json::json!({ "deleted": name }), format!("{name} is deleted"))
        }
    }
}
