//! The state over a real SQLite file: numbering, secrets, events, join tokens, snapshots.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use marcato_api::{
    App, AppName, AppState, Bytes, Digest, JoinRequest, Outcome, RevisionConfig, RevisionNumber, RevisionPhase, Route,
};

use super::{Deed, EventBounds, JoinOutcome, JoinTokenRecord, RevisionDraft, SealKey, State};
use crate::store::{SqliteStore, Txn};

fn state() -> (tempfile::TempDir, State) {
    let dir = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(&dir.path().join("state.sqlite")).unwrap();
    let seal = SealKey::ensure(&dir.path().join("seal.key")).unwrap();
    (dir, State::new(Arc::new(store), seal))
}

fn app(name: &str, route: &str) -> App {
    let now = Timestamp::now();
    App {
        name: name.parse().unwrap(),
        org: "default".parse().unwrap(),
        space: "default".parse().unwrap(),
        state: AppState::Started,
        instances: 1,
        current: None,
        stable: None,
        restarts: 0,
        routes: vec![Route::parse(route).unwrap()],
        created_at: now,
        updated_at: now,
    }
}

fn draft(secret: &str) -> RevisionDraft {
    RevisionDraft {
        digest: Digest::of(b"component"),
        size: Bytes(9),
        config: RevisionConfig { env: BTreeMap::from([("KEY".into(), secret.into())]), ..RevisionConfig::default() },
        created_by: "ann".into(),
        reason: "push".into(),
    }
}

fn deed(action: &'static str) -> Deed {
    Deed::new("ann", action, "app/x", "")
}

async fn push(state: &State, name: &AppName, secret: &str) -> marcato_api::Revision {
    let old = state.app(name).await.unwrap().unwrap();
    state.create_revision(&old, draft(secret), Txn::new(), "ann").await.unwrap()
}

#[tokio::test]
async fn a_route_belongs_to_one_app_and_moves_only_when_given_up() {
    let (_dir, state) = state();
    let (one, two) = (app("one", "shop.test/"), app("two", "shop.test"));
    state.create_app(&one, &deed("app.create")).await.unwrap();
    let refused = state.create_app(&two, &deed("app.create")).await.unwrap_err();
    let route = State::route_of_key(refused.conflict().unwrap()).unwrap();
    assert_eq!(state.route_owner(&route).await.unwrap(), Some(one.name.clone()));
    let old = state.app(&one.name).await.unwrap().unwrap();
    let moved = App { routes: vec![Route::parse("other.test/x").unwrap()], ..one.clone() };
    state.replace_app(&old, &moved, &deed("app.routes")).await.unwrap();
    state.create_app(&two, &deed("app.create")).await.unwrap();
    assert!(state.replace_app(&old, &one, &deed("app.routes")).await.is_err(), "an old version does not write");
    let old = state.app(&one.name).await.unwrap().unwrap();
    state.remove_app(&old, &deed("app.delete")).await.unwrap();
    assert_eq!(state.route_owner(&Route::parse("other.test/x").unwrap()).await.unwrap(), None);
}

#[tokio::test]
async fn revisions_are_numbered_sealed_and_superseded() {
    let (dir, state) = state();
    let x = app("x", "x.test");
    state.create_app(&x, &deed("app.create")).await.unwrap();
    let first = push(&state, &x.name, "hunter2-first").await;
    let second = push(&state, &x.name, "hunter2-second").await;
    assert_eq!((first.number, second.number), (RevisionNumber(1), RevisionNumber(2)));
    assert_eq!(state.revision(&x.name, first.number).await.unwrap().unwrap(), first);
    assert!(state.set_revision_phase(&x.name, first.number, RevisionPhase::Serving, None).await.unwrap());
    assert!(!state.set_revision_phase(&x.name, first.number, RevisionPhase::Serving, None).await.unwrap());
    let version = state.app(&x.name).await.unwrap().unwrap().1;
    let why = Some("imports wasi:gfx".to_owned());
    assert!(state.set_revision_phase(&x.name, second.number, RevisionPhase::Failed, why.clone()).await.unwrap());
    assert_eq!(state.app(&x.name).await.unwrap().unwrap().1, version, "a failed roll-out leaves the app's version");
    assert_eq!(state.revision(&x.name, second.number).await.unwrap().unwrap().failure, why);
    assert!(state.set_revision_phase(&x.name, second.number, RevisionPhase::Serving, None).await.unwrap());
    assert_eq!(state.revision(&x.name, first.number).await.unwrap().unwrap().phase, RevisionPhase::Superseded);
    let desired = state.desired(&[(x.name.clone(), first.number)]).await.unwrap();
    assert_eq!(desired.apps[0].0.stable, Some(second.number));
    assert_eq!(desired.revisions.len(), 2);
    assert_eq!(desired.revisions[&(x.name.clone(), second.number)].config.env["KEY"], "hunter2-second");
    // A new app of the same name goes on counting: an instance id is never used for two things.
    let old = state.app(&x.name).await.unwrap().unwrap();
    state.remove_app(&old, &deed("app.delete")).await.unwrap();
    assert_eq!(state.revision(&x.name, first.number).await.unwrap(), None);
    state.create_app(&x, &deed("app.create")).await.unwrap();
    assert_eq!(push(&state, &x.name, "hunter2-third").await.number, RevisionNumber(3));
    for entry in std::fs::read_dir(dir.path()).unwrap() {
        let bytes = std::fs::read(entry.unwrap().path()).unwrap();
        assert!(!bytes.windows(7).any(|w| w == b"hunter2"), "a secret is in the clear on disk");
    }
}

