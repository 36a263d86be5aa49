//! The services over real files: durability, damage, full disks, backup and restore, keys, paging.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use marcato_api::{
    AccessError, AccessRequest, AccessResponse, Change, IssuedKey, KeyValueError, KeyValueRequest, KeyValueResponse,
    PageRequest, Permission, ServiceId, ServiceKind, Subject, SubjectKind,
};
use marcato_runtime::{AccessService, KeyValueService};
use tempfile::TempDir;

use super::{ServiceError, ServiceHost};

const READ: Permission = Permission { read: true, write: false };
const BOTH: Permission = Permission { read: true, write: true };
const NONE: Permission = Permission { read: false, write: false };

fn id(text: &str) -> ServiceId {
    ServiceId::new(text).expect("a label")
}

struct Fixture {
    dir: TempDir,
    host: ServiceHost,
}

impl Fixture {
    async fn new() -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let host = ServiceHost::new(dir.path().join("services")).expect("made");
        host.ensure(&id("register"), ServiceKind::Access).await.expect("opens");
        host.ensure(&id("state"), ServiceKind::Keyvalue).await.expect("opens");
        Self { dir, host }
    }

    fn path(&self, service: &str) -> PathBuf {
        self.dir.path().join("services").join(format!("{service}.sqlite"))
    }

    /// As after a restart of the daemon. The old host is dropped after the new one opened nothing.
    async fn reopen(self) -> Self {
        let Self { dir, host } = self;
        drop(host);
        let host = ServiceHost::new(dir.path().join("services")).expect("made");
        Self { dir, host }
    }

    fn access(&self) -> Arc<dyn AccessService> {
        self.host.access(&id("register")).expect("is there")
    }

    fn state(&self) -> Arc<dyn KeyValueService> {
        self.host.keyvalue(&id("state")).expect("is there")
    }
}

fn add(subject: &str, name: &str, permission: Permission) -> AccessRequest {
    AccessRequest::AddSubject {
        actor: "admin".to_owned(),
        id: subject.to_owned(),
        kind: SubjectKind::Patient,
        name: name.to_owned(),
        description: String::new(),
        permission,
    }
}

async fn subject(service: &Arc<dyn AccessService>, subject: &str) -> Result<Subject, AccessError> {
    match service.call(AccessRequest::GetSubject { id: subject.to_owned() }).await? {
        AccessResponse::Subject(s) => Ok(s),
        other => panic!("not a subject: {other:?}"),
    }
}

async fn issue(service: &Arc<dyn AccessService>, subject: &str) -> IssuedKey {
    let request = AccessRequest::IssueKey { actor: "admin".to_owned(), id: subject.to_owned() };
    match service.call(request).await {
        Ok(AccessResponse::Issued(key)) => key,
        other => panic!("not a key: {other:?}"),
    }
}

async fn verify(service: &Arc<dyn AccessService>, subject: &str, key: &str) -> bool {
    let request = AccessRequest::VerifyKey { actor: "dr".to_owned(), id: subject.to_owned(), key: key.to_owned() };
    match service.call(request).await {
        Ok(AccessResponse::Verified(right)) => right,
        other => panic!("not a verdict: {other:?}"),
    }
}

async fn ids(service: &Arc<dyn AccessService>, search: Option<&str>, offset: u64, limit: u32) -> (Vec<String>, u64) {
    let request = AccessRequest::ListSubjects {
        kind: None,
        search: search.map(str::to_owned),
        page: PageRequest { offset, limit },
    };
    match service.call(request).await {
        Ok(AccessResponse::Subjects(page)) => (page.items.into_iter().map(|s| s.id).collect(), page.total),
        other => panic!("not a page: {other:?}"),
    }
}

async fn set(service: &Arc<dyn KeyValueService>, key: &str, value: &[u8]) -> Result<KeyValueResponse, KeyValueError> {
    service.call(KeyValueRequest::Set { key: key.to_owned(), value: value.to_vec() }).await
}

async fn get(service: &Arc<dyn KeyValueService>, key: &str) -> Result<Option<Vec<u8>>, KeyValueError> {
    match service.call(KeyValueRequest::Get { key: key.to_owned() }).await? {
        KeyValueResponse::Value(value) => Ok(value),
        other => panic!("not a value: {other:?}"),
    }
}

