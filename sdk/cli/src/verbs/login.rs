//! `login`, `logout`, `whoami`.

use std::io::IsTerminal;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use clap::Args;
use marcato_api::AdminApi;
use marcato_client::{Fingerprint, Trust, fetch_ca};

use crate::failure::{Code, Failure};
use crate::login::{self, Login};
use crate::output::{Output, confirm, dash, time};

/// Log in to a server and remember it
#[derive(Debug, Args)]
pub(crate) struct LoginArgs {
    /// The admin URL, such as https://127.0.0.1:8444
    #[arg(env = "MARCATO_ADMIN")]
    url: String,
    /// The authority's certificate (PEM) to pin, instead of asking whether the one shown is right
    #[arg(long, value_name = "FILE", env = "MARCATO_CA")]
    ca: Option<PathBuf>,
    /// The authority's SHA-256 fingerprint to expect, instead of asking
    #[arg(long, value_name = "SHA256", conflicts_with = "ca")]
    fingerprint: Option<Fingerprint>,
    /// Read the token from a file
    #[arg(long, value_name = "FILE", conflicts_with = "token_stdin")]
    token_file: Option<PathBuf>,
    /// Read the token from stdin
    #[arg(long)]
    token_stdin: bool,
}

pub(crate) async fn login(args: LoginArgs, out: Output) -> Result<()> {
    let ca_pem = authority(&args, out).await?;
    let trust = Trust::from_pem(ca_pem.as_bytes())?;
    if !args.token_stdin && args.token_file.is_none() && !std::io::stdin().is_terminal() {
        return Err(Failure::new(Code::Usage, "no token: nobody is there to ask")
            .next("marcato login URL --token-file FILE, or --token-stdin")
            .into());
    }
    let token = super::secret(args.token_file.as_deref(), "token: ")?.trim().to_owned();
    if token.is_empty() {
        return Err(Failure::new(Code::Usage, "the token is empty").into());
    }
    let login = Login { admin: args.url.trim_end_matches('/').to_owned(), ca_pem, token };
    let who = login::connect(&login)?.whoami().await.context("the server did not accept the login")?;
    let file = login::file()?;
    login::save(&file, &login)?;
    let sentence =
        format!("logged in to {} as {} ({}); saved in {}", login.admin, who.name, role(who.role), file.display());
    let fingerprint = trust.fingerprint().to_string();
    out.done(&serde_json::json!({ "admin": login.admin, "ca_fingerprint": fingerprint, "token": who }), sentence)
}

/// The authority to pin: from a file, or read from the server and compared or confirmed.
async fn authority(args: &LoginArgs, out: Output) -> Result<String> {
    if let Some(file) = &args.ca {
        let pem = std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
        return Ok(pem);
    }
    let (pem, seen) = fetch_ca(&args.url).await?;
    match &args.fingerprint {
        Some(expected) if *expected == seen => {}
        Some(expected) => {
            return Err(Failure::new(
                Code::NotLoggedIn,
                format!("the server's authority is {seen}, not {expected}; nothing was sent"),
            )
            .into());
        }
        None => {
            out.note(format!("The authority of {} has the fingerprint\n  {seen}", args.url));
            confirm("Is it the one that you expect (openssl x509 -fingerprint -sha256 -in ca.pem)?", false)
                .map_err(|e| e.context("the authority was not confirmed; pass --ca FILE or --fingerprint SHA256"))?;
        }
    }
    Ok(pem)
}

pub(crate) fn logout(out: Output) -> Result<()> {
    let file = login::file()?;
    let removed = login::remove(&file)?;
    let sentence =
        if removed { "logged out; the token stays valid until it is deleted" } else { "nobody was logged in" };
    out.done(&serde_json::json!({ "removed": removed }), sentence)
}

pub(crate) async fn whoami(out: Output) -> Result<()> {
    let client = login::client()?;
    let who = client.whoami().await?;
    if out.json {
        return out.value(&who);
    }
    let expires = dash(who.expires_at.map(time));
    let row = vec![client.base_url().to_owned(), who.name, role(who.role).into(), dash(who.org), expires];
    out.table(&["SERVER", "TOKEN", "ROLE", "ORG", "EXPIRES"], vec![row], "")
}

pub(super) fn role(role: marcato_api::Role) -> &'static str {
    match role {
        marcato_api::Role::Admin => "admin",
        marcato_api::Role::Deployer => "deployer",
        marcato_api::Role::Viewer => "viewer",
    }
}
