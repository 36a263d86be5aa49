//! Attacks on the processor: loops in every phase, and recursion. The limit is `cpu_ms`, counted by the
//! thread's own clock; a guest that loops is interrupted by the epoch every 5 ms.

use anyhow::Result;

use super::arena::{Arena, tame, text_component, wild};

#[tokio::test(flavor = "multi_thread")]
async fn a_loop_ends_with_its_cpu_time() -> Result<()> {
    let arena = Arena::enter().await?;
    assert_eq!(arena.wild()?.works("/spin?ms=1000").await?, "spun");
    arena.tame()?.fails("/spin?ms=20000", 504, "limit cpu_ms").await?;
    arena.unharmed().await
}

#[tokio::test(flavor = "multi_thread")]
async fn many_loops_at_once_end_each_with_its_cpu_time() -> Result<()> {
    let arena = Arena::enter().await?;
    let (wild, tame) = (arena.wild()?, arena.tame()?);
    assert_eq!(wild.works("/spin?ms=500").await?, "spun");
    let attacks = futures::future::join_all((0..8).map(|_| tame.get("/spin?ms=60000"))).await;
    for answer in attacks {
        assert_eq!(answer?.status, 504);
    }
    arena.unharmed().await
}

/// A start function runs before any request is read: it counts as the request's.
#[tokio::test(flavor = "multi_thread")]
async fn a_loop_in_start_up_ends_with_its_cpu_time() -> Result<()> {
    let arena = Arena::enter().await?;
    let folder = tempfile::tempdir()?;
    let start = "(func $begin (local $n i32) (local.set $n (i32.const 1000000000)) (loop $again \
        (local.set $n (i32.sub (local.get $n) (i32.const 1))) (br_if $again (local.get $n)))) (start $begin)";
    let component = text_component(folder.path(), "start", start, "(call $answer (local.get $out))", "")?;
    assert_eq!(arena.deploy("wild-start", &component, wild).await?.works("/").await?, "");
    let slow = |c: &mut marcato_api::RevisionConfig| {
        tame(c);
        c.limits.cpu_ms = marcato_api::Millis(50);
    };
    arena.deploy("tame-start", &component, slow).await?.fails("/", 504, "limit cpu_ms").await?;
    arena.unharmed().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_loop_after_the_answer_ends_with_its_cpu_time() -> Result<()> {
    let arena = Arena::enter().await?;
    let (wild, tame) = (arena.app("wild-swarm")?, arena.app("tame-swarm")?);
    // Not for ever: it would take a core for the ten minutes that are the widest limit.
    assert_eq!(wild.works("/spin-in-subtask?n=1000").await?, "spawned");
    arena.admin.logged("wild-swarm", "spun 1000").await?;
    let answer = tame.get("/spin-in-subtask").await?;
    assert_eq!((answer.status, answer.text().as_str()), (200, "spawned\n"), "the answer had left");
    tame.logged(answer.header("x-request-id"), "limit cpu_ms").await?;
    tame.idle().await?;
    arena.unharmed().await
}

/// The stack of a guest is wasmtime's own (512 KiB): its end is a trap, in the guest alone.
#[tokio::test(flavor = "multi_thread")]
async fn deep_recursion_traps_at_the_end_of_the_guests_stack() -> Result<()> {
    let arena = Arena::enter().await?;
    assert_eq!(arena.wild()?.works("/recurse?depth=1000").await?, "deep 1000");
    // The size of the stack is no setting, so the widest limits do not help.
    arena.wild()?.fails("/recurse?depth=100000000", 500, "trapped").await?;
    arena.tame()?.fails("/recurse?depth=100000000", 500, "trapped").await?;
    arena.unharmed().await
}