#[tokio::test]
async fn what_was_answered_is_there_after_a_reopen() {
    let fixture = Fixture::new().await;
    fixture.access().call(add("1001", "Ada", READ)).await.expect("added");
    let key = issue(&fixture.access(), "1001").await;
    set(&fixture.state(), "k", b"v").await.expect("set");
    // A copy of the files as they are now, log included, is what a kill -9 leaves.
    let killed = tempfile::tempdir().expect("a folder");
    for entry in std::fs::read_dir(fixture.dir.path().join("services")).expect("listed") {
        let entry = entry.expect("entry");
        std::fs::copy(entry.path(), killed.path().join(entry.file_name())).expect("copied");
    }
    let fixture = fixture.reopen().await;
    let after_kill = ServiceHost::new(killed.path().to_owned()).expect("made");
    for host in [&fixture.host, &after_kill] {
        host.ensure(&id("register"), ServiceKind::Access).await.expect("opens");
        host.ensure(&id("state"), ServiceKind::Keyvalue).await.expect("opens");
        let access = host.access(&id("register")).expect("is there");
        assert_eq!(subject(&access, "1001").await.expect("found").name, "Ada");
        assert!(verify(&access, "1001", &key.key).await);
        let state = host.keyvalue(&id("state")).expect("is there");
        assert_eq!(get(&state, "k").await, Ok(Some(b"v".to_vec())));
    }
}

#[tokio::test]
async fn a_key_rotates_and_is_revoked_and_is_nowhere_on_disk() {
    let fixture = Fixture::new().await;
    let access = fixture.access();
    access.call(add("1001", "Ada", READ)).await.expect("added");
    assert!(!verify(&access, "1001", "").await, "no key yet");
    let first = issue(&access, "1001").await;
    assert_eq!(first.key.len(), 46);
    assert!(first.key.starts_with("mk_"));
    assert!(verify(&access, "1001", &first.key).await);
    assert!(!verify(&access, "1001", &first.key[..45]).await);
    let held = subject(&access, "1001").await.expect("found");
    assert_eq!(held.key_hash.as_deref(), Some(first.hash.as_str()));
    assert_eq!(held.key_issued_at, Some(first.issued_at));

    let second = issue(&access, "1001").await;
    assert!(!verify(&access, "1001", &first.key).await, "a rotated key is void");
    assert!(verify(&access, "1001", &second.key).await);
    for entry in std::fs::read_dir(fixture.dir.path().join("services")).expect("listed") {
        let bytes = std::fs::read(entry.expect("entry").path()).expect("read");
        for key in [&first.key, &second.key] {
            let bare = key.trim_start_matches("mk_").as_bytes();
            assert!(!bytes.windows(bare.len()).any(|w| w == bare), "a key in clear on the disk");
        }
    }
    let revoke = AccessRequest::RevokeKey { actor: "admin".to_owned(), id: "1001".to_owned() };
    access.call(revoke.clone()).await.expect("revoked");
    access.call(revoke).await.expect("fine again");
    assert!(!verify(&access, "1001", &second.key).await);
    assert_eq!(subject(&access, "1001").await.expect("found").key_hash, None);
    assert_eq!(format!("{second:?}").find(&second.key), None);
}

#[tokio::test]
async fn every_change_is_in_the_history_and_none_leaves_it() {
    let fixture = Fixture::new().await;
    let access = fixture.access();
    access.call(add("1001", "Ada", READ)).await.expect("added");
    issue(&access, "1001").await;
    let update = AccessRequest::UpdateSubject {
        actor: "admin".to_owned(),
        id: "1001".to_owned(),
        kind: None,
        name: Some("Ada L.".to_owned()),
        description: None,
        permission: Some(BOTH),
        expected_version: Some(1),
    };
    assert!(matches!(access.call(update).await, Err(AccessError::Conflict(_))), "issuing a key counted");
    let remove = AccessRequest::RemoveSubject { actor: "boss".to_owned(), id: "1001".to_owned() };
    access.call(remove.clone()).await.expect("removed");
    assert_eq!(access.call(remove).await, Err(AccessError::NotFound("1001".to_owned())));
    let history =
        AccessRequest::History { subject: Some("1001".to_owned()), page: PageRequest { offset: 0, limit: 10 } };
    let Ok(AccessResponse::History(page)) = access.call(history).await else { panic!("a page") };
    let changes: Vec<_> = page.items.iter().map(|e| e.change).collect();
    assert_eq!(changes, [Change::SubjectRemoved, Change::KeyIssued, Change::SubjectAdded]);
    assert_eq!((page.total, page.items[0].actor.as_str()), (3, "boss"));

    drop(access);
    let fixture = fixture.reopen().await;
    let raw = rusqlite::Connection::open(fixture.path("register")).expect("opens");
    raw.execute("DELETE FROM history", []).expect_err("refused");
    raw.execute("UPDATE history SET actor = 'x'", []).expect_err("refused");
}

