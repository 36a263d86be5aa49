//! A Unix stream that waits for room to write only when there is none.
//!
//! A Unix socket becomes writable again each time its peer reads. Watched in the usual way, that wakes the sender
//! once per message for nothing; here only reading is watched, and writing from a full buffer until there is room.

use std::io::{self, IoSlice, Read as _, Write as _};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};

/// The stream.
#[derive(Debug)]
pub struct QuietUnix {
    stream: AsyncFd<UnixStream>,
    /// The same socket, watched for room while there is none.
    full: Option<AsyncFd<UnixStream>>,
}

impl QuietUnix {
    /// Takes a connected stream and gives it to the runtime of the present task.
    ///
    /// # Errors
    /// The socket cannot be made non-blocking, or cannot be watched (no descriptor or watch is left).
    pub fn new(stream: UnixStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Self { stream: watch(stream, Interest::READABLE)?, full: None })
    }

    fn write(
        &mut self,
        cx: &mut Context<'_>,
        mut write: impl FnMut(&UnixStream) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        loop {
            match write(self.stream.get_ref()) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                result => {
                    self.full = None;
                    return Poll::Ready(result);
                }
            }
            let full = match &mut self.full {
                Some(full) => full,
                None => {
                    let again = self.stream.get_ref().try_clone()?;
                    self.full.insert(watch(again, Interest::WRITABLE)?)
                }
            };
            ready!(full.poll_write_ready(cx))?.clear_ready();
        }
    }
}

#[allow(unsafe_code, reason = "watching a socket for one direction only has no safe form")]
fn watch(stream: UnixStream, interest: Interest) -> io::Result<AsyncFd<UnixStream>> {
    // SAFETY: the stream owns its descriptor, always names the same one, and is only closed when it is dropped,
    // which is when the returned value is.
    unsafe { AsyncFd::register_with_interest(stream, interest) }.map_err(Into::into)
}

impl AsyncRead for QuietUnix {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        loop {
            let mut ready = ready!(this.stream.poll_read_ready(cx))?;
            let room = buf.initialize_unfilled();
            match this.stream.get_ref().read(room) {
                Ok(count) => {
                    // Less than asked for: there is nothing more, and the next event tells of more.
                    if 0 < count && count < room.len() {
                        ready.clear_ready();
                    }
                    buf.advance(count);
                    return Poll::Ready(Ok(()));
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => ready.clear_ready(),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Poll::Ready(Err(e)),
            }
        }
    }
}

impl AsyncWrite for QuietUnix {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.get_mut().write(cx, |mut stream| stream.write(buf))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.get_mut().write(cx, |mut stream| stream.write_vectored(bufs))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.stream.get_ref().shutdown(Shutdown::Write))
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    fn pair() -> (QuietUnix, QuietUnix) {
        let (a, b) = UnixStream::pair().unwrap();
        (QuietUnix::new(a).unwrap(), QuietUnix::new(b).unwrap())
    }

    #[tokio::test]
    async fn more_than_any_buffer_arrives_whole_both_ways() {
        let (left, right) = pair();
        let sent: Vec<u8> = (0..8_u32 << 20).map(|n| (n % 251) as u8).collect();
        let both = [left, right].map(|stream| {
            let sent = sent.clone();
            tokio::spawn(async move {
                let (mut read, mut write) = tokio::io::split(stream);
                let writing = async {
                    write.write_all(&sent).await.unwrap();
                    write.shutdown().await.unwrap();
                };
                let mut got = Vec::new();
                let (_, count) = tokio::join!(writing, read.read_to_end(&mut got));
                assert_eq!(count.unwrap(), sent.len());
                assert!(got == sent);
            })
        });
        for side in both {
            side.await.unwrap();
        }
    }

    #[tokio::test]
    async fn a_reader_that_waits_is_woken_and_a_lost_peer_is_seen() {
        let (mut left, mut right) = pair();
        let waiting = tokio::spawn(async move {
            let mut word = [0; 5];
            left.read_exact(&mut word).await.unwrap();
            let end = left.read(&mut [0; 8]).await.unwrap();
            (word, end, left.write_all(&[0; 64]).await)
        });
        tokio::task::yield_now().await;
        let parts = [io::IoSlice::new(b"he"), io::IoSlice::new(b"llo")];
        assert_eq!(right.write_vectored(&parts).await.unwrap(), 5);
        drop(right);
        let (word, end, wrote) = waiting.await.unwrap();
        assert_eq!((&word, end), (b"hello", 0));
        assert_eq!(wrote.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }
}
