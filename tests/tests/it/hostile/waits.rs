//! Guests that hang in the host: no epoch wakes them, so a clock around each call has to.

use std::time::Duration;

use anyhow::Result;
use bytes::Bytes;
use http::Method;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Frame;
use marcato_tests::RequestBody;

use super::arena::Arena;

/// A body that says one thing and then nothing more, for ever.
fn unending() -> RequestBody {
    use futures::StreamExt as _;
    let first = futures::stream::iter([Ok::<_, std::io::Error>(Frame::data(Bytes::from_static(b"x")))]);
    StreamBody::new(first.chain(futures::stream::pending())).boxed_unsync()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_waits_for_ever_ends_with_the_requests_time() -> Result<()> {
    let arena = Arena::enter().await?;
    let (wild, tame) = (arena.wild()?, arena.tame()?);
    assert_eq!(wild.works("/sleep?ms=2000").await?, "awake", "two seconds, without the limit");
    // Two at a time: eight run at once at most.
    for paths in [["/sleep?ms=20000", "/poll?n=1"], ["/poll?n=1000", "/unread?hold=1"]] {
        let fails = paths.map(|path| tame.fails(path, 504, "limit time_ms"));
        for result in futures::future::join_all(fails).await {
            result?;
        }
    }
    let swarm = arena.app("tame-swarm")?;
    swarm.fails("/fork-forever?n=10", 504, "limit time_ms").await?;
    arena.unharmed().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_waits_for_a_body_that_never_comes_ends_with_the_requests_time() -> Result<()> {
    let arena = Arena::enter().await?;
    let (wild, tame) = (arena.wild()?, arena.tame()?);
    let waits = wild.target.request(Method::POST, "/wait-body", &[], unending());
    assert!(tokio::time::timeout(Duration::from_secs(3), waits).await.is_err(), "without the limit it waits on");
    wild.idle().await?;
    for path in ["/wait-body", "/unread?hold=1"] {
        let answer = tame.target.request(Method::POST, path, &[], unending()).await?;
        assert!(answer.status == 504 || answer.status == 408, "{path}: {} {}", answer.status, answer.text());
        tame.logged(answer.header("x-request-id"), "limit time_ms").await?;
    }
    tame.idle().await?;
    arena.unharmed().await
}