#[tokio::test]
async fn rights_decide_from_the_resource_outwards() {
    let fixture = Fixture::new().await;
    let access = fixture.access();
    access.call(add("d1", "Doctor", READ)).await.expect("added");
    let check = async |resource: &str| {
        let request = AccessRequest::Check { id: "d1".to_owned(), resource: resource.to_owned() };
        match access.call(request).await {
            Ok(AccessResponse::Allowed(p)) => p,
            other => panic!("not a permission: {other:?}"),
        }
    };
    let grant = async |resource: &str, permission| {
        let (actor, id, resource) = ("admin".to_owned(), "d1".to_owned(), resource.to_owned());
        access.call(AccessRequest::Grant { actor, id, resource, permission }).await.expect("granted");
    };
    assert_eq!(check("ward/7").await, READ);
    grant("*", NONE).await;
    assert_eq!(check("ward/7").await, NONE);
    grant("ward/7", BOTH).await;
    assert_eq!((check("ward/7").await, check("ward/8").await), (BOTH, NONE));
    let (actor, subject_id, resource) = ("admin".to_owned(), "d1".to_owned(), "*".to_owned());
    access.call(AccessRequest::Withdraw { actor, id: subject_id, resource }).await.expect("withdrawn");
    assert_eq!(check("ward/8").await, READ);
    let list = AccessRequest::ListRights { id: "d1".to_owned(), page: PageRequest { offset: 0, limit: 10 } };
    let Ok(AccessResponse::Rights(page)) = access.call(list).await else { panic!("a page") };
    assert_eq!((page.total, page.items[0].resource.as_str()), (1, "ward/7"));
}

#[tokio::test]
async fn every_page_is_a_slice_of_one_order() {
    let fixture = Fixture::new().await;
    let access = fixture.access();
    let names = ["10", "9", "1001", "1012", "b2", "b10", "a", "a-1", "01", "1", "Z", "1001.5"];
    for name in names {
        access.call(add(name, "Name", NONE)).await.expect("added");
    }
    let (all, total) = ids(&access, None, 0, 200).await;
    assert_eq!(total, names.len() as u64);
    assert_eq!(all, ["01", "1", "9", "10", "1001", "1001.5", "1012", "Z", "a", "a-1", "b2", "b10"]);
    for limit in 1..=u32::try_from(names.len() + 1).expect("small") {
        let mut seen = Vec::new();
        while (seen.len() as u64) < total {
            let (page, same) = ids(&access, None, seen.len() as u64, limit).await;
            assert_eq!(same, total);
            assert_eq!(page.len(), (limit as usize).min(names.len() - seen.len()));
            seen.extend(page);
        }
        assert_eq!(seen, all, "pages of {limit}");
        assert_eq!(ids(&access, None, total + u64::from(limit), limit).await, (vec![], total));
    }
}

#[tokio::test]
async fn a_search_takes_its_text_as_text() {
    let fixture = Fixture::new().await;
    let access = fixture.access();
    for (subject, name) in [("1", "Örn 100%"), ("2", "Under_score"), ("3", "UNDERXSCORE"), ("4", "O'Brien \\ 1")] {
        access.call(add(subject, name, NONE)).await.expect("added");
    }
    let found = async |text: &str| ids(&access, Some(text), 0, 10).await.0;
    assert_eq!(found("öRN").await, ["1"]);
    assert_eq!(found("%").await, ["1"]);
    assert_eq!(found("r_s").await, ["2"]);
    assert_eq!(found("\\").await, ["4"]);
    assert_eq!(found("'").await, ["4"]);
    assert_eq!(found("").await.len(), 4);
    assert_eq!(found("nobody").await.len(), 0);
}

