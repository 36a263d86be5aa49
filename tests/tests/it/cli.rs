//! The `marcato` command as a developer and a script use it: manifest, push, verbs, exit codes, and an
//! error that says what to do.

use std::path::Path;
use std::process::Output;

use anyhow::{Context, Result, bail};
use marcato_tests::guest;
use serde_json::Value;

use crate::{Running, cluster};

fn json(out: &Output) -> Result<Value> {
    if !out.status.success() {
        bail!("{}: {}", out.status, String::from_utf8_lossy(&out.stderr));
    }
    serde_json::from_slice(&out.stdout).with_context(|| String::from_utf8_lossy(&out.stdout).into_owned())
}

fn complaint(out: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&out.stderr), String::from_utf8_lossy(&out.stdout))
}

fn manifest(folder: &Path, more: &str) -> Result<String> {
    std::fs::copy(guest("guest-behaviour")?, folder.join("app.wasm"))?;
    let file = folder.join("marcato.toml");
    std::fs::write(&file, format!("name = \"shop\"\ncomponent = \"app.wasm\"\n{more}"))?;
    Ok(folder.to_str().context("utf-8")?.to_owned())
}

async fn pushed(cluster: &Running, folder: &Path, more: &str) -> Result<Value> {
    json(&cluster.cli(&["push", &manifest(folder, more)?, "--json"]).await?)
}

