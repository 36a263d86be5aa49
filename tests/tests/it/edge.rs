//! The edge as an operator meets it: certificates replaced while it serves, its numbers, its log, and what a
//! body that is too long leaves there.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use bytes::Bytes;
use http::Method;
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use marcato_api::{Bytes as Size, LogStream, admin_paths};
use marcato_tests::{Cluster, Deploy, RequestBody, Target, empty, full, guest, hang_up, tls_config, until};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::cluster;

const BOUND: Duration = Duration::from_secs(20);

/// An authority of the operator's own, and a certificate by it for every app of the cluster.
struct Operator {
    ca: PathBuf,
    cert: String,
    key: String,
}

impl Operator {
    fn new(folder: &Path, name: &str) -> Result<Self> {
        let mut params = rcgen::CertificateParams::new(Vec::new())?;
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let key = rcgen::KeyPair::generate()?;
        let ca = folder.join(format!("{name}.pem"));
        std::fs::write(&ca, params.self_signed(&key)?.pem())?;
        let issuer = rcgen::Issuer::new(params, key);
        let key = rcgen::KeyPair::generate()?;
        let leaf = rcgen::CertificateParams::new(vec!["shop.localhost".into(), "localhost".into()])?;
        Ok(Self { ca, cert: leaf.signed_by(&key, &issuer)?.pem(), key: key.serialize_pem() })
    }

    /// Puts the files in place, the certificate first: from then on the files are the operator's.
    fn install(&self, cluster: &Cluster) -> Result<()> {
        std::fs::write(file(cluster, "cert.pem"), &self.cert)?;
        Ok(std::fs::write(file(cluster, "key.pem"), &self.key)?)
    }

    /// A client that trusts this authority only.
    fn client(&self, cluster: &Cluster) -> Result<Target> {
        let mut target = cluster.app_secure("shop")?;
        target.tls = Some(tls_config(&self.ca, None)?);
        Ok(target)
    }
}

fn file(cluster: &Cluster, name: &str) -> PathBuf {
    cluster.data().join("router/tls").join(name)
}

