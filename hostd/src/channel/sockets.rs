//! Connected sockets on their way from the daemon to a worker: one datagram each, a ticket with a descriptor beside it
//! (SCM_RIGHTS, unix(7)).

use std::collections::HashMap;
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixDatagram as StdDatagram;
use std::sync::{Arc, Mutex, PoisonError};

use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, UnixAddr, recvmsg, sendmsg};
use tokio::io::Interest;
use tokio::net::UnixDatagram;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

/// The daemon's end.
pub(crate) struct SocketSender(UnixDatagram);

impl SocketSender {
    /// Needs a runtime around it.
    pub(crate) fn new(socket: StdDatagram) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        Ok(Self(UnixDatagram::from_std(socket)?))
    }

    /// Sends a socket under its ticket. The worker has a copy of the descriptor then.
    pub(crate) async fn send(&self, ticket: u64, socket: &impl AsRawFd) -> io::Result<()> {
        let (bytes, fds) = (ticket.to_be_bytes(), [socket.as_raw_fd()]);
        self.0
            .async_io(Interest::WRITABLE, || {
                let rights = [ControlMessage::ScmRights(&fds)];
                sendmsg::<UnixAddr>(self.0.as_raw_fd(), &[IoSlice::new(&bytes)], &rights, MsgFlags::empty(), None)
                    .map_err(io::Error::from)
            })
            .await
            .map(drop)
    }
}

type Expected = Mutex<HashMap<u64, oneshot::Sender<OwnedFd>>>;

/// The worker's end.
pub(crate) struct SocketReceiver(Arc<Expected>);

/// A socket that is on its way, until dropped.
pub(crate) struct Arriving {
    expected: Arc<Expected>,
    ticket: u64,
    socket: oneshot::Receiver<OwnedFd>,
}

impl Drop for Arriving {
    fn drop(&mut self) {
        self.expected.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.ticket);
    }
}

impl Arriving {
    /// Waits for it. `None`: it does not come.
    pub(crate) async fn socket(mut self) -> Option<OwnedFd> {
        (&mut self.socket).await.ok()
    }
}

impl SocketReceiver {
    /// Receives until `gone`. Needs a runtime around it.
    pub(crate) fn start(socket: StdDatagram, gone: CancellationToken) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        let socket = UnixDatagram::from_std(socket)?;
        let expected = Arc::new(Expected::default());
        let own = Self(Arc::clone(&expected));
        tokio::spawn(async move {
            let receiving = async {
                loop {
                    let (ticket, fd) = receive(&socket).await?;
                    let waiting = expected.lock().unwrap_or_else(PoisonError::into_inner).remove(&ticket);
                    if let Some(waiting) = waiting {
                        // Who asked may be gone; the socket closes then.
                        let _ = waiting.send(fd);
                    }
                }
            };
            let result: Option<io::Result<()>> = gone.run_until_cancelled(receiving).await;
            if let Some(Err(error)) = result {
                tracing::error!(%error, "sockets no longer arrive");
                gone.cancel();
            }
        });
        Ok(own)
    }

    /// Expects a socket under this ticket.
    pub(crate) fn expect(&self, ticket: u64) -> Arriving {
        let (send, socket) = oneshot::channel();
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(ticket, send);
        Arriving { expected: Arc::clone(&self.0), ticket, socket }
    }
}

async fn receive(socket: &UnixDatagram) -> io::Result<(u64, OwnedFd)> {
    socket
        .async_io(Interest::READABLE, || {
            let mut bytes = [0; 8];
            let mut space = nix::cmsg_space!([RawFd; 1]);
            let mut slices = [IoSliceMut::new(&mut bytes)];
            let message =
                recvmsg::<UnixAddr>(socket.as_raw_fd(), &mut slices, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC)?;
            let mut fds = message.cmsgs()?.filter_map(|c| match c {
                ControlMessageOwned::ScmRights(fds) => fds.into_iter().next(),
                _ => None,
            });
            // An empty datagram without a descriptor is how the end of the daemon looks.
            let fd = fds.next().ok_or(io::ErrorKind::UnexpectedEof)?;
            // SAFETY: the kernel has just made this descriptor for this process, and nobody else knows of it.
            #[allow(unsafe_code, reason = "the one way to take over a received descriptor; see SAFETY")]
            let fd = unsafe { OwnedFd::from_raw_fd(fd) };
            Ok((u64::from_be_bytes(bytes), fd))
        })
        .await
}
