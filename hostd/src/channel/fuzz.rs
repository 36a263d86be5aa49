//! Fuzz target: frames from a worker to the daemon. A worker that was broken writes what it likes.

use std::time::Duration;

use futures::FutureExt;
use marcato_api::{AccessRequest, PageRequest};
use marcato_fuzz::{Edits, JsonInput, PanicWatch, target};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::*;

const WORDS: &[&str] =
    &["Call", "Tell", "Answer", "Report", "Done", "Code", "Access", "Ready", "instance", "binding", "Ok", "Err"];
const BOUND: Duration = Duration::from_secs(10);
/// The number of the call that is made after everything else.
const LAST: u64 = 999_999;

fn good() -> Vec<Value> {
    let value = |ask: &Ask| serde_json::to_value(ask).unwrap();
    let instance = InstanceId::new("a-1").unwrap();
    let page = PageRequest { offset: 0, limit: 10 };
    let asks = [
        Ask::Ready(Box::default()),
        Ask::Code(Digest::of(b"x")),
        Ask::Access {
            instance: instance.clone(),
            binding: "b".into(),
            request: AccessRequest::ListSubjects { kind: None, search: Some("x".into()), page },
        },
        Ask::KeyValue {
            instance: instance.clone(),
            binding: "b".into(),
            request: KeyValueRequest::SetMany { entries: vec![("k".into(), vec![1, 2])] },
        },
        Ask::Connect { instance: instance.clone(), host: "example.org".into(), port: 443, ticket: 7 },
        Ask::Lines(vec![Line { instance, request_id: "r".into(), stream: LogStream::Stdout, text: "t".into() }]),
        Ask::Last(Box::default()),
    ];
    let mut frames: Vec<Value> = asks.iter().map(|ask| json!({ "Call": [1, value(ask)] })).collect();
    frames.extend(asks.iter().map(|ask| json!({ "Tell": value(ask) })));
    for answer in [
        OrderAnswer::Done,
        OrderAnswer::Started(vec![Ok(()), Err(NotStarted::Code)]),
        OrderAnswer::Report(Box::default()),
    ] {
        frames.push(json!({ "Answer": [0, serde_json::to_value(&answer).unwrap()] }));
    }
    frames
}

fn framed(body: &[u8]) -> Vec<u8> {
    [&u32::try_from(body.len()).unwrap().to_be_bytes()[..], body].concat()
}

/// Whether an answer with this number is among the frames that a worker wrote.
async fn answers(stream: &mut tokio::net::unix::OwnedReadHalf, number: u64) -> bool {
    loop {
        let Ok(length) = stream.read_u32().await else { return false };
        let mut body = vec![0; length as usize];
        stream.read_exact(&mut body).await.expect("the daemon writes whole frames");
        let frame: Value = serde_json::from_slice(&body).expect("the daemon writes JSON");
        if frame["Answer"][0] == number {
            return true;
        }
    }
}

/// A daemon that has one call open, and a worker that writes these bytes.
async fn exchange(bytes: &[u8], is_whole: bool, may_answer: bool) {
    let watch = PanicWatch::begin();
    let (rogue, own) = UnixStream::pair().unwrap();
    let (tasks, gone) = (TaskTracker::new(), CancellationToken::new());
    let peer: Peer<Orders, Asks> = Peer::start(own, &tasks, gone.clone(), |ask| {
        async move {
            drop(ask);
            AskAnswer::Refused
        }
        .boxed()
    });
    let caller = peer.clone();
    let open = tokio::spawn(async move { caller.call(&Order::Report).await });
    let (mut read, mut write) = rogue.into_split();
    // The daemon may have ended the connection by now.
    let _ = write.write_all(bytes).await;
    if is_whole {
        let last = framed(json!({ "Call": [LAST, { "Code": Digest::of(b"x") }] }).to_string().as_bytes());
        let _ = write.write_all(&last).await;
        let answered = tokio::time::timeout(BOUND, answers(&mut read, LAST)).await.expect("it answers or ends");
        assert!(answered || gone.is_cancelled(), "it neither answered nor ended");
    }
    write.shutdown().await.ok();
    tokio::time::timeout(BOUND, gone.cancelled()).await.expect("it ends with the connection");
    drop((read, write));
    let result = tokio::time::timeout(BOUND, open).await.expect("whoever waits learns of the end").unwrap();
    assert!(result.is_err() || may_answer, "an answer that nobody gave");
    drop(peer);
    tasks.close();
    tokio::time::timeout(BOUND, tasks.wait()).await.expect("every task ends");
    watch.end();
}

/// The daemon answers what comes after, or ends the connection; a call of its own gets an answer that was given, or
/// learns of the end; every task ends; and what was read as a frame is written and read the same.
#[test]
fn fuzz_frames() {
    let good = good();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    target!(500, |input: &(Vec<JsonInput>, Option<Edits>)| {
        let (frames, damage) = input;
        let bodies: Vec<_> = frames.iter().take(5).map(|f| f.bytes(&good, WORDS)).collect();
        for body in &bodies {
            check_meaning(body);
        }
        let whole: Vec<u8> = bodies.iter().flat_map(|b| framed(b)).collect();
        let may_answer = bodies.iter().any(|b| b.windows(6).any(|w| w == b"Answer"));
        let damage = damage.as_ref().filter(|_| frames.len() % 4 == 0);
        let bytes = damage.map_or_else(
            || whole.clone(),
            |edits| edits.apply(&whole, &[b"\xff\xff\xff\xff", b"\0\0\0\0", b"\0\0\0\x02{}"]),
        );
        runtime.block_on(exchange(&bytes, damage.is_none(), may_answer));
    });
}

/// What is read means the same when it is written again.
#[track_caller]
fn check_meaning(body: &[u8]) {
    let Ok(frame) = serde_json::from_slice::<Value>(body) else { return };
    for ask in [&frame["Call"][1], &frame["Tell"]] {
        let Ok(read) = serde_json::from_value::<Ask>(ask.clone()) else { continue };
        let written = serde_json::to_value(&read).unwrap();
        let again: Ask = serde_json::from_value(written.clone()).expect("it is read again");
        assert_eq!(serde_json::to_value(&again).unwrap(), written);
    }
}