#[tokio::test]
async fn a_bad_field_is_named() {
    let fixture = Fixture::new().await;
    let access = fixture.access();
    access.call(add("1", "Ada", NONE)).await.expect("added");
    assert!(matches!(access.call(add("1", "Ada", NONE)).await, Err(AccessError::Conflict(_))));
    let record = |subject: &str, detail: &str| AccessRequest::Record {
        actor: "a".to_owned(),
        change: Change::Viewed,
        subject: Some(subject.to_owned()),
        detail: detail.to_owned(),
    };
    let page = |offset, limit| AccessRequest::History { subject: None, page: PageRequest { offset, limit } };
    let grant = AccessRequest::Grant {
        actor: "a".to_owned(),
        id: "1".to_owned(),
        resource: "a\nb".to_owned(),
        permission: READ,
    };
    let cases = [
        (add("", "Ada", NONE), "id"),
        (add("a b", "Ada", NONE), "id"),
        (add("../x", "Ada", NONE), "id"),
        (add(&"x".repeat(65), "Ada", NONE), "id"),
        (add("2", " ", NONE), "name"),
        (add("2", &"n".repeat(201), NONE), "name"),
        (add("2", "a\u{1}b", NONE), "name"),
        (record("x y", ""), "id"),
        (record("x", &"d".repeat(2001)), "detail"),
        (page(0, 0), "limit"),
        (page(0, 201), "limit"),
        (page(u64::MAX, 1), "offset"),
        (grant, "resource"),
    ];
    for (request, expected) in cases {
        match access.call(request.clone()).await {
            Err(AccessError::Invalid { field, .. }) => assert_eq!(field, expected, "{request:?}"),
            other => panic!("{request:?} gave {other:?}"),
        }
    }
    assert_eq!(ids(&access, None, 0, 10).await.1, 1, "nothing was written");
}

#[tokio::test]
async fn key_values_keep_order_numbers_and_limits() {
    let fixture = Fixture::new().await;
    let state = fixture.state();
    let entries = (0..1000).map(|n| (format!("k{n:04}"), vec![1])).collect();
    state.call(KeyValueRequest::SetMany { entries }).await.expect("set");
    set(&state, "last", b"1").await.expect("set");
    set(&state, "k0000", b"2").await.expect("an old key keeps its place");
    let Ok(KeyValueResponse::Keys { keys, next }) = state.call(KeyValueRequest::ListKeys { after: None }).await else {
        panic!("keys")
    };
    assert_eq!((keys.len(), keys[0].as_str(), keys[999].as_str()), (1000, "k0000", "k0999"));
    let rest = state.call(KeyValueRequest::ListKeys { after: next }).await;
    assert_eq!(rest, Ok(KeyValueResponse::Keys { keys: vec!["last".to_owned()], next: None }));
    let beyond = state.call(KeyValueRequest::ListKeys { after: Some(u64::MAX) }).await;
    assert_eq!(beyond, Ok(KeyValueResponse::Keys { keys: vec![], next: None }));

    let increment = |key: &str, delta| KeyValueRequest::Increment { key: key.to_owned(), delta };
    assert_eq!(state.call(increment("n", 2)).await, Ok(KeyValueResponse::Number(2)));
    assert_eq!(state.call(increment("n", 3)).await, Ok(KeyValueResponse::Number(5)));
    assert_eq!(get(&state, "n").await, Ok(Some(b"5".to_vec())));
    assert!(matches!(state.call(increment("n", u64::MAX)).await, Err(KeyValueError::TooLarge(_))));
    set(&state, "text", b"+5").await.expect("set");
    assert_eq!(state.call(increment("text", 1)).await, Err(KeyValueError::NotANumber));

    assert!(matches!(set(&state, "", b"").await, Err(KeyValueError::TooLarge(_))));
    assert!(matches!(set(&state, &"k".repeat(1025), b"").await, Err(KeyValueError::TooLarge(_))));
    assert!(matches!(set(&state, "k", &vec![0; (1 << 20) + 1]).await, Err(KeyValueError::TooLarge(_))));
    let half = KeyValueRequest::SetMany { entries: vec![("new".to_owned(), vec![]), (String::new(), vec![])] };
    assert!(matches!(state.call(half).await, Err(KeyValueError::TooLarge(_))));
    assert_eq!(get(&state, "new").await, Ok(None), "all or none");
    let keys = vec!["n".to_owned(), "none".to_owned()];
    let many = state.call(KeyValueRequest::GetMany { keys: keys.clone() }).await;
    let expected = vec![("n".to_owned(), Some(b"5".to_vec())), ("none".to_owned(), None)];
    assert_eq!(many, Ok(KeyValueResponse::Values(expected)));
    state.call(KeyValueRequest::DeleteMany { keys }).await.expect("deleted");
    let exists = state.call(KeyValueRequest::Exists { key: "n".to_owned() }).await;
    assert_eq!(exists, Ok(KeyValueResponse::Exists(false)));
}

