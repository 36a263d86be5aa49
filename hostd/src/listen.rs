//! Listening sockets, bound here or inherited, TCP or Unix, and the streams they give.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use marcato_api::HostAddress;
use marcato_socket::QuietUnix;
use nix::sys::socket::{setsockopt, sockopt};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener};

use crate::config::Listen;
use crate::durable;
use crate::error::HostdError;

/// A byte stream of any kind.
pub(crate) trait Io: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Io for T {}

/// A socket that listens.
pub(crate) enum Listener {
    /// TCP.
    Tcp(TcpListener),
    /// Unix; the file goes with the listener.
    Unix {
        /// Its file, when this daemon made it. Goes first: who finds nobody listening may make the file anew.
        _file: Option<SocketFile>,
        /// The socket.
        listener: UnixListener,
    },
}

/// A socket's file, removed on drop.
pub(crate) struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.0) {
            tracing::debug!(path = %self.0.display(), %error, "the socket's file is gone already");
        }
    }
}

/// A connection that no reactor watches yet.
pub(crate) enum Socket {
    /// TCP.
    Tcp(std::net::TcpStream),
    /// Unix.
    Unix(std::os::unix::net::UnixStream),
}

impl Socket {
    /// Gives it to the runtime of the present task.
    pub(crate) fn watch(self) -> io::Result<Box<dyn Io>> {
        Ok(match self {
            Self::Tcp(stream) => Box::new(TcpStream::from_std(stream)?),
            Self::Unix(stream) => Box::new(QuietUnix::new(stream)?),
        })
    }
}

/// An accepted connection.
pub(crate) struct Accepted {
    /// The stream.
    pub(crate) socket: Socket,
    /// The user at the other end, where the kernel knows it.
    pub(crate) uid: Option<u32>,
}

impl Listener {
    /// Binds the address, or takes the socket that was inherited for it. An address in use is tried again for
    /// `within`: a child process that a killed predecessor was about to start holds it for a moment.
    pub(crate) async fn open(listen: Listen, within: Duration) -> Result<Self, HostdError> {
        let begun = Instant::now();
        let opened = match listen.inherited {
            Some(fd) => Self::inherit(&listen.address, fd),
            None => loop {
                match Self::bind(&listen.address) {
                    Err(e) if e.kind() == io::ErrorKind::AddrInUse && begun.elapsed() < within => {
                        tokio::time::sleep(Duration::from_millis(20)).await;
                    }
                    bound => break bound,
                }
            },
        };
        opened.map_err(|source| HostdError::Listen { address: listen.address.to_string(), source })
    }

    fn inherit(address: &HostAddress, fd: OwnedFd) -> io::Result<Self> {
        match address {
            HostAddress::Tcp(_) => {
                let listener = std::net::TcpListener::from(fd);
                listener.set_nonblocking(true)?;
                listener.local_addr()?;
                Ok(Self::Tcp(TcpListener::from_std(listener)?))
            }
            HostAddress::Unix(_) => {
                let listener = std::os::unix::net::UnixListener::from(fd);
                listener.set_nonblocking(true)?;
                listener.local_addr()?;
                Ok(Self::Unix { listener: UnixListener::from_std(listener)?, _file: None })
            }
        }
    }

    fn bind(address: &HostAddress) -> io::Result<Self> {
        match address {
            HostAddress::Tcp(a) => {
                let listener = std::net::TcpListener::bind(a)?;
                listener.set_nonblocking(true)?;
                Ok(Self::Tcp(TcpListener::from_std(listener)?))
            }
            HostAddress::Unix(path) => {
                let (listener, file) = bind_unix(path)?;
                Ok(Self::Unix { listener, _file: Some(file) })
            }
        }
    }

