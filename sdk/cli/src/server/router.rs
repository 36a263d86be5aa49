//! `marcato router`: the edge and the control plane.

use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::Args;
use marcato_router::RouterConfig;

use super::inherit::Inherited;
use super::{logging, parent, runtime, signals, socket};
use crate::manifest::Interval;

/// Run the router: the edge and the control plane
#[derive(Debug, Args)]
pub(crate) struct RouterArgs {
    /// Where it keeps its authority, store and components
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    /// Where plain HTTP arrives
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8080")]
    http: SocketAddr,
    /// Where HTTPS arrives
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8443")]
    https: SocketAddr,
    /// Where the admin API listens (HTTPS)
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8444")]
    admin: SocketAddr,
    /// The cluster's domain: an app's default host name is APP.DOMAIN
    #[arg(long, default_value = "localhost")]
    domain: String,
    /// A name or address under which clients reach the listeners, for our certificate; may be given again. The address
    /// that a listener is bound to is in it anyway, but 0.0.0.0 and :: say nothing
    #[arg(long = "name", value_name = "NAME|IP", value_parser = public_name)]
    names: Vec<String>,
    /// When a silent host's instances are placed elsewhere, such as 10s; `never`: they wait for it
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = dead_after)]
    dead_after: DeadAfter,
    /// At most so many of a hundred hosts are given up at once, and at least one: where more fall silent, it is rather the
    /// router that is cut off
    #[arg(long, value_name = "PERCENT", default_value_t = 33, value_parser = clap::value_parser!(u32).range(1..=100))]
    dead_share: u32,
    /// Threads that carry requests; absent: one per core
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
}

/// `None`: never.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct DeadAfter(Option<Duration>);

/// Suspected hosts are set aside after three seconds anyway: less would move instances before that.
const DEAD_AFTER_MIN: Duration = Duration::from_secs(4);

fn dead_after(text: &str) -> Result<DeadAfter, String> {
    if text == "never" {
        return Ok(DeadAfter(None));
    }
    let time: Duration = text.parse::<Interval>()?.0.into();
    if time < DEAD_AFTER_MIN {
        return Err("use at least 4s: a host is suspected after 3 s".into());
    }
    Ok(DeadAfter(Some(time)))
}

/// A host name or an IP address.
pub(crate) fn public_name(text: &str) -> Result<String, String> {
    let name = text.to_ascii_lowercase();
    let route = marcato_api::Route { host: name.clone(), path: "/".into() };
    if name.parse::<std::net::IpAddr>().is_ok() || route.validate().is_ok() {
        return Ok(name);
    }
    Err("expected a host name or an IP address, without scheme or port".into())
}

pub(crate) fn run(args: RouterArgs) -> Result<()> {
    parent::follow_supervisor()?;
    let _log = logging::init("info");
    let mut inherited = Inherited::from_env();
    let mut listen = |address: SocketAddr, name: &str| -> Result<TcpListener> {
        let taken = inherited.tcp(name).with_context(|| format!("the inherited socket {name:?}"))?;
        match taken {
            Some(listener) => Ok(listener),
            None => crate::up::listen::tcp(address, &format!("--{name}")),
        }
    };
    let workers = runtime::Workers::start("router", args.threads)?;
    let config = RouterConfig {
        data_dir: args.data,
        domain: args.domain,
        names: args.names,
        http: vec![listen(args.http, socket::HTTP)?],
        https: vec![listen(args.https, socket::HTTPS)?],
        admin: listen(args.admin, socket::ADMIN)?,
        dead_after: args.dead_after.0,
        dead_percent_max: args.dead_share,
        workers: workers.handles(),
    };
    runtime::server("router")?.block_on(signals::until_stopped(|token| marcato_router::run(config, token)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_given_up_after_four_seconds_or_more_or_never() {
        assert_eq!(dead_after("10s"), Ok(DeadAfter(Some(Duration::from_secs(10)))));
        assert_eq!(dead_after("never"), Ok(DeadAfter(None)));
        for bad in ["", "3s", "10", "soon", "-1s"] {
            assert!(dead_after(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn names_and_addresses_go_into_the_certificate_and_nothing_else() {
        for good in ["10.0.0.5", "2001:db8::5", "Cloud.example.org"] {
            assert_eq!(public_name(good), Ok(good.to_ascii_lowercase()));
        }
        for bad in ["", "https://x", "x:8443", "[::1]", "*.x", "a b"] {
            assert!(public_name(bad).is_err(), "{bad}");
        }
    }
}
