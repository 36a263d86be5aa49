//! The daemon as a whole: start, restart, refusal to start.

use std::sync::Arc;

use super::*;
use crate::testing::{TestCa, TestHost, config};

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