    /// A socket that listens already, of whichever kind it is. Needs a runtime around it.
    pub(crate) fn inherited(fd: OwnedFd) -> io::Result<Self> {
        let tcp = std::net::TcpListener::from(fd);
        tcp.set_nonblocking(true)?;
        // The address of another kind of socket is no address of the internet.
        match tcp.local_addr() {
            Ok(_) => Ok(Self::Tcp(TcpListener::from_std(tcp)?)),
            Err(_) => {
                let unix = std::os::unix::net::UnixListener::from(OwnedFd::from(tcp));
                unix.local_addr()?;
                Ok(Self::Unix { listener: UnixListener::from_std(unix)?, _file: None })
            }
        }
    }

    /// The bare socket, for another process to accept on, and its file.
    pub(crate) fn into_fd(self) -> io::Result<(OwnedFd, Option<SocketFile>)> {
        Ok(match self {
            Self::Tcp(listener) => (listener.into_std()?.into(), None),
            Self::Unix { listener, _file } => (listener.into_std()?.into(), _file),
        })
    }

    /// The next connection.
    pub(crate) async fn accept(&self) -> io::Result<Accepted> {
        match self {
            Self::Tcp(listener) => {
                let (stream, _) = listener.accept().await?;
                stream.set_nodelay(true)?;
                // A peer that lost power must not hold a connection for ever.
                setsockopt(&stream, sockopt::KeepAlive, &true)?;
                Ok(Accepted { socket: Socket::Tcp(stream.into_std()?), uid: None })
            }
            Self::Unix { listener, .. } => {
                let (stream, _) = listener.accept().await?;
                let uid = stream.peer_cred()?.uid();
                Ok(Accepted { socket: Socket::Unix(stream.into_std()?), uid: Some(uid) })
            }
        }
    }
}

/// A socket for a worker to accept on: at this path, or at a free port of this address.
pub(crate) fn bind_for_worker(wanted: &HostAddress) -> io::Result<(OwnedFd, HostAddress, Option<SocketFile>)> {
    match wanted {
        HostAddress::Tcp(address) => {
            let listener = std::net::TcpListener::bind(address)?;
            let bound = listener.local_addr()?;
            Ok((listener.into(), HostAddress::Tcp(bound), None))
        }
        HostAddress::Unix(path) => {
            let (listener, file) = bind_unix(path)?;
            Ok((listener.into_std()?.into(), wanted.clone(), Some(file)))
        }
    }
}

fn bind_unix(path: &Path) -> io::Result<(UnixListener, SocketFile)> {
    if let Some(dir) = path.parent().filter(|dir| !dir.exists()) {
        durable::ensure_private_dir(dir)?;
    }
    if path.exists() {
        // A file that nobody listens on is left over from a daemon that was killed.
        match std::os::unix::net::UnixStream::connect(path) {
            Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => std::fs::remove_file(path)?,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            _ => return Err(io::ErrorKind::AddrInUse.into()),
        }
    }
    let listener = UnixListener::bind(path)?;
    let file = SocketFile(path.to_owned());
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok((listener, file))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_left_over_socket_is_replaced_and_a_live_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run/s.sock");
        let address = HostAddress::Unix(path.clone());
        let open = || Listener::open(Listen { address: address.clone(), inherited: None }, Duration::ZERO);
        let first = open().await.unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(matches!(open().await, Err(HostdError::Listen { .. })), "in use");
        drop(first);
        assert!(!path.exists());
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(path.exists(), "as after kill -9");
        let again = open().await.unwrap();
        let _client = tokio::net::UnixStream::connect(&path).await.unwrap();
        assert_eq!(again.accept().await.unwrap().uid, Some(nix::unistd::geteuid().as_raw()));
    }

    #[tokio::test]
    async fn an_inherited_socket_is_taken_and_its_file_left() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s.sock");
        let socket = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let listen = Listen { address: HostAddress::Unix(path.clone()), inherited: Some(socket.into()) };
        drop(Listener::open(listen, Duration::ZERO).await.unwrap());
        assert!(path.exists());
        let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let wrong = Listen { address: HostAddress::Unix(path), inherited: Some(tcp.into()) };
        assert!(Listener::open(wrong, Duration::ZERO).await.is_err(), "a TCP socket is no Unix socket");
    }
}
