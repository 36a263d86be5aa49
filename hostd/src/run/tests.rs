//! The daemon as a whole: start, restart, refusal to start.

use std::sync::Arc;

use http::Request;
use http_body_util::Full;
use marcato_api::{HostAddress, ProblemKind};

use super::*;
use crate::config::Listen;
use crate::testing::{Leaf, TestCa, TestHost, call_tls, config, ensure_joined, problem_of};

#[tokio::test]
async fn two_daemons_never_share_a_directory() {
    let host = TestHost::start("h1", Arc::new(TestCa::new())).await;
    let second = run(config("h1", host.dir.path()), CancellationToken::new()).await;
    assert!(matches!(second, Err(HostdError::InUse(_))));
    let dir = host.stop().await;
    assert!(!dir.path().join("c.sock").exists() && !dir.path().join("i.sock").exists());
}

#[tokio::test]
async fn a_host_that_never_joined_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let started = run(config("h1", dir.path()), CancellationToken::new()).await;
    assert!(matches!(started, Err(HostdError::Identity(IdentityError::NotJoined))));
}

#[tokio::test]
async fn a_host_that_waits_to_join_can_be_stopped() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config("h1", dir.path());
    std::fs::write(dir.path().join("ca.pem"), TestCa::new().pem()).unwrap();
    std::fs::write(dir.path().join("token"), "mj_x").unwrap();
    config.join = Some(crate::JoinSettings {
        admin_url: "https://127.0.0.1:1".into(),
        ca_pem_file: dir.path().join("ca.pem"),
        token_file: dir.path().join("token"),
    });
    let shutdown = CancellationToken::new();
    let running = tokio::spawn(run(config, shutdown.clone()));
    shutdown.cancel();
    running.await.unwrap().unwrap();
}

#[tokio::test]
async fn over_tcp_the_ingress_takes_the_router_only() {
    let (ca, dir) = (TestCa::new(), tempfile::tempdir().unwrap());
    ensure_joined("h1", &ca, dir.path());
    let mut config = config("h1", dir.path());
    let address = |listen: &mut Listen| {
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listen.address = HostAddress::Tcp(socket.local_addr().unwrap());
        listen.inherited = Some(socket.into());
        listen.address.clone()
    };
    let (control, ingress) = (address(&mut config.control), address(&mut config.ingress));
    let shutdown = CancellationToken::new();
    let running = tokio::spawn(run(config, shutdown.clone()));
    let call = async |address: &HostAddress, leaf: &Leaf, path: &str| {
        let request = Request::builder().uri(path).header("host", "a").body(Full::default()).unwrap();
        call_tls(address, "h1.host.marcato.internal", leaf, &ca.pem(), request).await
    };
    let (router, peer) = (ca.router(), ca.host("h2"));
    assert_eq!(call(&control, &router, "/healthz").await.unwrap().status(), 200, "connections waited in the queue");
    assert_eq!(problem_of(&call(&ingress, &router, "/").await.unwrap()).kind, ProblemKind::BadRequest);
    assert_eq!(problem_of(&call(&ingress, &peer, "/").await.unwrap()).kind, ProblemKind::Forbidden);
    assert!(call(&ingress, &TestCa::new().router(), "/").await.is_err());
    shutdown.cancel();
    running.await.unwrap().unwrap();
}
