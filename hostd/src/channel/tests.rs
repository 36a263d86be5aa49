//! Calls both ways, garbage, ends, and sockets on their way.

use std::os::fd::OwnedFd;
use std::time::Duration;

use futures::FutureExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixDatagram, UnixStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::peer::Gone;
use super::*;

struct Ends {
    daemon: Peer<Orders, Asks>,
    worker: Peer<Asks, Orders>,
    tasks: TaskTracker,
}

fn ends() -> Ends {
    let (one, other) = UnixStream::pair().unwrap();
    let tasks = TaskTracker::new();
    let daemon = Peer::start(one, &tasks, CancellationToken::new(), |ask| {
        async move {
            match ask {
                Ask::Code(digest) => AskAnswer::Code(Ok(digest.hex().to_owned())),
                _ => AskAnswer::Refused,
            }
        }
        .boxed()
    });
    let worker = Peer::start(other, &tasks, CancellationToken::new(), |order| {
        async move {
            match order {
                Order::Report => OrderAnswer::Report(Box::default()),
                Order::Open => std::future::pending().await,
                _ => OrderAnswer::Done,
            }
        }
        .boxed()
    });
    Ends { daemon, worker, tasks }
}

#[tokio::test]
async fn calls_go_both_ways_and_many_at_once() {
    let ends = ends();
    let digests: Vec<Digest> = (0..3000u32).map(|n| Digest::of(&n.to_be_bytes())).collect();
    let asks: Vec<Ask> = digests.iter().cloned().map(Ask::Code).collect();
    let calls = futures::future::join_all(asks.iter().map(|ask| ends.worker.call(ask)));
    let (answers, report) = tokio::join!(calls, ends.daemon.call(&Order::Report));
    for (digest, answer) in digests.iter().zip(answers) {
        assert!(matches!(answer, Ok(AskAnswer::Code(Ok(name))) if name == digest.hex()));
    }
    assert!(matches!(report, Ok(OrderAnswer::Report(_))));
}

#[tokio::test]
async fn who_waits_learns_of_the_end() {
    let Ends { daemon, worker, tasks } = ends();
    let order = Order::Open;
    let mut waiting = Box::pin(daemon.call(&order));
    assert!(futures::poll!(&mut waiting).is_pending());
    // Given up: its place and its entry are free again.
    drop(waiting);
    let waiting = daemon.call(&order);
    let ending = async {
        tokio::task::yield_now().await;
        worker.gone().cancel();
    };
    let (answer, ()) = tokio::join!(waiting, ending);
    assert!(matches!(answer, Err(Gone)));
    assert!(matches!(daemon.call(&Order::Report).await, Err(Gone)));
    assert!(matches!(worker.call(&Ask::Code(Digest::of(b""))).await, Err(Gone)));
    drop((daemon, worker));
    tasks.close();
    tokio::time::timeout(Duration::from_secs(10), tasks.wait()).await.expect("every task ends");
}

#[tokio::test]
async fn garbage_ends_the_connection_and_nothing_else() {
    let frame = |body: &[u8]| [&u32::try_from(body.len()).unwrap().to_be_bytes()[..], body].concat();
    let garbage = [
        b"\xff\xff\xff\xff".to_vec(),
        b"\x00\x00\x00\x00".to_vec(),
        frame(b"{}"),
        frame(b"null"),
        frame(b"{\"Call\":[1,{\"Nonsense\":1}]}"),
        frame(b"{\"Call\":[18446744073709551616,\"Report\"]}"),
        frame(b"{\"Answer\":[1]}"),
        frame(&[b'['; 100_000]),
        frame(b"\x00\xff\xfe"),
    ];
    for bytes in garbage {
        let (mut rogue, own) = UnixStream::pair().unwrap();
        let tasks = TaskTracker::new();
        let gone = CancellationToken::new();
        let _peer: Peer<Orders, Asks> =
            Peer::start(own, &tasks, gone.clone(), |_| async { AskAnswer::Refused }.boxed());
        rogue.write_all(&bytes).await.unwrap();
        tokio::time::timeout(Duration::from_secs(10), gone.cancelled()).await.expect("the connection ends");
    }
    // Cut short in the middle of a message.
    let (mut rogue, own) = UnixStream::pair().unwrap();
    let gone = CancellationToken::new();
    let peer: Peer<Orders, Asks> =
        Peer::start(own, &TaskTracker::new(), gone.clone(), |_| async { AskAnswer::Refused }.boxed());
    rogue.write_all(&frame(b"{\"Tell\":\"x\"}")[..8]).await.unwrap();
    drop(rogue);
    tokio::time::timeout(Duration::from_secs(10), gone.cancelled()).await.expect("the connection ends");
    assert!(matches!(peer.call(&Order::Report).await, Err(Gone)));
}

