//! The samples: one app per language, pushed with the command as its own folder says, and called.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use http::Method;
use marcato_tests::{Target, full, guest_if_built};

use crate::{Running, cluster};

/// Pushes the sample, when it could be built. A sample whose toolchain cannot be had is skipped, one whose toolchain
/// fails is a failure.
async fn pushed(language: &str) -> Result<Option<(Running, Target)>> {
    let name = format!("sample-{language}");
    let component = match guest_if_built(&name) {
        Ok(path) => path,
        Err(reason) => {
            ensure!(std::env::var_os("CI").is_none() || !reason.contains("failed"), "{name}: {reason}");
            println!("SKIPPED: {name}: {reason}");
            return Ok(None);
        }
    };
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../samples").join(language);
    let folder = tempfile::tempdir()?;
    copy(&source, folder.path())?;
    // The component may lie elsewhere than the clone's own target.
    let manifest = folder.path().join("marcato.toml");
    let text = std::fs::read_to_string(&manifest)?;
    let own = format!("../../target/guests/{name}.wasm");
    ensure!(text.contains(&own), "{name} names its component");
    std::fs::write(&manifest, text.replace(&own, component.to_str().context("utf-8")?))?;

    let cluster = cluster(1).await?;
    let out = cluster.cli(&["push", folder.path().to_str().context("utf-8")?]).await?;
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    ensure!(out.status.success(), "{name}: {said}");
    let kind = if matches!(language, "c" | "go" | "zig") { "served as CGI" } else { "HTTP component" };
    ensure!(said.contains(kind), "{name}: push says what it is: {said}");
    let app = cluster.app(&name)?;
    Ok(Some((cluster, app)))
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let target: PathBuf = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            std::fs::create_dir(&target)?;
            copy(&entry.path(), &target)?;
        } else {
            std::fs::copy(entry.path(), &target)?;
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn rust_counts_what_is_sent() -> Result<()> {
    let Some((_cluster, app)) = pushed("rust").await? else { return Ok(()) };
    let counted = app.request(Method::POST, "/", &[], full("one two\nthree\n".repeat(100_000))).await?;
    let counted: serde_json::Value = serde_json::from_slice(&counted.body)?;
    assert_eq!(counted, serde_json::json!({ "lines": 200_000, "words": 300_000, "bytes": 1_400_000 }));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn javascript_renders_markdown() -> Result<()> {
    let Some((_cluster, app)) = pushed("javascript").await? else { return Ok(()) };
    let html = app.request(Method::POST, "/", &[], full("# Hi *you*\n\n- <b>\n- [x](https://e.org)")).await?;
    assert_eq!(
        html.text(),
        "<h1>Hi <em>you</em></h1>\n<ul><li>&#60;b&#62;</li><li><a href=\"https://e.org\">x</a></li></ul>\n"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn typescript_makes_a_palette() -> Result<()> {
    let Some((_cluster, app)) = pushed("typescript").await? else { return Ok(()) };
    let palette: serde_json::Value = serde_json::from_slice(&app.get("/336699.json").await?.body)?;
    assert_eq!((palette["base"].as_str(), palette["shades"].as_array().map(Vec::len)), (Some("#336699"), Some(9)));
    assert!(app.get("/336699").await?.text().starts_with("<svg"));
    assert_eq!(app.get("/red").await?.status, 400);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn python_sums_up_a_csv() -> Result<()> {
    let Some((_cluster, app)) = pushed("python").await? else { return Ok(()) };
    let sums = app.request(Method::POST, "/", &[], full("name,age\nann,41\nbob,37\ncyd,30\n")).await?;
    let sums: serde_json::Value = serde_json::from_slice(&sums.body)?;
    assert_eq!((&sums["age"]["count"], &sums["age"]["mean"], &sums["name"]), (&3.into(), &36.0.into(), &().into()));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn c_serves_the_files_that_came_along() -> Result<()> {
    let Some((cluster, app)) = pushed("c").await? else { return Ok(()) };
    let page = app.get("/").await?;
    assert_eq!((page.status, page.headers["content-type"].to_str()?), (200, "text/html; charset=utf-8"));
    assert!(page.text().contains("Files from C"), "{}", page.text());
    assert!(app.get("/about/").await?.text().contains("<title>About"));
    assert_eq!(app.get("/style.css").await?.headers["content-type"], "text/css");
    for elsewhere in ["/none", "/about"] {
        assert_eq!(app.get(elsewhere).await?.status, 404, "{elsewhere}");
    }
    // The edge may refuse it before the program does.
    for outside in ["/%2e%2e/%2e%2e/etc/passwd", "/..%2f..%2fkey"] {
        let status = app.get(outside).await?.status;
        assert!(matches!(status, 400 | 404), "{outside}: {status}");
    }
    assert_eq!(app.request(Method::POST, "/", &[], full("x")).await?.status, 405);
    cluster.admin()?.logged("sample-c", "no file /none").await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn go_formats_json() -> Result<()> {
    let Some((cluster, app)) = pushed("go").await? else { return Ok(()) };
    assert!(app.get("/").await?.text().starts_with("POST JSON to http://sample-go."));
    let post = async |path: &str, body: String| app.request(Method::POST, path, &[], full(body)).await;
    let formatted = post("/format?indent=4", r#"{"a":[1]}"#.into()).await?;
    assert_eq!((formatted.status, formatted.header("content-type")), (200, "application/json"));
    assert_eq!(formatted.text(), "{\n    \"a\": [\n        1\n    ]\n}\n");
    let wrong = post("/format", "{\n\"a\":\n}".into()).await?;
    assert_eq!((wrong.status, &wrong.text()[..8]), (422, "line 3: "));
    cluster.admin()?.logged("sample-go", "not JSON: invalid character").await?;
    assert_eq!(app.get("/format").await?.status, 405);
    // Enough garbage for its collector, and for memory that grows behind where it began.
    let many = format!("[{}{{}}]", r#"{"b":{"a":"x"}},"#.repeat(20_000));
    assert_eq!(post("/keys", many).await?.text(), "20000 a\n20000 b\n");
    assert_eq!(post("/format", " ".repeat((1 << 20) + 1)).await?.status, 413);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn zig_draws_a_picture() -> Result<()> {
    let Some((_cluster, app)) = pushed("zig").await? else { return Ok(()) };
    let picture = app.get("/?width=100&zoom=2").await?;
    assert_eq!((picture.status, picture.headers["content-type"].to_str()?), (200, "image/bmp"));
    assert_eq!((picture.body.len(), &picture.body[..2]), (54 + 300 * 100, b"BM".as_slice()));
    Ok(())
}
