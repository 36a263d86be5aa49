//! Attacks by outbound HTTP: to the machine itself, to private networks, under names and spellings that
//! hide them, by redirects, and with requests that a server could read in two ways.
//!
//! Without the check they work: a second cluster runs with `--allow-private-egress`.

use std::sync::Arc;
use std::sync::Mutex;

use anyhow::Result;
use marcato_tests::guest;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::task::JoinSet;

use super::arena::{Arena, wild};
use crate::cluster_with;

/// Ways to write 127.0.0.1 that `getaddrinfo` reads, beside the usual one.
const SPELLINGS: &[&str] = &[
    "127.0.0.1",
    "127.1",
    "127.0.1",
    "2130706433",
    "0x7f000001",
    "0x7f.1",
    "0177.0.0.1",
    "017700000001",
    "127.8.8.8",
    "localhost",
    "LOCALHOST",
    "localhost.",
    "[::1]",
    "[::ffff:127.0.0.1]",
    "[::ffff:7f00:1]",
];

/// Addresses that nobody outside may be led to; nothing answers there in a test, so they are only refused.
const INTERNAL: &[&str] = &[
    "169.254.169.254",
    "0xa9fea9fe",
    "2852039166",
    "0251.0376.0251.0376",
    "[::ffff:169.254.169.254]",
    "10.0.0.1",
    "172.16.0.1",
    "192.168.0.1",
    "100.64.0.1",
    "0.0.0.0",
    "0",
    "255.255.255.255",
    "224.0.0.1",
    "198.18.0.1",
    "[::]",
    "[fe80::1]",
    "[fd00:ec2::254]",
    "[fc00::1]",
    "[ff02::1]",
    "[64:ff9b::7f00:1]",
    "[64:ff9b::a9fe:a9fe]",
    "[64:ff9b:1::1]",
    "[2002:7f00:1::]",
    "[2002:a9fe:a9fe::1]",
    "[::127.0.0.1]",
    "[2001::1]",
    "[fec0::1]",
];

/// A server that keeps every head that it was sent and answers all with the same.
async fn serve(tasks: &mut JoinSet<()>, answer: String) -> Result<(u16, Arc<Mutex<Vec<String>>>)> {
    let heads = Arc::new(Mutex::new(Vec::new()));
    // The unspecified IPv6 address takes IPv4 connections as well.
    let listener = match tokio::net::TcpListener::bind("[::]:0").await {
        Ok(listener) => listener,
        Err(_) => tokio::net::TcpListener::bind("0.0.0.0:0").await?,
    };
    let port = listener.local_addr()?.port();
    tasks.spawn({
        let heads = Arc::clone(&heads);
        async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    match stream.read_u8().await {
                        Ok(byte) => head.push(byte),
                        Err(_) => break,
                    }
                }
                heads.lock().expect("not poisoned").push(String::from_utf8_lossy(&head).into_owned());
                drop(stream.write_all(answer.as_bytes()).await);
                drop(stream.shutdown().await);
            }
        }
    });
    Ok((port, heads))
}