#[tokio::test(flavor = "multi_thread")]
async fn push_scale_rollback_and_the_rest_of_a_day() -> Result<()> {
    let cluster = cluster(1).await?;
    let folder = tempfile::tempdir()?;
    let first = pushed(&cluster, folder.path(), "[env]\nREVISION = \"one\"\nSEED = { generate = 32 }\n").await?;
    assert_eq!((&first["revision"], &first["uploaded"]), (&1.into(), &true.into()), "{first}");
    assert!(first["generated"]["SEED"].as_str().is_some_and(|s| s.len() >= 32), "{first}");
    assert!(first["urls"].as_array().is_some_and(|u| !u.is_empty()), "{first}");
    assert_eq!(cluster.app("shop")?.get("/id").await?.text(), "one");

    let again = pushed(&cluster, folder.path(), "[env]\nREVISION = \"two\"\nSEED = { generate = 32 }\n").await?;
    assert_eq!((&again["revision"], &again["uploaded"]), (&2.into(), &false.into()), "the digest is known: {again}");
    assert!(again["generated"].as_object().is_none_or(serde_json::Map::is_empty), "generated once only: {again}");
    assert_eq!(cluster.app("shop")?.get("/id").await?.text(), "two", "push returns when the new revision answers");

    json(&cluster.cli(&["scale", "shop", "3", "--json"]).await?)?;
    let apps = json(&cluster.cli(&["apps", "--json"]).await?)?;
    assert_eq!((&apps["items"][0]["name"], &apps["items"][0]["instances"]), (&"shop".into(), &3.into()), "{apps}");

    json(&cluster.cli(&["rollback", "shop", "--json"]).await?)?;
    assert_eq!(cluster.app("shop")?.get("/id").await?.text(), "one");
    let revisions = json(&cluster.cli(&["revisions", "shop", "--json"]).await?)?;
    assert_eq!(revisions["items"].as_array().map(Vec::len), Some(2), "{revisions}");

    cluster.app("shop")?.get("/say?text=spoken").await?;
    cluster.admin()?.logged("shop", "spoken").await?;
    let logs = cluster.cli(&["logs", "shop"]).await?;
    assert!(complaint(&logs).contains("spoken"), "{}", complaint(&logs));
    let shown = cluster.cli(&["app", "show", "shop"]).await?;
    assert!(complaint(&shown).contains("3 of 3 ready"), "{}", complaint(&shown));
    let events = cluster.cli(&["events"]).await?;
    assert!(events.status.success() && complaint(&events).contains("shop"), "{}", complaint(&events));
    let hosts = json(&cluster.cli(&["hosts", "--json"]).await?)?;
    assert_eq!(hosts["items"].as_array().map(Vec::len), Some(1), "{hosts}");

    let deleted = cluster.cli(&["delete", "shop", "--yes"]).await?;
    assert!(deleted.status.success(), "{}", complaint(&deleted));
    let gone = cluster.cli(&["app", "show", "shop"]).await?;
    assert_eq!(gone.status.code(), Some(5), "not found has its own exit code: {}", complaint(&gone));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bare_component_is_pushed_with_defaults() -> Result<()> {
    let cluster = cluster(1).await?;
    let file = guest("guest-behaviour")?;
    let out = json(&cluster.cli(&["push", file.to_str().context("utf-8")?, "--name", "bare", "--json"]).await?)?;
    assert_eq!(out["app"], "bare", "{out}");
    assert_eq!(cluster.app_secure("bare")?.get("/").await?.text(), "hello\n");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_in_a_manifest_is_named() -> Result<()> {
    let cluster = cluster(1).await?;
    let folder = tempfile::tempdir()?;
    for (more, named) in [
        ("concurency = 3\n", "concurrency"),
        ("[limits]\nmemmory = \"1 MiB\"\n", "memory"),
        ("concurrency = 0\n", "concurrency"),
        ("concurrency = \"many\"\n", "marcato.toml:3"),
        ("[limits]\nmemory = \"lots\"\n", "memory"),
        ("route = \"https://x/\"\n", "route"),
        ("bindings = 3\n", "bindings"),
        ("= = =\n", "marcato.toml"),
    ] {
        let out = cluster.cli(&["push", &manifest(folder.path(), more)?]).await?;
        assert_eq!(out.status.code(), Some(8), "{more:?}: {}", complaint(&out));
        assert!(complaint(&out).contains(named), "{more:?}: {}", complaint(&out));
    }
    std::fs::write(folder.path().join("marcato.toml"), [0xff, 0xfe, 0])?;
    let out = cluster.cli(&["push", folder.path().to_str().context("utf-8")?]).await?;
    assert!(!out.status.success());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn login_is_remembered_and_a_wrong_authority_is_refused() -> Result<()> {
    let cluster = cluster(1).await?;
    let home = tempfile::tempdir()?;
    let token_file = cluster.endpoints.token_file.to_str().context("utf-8")?.to_owned();
    let ca = cluster.endpoints.ca.to_str().context("utf-8")?.to_owned();
    let admin = cluster.endpoints.admin.clone();
    let run = |arguments: Vec<String>| {
        let mut command = tokio::process::Command::new(marcato_tests::marcato().expect("binary"));
        command
            .args(arguments)
            .env("MARCATO_HOME", home.path())
            .env("XDG_CONFIG_HOME", home.path())
            .env_remove("MARCATO_ADMIN")
            .env_remove("MARCATO_CA")
            .env_remove("MARCATO_TOKEN")
            .stdin(std::process::Stdio::null());
        async move { command.output().await.context("marcato") }
    };
    let words = |list: &[&str]| list.iter().map(|w| (*w).to_owned()).collect::<Vec<_>>();

    let early = run(words(&["apps"])).await?;
    assert_eq!(early.status.code(), Some(3), "log in first: {}", complaint(&early));
    let wrong = format!("{:0>64}", "1");
    let refused = run(words(&["login", &admin, "--fingerprint", &wrong, "--token-file", &token_file])).await?;
    assert!(!refused.status.success(), "a wrong fingerprint is refused: {}", complaint(&refused));
    let in_argv = run(words(&["login", &admin, "--ca", &ca, "--token", "mt_x"])).await?;
    assert_eq!(in_argv.status.code(), Some(2), "no token in argv: {}", complaint(&in_argv));

    let login = run(words(&["login", &admin, "--ca", &ca, "--token-file", &token_file])).await?;
    assert!(login.status.success(), "{}", complaint(&login));
    let apps = run(words(&["apps"])).await?;
    assert!(apps.status.success(), "{}", complaint(&apps));
    let logout = run(words(&["logout"])).await?;
    assert!(logout.status.success(), "{}", complaint(&logout));
    assert_eq!(run(words(&["apps"])).await?.status.code(), Some(3));
    Ok(())
}
