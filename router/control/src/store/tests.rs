//! SQLite's own tests: the contract, damage, and a process killed in mid-write.

use std::io::{BufRead, BufReader, Write as _};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use marcato_api::StoreRevision;
use serde_json::json;

use super::{Listing, SqliteStore, Store, StoreError, Txn, contract};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sqlite_holds_the_contract() {
    let dir = tempfile::tempdir().unwrap();
    let store: Arc<dyn Store> = Arc::new(SqliteStore::open(&dir.path().join("state.sqlite")).unwrap());
    contract::holds(store).await;
}

#[tokio::test]
async fn a_store_opened_again_goes_on_where_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state.sqlite");
    let store = SqliteStore::open(&path).unwrap();
    let revision = store.commit(Txn::new().put("k", json!("v"))).await.unwrap();
    drop(store);
    let store = SqliteStore::open(&path).unwrap();
    assert_eq!(*store.latest().borrow(), revision);
    assert_eq!(store.get("k").await.unwrap().unwrap().revision, revision);
    assert!(store.commit(Txn::new().put("k", json!("w"))).await.unwrap() > revision);
}

#[test]
fn garbage_is_told_apart_from_a_database() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state.sqlite");
    for garbage in [vec![0x5a; 8192], b"SQLite format 3\0and then nothing of the kind".repeat(100)] {
        std::fs::write(&path, &garbage).unwrap();
        let refused = SqliteStore::open(&path).unwrap_err();
        assert!(matches!(refused, StoreError::Corrupt { .. }), "{refused:?}");
        assert!(refused.to_string().contains("state.sqlite"), "{refused}");
        assert_eq!(std::fs::read(&path).unwrap(), garbage, "nothing was overwritten");
    }
    // A sound database of another program.
    std::fs::remove_file(&path).unwrap();
    rusqlite::Connection::open(&path).unwrap().execute_batch("CREATE TABLE theirs (a)").unwrap();
    assert!(matches!(SqliteStore::open(&path), Err(StoreError::Corrupt { .. })));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watcher_that_is_too_far_behind_is_told_to_read_anew() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state.sqlite");
    let store = SqliteStore::open_keeping(&path, 100).unwrap();
    let mut slow = store.watch("k/", StoreRevision(0));
    // Forgetting goes in steps of 256 revisions.
    let writes = (0..260).map(|n| store.commit(Txn::new().put(format!("k/{n:03}"), json!(n))));
    futures::future::try_join_all(writes).await.unwrap();
    let oldest = match slow.next().await {
        Some(Err(StoreError::Compacted { oldest })) => oldest,
        other => panic!("{other:?}"),
    };
    assert_eq!(oldest, StoreRevision(156));
    assert!(slow.next().await.is_none(), "it ends there");
    let before = store.watch("k/", StoreRevision(155)).next().await;
    assert!(matches!(before, Some(Err(StoreError::Compacted { .. }))), "{before:?}");
    let mut kept = store.watch("k/", oldest);
    let changes = kept.next().await.unwrap().unwrap();
    assert_eq!((changes.len(), changes[0].revision), (104, StoreRevision(157)), "all that is kept, from the first on");
    // Read anew, and watch from there: nothing is missed.
    let (read_at, found) = store.read(vec![super::Wish::Prefix("k/".into())]).await.unwrap();
    assert_eq!(found[0].len(), 260);
    let mut fresh = store.watch("k/", read_at);
    let next = store.commit(Txn::new().put("k/new", json!(1))).await.unwrap();
    let seen = tokio::time::timeout(Duration::from_secs(20), fresh.next()).await.unwrap().unwrap().unwrap();
    assert_eq!((seen[0].revision, seen[0].key.as_str()), (next, "k/new"));
    drop((slow, kept, fresh, store));
    // What was forgotten stays so over a restart.
    let again = SqliteStore::open(&path).unwrap();
    let behind = again.watch("", StoreRevision(1)).next().await;
    assert!(matches!(behind, Some(Err(StoreError::Compacted { oldest })) if oldest.0 == 156), "{behind:?}");
}

const CHILD_ENV: &str = "MARCATO_STORE_KILL_TEST";

/// Not a test of its own: the child that the next test kills.
#[test]
fn child_that_commits_until_killed() {
    let Some(path) = std::env::var_os(CHILD_ENV) else { return };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let store = SqliteStore::open(path.as_ref()).unwrap();
        // Bounded: an orphan must not write for ever.
        for n in 0..20_000u32 {
            let pair = (format!("left/{n:06}"), format!("right/{n:06}"));
            let revision =
                store.commit(Txn::new().put(pair.0, json!(n)).put(pair.1, json!("x".repeat(500)))).await.unwrap();
            let mut out = std::io::stdout().lock();
            writeln!(out, "\nACK {n} {revision}").unwrap();
            out.flush().unwrap();
        }
    });
}

#[tokio::test]
async fn what_was_acknowledged_survives_a_kill_in_mid_write() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state.sqlite");
    let mut known = 0u32;
    for round in 0..3u32 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "store::tests::child_that_commits_until_killed", "--nocapture", "--test-threads=1"])
            .env(CHILD_ENV, &path)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut last = None;
        let acks = lines.map_while(Result::ok).filter_map(|l| {
            let mut words = l.strip_prefix("ACK ")?.split(' ').map(str::to_owned);
            Some((words.next()?.parse::<u32>().ok()?, words.next()?.parse::<u64>().ok()?))
        });
        let mut killed = false;
        for ack in acks {
            last = Some(ack);
            if ack.0 >= 40 + round * 17 && !killed {
                child.kill().unwrap();
                killed = true;
            }
        }
        child.wait().unwrap();
        let (n, revision) = last.expect("the child acknowledged something");
        let store = SqliteStore::open(&path).unwrap();
        assert!(store.latest().borrow().0 >= revision);
        let left = store.list(Listing::of("left/", usize::MAX)).await.unwrap();
        let right = store.list(Listing::of("right/", usize::MAX)).await.unwrap();
        assert!(left.len() > n as usize, "acknowledged {n}, found {}", left.len());
        assert_eq!(left.len(), right.len(), "a commit is whole or not there");
        assert!(left.iter().enumerate().all(|(i, v)| v.key == format!("left/{i:06}")));
        known = known.max(n);
    }
    assert!(known >= 40);
}