#[tokio::test]
async fn at_most_one_of_many_uses_a_join_token() {
    let (_dir, state) = state();
    let expires_at = Timestamp::now() + std::time::Duration::from_secs(60);
    let token = JoinTokenRecord { created_by: "ann".into(), expires_at, used_by: None };
    state.create_join_token("aa", &token).await.unwrap();
    state.create_join_token("bb", &JoinTokenRecord { expires_at: Timestamp::UNIX_EPOCH, ..token }).await.unwrap();
    let request = |id: &str| JoinRequest {
        id: id.parse().unwrap(),
        csr_pem: String::new(),
        control: "tcp:127.0.0.1:1".parse().unwrap(),
        ingress: "tcp:127.0.0.1:2".parse().unwrap(),
        zone: String::new(),
        labels: BTreeMap::new(),
    };
    let tries = futures::future::join_all((0..8).map(|n| {
        let (state, request) = (state.clone(), request(&format!("h{n}")));
        async move { state.join("aa", &request).await.unwrap() }
    }))
    .await;
    assert_eq!(tries.iter().filter(|o| matches!(o, JoinOutcome::Joined(_))).count(), 1);
    assert_eq!(tries.iter().filter(|o| matches!(o, JoinOutcome::Used { .. })).count(), 7);
    assert_eq!(state.hosts().await.unwrap().len(), 1);
    assert_eq!(state.join("bb", &request("h9")).await.unwrap(), JoinOutcome::Expired);
    assert_eq!(state.join("cc", &request("h9")).await.unwrap(), JoinOutcome::Unknown);
    assert_eq!(state.forget_join_tokens().await.unwrap(), 1);
}

#[tokio::test]
async fn events_are_numbered_without_gaps_under_contention() {
    let (_dir, state) = state();
    let writes = (0..30).map(|_| {
        let state = state.clone();
        async move { state.record(&Deed::new("bob", "app.scale", "app/x", "no"), Outcome::Denied).await.unwrap() }
    });
    futures::future::join_all(writes).await;
    let (first, next) = state.events(None, 20).await.unwrap();
    let (rest, end) = state.events(next.and_then(|n| n.parse().ok()), 20).await.unwrap();
    let numbers: Vec<u64> = first.iter().chain(&rest).map(|e| e.sequence).collect();
    assert_eq!(numbers, (1..=30).rev().collect::<Vec<u64>>());
    assert_eq!(end, None);
    assert_eq!(first[0].outcome, Outcome::Denied);
}

#[tokio::test]
async fn placements_are_written_by_one_planner_at_a_time() {
    let (_dir, state) = state();
    assert!(state.placements::<Vec<u32>>().await.unwrap().is_none());
    let version = state.put_placements(&vec![1], None).await.unwrap();
    assert!(state.put_placements(&vec![2], None).await.is_err());
    state.put_placements(&vec![2], Some(version)).await.unwrap();
    assert_eq!(state.placements::<Vec<u32>>().await.unwrap().unwrap().0, [2]);
}

