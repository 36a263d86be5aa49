//! Calls on a service of another host, over real mutual TLS between two daemons' certificates.

use marcato_api::{Generation, HostConfig, Permission, ServiceKind, SubjectKind};

use super::*;
use crate::testing::{TestCa, TestHost, eventually};
use crate::tls;

fn service(id: &str, kind: ServiceKind) -> ServiceSpec {
    let host = |id: &str| HostId::new(id).unwrap();
    ServiceSpec { id: ServiceId::new(id).unwrap(), kind, owner: host("h1"), deleted: false, users: vec![host("h2")] }
}

fn calls_of_h2(ca: &TestCa, dir: &std::path::Path, control: &HostAddress) -> Arc<ServiceCalls> {
    let leaf = ca.host("h2");
    let tls = tls::peer_config(leaf.shown(), ca.pem().as_bytes()).unwrap();
    let local = Arc::new(ServiceHost::new(dir.join("h2-services")).unwrap());
    let calls = ServiceCalls::new(HostId::new("h2").unwrap(), local, PeerClient::new(tls));
    calls.set_peers(&[Peer { id: HostId::new("h1").unwrap(), control: control.clone() }]);
    calls
}

fn add(id: &str) -> AccessRequest {
    AccessRequest::AddSubject {
        actor: "test".into(),
        id: id.into(),
        kind: SubjectKind::Patient,
        name: "Ada".into(),
        description: String::new(),
        permission: Permission::default(),
    }
}

#[tokio::test]
async fn a_service_of_another_host_answers_and_survives_its_restart() {
    let ca = Arc::new(TestCa::new());
    let owner = TestHost::start("h1", ca.clone()).await;
    let services = vec![service("s-access", ServiceKind::Access), service("s-kv", ServiceKind::Keyvalue)];
    let config = HostConfig { generation: Generation(1), instances: Vec::new(), services, peers: Vec::new() };
    assert_eq!(owner.put_config(&config).await.status(), 200);
    eventually(|| async { (owner.inventory().await.services.iter().filter(|s| s.ready).count() == 2).then_some(()) })
        .await;
    let dir = tempfile::tempdir().unwrap();
    let calls = calls_of_h2(&ca, dir.path(), &owner.control);
    let access = calls.access(&service("s-access", ServiceKind::Access));
    assert!(access.call(add("1001")).await.is_ok());
    assert!(matches!(access.call(add("1001")).await, Err(AccessError::Conflict(_))), "the owner's own error");
    let keyvalue = calls.keyvalue(&service("s-kv", ServiceKind::Keyvalue));
    let set = KeyValueRequest::Set { key: "k".into(), value: vec![1, 2] };
    assert_eq!(keyvalue.call(set).await, Ok(KeyValueResponse::Done));
    let missing = calls.access(&service("s-none", ServiceKind::Access));
    assert!(matches!(missing.call(add("1")).await, Err(AccessError::Unavailable(_))));

    let owner = TestHost::start_in("h1", ca.clone(), owner.stop().await).await;
    let get = KeyValueRequest::Get { key: "k".into() };
    let kept = eventually(|| async { keyvalue.call(get.clone()).await.ok() }).await;
    assert_eq!(kept, KeyValueResponse::Value(Some(vec![1, 2])), "the connection was made again");
    drop(owner.stop().await);
    assert!(matches!(keyvalue.call(get).await, Err(KeyValueError::Unavailable(_))));
    calls.set_peers(&[]);
    assert!(matches!(access.call(add("1002")).await, Err(AccessError::Unavailable(_))));
}
