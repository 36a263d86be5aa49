//! `marcato hostd`: the node daemon.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use clap::Args;
use marcato_api::{Bytes, HostAddress, HostId};
use marcato_hostd::{CompilerCommand, HostdConfig, JoinSettings, Listen, WorkerCommand};

use super::inherit::Inherited;
use super::{logging, parent, runtime, signals, socket, worker};
use crate::manifest::Size;

/// Live sandboxes at once: address space is reserved for each, memory only for what lives.
const SANDBOXES: u32 = 1000;

/// Run the host daemon
#[derive(Debug, Args)]
pub(crate) struct HostdArgs {
    /// Where it keeps identity, ledger, components and databases
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    /// Its name in the cluster
    #[arg(long)]
    id: HostId,
    /// Where its API listens: tcp:IP:PORT or unix:/PATH
    #[arg(long, value_name = "ADDRESS")]
    control: HostAddress,
    /// Where requests arrive: tcp:IP:PORT or unix:/PATH
    #[arg(long, value_name = "ADDRESS")]
    ingress: HostAddress,
    /// The admin URL, to join a cluster
    #[arg(long, value_name = "URL", requires_all = ["ca", "join_token_file"])]
    join_url: Option<String>,
    /// The cluster's authority (PEM), to join
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// A file with the join token
    #[arg(long, value_name = "FILE", requires = "join_url")]
    join_token_file: Option<PathBuf>,
    /// Its failure domain
    #[arg(long, default_value = "")]
    zone: String,
    /// A label that placement may ask for; may be repeated
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = label)]
    labels: Vec<(String, String)>,
    /// Most live sandboxes at once
    #[arg(long, default_value_t = SANDBOXES, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    sandboxes: u32,
    /// Memory that all live sandboxes may have together, such as 4GiB; absent: half of the machine's
    #[arg(long, value_name = "SIZE", value_parser = |t: &str| t.parse::<Size>())]
    memory: Option<Size>,
    /// Let guests reach private and loopback addresses that their manifest allows
    #[arg(long)]
    allow_private_egress: bool,
    /// Authorities (PEM) that guests' outbound HTTPS trusts beside the public ones
    #[arg(long, value_name = "FILE")]
    outbound_ca: Option<PathBuf>,
    /// Refuse to run apps where the kernel does not have all that confines their processes
    #[arg(long)]
    require_confinement: bool,
    /// Let guests run as they come, whatever their apps' shares of the CPU: for comparison
    #[arg(long)]
    no_cpu_shares: bool,
    /// Threads of each worker that carry requests; absent: one per core
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
}

/// What a worker gets of this environment: how it logs, and its threads.
fn worker_env(threads: Option<u16>, cpu_shares: bool) -> Vec<(OsString, OsString)> {
    let own = [logging::NAME_VAR, logging::FILTER_VAR];
    let mut env: Vec<_> = own.into_iter().filter_map(|name| Some((name.into(), std::env::var_os(name)?))).collect();
    env.extend(threads.map(|n| (worker::THREADS_VAR.into(), n.to_string().into())));
    if !cpu_shares {
        env.push((worker::NO_CPU_SHARES_VAR.into(), "1".into()));
    }
    env
}

fn label(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("expected KEY=VALUE")?;
    Ok((key.to_owned(), value.to_owned()))
}

pub(crate) fn run(args: HostdArgs) -> Result<()> {
    parent::follow_supervisor()?;
    let _log = logging::init("info");
    let mut inherited = Inherited::from_env();
    let mut listen = |address: HostAddress, name: &str| -> Result<Listen> {
        let taken = match &address {
            HostAddress::Unix(_) => inherited.unix(name),
            HostAddress::Tcp(_) => inherited.tcp(name).map(|l| l.map(Into::into)),
        };
        Ok(Listen { address, inherited: taken.with_context(|| format!("the inherited socket {name:?}"))? })
    };
    let control = listen(args.control, socket::CONTROL)?;
    let ingress = listen(args.ingress, socket::INGRESS)?;
    let join = match (args.join_url, args.ca, args.join_token_file) {
        (Some(admin_url), Some(ca_pem_file), Some(token_file)) => {
            Some(JoinSettings { admin_url, ca_pem_file, token_file })
        }
        _ => None,
    };
    let program = std::env::current_exe().context("cannot tell where this program is")?;
    let mut compile = vec!["compile-component".into()];
    if args.require_confinement {
        compile.push("--require-confinement".into());
    }
    let config = HostdConfig {
        data_dir: args.data,
        id: args.id,
        control,
        ingress,
        join,
        zone: args.zone,
        labels: args.labels.into_iter().collect::<BTreeMap<_, _>>(),
        sandboxes: args.sandboxes,
        memory: match args.memory {
            Some(size) => size.0,
            None => half_of_memory()?,
        },
        compiler: CompilerCommand::new(program.clone(), compile),
        allow_private_egress: args.allow_private_egress,
        outbound_ca_file: args.outbound_ca,
        worker: WorkerCommand {
            program,
            args: vec!["worker".into()],
            env: worker_env(args.threads, !args.no_cpu_shares),
        },
        require_confinement: args.require_confinement,
    };
    runtime::server("hostd")?.block_on(signals::until_stopped(|token| marcato_hostd::run(config, token)))
}

/// Half of what `/proc/meminfo` says that the machine has.
pub(crate) fn half_of_memory() -> Result<Bytes> {
    let text = std::fs::read_to_string("/proc/meminfo").context("cannot read /proc/meminfo; pass --memory")?;
    total_memory(&text).map(|b| Bytes(b.0 / 2)).context("/proc/meminfo names no MemTotal; pass --memory")
}

fn total_memory(meminfo: &str) -> Option<Bytes> {
    let line = meminfo.lines().find_map(|l| l.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024).map(Bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_from_meminfo_and_garbage_is_refused() {
        assert_eq!(total_memory("MemTotal:       24663164 kB\nMemFree: 1 kB\n"), Some(Bytes(24_663_164 * 1024)));
        for garbage in ["", "MemTotal:", "MemTotal: kB", "MemTotal: -1 kB", "MemTotal: 99999999999999999999 kB"] {
            assert_eq!(total_memory(garbage), None, "{garbage}");
        }
        assert!(half_of_memory().unwrap().0 > 0);
    }

    #[test]
    fn a_label_needs_a_value() {
        assert_eq!(label("a=b=c"), Ok(("a".into(), "b=c".into())));
        assert!(label("a").is_err());
    }
}