#[tokio::test]
async fn old_revisions_go_but_never_one_that_serves_or_runs() {
    let (_dir, state) = state();
    let name: AppName = "x".parse().unwrap();
    state.create_app(&app("x", "x.test"), &deed("app.create")).await.unwrap();
    for n in 0..10 {
        push(&state, &name, &format!("secret {n}")).await;
    }
    state.set_revision_phase(&name, RevisionNumber(2), RevisionPhase::Serving, None).await.unwrap();
    let in_use = [(name.clone(), RevisionNumber(4)), ("y".parse().unwrap(), RevisionNumber(5))].into();
    assert_eq!(state.trim_revisions(3, &in_use).await.unwrap(), 5, "1, 3, 5, 6 and 7");
    let (kept, _) = state.revisions(&name, None, 100).await.unwrap();
    assert_eq!(kept.iter().map(|r| r.number.0).collect::<Vec<_>>(), [10, 9, 8, 4, 2]);
    assert_eq!(state.trim_revisions(3, &in_use).await.unwrap(), 0, "again: nothing");
    assert!(state.was_revision(&name, RevisionNumber(5)).await.unwrap());
    assert!(!state.was_revision(&name, RevisionNumber(11)).await.unwrap());
    assert!(!state.was_revision(&name, RevisionNumber(0)).await.unwrap());
    // Going back to what was just trimmed is a conflict, not an app without its revision.
    let old = state.app(&name).await.unwrap().unwrap();
    let back = App { current: Some(RevisionNumber(5)), ..old.0.clone() };
    let refused = state.replace_app(&old, &back, &deed("app.rollback")).await.unwrap_err();
    assert!(refused.conflict().unwrap().starts_with("revisions/x/"), "{refused}");
    assert_eq!(push(&state, &name, "next").await.number, RevisionNumber(11), "numbers are never used twice");
    let (events, _) = state.events(None, 100).await.unwrap();
    assert!(events.iter().any(|e| e.action == "revision.trim" && e.detail.contains("from 1 to 7")), "{events:?}");
}

#[tokio::test]
async fn old_events_go_and_the_numbers_go_on() {
    let (_dir, state) = state();
    let done = Deed::new("bob", "app.scale", "app/x", "");
    let event = || state.record(&done, Outcome::Ok);
    for _ in 0..30 {
        event().await.unwrap();
    }
    let day = std::time::Duration::from_secs(86_400);
    let (now, bounds) = (Timestamp::now(), EventBounds { most: 30, age: day * 400 });
    assert_eq!(state.trim_events(bounds, now).await.unwrap(), 0, "within the bounds");
    event().await.unwrap();
    assert_eq!(state.trim_events(bounds, now).await.unwrap(), 1, "1 of 31");
    let (first, next) = state.events(None, 20).await.unwrap();
    assert_eq!((first[0].sequence, first[0].action.as_str()), (32, "event.trim"));
    let (rest, end) = state.events(next.and_then(|n| n.parse().ok()), 20).await.unwrap();
    let numbers: Vec<u64> = first.iter().chain(&rest).map(|e| e.sequence).collect();
    assert_eq!(numbers, (2..=32).rev().collect::<Vec<u64>>(), "paging meets no gap");
    assert_eq!(end, None);
    assert!(state.events(Some(1), 20).await.unwrap().0.is_empty(), "a page after what was trimmed is empty");
    // Long after, all but the newest are too old; it stays, because the numbers go on from it.
    let late = now + day * 402;
    assert_eq!(state.trim_events(bounds, late).await.unwrap(), 30);
    assert_eq!(state.trim_events(bounds, now).await.unwrap(), 0);
    let (left, _) = state.events(None, 20).await.unwrap();
    assert_eq!(left.iter().map(|e| e.sequence).collect::<Vec<_>>(), [33, 32]);
    let again = State::new(Arc::clone(state.store()), state.seal.clone());
    again.record(&Deed::new("bob", "app.scale", "app/x", ""), Outcome::Ok).await.unwrap();
    assert_eq!(again.events(None, 1).await.unwrap().0[0].sequence, 34, "also after a restart");
}

#[tokio::test]
async fn a_component_that_is_asked_for_is_not_collected() {
    let (_dir, state) = state();
    let digest = Digest::of(b"component");
    state.record_component(&digest, Bytes(9), None, "ann").await.unwrap();
    let (first, version) = state.component(&digest).await.unwrap().unwrap();
    assert_eq!(first.needs, None);
    let needs = std::collections::BTreeSet::from([marcato_api::ServiceKind::Access]);
    state.record_component(&digest, Bytes(9), Some(needs.clone()), "ann").await.unwrap();
    assert!(!state.forget_component(&digest, version).await.unwrap(), "it was uploaded again");
    let known = state.component(&digest).await.unwrap().unwrap();
    assert_eq!(known.0.needs, Some(needs));
    state.create_app(&app("x", "x.test"), &deed("app.create")).await.unwrap();
    let old = state.app(&"x".parse().unwrap()).await.unwrap().unwrap();
    let extra = state.use_component(&known, Txn::new()).unwrap();
    state.create_revision(&old, draft("s"), extra, "ann").await.unwrap();
    assert!(!state.forget_component(&digest, known.1).await.unwrap(), "a revision was made with it");
    let (_, now) = state.component(&digest).await.unwrap().unwrap();
    assert!(state.forget_component(&digest, now).await.unwrap());
    assert!(state.component(&digest).await.unwrap().is_none());
}
