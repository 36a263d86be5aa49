//! Attacks on other tenants: their names, services, environment, secrets, and what their requests left.

use anyhow::{Context, Result};
use http::Method;
use marcato_api::{
    AppName, Binding, Millis, NewApp, NewRevision, NewService, NewToken, OrgName, Role, Route, ServiceKind, SpaceName,
    TokenSecret, admin_paths,
};
use marcato_tests::{Admin, Deploy, Socket, full, guest};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::arena::{Arena, tame as narrow, wild};

const SECRET: &str = "marcato-hostile-suite-secret";

/// As `/scan` takes it: every byte turned over, so that asking does not put it into memory.
fn masked() -> String {
    SECRET.bytes().map(|b| format!("%{:02x}", b ^ 0x55)).collect()
}

async fn org_token(admin: &Admin, arena: &Arena, name: &str, org: &str) -> Result<Admin> {
    let new = NewToken { role: Role::Deployer, org: Some(OrgName::new(org)?), ttl_s: None };
    let made: TokenSecret = admin.call(Method::PUT, &admin_paths::token(name), &new).await?;
    arena.cluster.admin_as(&made.secret)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sandbox_finds_nothing_that_another_request_left() -> Result<()> {
    let arena = Arena::enter().await?;
    let reuse = |c: &mut marcato_api::RevisionConfig| {
        wild(c);
        c.concurrency = 1;
        c.reuse.max_requests = 1000;
        c.reuse.idle_ms = Millis::secs(60);
    };
    let component = guest("guest-hostile")?;
    let kept = arena.deploy("keeps", &component, reuse).await?;
    let other = arena.deploy("looks", &component, reuse).await?;
    let keep = [("x-secret", SECRET)];
    let scan = format!("/scan?masked={}", masked());
    // With reuse, which the app asked for, the attack works: within that app.
    kept.target.request(Method::POST, "/keep", &keep, full(SECRET)).await?;
    assert_ne!(kept.works(&scan).await?, "found 0", "a reused sandbox remembers");
    for app in [&other, &arena.wild()?, &arena.tame()?] {
        assert_eq!(app.works(&scan).await?, "found 0", "{}: never between apps", app.name);
    }
    let fresh = arena.wild()?;
    for _ in 0..5 {
        fresh.target.request(Method::POST, "/keep", &keep, full(SECRET)).await?;
        fresh.target.request(Method::POST, "/sink", &keep, full(SECRET.repeat(1000))).await?;
        assert_eq!(fresh.works(&scan).await?, "found 0", "a fresh sandbox knows nothing");
    }
    arena.unharmed().await
}

#[tokio::test(flavor = "multi_thread")]
async fn environment_and_secrets_of_another_are_not_to_be_had() -> Result<()> {
    let arena = Arena::enter().await?;
    let component = guest("guest-hostile")?;
    let owner = arena
        .deploy("env-owner", &component, |c| {
            narrow(c);
            c.env.insert("SECRET".into(), SECRET.into());
        })
        .await?;
    assert!(owner.works("/env").await?.contains(SECRET), "its own app has it");
    for app in [arena.wild()?, arena.tame()?] {
        let all = app.works("/env").await?;
        assert!(!all.contains(SECRET) && !all.contains("MARCATO") && !all.contains("PATH="), "{}: {all}", app.name);
    }
    let name = AppName::new("env-owner")?;
    for path in [admin_paths::app_status(&name), admin_paths::revisions(&name), admin_paths::app_logs(&name)] {
        let text = arena.admin.raw(Method::GET, &path, "", Vec::new()).await?.text();
        assert!(!text.contains(SECRET), "{path}: {text}");
    }
    assert!(!arena.cluster.logs().contains(SECRET), "nor is it in the platform's own logs");
    arena.unharmed().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_opens_for_the_app_that_it_is_bound_to_alone() -> Result<()> {
    let arena = Arena::enter().await?;
    let component = guest("guest-hostile")?;
    let service = |org: &str| -> Result<NewService> {
        Ok(NewService { kind: ServiceKind::Keyvalue, org: OrgName::new(org)?, space: SpaceName::default_space() })
    };
    let made: serde_json::Value = arena
        .admin
        .call(Method::PUT, &admin_paths::service(&"vault".parse().map_err(anyhow::Error::msg)?), &service("default")?)
        .await?;
    let bound = |c: &mut marcato_api::RevisionConfig| {
        narrow(c);
        c.bindings = vec![Binding { name: "mine".into(), service: "vault".parse().expect("a name") }];
    };
    let owner = arena.deploy("vault-owner", &component, bound).await?;
    let set = owner.works(&format!("/keyvalue?store=mine&key=k&value={SECRET}")).await?;
    assert!(set.contains("Ok"), "{set}");
    assert_eq!(owner.works("/keyvalue?store=mine&key=k").await?, format!("value {SECRET}"), "its own app reads it");

    let id = made["id"].as_str().unwrap_or("vault-id").to_owned();
    let thief = arena.deploy("vault-thief", &component, narrow).await?;
    for store in
        ["mine", "vault", "default", "", "..%2fvault", "vault%00", &id, &format!("{id}.sqlite"), "%2fetc%2fpasswd"]
    {
        let said = thief.works(&format!("/keyvalue?store={store}&key=k")).await?;
        assert!(said.contains("refused") && !said.contains(SECRET), "{store}: {said}");
    }
    // Another org cannot bind it, nor look at it.
    let foreign = org_token(&arena.admin, &arena, "vault-foreign", "foreign").await?;
    let new =
        NewApp { org: OrgName::new("foreign")?, space: SpaceName::default_space(), instances: 1, routes: Vec::new() };
    let name = AppName::new("vault-robber")?;
    let _: serde_json::Value = foreign.call(Method::PUT, &admin_paths::app(&name), &new).await?;
    let digest = foreign.upload(std::fs::read(&component)?).await?;
    let revision = NewRevision {
        digest: Some(digest),
        config: None,
        env: Default::default(),
        bind: vec![Binding { name: "mine".into(), service: "vault".parse().map_err(anyhow::Error::msg)? }],
        unbind: Vec::new(),
        reason: String::new(),
    };
    let robbed = foreign.send(Method::POST, &admin_paths::revisions(&name), &revision).await?;
    assert!((400..500).contains(&robbed.status), "{} {}", robbed.status, robbed.text());
    let vault = "vault".parse().map_err(anyhow::Error::msg)?;
    for path in [admin_paths::service(&vault), admin_paths::service_backup(&vault)] {
        let looked = foreign.raw(Method::GET, &path, "", Vec::new()).await?;
        assert!((400..500).contains(&looked.status), "{path}: {} {}", looked.status, looked.text());
    }
    arena.unharmed().await
}

/// The same name, the same host, the same host in other letters: all of it belongs to who had it first.
#[tokio::test(flavor = "multi_thread")]
async fn names_and_routes_of_another_org_cannot_be_taken() -> Result<()> {
    let arena = Arena::enter().await?;
    let foreign = org_token(&arena.admin, &arena, "name-foreign", "usurper").await?;
    let neighbour = AppName::new("neighbour")?;
    let new = |routes: Vec<Route>| -> Result<NewApp> {
        Ok(NewApp { org: OrgName::new("usurper")?, space: SpaceName::default_space(), instances: 1, routes })
    };
    let own: serde_json::Value =
        foreign.call(Method::PUT, &admin_paths::app(&AppName::new("usurper")?), &new(Vec::new())?).await?;
    assert_eq!(own["org"].as_str(), Some("usurper"), "an app of its own may be made: {own}");

    let taken = foreign.send(Method::PUT, &admin_paths::app(&neighbour), &new(Vec::new())?).await?;
    assert!((400..500).contains(&taken.status), "{} {}", taken.status, taken.text());
    for path in [
        admin_paths::app(&neighbour),
        admin_paths::app_status(&neighbour),
        admin_paths::app_logs(&neighbour),
        admin_paths::revisions(&neighbour),
    ] {
        let looked = foreign.raw(Method::GET, &path, "", Vec::new()).await?;
        assert!((400..500).contains(&looked.status), "GET {path}: {} {}", looked.status, looked.text());
    }
    let stopped = foreign.raw(Method::DELETE, &admin_paths::app(&neighbour), "", Vec::new()).await?;
    assert!((400..500).contains(&stopped.status), "{} {}", stopped.status, stopped.text());

    let path = admin_paths::app(&AppName::new("usurper-2")?);
    for (host, prefix) in [
        ("neighbour.localhost", "/"),
        ("NEIGHBOUR.localhost", "/"),
        ("neighbour.localhost.", "/"),
        ("neighbour.localhost:80", "/"),
        ("*.localhost", "/"),
        ("neighbo\u{fc}r.localhost", "/"),
        ("\u{ff4e}eighbour.localhost", "/"),
        ("neighbour.localhost", "/../"),
        ("neighbour.localhost", "//"),
    ] {
        let routes = vec![Route { host: host.into(), path: prefix.into() }];
        let answer = foreign.send(Method::PUT, &path, &new(routes)?).await?;
        assert!((400..500).contains(&answer.status), "{host}{prefix}: {} {}", answer.status, answer.text());
    }
    assert_eq!(arena.app("neighbour")?.works("/id").await?, "neighbour");
    arena.unharmed().await
}

/// A request goes to the app that its `Host` names, whatever else it says.
#[tokio::test(flavor = "multi_thread")]
async fn no_form_of_a_request_reaches_another_app() -> Result<()> {
    let arena = Arena::enter().await?;
    let instance = arena.admin.status("neighbour").await?.instances.first().context("an instance")?.id.to_string();
    let tame = arena.tame()?;
    let Socket::Tcp(address) = tame.target.socket else { unreachable!("the edge listens on TCP") };
    assert_eq!(arena.app("neighbour")?.works("/id").await?, "neighbour", "the answer that must not come");
    let host = "Host: tame-hostile.localhost\r\n";
    let heads = [
        format!("GET /id HTTP/1.1\r\n{host}X-Forwarded-Host: neighbour.localhost\r\n"),
        format!("GET /id HTTP/1.1\r\n{host}Forwarded: host=neighbour.localhost\r\n"),
        format!("GET /id HTTP/1.1\r\n{host}X-Marcato-Instance: {instance}\r\n"),
        format!("GET /id HTTP/1.1\r\n{host}X-Original-URL: http://neighbour.localhost/id\r\n"),
        format!("GET http://neighbour.localhost/id HTTP/1.1\r\n{host}"),
        format!("GET //neighbour.localhost/id HTTP/1.1\r\n{host}"),
        format!("GET /id HTTP/1.1\r\n{host}Host: neighbour.localhost\r\n"),
        "GET /id HTTP/1.1\r\nHost: tame-hostile.localhost, neighbour.localhost\r\n".to_owned(),
        "GET /id HTTP/1.1\r\nHost: tame-hostile.localhost@neighbour.localhost\r\n".to_owned(),
        "GET /id HTTP/1.1\r\nHost: neighbour.localhost#.tame-hostile.localhost\r\n".to_owned(),
        "GET /id HTTP/1.1\r\nHost: neighbour.localhost%00.evil\r\n".to_owned(),
        "GET /id HTTP/1.1\r\nHost: neighbour\u{ff0e}localhost\r\n".to_owned(),
        "GET /id HTTP/1.1\r\nHost: neighbour\r\n".to_owned(),
        "GET /id HTTP/1.1\r\nHost: .neighbour.localhost\r\n".to_owned(),
        "GET /id HTTP/1.1\r\nHost: neighbour..localhost\r\n".to_owned(),
    ];
    for head in heads {
        let mut stream = tokio::net::TcpStream::connect(address).await?;
        stream.write_all(format!("{head}Connection: close\r\n\r\n").as_bytes()).await?;
        let mut answer = Vec::new();
        // A refusal may reset the connection.
        drop(stream.read_to_end(&mut answer).await);
        let text = String::from_utf8_lossy(&answer);
        assert!(!text.ends_with("neighbour"), "{head}: {text}");
    }
    // What reaches the app says who asked, as the edge saw it.
    let forged = [("x-marcato-instance", instance.as_str()), ("x-marcato-error", "x"), ("x-request-id", "forged\u{1}")];
    let answer = tame.target.request(Method::GET, "/request", &forged[..2], marcato_tests::empty()).await?;
    assert!(answer.text().contains("authority tame-hostile.localhost"), "{}", answer.text());
    assert!(!answer.text().contains("x-marcato"), "internal fields are not passed on: {}", answer.text());
    // And the same component under another name is another app.
    arena.admin.deploy(&guest("guest-hostile")?, &Deploy::new("twin").with(narrow)).await?;
    assert!(arena.app("twin")?.works("/request").await?.contains("authority twin.localhost"));
    arena.unharmed().await
}
