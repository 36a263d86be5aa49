//! Calls in both directions over one stream: frames of a length and JSON. Knows nothing of what is called.
//!
//! Every queue is bounded. A caller waits while too many of its calls are open; the other side ends the connection
//! when it is sent more than that, or something that cannot be read.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream as StdStream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::future::BoxFuture;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Longest frame: an answer of a key-value batch may be large, as JSON.
const FRAME_BYTES: usize = 80 << 20;
/// Calls of one side that wait for their answers.
const OPEN_CALLS: usize = 1024;
/// Frames that wait to be written.
const QUEUE: usize = 4096;
/// What is written in one go.
const WRITE_BYTES: usize = 256 << 10;

/// Calls of one side, and their answers.
pub(crate) trait Direction: Send + Sync + 'static {
    /// What is called.
    type Call: Serialize + DeserializeOwned + Send + 'static;
    /// What is answered.
    type Answer: Serialize + DeserializeOwned + Send + 'static;
}

#[derive(Serialize, Deserialize)]
enum Frame<C, A> {
    Call(u64, C),
    /// A call that wants no answer.
    Tell(C),
    Answer(u64, A),
}

/// The other side is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the other side is gone")]
pub(crate) struct Gone;

/// One end. `Mine` are the calls made here, `Theirs` the ones answered here.
pub(crate) struct Peer<Mine: Direction, Theirs: Direction> {
    shared: Arc<Shared<Mine>>,
    _theirs: std::marker::PhantomData<fn() -> Theirs>,
}

impl<Mine: Direction, Theirs: Direction> Clone for Peer<Mine, Theirs> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared), _theirs: std::marker::PhantomData }
    }
}

struct Shared<Mine: Direction> {
    next: AtomicU64,
    open: Mutex<HashMap<u64, oneshot::Sender<Mine::Answer>>>,
    places: Semaphore,
    frames: mpsc::Sender<Vec<u8>>,
    gone: CancellationToken,
}

impl<Mine: Direction> Shared<Mine> {
    fn open(&self) -> MutexGuard<'_, HashMap<u64, oneshot::Sender<Mine::Answer>>> {
        // A map of whole entries: usable whatever panicked.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes an open call away when its caller gives up.
struct Waiting<'a, Mine: Direction>(&'a Shared<Mine>, u64);

impl<Mine: Direction> Drop for Waiting<'_, Mine> {
    fn drop(&mut self) {
        self.0.open().remove(&self.1);
    }
}

impl<Mine: Direction, Theirs: Direction> Peer<Mine, Theirs> {
    /// Speaks over the stream; `answer` answers calls of the other side. Tasks end with the connection, which ends
    /// when the other side closes it, sends nonsense, or `gone` is cancelled.
    pub(crate) fn start<F>(stream: UnixStream, tasks: &TaskTracker, gone: CancellationToken, answer: F) -> Self
    where
        F: Fn(Theirs::Call) -> BoxFuture<'static, Theirs::Answer> + Send + Sync + 'static,
    {
        let (read, write) = stream.into_split();
        let (frames, queue) = mpsc::channel(QUEUE);
        let shared = Arc::new(Shared {
            next: AtomicU64::new(0),
            open: Mutex::default(),
            places: Semaphore::new(OPEN_CALLS),
            frames,
            gone: gone.clone(),
        });
        let writing = write_frames(write, queue);
        tasks.spawn({
            let gone = gone.clone();
            async move {
                tokio::select! {
                    () = gone.cancelled() => {}
                    result = writing => {
                        if let Err(error) = result {
                            tracing::debug!(%error, "the channel cannot be written to");
                        }
                        gone.cancel();
                    }
                }
            }
        });
        tasks.spawn({
            let (shared, tasks) = (Arc::clone(&shared), tasks.clone());
            async move {
                let reading = read_frames::<Mine, Theirs, F>(read, &shared, &tasks, Arc::new(answer));
                tokio::select! {
                    () = gone.cancelled() => {}
                    result = reading => {
                        if let Err(error) = result {
                            tracing::warn!(%error, "the channel to the other side broke");
                        }
                        gone.cancel();
                    }
                }
                // Who still waits learns that no answer comes.
                shared.open().clear();
            }
        });
        Self { shared, _theirs: std::marker::PhantomData }
    }

    /// Calls, and waits for the answer.
    pub(crate) async fn call(&self, call: &Mine::Call) -> Result<Mine::Answer, Gone> {
        let shared = &*self.shared;
        let _place = shared.places.acquire().await.map_err(|_| Gone)?;
        let id = shared.next.fetch_add(1, Ordering::Relaxed);
        let (send, receive) = oneshot::channel();
        shared.open().insert(id, send);
        let _waiting = Waiting(shared, id);
        if shared.gone.is_cancelled() {
            return Err(Gone);
        }
        let frame = encode(&Frame::<&Mine::Call, ()>::Call(id, call));
        shared.frames.send(frame).await.map_err(|_| Gone)?;
        receive.await.map_err(|_| Gone)
    }

