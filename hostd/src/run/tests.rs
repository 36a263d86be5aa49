//! The daemon as a whole: start, restart, refusal to start.

use std::sync::Arc;

use bytes::Bytes;
use http::Request;
use http_body_util::Full;
use marcato_api::{HostAddress, ProblemKind};

use super::*;
use crate::config::Listen;
use crate::testing::{Leaf, TestCa, TestHost, call_tls, config, ensure_joined, json_request, problem_of};

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
    let send = async |address: &HostAddress, name: &str, leaf: &Leaf, request: Request<Full<Bytes>>| {
        call_tls(address, name, leaf, &ca.pem(), request).await
    };
    let call = async |leaf: &Leaf, path: &str| {
        let request = Request::builder().uri(path).header("host", "a").body(Full::default()).unwrap();
        send(&ingress, "h1.ingress.marcato.internal", leaf, request).await
    };
    let order = async |request: Request<Full<Bytes>>| {
        send(&control, "h1.host.marcato.internal", &ca.router(), request).await.unwrap()
    };
    let inventory = async || -> marcato_api::Inventory {
        serde_json::from_slice(order(json_request("GET", "/v1/inventory", b"")).await.body()).unwrap()
    };
    let (router, peer) = (ca.router(), ca.host("h2"));
    assert!(inventory().await.ingress_tls && inventory().await.ingress_certificate.is_none());
    let asked = order(json_request("POST", "/v1/ingress-certificate-request", b"")).await;
    let asked: marcato_api::CertificateRequest = serde_json::from_slice(asked.body()).unwrap();
    let give = async |certificate_pem: String| {
        let body = serde_json::to_vec(&marcato_api::NewCertificate { certificate_pem }).unwrap();
        order(json_request("PUT", "/v1/ingress-certificate", &body)).await
    };
    // One that speaks for the host is too much for a process that runs guests.
    assert_eq!(problem_of(&give(ca.sign(&asked.csr_pem, "h1")).await).kind, ProblemKind::Invalid);
    assert_eq!(problem_of(&give(ca.sign_ingress(&asked.csr_pem, "h2")).await).kind, ProblemKind::Invalid);
    assert_eq!(problem_of(&give("nonsense".into()).await).kind, ProblemKind::Invalid);
    let good = ca.sign_ingress(&asked.csr_pem, "h1");
    assert_eq!(
        (give(good.clone()).await.status(), give(good).await.status()),
        (200.try_into().unwrap(), 200.try_into().unwrap())
    );
    assert!(inventory().await.ingress_certificate.is_some());
    assert_eq!(problem_of(&call(&router, "/").await.unwrap()).kind, ProblemKind::BadRequest);
    assert_eq!(problem_of(&call(&peer, "/").await.unwrap()).kind, ProblemKind::Forbidden);
    assert!(call(&TestCa::new().router(), "/").await.is_err());
    shutdown.cancel();
    running.await.unwrap().unwrap();
}
