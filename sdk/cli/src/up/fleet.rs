//! Through the admin API: join tokens for new hosts, and whether all is up.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use marcato_api::{AdminApi, HostId, HostState};
use marcato_client::{AdminClient, Trust};
use tokio::time::Instant;

use super::child::Watched;
use super::data::DataDir;
use crate::failure::{Code, Failure};

/// How long everything may take to come up.
const READY_TIMEOUT: Duration = Duration::from_secs(90);
/// How long a host waits for the router before it is tried anew.
const ROUTER_TIMEOUT: Duration = Duration::from_secs(60);
/// A process that died this often before all was up will not come up.
const MOST_DEATHS: u32 = 5;
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_millis(200);

/// How one host joins.
#[derive(Debug, Clone)]
pub(super) struct Join {
    pub(super) admin_url: String,
    pub(super) ca: PathBuf,
    pub(super) token_file: PathBuf,
    admin_token: PathBuf,
    certificate: PathBuf,
}

impl Join {
    pub(super) fn new(data: &DataDir, admin_url: &str, id: &HostId) -> Self {
        Self {
            admin_url: admin_url.to_owned(),
            ca: data.ca(),
            token_file: data.join_token(id),
            admin_token: data.token_file(),
            certificate: data.host(id).join("identity/cert.pem"),
        }
    }

    /// Whether the host has its certificate.
    pub(super) fn is_done(&self) -> bool {
        self.certificate.exists()
    }

    /// Asks the router for a token, as soon as it answers, and writes it with mode 0600.
    pub(super) async fn fetch_token(&self) -> Result<()> {
        let started = Instant::now();
        let mut pause = FIRST_PAUSE;
        let token = loop {
            let error = match self.ask().await {
                Ok(token) => break token,
                Err(e) => e,
            };
            if started.elapsed() > ROUTER_TIMEOUT {
                return Err(error.context("the router gave no join token"));
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        };
        crate::login::write_private(&self.token_file, token.as_bytes())
            .with_context(|| format!("cannot write {}", self.token_file.display()))
    }

    async fn ask(&self) -> Result<String> {
        Ok(client(&self.admin_url, &self.ca, &self.admin_token)?.create_join_token().await?.token)
    }
}

/// A client with the token of the first start. Errors: the router has not written it yet.
fn client(admin_url: &str, ca: &std::path::Path, token_file: &std::path::Path) -> Result<AdminClient> {
    let token = std::fs::read_to_string(token_file).context("the admin token is not there")?;
    Ok(AdminClient::new(admin_url, &Trust::from_pem_file(ca)?, Some(token.trim()))?)
}

/// Waits until the router answers and reaches every host. Errors: the time is over, or a process
/// dies again and again; tells what is known.
pub(super) async fn ready(data: &DataDir, admin_url: &str, ids: &[HostId], watched: &[Arc<Watched>]) -> Result<()> {
    let started = Instant::now();
    let mut pause = FIRST_PAUSE;
    loop {
        let missing = match look(data, admin_url, ids).await {
            Ok(missing) if missing.is_empty() => return Ok(()),
            Ok(missing) => format!("not up yet: {}", missing.join(", ")),
            Err(e) => format!("{e:#}"),
        };
        if let Some((name, how)) =
            watched.iter().map(|w| (&w.name, w.deaths())).find(|(_, d)| d.0 >= MOST_DEATHS).map(|(n, d)| (n, d.1))
        {
            return Err(Failure::new(Code::Failed, format!("{name} dies again and again ({how}); its log is above"))
                .next("MARCATO_LOG=debug marcato up")
                .into());
        }
        if started.elapsed() > READY_TIMEOUT {
            return Err(Failure::new(
                Code::Unavailable,
                format!("not ready after {} s: {missing}", READY_TIMEOUT.as_secs()),
            )
            .next("MARCATO_LOG=debug marcato up")
            .into());
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// The hosts that are not up.
async fn look(data: &DataDir, admin_url: &str, ids: &[HostId]) -> Result<Vec<String>> {
    let client = client(admin_url, &data.ca(), &data.token_file())?;
    client.health().await?;
    let hosts = client.list_hosts().await?.items;
    let up = |id: &HostId| hosts.iter().any(|h| h.id == *id && h.state == HostState::Up);
    Ok(ids.iter().filter(|id| !up(id)).map(ToString::to_string).collect())
}