#[tokio::test]
async fn too_many_open_calls_end_the_connection() {
    let (mut rogue, own) = UnixStream::pair().unwrap();
    let gone = CancellationToken::new();
    let _peer: Peer<Orders, Asks> =
        Peer::start(own, &TaskTracker::new(), gone.clone(), |_| std::future::pending().boxed());
    let digest = Digest::of(b"");
    let flood = async {
        for n in 0..10_000 {
            let body = format!("{{\"Call\":[{n},{{\"Code\":\"{digest}\"}}]}}");
            let head = u32::try_from(body.len()).unwrap().to_be_bytes();
            // The other side closes.
            if rogue.write_all(&[&head[..], body.as_bytes()].concat()).await.is_err() {
                break;
            }
        }
    };
    tokio::join!(flood, async {
        tokio::time::timeout(Duration::from_secs(10), gone.cancelled()).await.expect("the connection ends");
    });
}

#[test]
fn the_first_message_comes_before_any_runtime() {
    let (mut one, mut other) = std::os::unix::net::UnixStream::pair().unwrap();
    let setup = Setup {
        worker: "shared".into(),
        sandboxes: 8,
        memory: Bytes::mib(64),
        lease: LeaseOrder::default(),
        outbound_ca_pem: None,
        tls: None,
        require_confinement: true,
    };
    send_first(&mut one, &setup).unwrap();
    let read: Setup = read_first(&mut other).unwrap();
    assert_eq!((read.worker.as_str(), read.sandboxes, read.require_confinement), ("shared", 8, true));
    for garbage in [&b"\xff\xff\xff\xff"[..], b"\x00\x00\x00\x02{}", b"\x00\x00\x00\x09nonsense", b"\x00"] {
        let (mut one, mut other) = std::os::unix::net::UnixStream::pair().unwrap();
        std::io::Write::write_all(&mut one, garbage).unwrap();
        drop(one);
        assert!(read_first::<Setup>(&mut other).is_err());
    }
}

#[tokio::test]
async fn a_socket_arrives_under_its_ticket() {
    let (daemon, worker) = std::os::unix::net::UnixDatagram::pair().unwrap();
    let gone = CancellationToken::new();
    let sender = SocketSender::new(daemon).unwrap();
    let receiver = SocketReceiver::start(worker, gone.clone()).unwrap();
    let (mut near, far) = UnixStream::pair().unwrap();
    let (wanted, given_up) = (receiver.expect(7), receiver.expect(8));
    drop(given_up);
    sender.send(8, &near).await.unwrap();
    sender.send(7, &far).await.unwrap();
    drop(far);
    let fd: OwnedFd = wanted.socket().await.expect("it comes");
    let stream = std::os::unix::net::UnixStream::from(fd);
    stream.set_nonblocking(true).unwrap();
    let mut stream = UnixStream::from_std(stream).unwrap();
    stream.write_all(b"hello").await.unwrap();
    drop(stream);
    let mut text = String::new();
    near.read_to_string(&mut text).await.unwrap();
    assert_eq!(text, "hello");
    // A datagram without a descriptor is the daemon's no more.
    let never = receiver.expect(9);
    let (rogue, other) = UnixDatagram::pair().unwrap();
    drop((rogue, other));
    drop(sender);
    gone.cancel();
    drop(receiver);
    assert!(tokio::time::timeout(Duration::from_millis(50), never.socket()).await.is_err() || gone.is_cancelled());
}