    /// Tells without an answer; waits while the queue is full.
    pub(crate) async fn tell(&self, call: &Mine::Call) -> Result<(), Gone> {
        let frame = encode(&Frame::<&Mine::Call, ()>::Tell(call));
        self.shared.frames.send(frame).await.map_err(|_| Gone)
    }

    /// Cancelled when the connection ended; cancel it to end the connection.
    pub(crate) fn gone(&self) -> &CancellationToken {
        &self.shared.gone
    }
}

/// A frame on the wire: its length in four bytes, most significant first, then JSON.
fn encode<T: Serialize>(frame: &T) -> Vec<u8> {
    let mut bytes = vec![0; 4];
    // These types always serialize: maps have string keys and nothing fails on purpose.
    if let Err(error) = serde_json::to_writer(&mut bytes, frame) {
        tracing::error!(%error, "a message cannot be written as JSON");
    }
    let length = u32::try_from(bytes.len() - 4).unwrap_or(u32::MAX);
    bytes[..4].copy_from_slice(&length.to_be_bytes());
    bytes
}

fn length_of(head: [u8; 4]) -> io::Result<usize> {
    let length = usize::try_from(u32::from_be_bytes(head)).unwrap_or(usize::MAX);
    if length > FRAME_BYTES {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("a message of {length} bytes")));
    }
    Ok(length)
}

async fn write_frames(mut write: OwnedWriteHalf, mut queue: mpsc::Receiver<Vec<u8>>) -> io::Result<()> {
    let mut buffer = Vec::new();
    while let Some(frame) = queue.recv().await {
        buffer.extend_from_slice(&frame);
        while buffer.len() < WRITE_BYTES
            && let Ok(frame) = queue.try_recv()
        {
            buffer.extend_from_slice(&frame);
        }
        write.write_all(&buffer).await?;
        buffer.clear();
        buffer.shrink_to(WRITE_BYTES);
    }
    Ok(())
}

async fn read_frames<Mine: Direction, Theirs: Direction, F>(
    read: OwnedReadHalf,
    shared: &Arc<Shared<Mine>>,
    tasks: &TaskTracker,
    answer: Arc<F>,
) -> io::Result<()>
where
    F: Fn(Theirs::Call) -> BoxFuture<'static, Theirs::Answer> + Send + Sync + 'static,
{
    let mut read = tokio::io::BufReader::with_capacity(64 << 10, read);
    let answering = Arc::new(Semaphore::new(OPEN_CALLS + 1));
    let mut body = Vec::new();
    loop {
        let mut head = [0; 4];
        match read.read_exact(&mut head).await {
            Ok(_) => {}
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            Err(e) => return Err(e),
        }
        body.clear();
        body.shrink_to(1 << 20);
        // Grows with what arrives, not with what was announced.
        let length = length_of(head)?;
        (&mut read).take(length as u64).read_to_end(&mut body).await?;
        if body.len() < length {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        match serde_json::from_slice::<Frame<Theirs::Call, Mine::Answer>>(&body)? {
            Frame::Answer(id, answer) => {
                if let Some(waiting) = shared.open().remove(&id) {
                    // The caller may have given up.
                    let _ = waiting.send(answer);
                }
            }
            Frame::Tell(call) => drop(answer(call).await),
            Frame::Call(id, call) => {
                let place = Arc::clone(&answering)
                    .try_acquire_owned()
                    .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "too many open calls"))?;
                let (answered, frames, gone) = (answer(call), shared.frames.clone(), shared.gone.clone());
                tasks.spawn(async move {
                    let answering = async {
                        let answer = answered.await;
                        drop(frames.send(encode(&Frame::<(), _>::Answer(id, answer))).await);
                    };
                    tokio::select! {
                        () = gone.cancelled() => {}
                        () = answering => {}
                    }
                    drop(place);
                });
            }
        }
    }
}

/// Sends the first message, before any runtime.
pub(crate) fn send_first<T: Serialize>(stream: &mut StdStream, message: &T) -> io::Result<()> {
    stream.write_all(&encode(message))
}

/// Reads the first message, before any runtime.
pub(crate) fn read_first<T: DeserializeOwned>(stream: &mut StdStream) -> io::Result<T> {
    let mut head = [0; 4];
    stream.read_exact(&mut head)?;
    let mut body = Vec::new();
    stream.take(length_of(head)? as u64).read_to_end(&mut body)?;
    Ok(serde_json::from_slice(&body)?)
}
