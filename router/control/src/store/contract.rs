//! What every store engine must hold, as one test suite. An engine's own tests call [`holds`].

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use marcato_api::StoreRevision;
use serde_json::json;

use super::{Expected, Listing, Order, Store, StoreError, Txn, Wish};

/// Runs the whole suite on an empty store.
pub(crate) async fn holds(store: Arc<dyn Store>) {
    revisions_and_checks(&*store).await;
    listings(&*store).await;
    atomic(&*store).await;
    watching(&*store).await;
    leases(&*store).await;
    contended(&store).await;
}

async fn revisions_and_checks(store: &dyn Store) {
    assert_eq!(store.get("a/1").await.unwrap(), None);
    let first = store.commit(Txn::new().check("a/1", Expected::Absent).put("a/1", json!({"n": 1}))).await.unwrap();
    let found = store.get("a/1").await.unwrap().unwrap();
    assert_eq!((found.revision, &found.value), (first, &json!({"n": 1})));
    let second = store.commit(Txn::new().check("a/1", Expected::Revision(first)).put("a/1", json!(2))).await.unwrap();
    assert!(second > first);
    for wrong in [Expected::Absent, Expected::Revision(first)] {
        let refused = store.commit(Txn::new().check("a/1", wrong).put("a/1", json!(3))).await;
        assert!(matches!(refused, Err(StoreError::Conflict { key }) if key == "a/1"));
    }
    let refused = store.commit(Txn::new().check("a/none", Expected::Present).put("a/1", json!(3))).await;
    assert!(matches!(refused, Err(StoreError::Conflict { key }) if key == "a/none"));
    assert_eq!(store.get("a/1").await.unwrap().unwrap().value, json!(2));
    assert_eq!(*store.latest().borrow(), second);
    store.commit(Txn::new().check("a/1", Expected::Any).delete("a/1")).await.unwrap();
    assert_eq!(store.get("a/1").await.unwrap(), None);
}

async fn listings(store: &dyn Store) {
    let mut txn = Txn::new().put("lisa/0", json!("not in it")).put("list0", json!("nor this"));
    for n in 1..=5 {
        txn = txn.put(format!("list/{n}"), json!(n));
    }
    let revision = store.commit(txn).await.unwrap();
    let keys = |found: Vec<super::Versioned>| found.into_iter().map(|v| v.key).collect::<Vec<_>>();
    let page = store.list(Listing::of("list/", 2)).await.unwrap();
    assert_eq!(keys(page), ["list/1", "list/2"]);
    let next = Listing { after: Some("list/2".into()), ..Listing::of("list/", 100) };
    assert_eq!(keys(store.list(next).await.unwrap()), ["list/3", "list/4", "list/5"]);
    let down = Listing { order: Order::Descending, ..Listing::of("list/", 2) };
    assert_eq!(keys(store.list(down.clone()).await.unwrap()), ["list/5", "list/4"]);
    let further = Listing { after: Some("list/4".into()), ..down };
    assert_eq!(keys(store.list(further).await.unwrap()), ["list/3", "list/2"]);
    let wishes = vec![Wish::Key("list/3".into()), Wish::Key("gone".into()), Wish::Prefix("list/".into())];
    let (at, answers) = store.read(wishes).await.unwrap();
    assert_eq!(at, revision);
    assert_eq!(answers.iter().map(Vec::len).collect::<Vec<_>>(), [1, 0, 5]);
}

async fn atomic(store: &dyn Store) {
    let before = *store.latest().borrow();
    let refused =
        store.commit(Txn::new().check("b/2", Expected::Present).put("b/1", json!(1)).put("b/3", json!(1))).await;
    assert!(refused.is_err());
    assert!(store.list(Listing::of("b/", 10)).await.unwrap().is_empty());
    assert_eq!(*store.latest().borrow(), before, "a refused commit takes no revision");
}

async fn watching(store: &dyn Store) {
    let start = *store.latest().borrow();
    let mut changes = store.watch("w/", start);
    store.commit(Txn::new().put("other", json!(0))).await.unwrap();
    let first = store.commit(Txn::new().put("w/1", json!(1)).put("w/2", json!(1))).await.unwrap();
    let second = store.commit(Txn::new().delete("w/1").delete("w/none")).await.unwrap();
    let mut seen = Vec::new();
    while seen.len() < 3 {
        let batch = tokio::time::timeout(Duration::from_secs(20), changes.next()).await.expect("in time");
        seen.extend(batch.expect("no end").expect("no error"));
    }
    let seen: Vec<_> = seen.iter().map(|c| (c.revision, c.key.as_str(), c.deleted)).collect();
    assert_eq!(seen, [(first, "w/1", false), (first, "w/2", false), (second, "w/1", true)]);
    // From the past: the same, without waiting.
    let mut again = store.watch("w/", start);
    assert_eq!(again.next().await.unwrap().unwrap().len(), 3);
    let mut all = store.watch("", StoreRevision(0));
    assert!(!all.next().await.unwrap().unwrap().is_empty());
}

async fn leases(store: &dyn Store) {
    let long = Duration::from_secs(600);
    assert!(store.lease("planner", "one", long).await.unwrap());
    assert!(store.lease("planner", "one", long).await.unwrap(), "the holder renews");
    assert!(!store.lease("planner", "two", long).await.unwrap(), "another one does not get it");
    store.release("planner", "two").await.unwrap();
    assert!(!store.lease("planner", "two", long).await.unwrap(), "nor by giving up what it never had");
    store.release("planner", "one").await.unwrap();
    assert!(store.lease("planner", "two", Duration::ZERO).await.unwrap());
    assert!(store.lease("planner", "one", long).await.unwrap(), "an expired lease is free");
}

/// Twenty writers count one number up: none of their steps is lost.
async fn contended(store: &Arc<dyn Store>) {
    store.commit(Txn::new().put("count", json!(0))).await.unwrap();
    let writers: Vec<_> = (0..20)
        .map(|_| {
            let store = Arc::clone(store);
            tokio::spawn(async move {
                loop {
                    let now = store.get("count").await.unwrap().unwrap();
                    let next = json!(now.value.as_u64().unwrap() + 1);
                    let txn = Txn::new().check("count", Expected::Revision(now.revision)).put("count", next);
                    match store.commit(txn).await {
                        Ok(_) => return,
                        Err(StoreError::Conflict { .. }) => {}
                        Err(e) => panic!("{e}"),
                    }
                }
            })
        })
        .collect();
    for writer in writers {
        writer.await.unwrap();
    }
    assert_eq!(store.get("count").await.unwrap().unwrap().value, json!(20));
}
