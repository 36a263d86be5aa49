//! Who is let in: wrong token, wrong role, wrong authority, a replayed join token, an old generation, a
//! guest of the host API without a certificate. Each refusal is as clear as it is firm, and is an event.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use http::Method;
use marcato_api::{
    AppUpdate, Generation, HostConfig, Inventory, JoinRequest, JoinResponse, JoinToken, NewToken, ProblemKind, Role,
    TokenSecret, admin_paths, host_paths,
};
use marcato_tests::{Admin, Cluster, Deploy, Socket, Target, full, guest, tls_config, until};

use crate::cluster;

async fn token(cluster: &Cluster, name: &str, role: Role) -> Result<Admin> {
    let new = NewToken { role, org: None, ttl_s: None };
    let made: TokenSecret = cluster.admin()?.call(Method::PUT, &admin_paths::token(name), &new).await?;
    cluster.admin_as(&made.secret)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_token_or_none_is_401_and_a_wrong_role_403() -> Result<()> {
    let cluster = cluster(1).await?;
    let admin = cluster.admin()?;
    admin.deploy(&guest("guest-behaviour")?, &Deploy::new("shop")).await?;

    for bad in ["", "mt_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA", "nonsense", "ü"] {
        let answer = cluster.admin_as(bad)?.raw(Method::GET, admin_paths::APPS, "", Vec::new()).await;
        // A header value that HTTP does not allow fails in the client already.
        if let Ok(answer) = answer {
            assert_eq!(answer.status, 401, "token {bad:?}: {}", answer.text());
            assert!(answer.header("content-type").starts_with("application/problem+json"), "{:?}", answer.headers);
        }
    }

    let viewer = token(&cluster, "watcher", Role::Viewer).await?;
    assert_eq!(viewer.raw(Method::GET, admin_paths::APPS, "", Vec::new()).await?.status, 200);
    let scaled = viewer.update("shop", &AppUpdate { instances: Some(3), ..Default::default() }).await?;
    assert_eq!(scaled.status, ProblemKind::Forbidden.status(), "{}", scaled.text());

    let deployer = token(&cluster, "builder", Role::Deployer).await?;
    assert_eq!(deployer.update("shop", &AppUpdate { instances: Some(2), ..Default::default() }).await?.status, 200);
    let new = NewToken { role: Role::Admin, org: None, ttl_s: None };
    let made = deployer.send(Method::PUT, &admin_paths::token("mine"), &new).await?;
    assert_eq!(made.status, 403, "{}", made.text());
    let join = deployer.raw(Method::POST, admin_paths::HOST_TOKENS, "", Vec::new()).await?;
    assert_eq!(join.status, 403, "{}", join.text());

    let events = admin.raw(Method::GET, admin_paths::EVENTS, "", Vec::new()).await?.text();
    assert!(events.contains("denied") && events.contains("watcher") && events.contains("builder"), "{events}");

    let deleted = admin.raw(Method::DELETE, &admin_paths::token("watcher"), "", Vec::new()).await?;
    assert!(deleted.status < 300, "{}", deleted.text());
    assert_eq!(viewer.raw(Method::GET, admin_paths::APPS, "", Vec::new()).await?.status, 401, "revoked at once");
    Ok(())
}

/// A certificate authority that is not the cluster's.
fn foreign_authority(folder: &Path) -> Result<(rcgen::Issuer<'static, rcgen::KeyPair>, PathBuf)> {
    let key = rcgen::KeyPair::generate()?;
    let mut params = rcgen::CertificateParams::new(Vec::new())?;
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let certificate = params.self_signed(&key)?;
    let file = folder.join("foreign-ca.pem");
    std::fs::write(&file, certificate.pem())?;
    Ok((rcgen::Issuer::new(params, key), file))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_with_another_authority_does_not_talk_to_us() -> Result<()> {
    let cluster = cluster(1).await?;
    let folder = tempfile::tempdir()?;
    let (_, ca) = foreign_authority(folder.path())?;
    let mut target = cluster.app_secure("shop")?;
    target.tls = Some(tls_config(&ca, None)?);
    let error = target.get("/").await.expect_err("the handshake fails");
    assert!(format!("{error:#}").contains("TLS"), "{error:#}");
    assert_eq!(cluster.app_secure("shop")?.get("/").await?.status, 404, "with the right one it works");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_join_token_works_once() -> Result<()> {
    let cluster = cluster(1).await?;
    let admin = cluster.admin()?;
    let made: JoinToken = {
        let answer = admin.raw(Method::POST, admin_paths::HOST_TOKENS, "", Vec::new()).await?;
        assert!(answer.status < 300, "{}", answer.text());
        serde_json::from_slice(&answer.body)?
    };
    let folder = tempfile::tempdir()?;
    let request = |id: &str| -> Result<JoinRequest> {
        let key = rcgen::KeyPair::generate()?;
        let csr = rcgen::CertificateParams::new(Vec::new())?.serialize_request(&key)?.pem()?;
        let socket = |name: &str| format!("unix:{}", folder.path().join(name).display()).parse();
        Ok(JoinRequest {
            id: id.parse()?,
            csr_pem: csr,
            control: socket("control.sock").map_err(anyhow::Error::msg)?,
            ingress: socket("ingress.sock").map_err(anyhow::Error::msg)?,
            zone: "test".into(),
            labels: Default::default(),
        })
    };
    let joiner = cluster.admin_as(&made.token)?;
    let first = joiner.send(Method::POST, admin_paths::HOST_JOIN, &request("guest-host")?).await?;
    assert!(first.status < 300, "{} {}", first.status, first.text());
    let joined: JoinResponse = serde_json::from_slice(&first.body)?;
    assert!(joined.certificate_pem.contains("BEGIN CERTIFICATE"));

    let replayed = joiner.send(Method::POST, admin_paths::HOST_JOIN, &request("another-host")?).await?;
    assert_eq!(replayed.status, 401, "{}", replayed.text());
    let list = joiner.raw(Method::GET, admin_paths::APPS, "", Vec::new()).await?;
    assert_eq!(list.status, 401, "a join token is no admin token: {}", list.text());
    let as_admin = admin.send(Method::POST, admin_paths::HOST_JOIN, &request("third-host")?).await?;
    assert!(as_admin.status == 401 || as_admin.status == 403, "an admin token is no join token: {}", as_admin.text());
    Ok(())
}

/// The HostApi of host 1 with an identity from the files of the cluster.
fn host_api(cluster: &Cluster, chain: Option<(&Path, &Path)>) -> Result<Target> {
    let host = cluster.host(1)?;
    let (_, words) =
        marcato_tests::children(cluster.pid()).into_iter().find(|(pid, _)| *pid == host).context("host")?;
    let at = words.iter().position(|w| w == "--control").context("--control")?;
    let path = words[at + 1].strip_prefix("unix:").context("unix control")?;
    Ok(Target {
        socket: Socket::Unix(path.into()),
        host: "h1.host.marcato.internal".into(),
        tls: Some(tls_config(&cluster.endpoints.ca, chain)?),
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_takes_orders_from_the_router_only_and_never_old_ones() -> Result<()> {
    let cluster = cluster(1).await?;
    cluster.admin()?.deploy(&guest("guest-behaviour")?, &Deploy::new("shop")).await?;

    let nobody = host_api(&cluster, None)?.get(host_paths::INVENTORY).await;
    assert!(nobody.is_err() || nobody.as_ref().is_ok_and(|a| a.status == 401 || a.status == 403), "{nobody:?}");

    // A certificate of another authority, though with the router's name.
    let folder = tempfile::tempdir()?;
    let (issuer, _) = foreign_authority(folder.path())?;
    let key = rcgen::KeyPair::generate()?;
    let mut params = rcgen::CertificateParams::new(vec!["router.marcato.internal".into()])?;
    params.subject_alt_names.push(rcgen::SanType::URI("marcato://router".try_into()?));
    params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
    let (chain, key_file) = (folder.path().join("chain.pem"), folder.path().join("key.pem"));
    std::fs::write(&chain, params.signed_by(&key, &issuer)?.pem())?;
    std::fs::write(&key_file, key.serialize_pem())?;
    let forged = host_api(&cluster, Some((&chain, &key_file)))?.get(host_paths::INVENTORY).await;
    assert!(forged.is_err(), "{forged:?}");

    // The host's own identity is good, but it is not the router.
    let identity = cluster.data().join("hosts/h1/identity");
    let as_host = host_api(&cluster, Some((&identity.join("cert.pem"), &identity.join("key.pem"))))?;
    let order = HostConfig { generation: Generation(u64::MAX), instances: vec![], services: vec![], peers: vec![] };
    let refused = as_host
        .request(
            Method::PUT,
            host_paths::CONFIG,
            &[("content-type", "application/json")],
            full(serde_json::to_vec(&order)?),
        )
        .await?;
    assert_eq!(refused.status, 403, "{}", refused.text());

    let identity = cluster.data().join("router/identity");
    let as_router = host_api(&cluster, Some((&identity.join("cert.pem"), &identity.join("key.pem"))))?;
    let held: Inventory = serde_json::from_slice(&as_router.get(host_paths::INVENTORY).await?.body)?;
    assert!(held.generation.0 > 0, "the router gave it a config");
    let old = serde_json::to_vec(&HostConfig { generation: Generation(held.generation.0 - 1), ..order })?;
    let json = [("content-type", "application/json")];
    let stale = as_router.request(Method::PUT, host_paths::CONFIG, &json, full(old)).await?;
    assert_eq!(stale.status, ProblemKind::StaleGeneration.status(), "{}", stale.text());
    assert!(stale.text().contains("stale-generation"), "{}", stale.text());
    let shop = cluster.app("shop")?;
    until("the app to answer as before", Duration::from_secs(10), || async {
        Ok((shop.get("/").await?.status == 200).then_some(()))
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn secrets_are_private_files_and_never_in_logs() -> Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    let cluster = cluster(1).await?;
    let secret = "s3cr3t-value-of-the-environment";
    let deploy = Deploy::new("shop").with(|c| {
        c.env.insert("DATABASE_PASSWORD".into(), secret.into());
    });
    let admin = cluster.admin()?;
    let revision = admin.deploy(&guest("guest-behaviour")?, &deploy).await?;
    assert_eq!(cluster.app("shop")?.get("/env?name=DATABASE_PASSWORD").await?.text(), secret);
    assert_eq!(revision.config.env["DATABASE_PASSWORD"], "***");

    let mode = std::fs::metadata(&cluster.endpoints.token_file)?.permissions().mode() & 0o777;
    assert_eq!(mode, 0o600, "token file: {mode:o}");
    let token = std::fs::read_to_string(&cluster.endpoints.token_file)?;
    let mut open = vec![cluster.data().to_path_buf()];
    let mut read = 0;
    while let Some(folder) = open.pop() {
        for entry in std::fs::read_dir(folder)?.filter_map(Result::ok) {
            let path = entry.path();
            let Ok(kind) = entry.file_type() else { continue };
            if kind.is_dir() {
                open.push(path);
            } else if kind.is_file() && !path.ends_with("admin.token") {
                let bytes = std::fs::read(&path)?;
                read += 1;
                for (what, needle) in [("env value", secret), ("admin token", token.trim())] {
                    let found = bytes.windows(needle.len()).any(|w| w == needle.as_bytes());
                    assert!(!found, "{what} in the clear in {}", path.display());
                }
            }
        }
    }
    assert!(read > 3, "only {read} files seen");
    let logs = cluster.logs();
    assert!(!logs.contains(secret) && !logs.contains(token.trim()), "a secret in the logs");
    for (_, words) in marcato_tests::children(cluster.pid()) {
        assert!(!words.iter().any(|w| w.contains(token.trim())), "a token in argv: {words:?}");
    }
    let health = admin.raw(Method::GET, admin_paths::HEALTH, "", Vec::new()).await?;
    assert_eq!(health.status, 200);
    Ok(())
}

/// A certificate of host 1 by the cluster's own authority that ends in an hour, most of its life behind it.
fn near_its_end(router: &Path, identity: &Path) -> Result<()> {
    let read = |path: PathBuf| std::fs::read_to_string(&path).with_context(|| path.display().to_string());
    let key = rcgen::KeyPair::from_pem(&read(router.join("ca.key"))?)?;
    let authority = rcgen::Issuer::from_ca_cert_pem(&read(router.join("ca.pem"))?, key)?;
    let mut params = rcgen::CertificateParams::new(vec!["h1.host.marcato.internal".into()])?;
    params.subject_alt_names.push(rcgen::SanType::URI("marcato://host/h1".try_into()?));
    params.extended_key_usages =
        vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth, rcgen::ExtendedKeyUsagePurpose::ServerAuth];
    let now = std::time::SystemTime::now();
    params.not_before = (now - Duration::from_secs(300 * 86_400)).into();
    params.not_after = (now + Duration::from_secs(3_600)).into();
    let key = rcgen::KeyPair::from_pem(&read(identity.join("key.pem"))?)?;
    std::fs::write(identity.join("cert.pem"), params.signed_by(&key, &authority)?.pem())?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_near_its_end_is_renewed_without_a_token_while_requests_are_served() -> Result<()> {
    let cluster = cluster(1).await?;
    cluster.admin()?.deploy(&guest("guest-behaviour")?, &Deploy::new("shop")).await?;
    let (router, host) = (cluster.data().join("router"), cluster.data().join("hosts/h1/identity"));
    near_its_end(&router, &host)?;
    marcato_tests::kill_now(cluster.host(1)?)?;
    // The supervisor starts it anew, with the certificate that is about to end; no restart follows.
    until("the certificate to be renewed", Duration::from_secs(30), || async {
        Ok(host.join("renewed.pem").exists().then_some(()))
    })
    .await?;
    let daemon = cluster.host(1)?;
    let identity = router.join("identity");
    let as_router = host_api(&cluster, Some((&identity.join("cert.pem"), &identity.join("key.pem"))))?;
    let held: Inventory = serde_json::from_slice(&as_router.get(host_paths::INVENTORY).await?.body)?;
    let term = held.certificate.context("the inventory tells the term")?;
    assert!(term.renewal_due_at().as_second() > term.not_before.as_second() + 200 * 86_400, "{term:?}");
    let shop = cluster.app("shop")?;
    until("the app to answer", Duration::from_secs(20), || async {
        Ok((shop.get("/").await?.status == 200).then_some(()))
    })
    .await?;
    assert_eq!(cluster.host(1)?, daemon, "the same process all along");
    until("the audit log to tell", Duration::from_secs(10), || async {
        let events = cluster.admin()?.raw(Method::GET, admin_paths::EVENTS, "", Vec::new()).await?;
        Ok(events.text().contains("host.renew").then_some(()))
    })
    .await
}