#[tokio::test]
async fn many_calls_at_once_all_count() {
    let fixture = Fixture::new().await;
    let state = fixture.state();
    let calls = (0..100).map(|n| {
        let state = Arc::clone(&state);
        // Every fourth fails by its own rule: its neighbours in the same commit must not.
        let key = if n % 4 == 0 { String::new() } else { "n".to_owned() };
        async move { state.call(KeyValueRequest::Increment { key, delta: 1 }).await }
    });
    let answers = futures::future::join_all(calls).await;
    assert_eq!(answers.iter().filter(|a| a.is_ok()).count(), 75);
    assert_eq!(get(&state, "n").await, Ok(Some(b"75".to_vec())));
}

#[tokio::test]
async fn a_full_queue_refuses_at_once() {
    let fixture = Fixture::new().await;
    let state = fixture.state();
    // A lock from outside makes the worker wait, so the queue fills.
    let lock = rusqlite::Connection::open(fixture.path("state")).expect("opens");
    lock.execute_batch("BEGIN IMMEDIATE").expect("locked");
    let mut calls: Vec<_> =
        (0..600).map(|_| state.call(KeyValueRequest::Increment { key: "n".to_owned(), delta: 1 })).collect();
    let (mut refused, mut queued) = (0, Vec::new());
    for mut call in calls.drain(..) {
        match futures::poll!(&mut call) {
            std::task::Poll::Ready(Err(KeyValueError::Unavailable(_))) => refused += 1,
            std::task::Poll::Ready(other) => panic!("nothing can be committed: {other:?}"),
            std::task::Poll::Pending => queued.push(call),
        }
    }
    // All but the queue (256) and what the worker had taken out of it by then: a batch of 64 for every time that
    // it waited for the lock in vain, on a machine that stands still for so long.
    assert!(refused > 0 && queued.len() >= 256, "{refused} refused, {} queued", queued.len());
    lock.execute_batch("ROLLBACK").expect("unlocked");
    // What was taken into the queue is answered, all of it.
    for answer in futures::future::join_all(queued).await {
        assert!(matches!(answer, Ok(KeyValueResponse::Number(_)) | Err(KeyValueError::Unavailable(_))), "{answer:?}");
    }
}

#[tokio::test]
async fn a_garbage_file_gives_an_error_and_never_an_answer() {
    let fixture = Fixture::new().await;
    for (name, bytes) in [("noise", vec![7; 8192]), ("half", b"SQLite format 3\0 and then nothing".to_vec())] {
        std::fs::write(fixture.path(name), bytes).expect("written");
        let result = fixture.host.ensure(&id(name), ServiceKind::Keyvalue).await;
        assert!(matches!(result, Err(ServiceError::Corrupt(_))), "{name}: {result:?}");
        let service = fixture.host.keyvalue(&id(name)).expect("known, so that it can be restored");
        assert!(matches!(get(&service, "k").await, Err(KeyValueError::Corrupt(_))));
        let status = fixture.host.statuses().into_iter().find(|s| s.id == id(name)).expect("listed");
        assert!(!status.ready && status.reason.is_some());
    }
    let status = fixture.host.statuses().into_iter().find(|s| s.id == id("state")).expect("listed");
    assert!(status.ready && status.bytes.0 > 0);
}

#[tokio::test]
async fn damage_under_a_running_service_is_latched_until_a_restore() {
    let fixture = Fixture::new().await;
    let state = fixture.state();
    for n in 0..200 {
        set(&state, &format!("key-{n:04}"), &[b'x'; 400]).await.expect("set");
    }
    let good = fixture.host.backup(&id("state")).await.expect("a backup");
    drop(state);
    let fixture = fixture.reopen().await;
    fill_with_noise(&fixture.path("state"));
    let opened = fixture.host.ensure(&id("state"), ServiceKind::Keyvalue).await;
    assert!(matches!(opened, Err(ServiceError::Corrupt(_))), "{opened:?}");
    let state = fixture.state();
    for key in ["key-0000", "key-0150", "none"] {
        assert!(matches!(get(&state, key).await, Err(KeyValueError::Corrupt(_))));
    }
    fixture.host.restore(&id("state"), good).await.expect("restored");
    assert_eq!(get(&state, "key-0150").await, Ok(Some(vec![b'x'; 400])), "the same handle serves again");
}

/// Overwrites all pages but the first.
fn fill_with_noise(path: &Path) {
    let mut bytes = std::fs::read(path).expect("read");
    assert!(bytes.len() > 8192);
    bytes[4096..].fill(0xa5);
    std::fs::write(path, bytes).expect("written");
}