fn everything(port: u16) -> Vec<String> {
    SPELLINGS.iter().chain(INTERNAL).map(|host| format!("{}:{port}", host.trim_end_matches('.'))).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn no_spelling_of_an_internal_address_is_reached() -> Result<()> {
    let mut tasks = JoinSet::new();
    let (port, heads) = serve(&mut tasks, "HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n".to_owned()).await?;
    let seen = || heads.lock().expect("not poisoned").len();

    let mut worked = Vec::new();
    {
        let open = cluster_with(1, &["--allow-private-egress"]).await?;
        let deploy = marcato_tests::Deploy::new("asker").with(|c| c.allowed_outbound_hosts = everything(port));
        open.admin()?.deploy(&guest("guest-hostile")?, &deploy).await?;
        let asker = open.app("asker")?;
        for host in SPELLINGS {
            if asker.get(&format!("/out?authority={host}:{port}")).await?.text() == "status 204\n" {
                worked.push(*host);
            }
        }
    }
    assert!(worked.contains(&"127.0.0.1") && worked.contains(&"localhost"), "without the check: {worked:?}");
    assert!(worked.len() >= 8, "the spellings are spellings: {worked:?}");

    let arena = Arena::enter().await?;
    let app = arena
        .deploy("asker", &guest("guest-hostile")?, |c| {
            wild(c);
            c.allowed_outbound_hosts = everything(port);
        })
        .await?;
    let before = seen();
    for host in SPELLINGS.iter().chain(INTERNAL) {
        let said = app.works(&format!("/out?authority={host}:{port}")).await?;
        assert!(said.contains("error") || said.contains("refused"), "{host}: {said}");
        assert!(!said.contains("status"), "{host}: {said}");
    }
    // A zone is not part of a URI's address, and user information is not a host.
    for authority in
        ["[fe80::1%25lo]", "[::1%25lo]", "a@127.0.0.1", "example.org@127.0.0.1", "127.0.0.1%00.example.org"]
    {
        let said = app.works(&format!("/out?authority={authority}:{port}")).await?;
        assert!(said.contains("error") || said.contains("refused"), "{authority}: {said}");
    }
    assert_eq!(seen(), before, "not one connection was made");
    arena.admin.logged("asker", "its address is internal").await?;
    // Not in the manifest: refused by name, before any lookup.
    let denied = arena.wild()?.works(&format!("/out?authority=localhost:{port}")).await?;
    assert!(denied.contains("HttpRequestDenied"), "{denied}");
    assert_eq!(seen(), before);
    arena.unharmed().await
}

/// The host follows no redirect: what a guest asks next is checked as the first was.
#[tokio::test(flavor = "multi_thread")]
async fn a_redirect_leads_to_nothing_that_is_not_allowed() -> Result<()> {
    let mut tasks = JoinSet::new();
    let (inside, reached) = serve(&mut tasks, "HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n".to_owned()).await?;
    let to = format!("HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:{inside}/\r\nconnection: close\r\n\r\n");
    let (outside, _) = serve(&mut tasks, to).await?;
    let open = cluster_with(1, &["--allow-private-egress"]).await?;
    let deploy =
        marcato_tests::Deploy::new("asker").with(|c| c.allowed_outbound_hosts = vec![format!("127.0.0.1:{outside}")]);
    open.admin()?.deploy(&guest("guest-hostile")?, &deploy).await?;
    let asker = open.app("asker")?;
    assert_eq!(asker.get(&format!("/out?authority=127.0.0.1:{outside}")).await?.text(), "status 302\n");
    let next = asker.get(&format!("/out?authority=127.0.0.1:{inside}")).await?.text();
    assert!(next.contains("HttpRequestDenied"), "{next}");
    assert!(reached.lock().expect("not poisoned").is_empty());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outbound_request_cannot_be_split_or_framed_by_the_guest() -> Result<()> {
    let mut tasks = JoinSet::new();
    let (port, heads) = serve(&mut tasks, "HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n".to_owned()).await?;
    let open = cluster_with(1, &["--allow-private-egress"]).await?;
    let deploy =
        marcato_tests::Deploy::new("asker").with(|c| c.allowed_outbound_hosts = vec![format!("127.0.0.1:{port}")]);
    open.admin()?.deploy(&guest("guest-hostile")?, &deploy).await?;
    let asker = open.app("asker")?;
    let ask = |query: String| {
        let asker = &asker;
        async move { asker.get(&format!("/out-fields?authority=127.0.0.1:{port}&{query}")).await.map(|a| a.text()) }
    };
    assert_eq!(ask("name=x-a&value=b".into()).await?, "status 204\n", "a good field passes");
    for query in [
        "name=x-a&value=b%0d%0aowned:%20yes",
        "name=x-a%0d%0aowned&value=yes",
        "name=x-a&value=b%00owned",
        "name=host&value=owned",
        "name=transfer-encoding&value=owned",
        "name=connection&value=owned",
        "name=upgrade&value=owned",
        "name=x-a&value=b&path=/%0d%0aowned:%20yes",
        "name=x-a&value=b&path=/%20HTTP/1.1%0d%0aowned:%20yes",
    ] {
        let said = ask(query.to_owned()).await?;
        assert!(said.contains("refused") || said.contains("error"), "{query}: {said}");
    }
    for size in [100_000, 1_000_000] {
        let said = ask(format!("name=x-a&size={size}")).await?;
        assert!(
            said.contains("refused") || said.contains("error") || said.contains("status 204") || said.contains("500"),
            "{size}: {said}"
        );
    }
    let heads = heads.lock().expect("not poisoned").clone();
    assert!(heads.iter().all(|h| !h.contains("owned")), "{heads:?}");
    Ok(())
}
