//! What a worker is told when it asks for what its instances were not given.

use std::collections::BTreeMap;
use std::os::unix::net::{UnixDatagram, UnixListener};

use futures::future::BoxFuture;
use marcato_api::{
    AccessRequest, AppBudget, AppName, KeyValueError, KeyValueRequest, KeyValueResponse, LogStream, RevisionConfig,
    RevisionNumber, ServiceKind,
};
use marcato_runtime::{CompilerCommand, DialError, KeyValueService};
use tokio::sync::oneshot;

use super::broker::Broker;
use super::*;
use crate::channel::{Ask, AskAnswer, Line, NoCode, SocketSender};

struct Nothing;

impl KeyValueService for Nothing {
    fn call(&self, _: KeyValueRequest) -> BoxFuture<'_, Result<KeyValueResponse, KeyValueError>> {
        Box::pin(async { Err(KeyValueError::NoSuchStore) })
    }
}

#[derive(Default)]
struct Kept(Mutex<Vec<String>>);

impl LogSink for Kept {
    fn line(&self, _: &str, _: LogStream, text: &str) {
        lock(&self.0).push(text.to_owned());
    }
}

fn id(text: &str) -> InstanceId {
    InstanceId::new(text).unwrap()
}

struct Fixture {
    _dir: tempfile::TempDir,
    broker: Broker,
    kept: Arc<Kept>,
}

/// The broker of a worker with one instance, `own-1`.
async fn fixture() -> Fixture {
    fixture_with(AppBudget::default()).await
}

async fn fixture_with(budget: AppBudget) -> Fixture {
    let dir = tempfile::tempdir().unwrap();
    let cache = CodeCache::open(&dir.path().join("cache"), CompilerCommand::new("/bin/false", [])).unwrap();
    let settings = Settings {
        command: WorkerCommand { program: "/bin/false".into(), args: Vec::new(), env: Vec::new() },
        dir: dir.path().join("workers"),
        sandboxes: 1,
        memory: Bytes::mib(1),
        outbound_ca_pem: None,
        require_confinement: false,
        unfit: watch::Sender::new(None),
        cache,
        dialer: NetworkDialer { allow_private: false },
        wake_components: Arc::default(),
        wake_instances: Arc::default(),
        usage: UsageLedger::open(&dir.path().join("usage.sqlite")).unwrap(),
    };
    let socket = dir.path().join("i.sock");
    let ingress = UnixListener::bind(&socket).unwrap();
    let address = HostAddress::Unix(socket);
    let folder = dir.path().join("w");
    let seat = Seat { number: 0, address, ingress: ingress.into(), file: None, dir: folder };
    let worker = Worker::new("shared", IsolationClass::Shared, seat, None, Meter::new(settings.usage.clone()));
    let kept = Arc::new(Kept::default());
    let order = StartOrder {
        id: id("own-1"),
        app: AppName::new("own").unwrap(),
        revision: RevisionNumber(1),
        digest: Digest::of(b"own"),
        config: RevisionConfig {
            allowed_outbound_hosts: vec!["localhost:81".into(), "example.org".into()],
            ..RevisionConfig::default()
        },
        budget,
        bindings: BTreeMap::from([("default".to_owned(), ServiceKind::Keyvalue)]),
    };
    let mut services = Services::default();
    services.keyvalue.insert("default".into(), Arc::new(Nothing));
    worker.expect(vec![Placement { order, org: OrgName::default_org(), services, logs: kept.clone() }]);
    let (sockets, _) = UnixDatagram::pair().unwrap();
    let sockets = SocketSender::new(sockets).unwrap();
    let broker = Broker::new(worker, Arc::new(settings), sockets, oneshot::channel().0);
    Fixture { _dir: dir, broker, kept }
}

#[tokio::test]
async fn a_worker_gets_what_its_own_instances_were_given() {
    let f = fixture().await;
    let get = |instance: &str, binding: &str| Ask::KeyValue {
        instance: id(instance),
        binding: binding.into(),
        request: KeyValueRequest::Get { key: "k".into() },
    };
    assert!(matches!(
        f.broker.answer(get("own-1", "default")).await,
        AskAnswer::KeyValue(Err(KeyValueError::NoSuchStore))
    ));
    for (instance, binding) in [("own-1", "other"), ("own-1", ""), ("other-1", "default")] {
        assert!(matches!(f.broker.answer(get(instance, binding)).await, AskAnswer::Refused), "{instance} {binding}");
    }
    let access = Ask::Access {
        instance: id("own-1"),
        binding: "default".into(),
        request: AccessRequest::GetSubject { id: "1001".into() },
    };
    assert!(matches!(f.broker.answer(access).await, AskAnswer::Refused), "a binding of another kind");
    let code = f.broker.answer(Ask::Code(Digest::of(b"other"))).await;
    assert!(matches!(code, AskAnswer::Code(Err(NoCode::NotCompiled))), "code that none of its instances runs");
}

#[tokio::test]
async fn a_worker_connects_where_its_instances_may() {
    let f = fixture().await;
    let connect =
        |instance: &str, host: &str, port| Ask::Connect { instance: id(instance), host: host.into(), port, ticket: 1 };
    for (instance, host, port) in [
        ("own-1", "other.example", 443),
        ("own-1", "example.org", 22),
        ("own-1", "127.0.0.1", 81),
        ("own-1", "localhost", 82),
        ("own-1", "", 0),
        ("other-1", "example.org", 443),
    ] {
        let answer = f.broker.answer(connect(instance, host, port)).await;
        assert!(matches!(answer, AskAnswer::Refused), "{instance} {host}:{port}");
    }
    // Allowed by the manifest, refused for its address.
    let internal = f.broker.answer(connect("own-1", "localhost", 81)).await;
    assert!(matches!(internal, AskAnswer::Connected(Err(DialError::Internal))));
    // Allowed by the operator as well: nothing listens there, which is another answer.
    let allowed = AppBudget { allow_private_egress: Some(true), ..AppBudget::default() };
    let f = fixture_with(allowed).await;
    let tried = f.broker.answer(connect("own-1", "localhost", 81)).await;
    assert!(matches!(tried, AskAnswer::Connected(Ok(()) | Err(DialError::Connect { .. }))));
}

#[tokio::test]
async fn lines_go_to_the_log_of_the_instance_they_come_from() {
    let f = fixture().await;
    let line = |instance: &str, text: &str| Line {
        instance: id(instance),
        request_id: String::new(),
        stream: LogStream::Stdout,
        text: text.into(),
    };
    f.broker.answer(Ask::Lines(vec![line("own-1", "mine"), line("other-1", "forged")])).await;
    assert_eq!(*lock(&f.kept.0), ["mine"]);
}
