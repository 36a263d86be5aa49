//! The sockets of a cloud in miniature. The supervisor binds them all, so that they outlive any process
//! it starts: while one is replaced, connections wait in the kernel's queue.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use marcato_api::{HostAddress, HostId};
use nix::sys::socket::{Backlog, listen};

use super::data::DataDir;
use crate::failure::{Code, Failure};
use crate::server::socket;

/// Connections that wait while a process is replaced; the kernel may cap it (`net.core.somaxconn`).
const BACKLOG: i32 = 4096;

/// The router's addresses, as bound.
#[derive(Debug, Clone, Copy)]
pub(super) struct Addresses {
    pub(super) http: SocketAddr,
    pub(super) https: SocketAddr,
    pub(super) admin: SocketAddr,
}

/// A socket under its name for the child.
pub(super) type Named = (&'static str, OwnedFd);

/// A host's sockets.
#[derive(Debug)]
pub(super) struct HostSockets {
    pub(super) id: HostId,
    pub(super) control: HostAddress,
    pub(super) ingress: HostAddress,
    pub(super) fds: Vec<Named>,
}

/// All of them.
#[derive(Debug)]
pub(super) struct Listeners {
    pub(super) addresses: Addresses,
    pub(super) router: Vec<Named>,
    pub(super) hosts: Vec<HostSockets>,
}

impl Listeners {
    /// Binds everything. Errors: an address is in use or not this machine's; names the flag.
    pub(super) fn bind(
        data: &DataDir,
        http: SocketAddr,
        https: SocketAddr,
        admin: SocketAddr,
        hosts: u16,
    ) -> Result<Self> {
        let http = tcp(http, "--http")?;
        let https = tcp(https, "--https")?;
        let admin = tcp(admin, "--admin")?;
        let addresses = Addresses { http: http.local_addr()?, https: https.local_addr()?, admin: admin.local_addr()? };
        let router = vec![(socket::HTTP, http.into()), (socket::HTTPS, https.into()), (socket::ADMIN, admin.into())];
        let hosts = (1..=hosts).map(|n| host(data, n)).collect::<Result<_>>()?;
        Ok(Self { addresses, router, hosts })
    }
}

/// Binds a TCP address; `flag` is what errors tell to change.
pub(crate) fn tcp(address: SocketAddr, flag: &str) -> Result<TcpListener> {
    let bound = TcpListener::bind(address).and_then(|l| deepen(&l).map(|()| l));
    bound.map_err(|e| {
        let code = if e.kind() == io::ErrorKind::AddrInUse { Code::Conflict } else { Code::Usage };
        Failure::new(code, format!("cannot listen on {address}: {e}"))
            .next(format!("the same with {flag} {}:0 (picks a free port)", host_text(address.ip())))
            .into()
    })
}

fn host(data: &DataDir, n: u16) -> Result<HostSockets> {
    let id = HostId::new(format!("h{n}"))?;
    let dir = data.sockets(&id)?;
    let (control, ingress) = (dir.join("control.sock"), dir.join("ingress.sock"));
    let fds = vec![(socket::CONTROL, unix(&control)?), (socket::INGRESS, unix(&ingress)?)];
    Ok(HostSockets { id, control: HostAddress::Unix(control), ingress: HostAddress::Unix(ingress), fds })
}

/// Binds a Unix socket of mode 0600. One that is there is a leftover: the data folder is locked.
fn unix(path: &Path) -> Result<OwnedFd> {
    let bind = |path: &PathBuf| -> io::Result<UnixListener> {
        match std::fs::remove_file(path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        let listener = UnixListener::bind(path)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
        deepen(&listener)?;
        Ok(listener)
    };
    let listener = bind(&path.to_owned()).with_context(|| format!("cannot listen on {}", path.display()))?;
    Ok(listener.into())
}

/// Gives a socket that listens already a longer queue.
fn deepen(socket: &impl std::os::fd::AsFd) -> io::Result<()> {
    Ok(listen(&socket.as_fd(), Backlog::new(BACKLOG)?)?)
}

/// A URL that reaches this address from this machine.
pub(super) fn url(scheme: &str, address: SocketAddr) -> String {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    format!("{scheme}://{}:{}", host_text(ip), address.port())
}

fn host_text(ip: IpAddr) -> String {
    match ip {
        IpAddr::V4(ip) => ip.to_string(),
        IpAddr::V6(ip) => format!("[{ip}]"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_in_use_names_the_flag() {
        let first = tcp("127.0.0.1:0".parse().unwrap(), "--http").unwrap();
        let error = tcp(first.local_addr().unwrap(), "--http").unwrap_err();
        let verdict = crate::failure::judge(&error).unwrap();
        assert_eq!(verdict.code, Code::Conflict);
        assert!(verdict.next.unwrap().contains("--http 127.0.0.1:0"));
    }

    #[test]
    fn a_leftover_socket_is_replaced_and_private() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s.sock");
        drop(unix(&path).unwrap());
        let _again = unix(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn urls_reach_unspecified_addresses_too() {
        assert_eq!(url("http", "0.0.0.0:1".parse().unwrap()), "http://127.0.0.1:1");
        assert_eq!(url("https", "[::]:2".parse().unwrap()), "https://[::1]:2");
        assert_eq!(url("https", "192.0.2.1:3".parse().unwrap()), "https://192.0.2.1:3");
    }
}
