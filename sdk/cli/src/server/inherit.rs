//! Listening sockets that a supervisor bound and passed on (systemd's protocol: `LISTEN_FDS`,
//! `LISTEN_FDNAMES`), so that they outlive this process and connections wait while it is replaced.

use std::io;
use std::net::TcpListener;
use std::os::fd::OwnedFd;

use listenfd::ListenFd;

/// The sockets by name; each can be taken once.
pub(crate) struct Inherited {
    fds: ListenFd,
    names: Vec<String>,
}

impl Inherited {
    /// Reads the environment. Call it before any thread is started: it also clears it.
    pub(crate) fn from_env() -> Self {
        let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
        Self { fds: ListenFd::from_env(), names: names.split(':').map(ToOwned::to_owned).collect() }
    }

    fn position(&self, name: &str) -> Option<usize> {
        self.names.iter().position(|n| n == name)
    }

    /// The TCP listener of this name; `None` when it was not passed. Errors: it is no TCP socket.
    pub(crate) fn tcp(&mut self, name: &str) -> io::Result<Option<TcpListener>> {
        match self.position(name) {
            Some(at) => self.fds.take_tcp_listener(at),
            None => Ok(None),
        }
    }

    /// The Unix listener of this name; `None` when it was not passed. Errors: it is no Unix socket.
    pub(crate) fn unix(&mut self, name: &str) -> io::Result<Option<OwnedFd>> {
        match self.position(name) {
            Some(at) => Ok(self.fds.take_unix_listener(at)?.map(OwnedFd::from)),
            None => Ok(None),
        }
    }
}
