//! What of HTTP and WASI reaches a guest and comes back: bodies with trailers, `Expect: 100-continue`, sockets that are
//! refused with the right error, and WASI 0.1 check by check.

use std::path::Path;

use anyhow::{Context as _, Result};
use marcato_tests::{Deploy, Socket, Target, guest, guest_if_built};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::cluster;

/// Sends bytes as they are and gives everything that comes back until the connection closes.
async fn raw(app: &Target, text: &str) -> Result<String> {
    let Socket::Tcp(address) = app.socket else { unreachable!("the edge listens on TCP") };
    let mut stream = tokio::net::TcpStream::connect(address).await?;
    stream.write_all(text.replace("HOST", &app.host).as_bytes()).await?;
    let mut answer = Vec::new();
    tokio::time::timeout(std::time::Duration::from_secs(20), stream.read_to_end(&mut answer)).await??;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_with_trailers_arrives_whole() -> Result<()> {
    let cluster = cluster(1).await?;
    cluster.admin()?.deploy(&guest("guest-async")?, &Deploy::new("third")).await?;
    let third = cluster.app("third")?;
    let asked = "GET /trailers HTTP/1.1\r\nHost: HOST\r\nTE: trailers\r\nConnection: close\r\n\r\n";
    let out = raw(&third, asked).await?;
    assert!(out.starts_with("HTTP/1.1 200") && out.contains("body\n"), "{out}");
    let sent = "POST /echo HTTP/1.1\r\nHost: HOST\r\nTE: trailers\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\
                Trailer: x-sum\r\n\r\n5\r\nhello\r\n0\r\nx-sum: 7\r\n\r\n";
    let out = raw(&third, sent).await?;
    assert!(out.starts_with("HTTP/1.1 200") && out.contains("hello"), "{out}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_waits_for_100_is_told_to_go_on() -> Result<()> {
    let cluster = cluster(1).await?;
    cluster.admin()?.deploy(&guest("guest-behaviour")?, &Deploy::new("pipe")).await?;
    let pipe = cluster.app("pipe")?;
    let sent = "POST /echo HTTP/1.1\r\nHost: HOST\r\nExpect: 100-continue\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello";
    let out = raw(&pipe, sent).await?;
    assert!(out.contains("HTTP/1.1 200") && out.ends_with("hello"), "{out}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn sockets_are_refused_with_access_denied() -> Result<()> {
    let cluster = cluster(1).await?;
    let admin = cluster.admin()?;
    admin.deploy(&guest("guest-behaviour")?, &Deploy::new("second")).await?;
    admin.deploy(&guest("guest-async")?, &Deploy::new("third")).await?;
    assert_eq!(cluster.app("second")?.get("/socket").await?.text(), "PermissionDenied\n");
    let third = cluster.app("third")?.get("/socket").await?.text();
    assert!(third.contains("AccessDenied"), "{third}");
    Ok(())
}

/// After the wasi-testsuite: what is not ok here is listed in docs/compatibility.md.
#[tokio::test(flavor = "multi_thread")]
async fn a_wasi_0_1_program_finds_what_it_expects() -> Result<()> {
    let component = match guest_if_built("guest-wasip1") {
        Ok(path) => path,
        Err(reason) => {
            println!("SKIPPED: no WASI 0.1 guest: {reason}");
            return Ok(());
        }
    };
    let files = Path::new(env!("CARGO_MANIFEST_DIR")).join("guests/wasip1/public");
    let folder = tempfile::tempdir()?;
    let manifest = format!(
        "name = \"first\"\ncomponent = {:?}\nfiles = {:?}\n",
        component.to_str().context("utf-8")?,
        files.to_str().context("utf-8")?
    );
    std::fs::write(folder.path().join("marcato.toml"), manifest)?;
    let cluster = cluster(1).await?;
    let out = cluster.cli(&["push", folder.path().to_str().context("utf-8")?]).await?;
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let said = cluster.app("first")?.get("/").await?.text();
    println!("{said}");
    let failed: Vec<_> = said.lines().filter(|line| !line.ends_with(" ok")).collect();
    assert!(failed.is_empty(), "{failed:?}");
    assert!(said.lines().count() > 30, "{said}");
    Ok(())
}
