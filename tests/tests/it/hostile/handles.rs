//! Attacks on the host's memory by way of calls: handles without number, huge arguments.
//!
//! The bounds are per sandbox: 10,000 handles, 8 MiB per call, 1 MiB of random bytes. They are no settings,
//! so each attack is first shown at half of its bound.

use anyhow::Result;
use marcato_tests::tree_resident_bytes;

use super::arena::Arena;

const ROOM: u64 = 96 << 20;

#[tokio::test(flavor = "multi_thread")]
async fn floods_of_handles_trap_at_their_number() -> Result<()> {
    let arena = Arena::enter().await?;
    let (wild, tame) = (arena.wild()?, arena.tame()?);
    let before = tree_resident_bytes(arena.cluster.pid());
    for kind in ["fields", "pollable", "stdout"] {
        let path = |n: u32| format!("/handles?kind={kind}&n={n}");
        assert_eq!(wild.works(&path(1_000)).await?, "held 1000", "{kind}");
        let answer = tame.get(&path(1_000_000)).await?;
        assert!(answer.status == 500 || answer.status == 504, "{kind}: {}", answer.status);
    }
    tame.fails("/handles?kind=request&n=20000", 500, "trapped").await?;
    let grown = tree_resident_bytes(arena.cluster.pid()).saturating_sub(before);
    assert!(grown < ROOM, "grew by {} MiB", grown >> 20);
    arena.unharmed().await
}

#[tokio::test(flavor = "multi_thread")]
async fn floods_of_fields_are_refused_before_the_host_holds_them() -> Result<()> {
    let arena = Arena::enter().await?;
    let (wild, tame) = (arena.wild()?, arena.tame()?);
    assert_eq!(wild.works("/fields?n=100&size=1000").await?, "held 100000");
    let before = tree_resident_bytes(arena.cluster.pid());
    for path in ["/fields?n=9000&size=100000", "/fields?clone=1&n=9000&size=100000", "/fields?n=1000000&size=1"] {
        let all = futures::future::join_all((0..8).map(|_| tame.get(path))).await;
        for answer in all {
            let answer = answer?;
            let held = answer.text().contains("held 900000000");
            // Copies of one field share their bytes: 900 MB in name, and nothing in memory, as is measured below.
            assert!(answer.status >= 500 || answer.text().starts_with("refused") || held, "{path}: {}", answer.text());
        }
    }
    let grown = tree_resident_bytes(arena.cluster.pid()).saturating_sub(before);
    assert!(grown < ROOM, "grew by {} MiB", grown >> 20);
    arena.unharmed().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_for_too_many_random_bytes_fails() -> Result<()> {
    let arena = Arena::enter().await?;
    let (wild, tame) = (arena.wild()?, arena.tame()?);
    assert_eq!(wild.works("/random?bytes=1000000").await?, "random 1000000");
    for bytes in ["100000000", "18446744073709551615"] {
        tame.fails(&format!("/random?bytes={bytes}"), 500, "exceeds limit").await?;
    }
    arena.unharmed().await
}

/// No file and no socket was granted; the interfaces are there, and say so.
#[tokio::test(flavor = "multi_thread")]
async fn there_are_no_files_and_no_sockets() -> Result<()> {
    let arena = Arena::enter().await?;
    let port = arena.cluster.endpoints.http.rsplit(':').next().unwrap_or_default().to_owned();
    for app in [arena.wild()?, arena.tame()?] {
        assert_eq!(app.works("/files").await?, "preopens 0 read false wrote false");
        let path = format!("/sockets?name=localhost&port={port}");
        assert_eq!(app.works(&path).await?, "name false tcp false udp false");
    }
    arena.unharmed().await
}
