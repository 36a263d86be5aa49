//! `marcato up`: a cloud in miniature on this machine.
//!
//! Owns the listeners, the processes and the order in which things start and stop. Does not own what the processes do:
//! they are the same programs as `marcato router` and `marcato hostd`. Flow: lock the data folder, bind
//! all sockets, start the router, join hosts that are new, wait until all is up, watch, drain.

mod backoff;
mod child;
mod data;
mod fleet;
pub(crate) mod listen;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::Args;
use serde::Serialize;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use self::child::{Guests, Spec, Watched};
use self::data::DataDir;
use self::listen::Listeners;
use crate::output::Output;
use crate::server::signals::Stop;
use crate::server::{logging, runtime};

/// How long a process may take to finish what is in flight before it is killed.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(45);

/// Run a router and hosts on this machine
#[derive(Debug, Args)]
pub(crate) struct UpArgs {
    /// Where everything is kept; absent: MARCATO_HOME, or marcato in the XDG data folder
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Where plain HTTP arrives; port 0 picks a free one
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8080")]
    http: SocketAddr,
    /// Where HTTPS arrives
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8443")]
    https: SocketAddr,
    /// Where the admin API listens
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8444")]
    admin: SocketAddr,
    /// How many host daemons
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=64))]
    hosts: u16,
    /// The cluster's domain: an app's default host name is APP.DOMAIN
    #[arg(long, default_value = "localhost")]
    domain: String,
    /// A name or address under which clients reach the listeners, for our certificate; may be given again. The address
    /// that a listener is bound to is in it anyway, but 0.0.0.0 and :: say nothing
    #[arg(long = "name", value_name = "NAME|IP", value_parser = crate::server::router::public_name)]
    names: Vec<String>,
    /// Let guests reach private and loopback addresses that their manifest allows
    #[arg(long)]
    allow_private_egress: bool,
    /// Refuse to run apps where the kernel does not have all that confines their processes
    #[arg(long)]
    require_confinement: bool,
    /// Let guests run as they come, whatever their apps' shares of the CPU: for comparison
    #[arg(long)]
    no_cpu_shares: bool,
    /// Authorities (PEM) that guests' outbound HTTPS trusts beside the public ones
    #[arg(long, value_name = "FILE")]
    outbound_ca: Option<PathBuf>,
}

/// The line that `--json` prints once all is up.
#[derive(Debug, Serialize)]
struct Ready {
    http: String,
    https: String,
    admin: String,
    ca: PathBuf,
    token_file: PathBuf,
}

pub(crate) fn run(args: &UpArgs, out: Output) -> Result<()> {
    let _log = logging::init("marcato=info,warn");
    let data = DataDir::open(args.data.clone())?;
    let listeners = Listeners::bind(&data, args.http, args.https, args.admin, args.hosts)?;
    runtime::client()?.block_on(supervise(args, &data, listeners, out))
}

async fn supervise(args: &UpArgs, data: &DataDir, listeners: Listeners, out: Output) -> Result<()> {
    let mut stop = Stop::listen()?;
    // A host would end over it again and again.
    let outbound_ca = match &args.outbound_ca {
        Some(file) => Some(file.canonicalize().with_context(|| format!("--outbound-ca {}", file.display()))?),
        None => None,
    };
    let admin_url = listen::url("https", listeners.addresses.admin);
    let ready = Ready {
        http: listen::url("http", listeners.addresses.http),
        https: listen::url("https", listeners.addresses.https),
        admin: admin_url.clone(),
        ca: data.ca(),
        token_file: data.token_file(),
    };
    let addresses = listeners.addresses;
    let (router_stop, hosts_stop, kill) =
        (CancellationToken::new(), CancellationToken::new(), CancellationToken::new());
    let (mut routers, mut hosts) = (JoinSet::new(), JoinSet::new());
    let mut watched = Vec::new();
    let mut watch = |name: String| {
        let state = Arc::new(Watched::new(name));
        watched.push(Arc::clone(&state));
        state
    };

    let spec = Spec::router(data, &addresses, &args.domain, &args.names, listeners.router);
    routers.spawn(child::supervise(spec, watch("router".into()), router_stop.clone(), kill.clone(), DRAIN_TIMEOUT));
    let memory = marcato_api::Bytes(crate::server::hostd::half_of_memory()?.0 / u64::from(args.hosts));
    let mut ids = Vec::new();
    for sockets in listeners.hosts {
        ids.push(sockets.id.clone());
        let state = watch(sockets.id.to_string());
        let guests = Guests {
            require_confinement: args.require_confinement,
            cpu_shares: !args.no_cpu_shares,
            allow_private: args.allow_private_egress,
            ca: outbound_ca.clone(),
        };
        let spec = Spec::host(data, &admin_url, memory, guests, sockets);
        hosts.spawn(child::supervise(spec, state, hosts_stop.clone(), kill.clone(), DRAIN_TIMEOUT));
    }

    let bar = out.spinner("starting");
    let mut failure = None;
    tokio::select! {
        up = fleet::ready(data, &admin_url, &ids, &watched) => match up {
            Ok(()) => {
                bar.finish_and_clear();
                data.remove_join_tokens(&ids)?;
                print_ready(out, &ready, args.hosts, data)?;
                stop.next().await;
            }
            Err(e) => failure = Some(e),
        },
        () = stop.next() => {}
    }
    bar.finish_and_clear();

    if !out.json {
        out.note("draining; once more ends it at once");
    }
    let drain = async {
        // The router first: what it has in flight still needs the hosts.
        router_stop.cancel();
        while routers.join_next().await.is_some() {}
        hosts_stop.cancel();
        while hosts.join_next().await.is_some() {}
    };
    let mut drain = std::pin::pin!(drain);
    tokio::select! {
        () = &mut drain => {}
        () = stop.next() => {
            kill.cancel();
            hosts_stop.cancel();
            drain.await;
        }
    }
    failure.map_or(Ok(()), Err)
}

fn print_ready(out: Output, ready: &Ready, hosts: u16, data: &DataDir) -> Result<()> {
    if out.json {
        return out.line(serde_json::to_string(ready).context("cannot write the line")?);
    }
    let Ready { http, https, admin, ca, token_file } = ready;
    let hosts = if hosts == 1 { "1 host".to_owned() } else { format!("{hosts} hosts") };
    out.line(format!(
        "Marcato is up: {hosts}, data in {}\n\n  apps   {https} and {http}, by host name: APP.localhost\n  admin  {admin}\n  CA     {}\n\n\
         Log in:  marcato login {admin} --ca {} --token-file {}\n\
         Then:    marcato push my.wasm\n         \
         curl --cacert {} {}\n\nCtrl-C drains and stops.",
        data.root().display(),
        ca.display(),
        ca.display(),
        token_file.display(),
        ca.display(),
        https.replace("127.0.0.1", "my.localhost").replace("[::1]", "my.localhost"),
    ))
}
