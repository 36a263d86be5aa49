//! Bodies in both directions: large, slow, and held back by a slow reader.

use std::sync::atomic::AtomicU64;

use futures::StreamExt as _;
use http_body::Frame;
use http_body_util::StreamBody;
use marcato_api::{Bytes as Size, Millis};

use super::*;

const TOTAL: u64 = 100 << 20;
const CHUNK: u64 = 64 << 10;

/// A body of `TOTAL` bytes that counts what was taken of it.
fn large(taken: &Arc<AtomicU64>) -> Body {
    let taken = Arc::clone(taken);
    let frames = futures::stream::iter(0..TOTAL / CHUNK).map(move |_| {
        taken.fetch_add(CHUNK, Ordering::SeqCst);
        Ok::<_, Infallible>(Frame::data(Bytes::from_static(&[7; CHUNK as usize])))
    });
    StreamBody::new(frames).boxed_unsync()
}

/// What all sockets and buffers on the way may hold; far below `TOTAL`, so memory is bounded.
const ON_THE_WAY: u64 = 24 << 20;

/// Waits until a count stands still, and returns it.
async fn settled(count: &AtomicU64) -> u64 {
    let mut last = 0;
    for _ in 0..200 {
        tokio::time::sleep(Duration::from_millis(50)).await;
        let now = count.load(Ordering::SeqCst);
        if now == last && now > 0 {
            return now;
        }
        last = now;
    }
    panic!("the stream never stands still");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_response_waits_for_its_reader() {
    let rig = Rig::new(|_| {}).await;
    let taken = Arc::new(AtomicU64::new(0));
    let source = Arc::clone(&taken);
    let h = host(&rig.socket("h"), move |_| {
        let body = large(&source);
        async { Response::new(body) }
    });
    rig.app("a", &[&h.path]);
    let mut stream = TcpStream::connect(rig.http).await.unwrap();
    stream.write_all(b"GET / HTTP/1.0\r\nHost: a.test\r\n\r\n").await.unwrap();
    let held = settled(&taken).await;
    assert!(held < ON_THE_WAY, "{held} bytes were taken for a client that reads none");
    let mut buf = vec![0; 1 << 20];
    let mut count = 0;
    loop {
        match stream.read(&mut buf).await.unwrap() {
            0 => break,
            n => count += n as u64,
        }
    }
    assert!(count > TOTAL && count < TOTAL + 1024, "{count}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_upload_waits_for_its_reader() {
    let rig = Rig::new(|_| {}).await;
    let (go, gone) = tokio::sync::watch::channel(false);
    let h = host(&rig.socket("h"), move |r| {
        let mut gone = gone.clone();
        async move {
            gone.wait_for(|g| *g).await.unwrap();
            let mut body = r.into_body();
            let mut count = 0;
            while let Some(frame) = body.frame().await {
                count += frame.unwrap().data_ref().map_or(0, Bytes::len);
            }
            answer(count.to_string())
        }
    });
    let mut app = spec("a", &["a.test"], &[&h.path]);
    app.limits.request_body_bytes = Size(TOTAL);
    rig.publish(app);
    let sent = Arc::new(AtomicU64::new(0));
    let counter = Arc::clone(&sent);
    let mut stream = TcpStream::connect(rig.http).await.unwrap();
    let client = tokio::spawn(async move {
        let head = format!("POST / HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\nContent-Length: {TOTAL}\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        for _ in 0..TOTAL / CHUNK {
            stream.write_all(&[7; CHUNK as usize]).await.unwrap();
            counter.fetch_add(CHUNK, Ordering::SeqCst);
        }
        read_all(&mut stream).await
    });
    let held = settled(&sent).await;
    assert!(held < ON_THE_WAY, "{held} bytes were taken for a host that reads none");
    go.send_replace(true);
    let response = client.await.unwrap();
    assert_eq!((status(&response), body(&response)), (200, TOTAL.to_string().as_str()));
}

#[tokio::test]
async fn a_response_streams_as_it_comes() {
    let rig = Rig::new(|_| {}).await;
    let (tx, rx) = tokio::sync::mpsc::channel::<Result<Frame<Bytes>, Infallible>>(1);
    let rx = Arc::new(Mutex::new(Some(rx)));
    let h = host(&rig.socket("h"), move |_| {
        let mut rx = rx.lock().unwrap().take().unwrap();
        let frames = futures::stream::poll_fn(move |cx| rx.poll_recv(cx));
        let response = Response::new(StreamBody::new(frames).boxed_unsync());
        async { response }
    });
    rig.app("a", &[&h.path]);
    let mut stream = TcpStream::connect(rig.http).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n").await.unwrap();
    let mut seen = String::new();
    for word in ["first", "second"] {
        tx.send(Ok(Frame::data(Bytes::from_static(word.as_bytes())))).await.unwrap();
        // Each word is there before the next one is made.
        while !seen.contains(word) {
            let mut buf = [0; 1024];
            let n = stream.read(&mut buf).await.unwrap();
            assert!(n > 0, "{seen}");
            seen.push_str(std::str::from_utf8(&buf[..n]).unwrap());
        }
    }
    drop(tx);
    assert!(read_all(&mut stream).await.ends_with("0\r\n\r\n"));
}

#[tokio::test]
async fn a_client_that_leaves_ends_its_request() {
    let rig = Rig::new(|_| {}).await;
    let h = host(&rig.socket("h"), |_| std::future::pending());
    rig.app("a", &[&h.path]);
    let mut stream = TcpStream::connect(rig.http).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n").await.unwrap();
    until("it arrives", || h.requests() == 1).await;
    drop(stream);
    until("the connection to the host ends", || rig.metric("marcato_edge_upstream_connections") == 0.0).await;
    assert_eq!(rig.metric("marcato_edge_in_flight"), 0.0);
    assert_eq!(rig.metric("marcato_edge_requests_total{class=\"aborted\"}"), 1.0);
    let entry = Arc::clone(rig.table.load().apps().next().unwrap());
    assert_eq!(entry.endpoints[0].stats.in_flight(), 0);
}

#[tokio::test]
async fn a_client_that_takes_nothing_is_cut() {
    let rig = Rig::new(|c| c.write_stall_ms = Millis(100)).await;
    let taken = Arc::new(AtomicU64::new(0));
    let source = Arc::clone(&taken);
    let h = host(&rig.socket("h"), move |_| {
        let body = large(&source);
        async { Response::new(body) }
    });
    rig.app("a", &[&h.path]);
    let mut stream = TcpStream::connect(rig.http).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n").await.unwrap();
    until("it streams", || taken.load(Ordering::SeqCst) > 0).await;
    until("the edge cuts it", || rig.metric("marcato_edge_connections") == 0.0).await;
    assert!(taken.load(Ordering::SeqCst) < TOTAL);
    assert!(rig.metric("marcato_edge_cut_stalled_total") >= 1.0);
}

#[tokio::test]
async fn a_host_that_falls_silent_in_the_middle_is_cut() {
    let rig = Rig::new(|c| c.response_idle_ms = Millis(50)).await;
    let h = host(&rig.socket("h"), |_| async {
        let frames = futures::stream::iter([Ok(Frame::data(Bytes::from_static(b"half")))]);
        Response::new(StreamBody::new(frames.chain(futures::stream::pending())).boxed_unsync())
    });
    rig.app("a", &[&h.path]);
    let response = rig.get("a.test", "/").await;
    assert!(status(&response) == 200 && !response.ends_with("0\r\n\r\n"), "{response}");
}