#[tokio::test]
async fn a_full_disk_fails_the_write_and_keeps_the_rest() {
    let dir = tempfile::tempdir().expect("a folder");
    let host = ServiceHost::with_room(dir.path().to_owned(), 32).expect("made");
    host.ensure(&id("state"), ServiceKind::Keyvalue).await.expect("opens");
    let state = host.keyvalue(&id("state")).expect("is there");
    set(&state, "before", b"1").await.expect("set");
    assert_eq!(set(&state, "big", &[0; 200_000]).await, Err(KeyValueError::DiskFull));
    assert_eq!(get(&state, "before").await, Ok(Some(b"1".to_vec())));
    assert_eq!(get(&state, "big").await, Ok(None));
    // Beside a call that has no room, one that has it still succeeds.
    let big = vec![0; 200_000];
    let (full, small) = futures::join!(set(&state, "big", &big), set(&state, "small", b"2"));
    assert_eq!((full, small), (Err(KeyValueError::DiskFull), Ok(KeyValueResponse::Done)));
    assert!(host.statuses()[0].ready, "a full disk is no damage");
}

#[tokio::test]
async fn a_restore_takes_only_a_whole_backup_of_its_kind() {
    let fixture = Fixture::new().await;
    let (access, state) = (fixture.access(), fixture.state());
    access.call(add("1001", "Ada", READ)).await.expect("added");
    let key = issue(&access, "1001").await;
    let backup = fixture.host.backup(&id("register")).await.expect("a backup");
    access.call(add("1002", "Bob", READ)).await.expect("added");
    set(&state, "k", b"v").await.expect("set");
    let other_kind = fixture.host.backup(&id("state")).await.expect("a backup");

    let mut cut = backup.clone();
    cut.truncate(backup.len() - 4096);
    let mut noisy = backup.clone();
    noisy[4096..].fill(0xa5);
    let foreign = {
        let path = fixture.dir.path().join("foreign.sqlite");
        std::fs::write(&path, &backup).expect("written");
        let raw = rusqlite::Connection::open(&path).expect("opens");
        raw.execute_batch("CREATE TRIGGER t AFTER INSERT ON subjects BEGIN DELETE FROM rights; END").expect("made");
        drop(raw);
        std::fs::read(&path).expect("read")
    };
    for (name, bytes) in [
        ("empty", vec![]),
        ("noise", vec![7; 50_000]),
        ("cut", cut),
        ("noisy", noisy),
        ("a trigger", foreign),
        ("other kind", other_kind),
    ] {
        let result = fixture.host.restore(&id("register"), bytes).await;
        assert!(
            matches!(result, Err(ServiceError::BadBackup(_) | ServiceError::WrongKind { .. })),
            "{name}: {result:?}"
        );
        assert_eq!(ids(&access, None, 0, 10).await.0, ["1001", "1002"], "{name} left the data alone");
    }
    fixture.host.restore(&id("register"), backup).await.expect("restored");
    assert_eq!(ids(&access, None, 0, 10).await.0, ["1001"]);
    assert!(verify(&access, "1001", &key.key).await);
    let left: Vec<_> = std::fs::read_dir(fixture.dir.path().join("services"))
        .expect("listed")
        .filter_map(|e| e.ok()?.file_name().into_string().ok())
        .filter(|n| n.starts_with(".incoming"))
        .collect();
    assert_eq!(left, Vec::<String>::new());
}

#[tokio::test]
async fn verbs_are_idempotent_and_a_removed_service_is_gone() {
    let fixture = Fixture::new().await;
    let state = fixture.state();
    fixture.host.ensure(&id("state"), ServiceKind::Keyvalue).await.expect("again");
    let wrong = fixture.host.ensure(&id("state"), ServiceKind::Access).await;
    assert!(matches!(wrong, Err(ServiceError::WrongKind { .. })));
    assert!(fixture.host.access(&id("state")).is_none());
    fixture.host.remove(&id("state")).await.expect("removed");
    fixture.host.remove(&id("state")).await.expect("again");
    assert_eq!(get(&state, "k").await, Err(KeyValueError::NoSuchStore));
    assert!(!fixture.path("state").exists());
    assert!(matches!(fixture.host.backup(&id("state")).await, Err(ServiceError::NotFound(_))));
    let fixture = fixture.reopen().await;
    let wrong = fixture.host.ensure(&id("register"), ServiceKind::Keyvalue).await;
    assert!(matches!(wrong, Err(ServiceError::WrongKind { .. })), "the file says what it is");
}