async fn logged(cluster: &Cluster, words: &[&str], times: usize) -> Result<String> {
    until(&format!("{times} log lines with {words:?}"), BOUND, || async {
        let logs = cluster.logs();
        let lines: Vec<_> = logs.lines().filter(|l| words.iter().all(|w| l.contains(w))).collect();
        Ok((lines.len() >= times).then(|| lines[lines.len() - 1].to_owned()))
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_are_replaced_while_it_serves() -> Result<()> {
    let cluster = cluster(1).await?;
    let router = cluster.router()?;
    let folder = tempfile::tempdir()?;
    let first = Operator::new(folder.path(), "first")?;
    let mut open = cluster.app_secure("shop")?.connect().await?;
    assert_eq!(open.request(Method::GET, "/", &[], empty()).await?.status, 404);
    assert!(first.client(&cluster)?.get("/").await.is_err(), "not yet");

    first.install(&cluster)?;
    hang_up(router)?;
    until("the first certificate", BOUND, || async { Ok(first.client(&cluster)?.get("/").await.ok()) }).await?;
    logged(&cluster, &["SIGHUP: the certificate files are loaded again"], 1).await?;
    assert!(cluster.app_secure("shop")?.get("/").await.is_err(), "the old one is no longer shown");
    assert_eq!(open.request(Method::GET, "/", &[], empty()).await?.status, 404, "an open connection goes on");

    // A file that cannot be used, and a key of another certificate: the old one goes on.
    let second = Operator::new(folder.path(), "second")?;
    let kept = "the new certificate cannot be used; the old one goes on";
    std::fs::write(file(&cluster, "cert.pem"), "-----BEGIN CERTIFICATE-----\nbroken")?;
    hang_up(router)?;
    let line = logged(&cluster, &["WARN", kept, "cert.pem"], 1).await?;
    assert!(line.contains("error="), "it says why: {line}");
    assert_eq!(first.client(&cluster)?.get("/").await?.status, 404);
    let told = cluster.logs().matches(kept).count();
    std::fs::write(file(&cluster, "cert.pem"), &second.cert)?;
    hang_up(router)?;
    let line = logged(&cluster, &["WARN", kept, "cert.pem"], told + 1).await?;
    assert!(line.contains("Mismatch"), "it says why: {line}");
    assert_eq!(first.client(&cluster)?.get("/").await?.status, 404);

    // Without a signal, the files are looked at every two seconds.
    second.install(&cluster)?;
    until("the second certificate", BOUND, || async { Ok(second.client(&cluster)?.get("/").await.ok()) }).await?;
    assert_eq!(open.request(Method::GET, "/", &[], empty()).await?.status, 404, "an open connection goes on");
    assert_eq!(cluster.router()?, router, "nothing was started anew");

    // The admin API has a certificate of its own, which hosts, logins and the supervisor trust: with the
    // operator's files in place the cluster starts again, and they stay the operator's.
    let mut cluster = cluster;
    cluster.crash_and_restart().await?;
    assert_eq!(second.client(&cluster)?.get("/").await?.status, 404);
    assert_eq!(std::fs::read_to_string(file(&cluster, "cert.pem"))?, second.cert);
    assert!(cluster.cli(&["apps"]).await?.status.success(), "a login goes on");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_app_has_its_numbers_and_garbage_a_line() -> Result<()> {
    let cluster = cluster(1).await?;
    let admin = cluster.admin()?;
    admin.deploy(&guest("guest-behaviour")?, &Deploy::new("shop")).await?;
    assert_eq!(cluster.app("shop")?.get("/").await?.text(), "hello\n");
    assert_eq!(cluster.app("shop")?.get("/trap").await?.status, 500);
    let address = cluster.endpoints.http.trim_start_matches("http://").trim_end_matches('/').to_owned();
    let mut garbage = tokio::net::TcpStream::connect(&address).await?;
    garbage.write_all(b"GET / HTTP/1.1\r\nHost : shop.localhost\r\n\r\n").await?;
    let mut answer = String::new();
    garbage.read_to_string(&mut answer).await?;
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");

    let numbers = || async { anyhow::Ok(admin.raw(Method::GET, admin_paths::METRICS, "", Vec::new()).await?.text()) };
    until("the numbers", BOUND, || async {
        let text = numbers().await?;
        let all = [
            "marcato_edge_app_requests_total{app=\"shop\",class=\"5xx\"} 1",
            "marcato_edge_app_in_flight{app=\"shop\"} 0",
            "marcato_edge_app_request_seconds_count{app=\"shop\"}",
            "marcato_edge_unparsed_total{reason=\"malformed\"} 1",
            "marcato_admin_requests_total{",
        ];
        let missing: Vec<_> = all.iter().filter(|line| !text.contains(**line)).collect();
        anyhow::ensure!(missing.is_empty(), "no {missing:?} in\n{text}");
        anyhow::ensure!(!text.contains("marcato_marcato"), "a doubled name in\n{text}");
        Ok(Some(()))
    })
    .await?;
    let line = logged(&cluster, &["not a request", "client=127.0.0.1", "status=400"], 1).await?;
    assert!(line.contains("reason="), "{line}");

    let gone = admin.raw(Method::DELETE, &admin_paths::app(&"shop".parse()?), "", Vec::new()).await?;
    assert!(gone.status < 300, "{}", gone.text());
    until("the app's numbers to go with it", BOUND, || async {
        Ok((!numbers().await?.contains("app=\"shop\"")).then_some(()))
    })
    .await
}

/// 40 pieces of 4 KiB without an announced length.
fn pieces() -> RequestBody {
    let piece = Bytes::from_static(&[7; 4 << 10]);
    let frames = (0..40).map(move |_| Ok::<_, std::io::Error>(Frame::data(piece.clone())));
    BodyExt::boxed_unsync(StreamBody::new(futures::stream::iter(frames)))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_is_too_long_is_named_in_the_app_s_log_and_numbers() -> Result<()> {
    let cluster = cluster(1).await?;
    let admin = cluster.admin()?;
    let deploy = Deploy::new("shop").with(|c| c.limits.request_body_bytes = Size::kib(64));
    admin.deploy(&guest("guest-behaviour")?, &deploy).await?;
    let shop = cluster.app("shop")?;
    for (what, body) in [("announced", full(vec![7_u8; 65 << 10])), ("not announced", pieces())] {
        let answer = shop.request(Method::POST, "/sink", &[], body).await.with_context(|| what.to_owned())?;
        assert_eq!(answer.status, 413, "{what}: {}", answer.text());
    }
    assert_eq!(shop.get("/").await?.text(), "hello\n");
    until("both in the app's log", BOUND, || async {
        let lines = admin.logs("shop").await?;
        let named = |l: &&marcato_api::LogLine| {
            l.stream == LogStream::Platform && l.text.contains("request_body_bytes") && !l.request_id.is_empty()
        };
        Ok((lines.iter().filter(named).count() == 2).then_some(()))
    })
    .await?;
    let numbers = admin.raw(Method::GET, "/v1/hosts/h1/metrics", "", Vec::new()).await?.text();
    let counted =
        numbers.lines().find(|l| l.contains("limits_fired_total") && l.contains("limit=\"request_body_bytes\""));
    assert!(counted.is_some_and(|l| l.ends_with(" 2")), "{counted:?}");
    Ok(())
}
