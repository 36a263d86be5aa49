//! Attacks with WASI 0.3: subtasks, streams and futures without number, and tasks that outlive the answer.

use std::time::{Duration, Instant};

use anyhow::Result;
use marcato_api::Millis;
use marcato_tests::{guest, tree_resident_bytes, until};

use super::arena::{Arena, wild};

const LONG: Duration = Duration::from_secs(20);

/// Each subtask, stream and future is a handle; a sandbox may have 10,000. That is no setting, so the attack
/// is first shown below it.
#[tokio::test(flavor = "multi_thread")]
async fn fork_bombs_of_subtasks_trap_at_the_number_of_handles() -> Result<()> {
    let arena = Arena::enter().await?;
    let (wild, tame) = (arena.app("wild-swarm")?, arena.app("tame-swarm")?);
    assert_eq!(wild.works("/fork?n=1000").await?, "forked 1000");
    assert_eq!(wild.works("/streams?n=1000").await?, "held 1000");
    let before = tree_resident_bytes(arena.cluster.pid());
    for path in ["/fork?n=20000", "/fork-forever?n=20000", "/orphans?n=20000", "/streams?n=50000", "/futures?n=50000"] {
        wild.fails(path, 500, "handle").await?;
        let both = futures::future::join_all((0..4).map(|_| tame.get(path))).await;
        for answer in both {
            assert!(answer?.status >= 500, "{path}");
        }
    }
    let grown = tree_resident_bytes(arena.cluster.pid()).saturating_sub(before);
    assert!(grown < 128 << 20, "grew by {} MiB", grown >> 20);
    arena.unharmed().await
}

/// What a guest leaves running has the time of its request, and no more.
#[tokio::test(flavor = "multi_thread")]
async fn tasks_that_outlive_the_answer_end_with_the_requests_time() -> Result<()> {
    let arena = Arena::enter().await?;
    let tame = arena.app("tame-swarm")?;
    // With more time than the other they are there when the other's have ended.
    let patient = |c: &mut marcato_api::RevisionConfig| {
        wild(c);
        c.limits.time_ms = Millis::secs(12);
    };
    let patient = arena.deploy("patient-swarm", &guest("guest-swarm")?, patient).await?;
    let begin = Instant::now();
    assert_eq!(patient.works("/orphans?n=500").await?, "left 500");
    until("the other's time", LONG, || async { Ok((begin.elapsed() > Duration::from_secs(4)).then_some(())) }).await?;
    patient.busy(1).await?;
    patient.idle().await?;
    assert!(begin.elapsed() > Duration::from_secs(11), "{:?}", begin.elapsed());
    let answer = tame.get("/orphans?n=500").await?;
    assert_eq!(answer.text(), "left 500\n");
    tame.logged(answer.header("x-request-id"), "limit time_ms").await?;
    tame.idle().await?;
    arena.unharmed().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trap_in_a_subtask_does_not_reach_another_request() -> Result<()> {
    let arena = Arena::enter().await?;
    let wild = arena.app("wild-swarm")?;
    let answer = wild.get("/trap-in-subtask").await?;
    assert_eq!(answer.text(), "spawned\n", "it had answered");
    wild.logged(answer.header("x-request-id"), "unreachable").await?;
    assert_eq!(wild.works("/").await?, "hello from WASI 0.3");
    arena.unharmed().await
}
