//! The health application in headless Chromium, each flow as a person does it: set up, log in, the list in
//! pages of ten, search, add, edit in the list, detail, keys, retrieval, verification, refusal, audit, log
//! out. Screenshots go to `target/screenshots` to be looked at.

mod browser;
mod throttle;

use std::path::Path;

use anyhow::{Context, Result, bail};
use fantoccini::Locator;
use marcato_tests::{Cluster, empty};

use crate::{Running, cluster};
use browser::Browser;

const ADMIN: (&str, &str) = ("head", "correct-horse-battery");
const DOCTOR: (&str, &str) = ("dr-skizze", "another-long-secret");

/// Pushes the application with the command, as a person would; gives the one-time link's token.
async fn pushed() -> Result<(Running, String)> {
    let cluster = cluster(1).await?;
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../apps/health");
    let out = cluster.cli(&["push", folder.to_str().context("utf-8")?, "--json"]).await?;
    if !out.status.success() {
        bail!("push: {}", String::from_utf8_lossy(&out.stderr));
    }
    let pushed: serde_json::Value = serde_json::from_slice(&out.stdout)?;
    let token = pushed["generated"]["SETUP_TOKEN"].as_str().context("no SETUP_TOKEN was generated")?;
    Ok((cluster, token.to_owned()))
}

fn base(cluster: &Cluster) -> String {
    let port = cluster.endpoints.https.trim_end_matches('/').rsplit(':').next().unwrap_or_default().to_owned();
    format!("https://health.localhost:{port}")
}

async fn log_in(browser: &Browser, base: &str, who: (&str, &str)) -> Result<()> {
    browser.open(&format!("{base}/login")).await?;
    browser.fill("#name", who.0).await?;
    browser.fill("#password", who.1).await?;
    browser.submit("main form button[type=submit]").await
}

async fn set_up(browser: &Browser, base: &str, token: &str) -> Result<()> {
    browser.open(&format!("{base}/setup?token={token}")).await?;
    browser.shot("01-set-up").await?;
    browser.fill("#name", ADMIN.0).await?;
    browser.fill("#password", ADMIN.1).await?;
    browser.fill("#repeat", ADMIN.1).await?;
    browser.submit("main form button[type=submit]").await?;
    assert!(browser.path().await?.starts_with("/login"), "{}", browser.text().await?);
    browser.open(&format!("{base}/setup?token={token}")).await?;
    assert!(browser.text().await?.contains("not valid"), "the link works once: {}", browser.text().await?);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn every_flow_of_the_health_application_in_a_browser() -> Result<()> {
    let (cluster, token) = pushed().await?;
    let base = base(&cluster);
    let browser = Browser::start().await?;
    set_up(&browser, &base, &token).await?;
    refused_then_admitted(&browser, &base).await?;
    list_and_search(&browser, &base).await?;
    add_and_edit(&browser, &base).await?;
    keys_and_retrieval(&browser, &base).await?;
    a_doctor_is_refused(&browser, &base).await?;
    audit_and_log_out(&browser, &base).await?;
    browser.close().await
}

async fn refused_then_admitted(browser: &Browser, base: &str) -> Result<()> {
    log_in(browser, base, (ADMIN.0, "not-the-password")).await?;
    assert!(browser.path().await?.starts_with("/login"));
    assert!(browser.all(".alert").await? == 1, "{}", browser.text().await?);
    browser.shot("02-log-in-refused").await?;
    log_in(browser, base, ADMIN).await?;
    assert_eq!(browser.path().await?, "/users");
    browser.shot("03-empty-register").await
}

async fn list_and_search(browser: &Browser, base: &str) -> Result<()> {
    browser.submit("form[action='/demo'] button").await?;
    let text = browser.text().await?;
    assert!(text.contains("1..10 of 12"), "{text}");
    assert_eq!(browser.all("table.users tbody tr").await?, 10);
    for column in ["User id", "Secure hash key", "Name", "Access right"] {
        assert!(text.to_lowercase().contains(&column.to_lowercase()), "column {column}: {text}");
    }
    assert!(text.contains("1001") && text.contains("Anna Beispiel"), "{text}");
    browser.shot("04-list").await?;
    browser.submit("a[rel=next]").await?;
    let second = browser.text().await?;
    assert!(second.contains("11..12 of 12") && second.contains("1012") && !second.contains("1001"), "{second}");
    browser.shot("05-list-second-page").await?;
    browser.submit("a[rel=prev]").await?;
    assert!(browser.text().await?.contains("1..10 of 12"));

    browser.fill("#q", "entwurf").await?;
    browser.submit("form.search button[type=submit]").await?;
    let found = browser.text().await?;
    assert!(found.contains("1006") && !found.contains("1001"), "{found}");
    browser.shot("06-search").await?;
    browser.open(&format!("{base}/users?q=nobody-has-this-name")).await?;
    assert!(browser.text().await?.contains("Nobody matches"));
    Ok(())
}

async fn add_and_edit(browser: &Browser, base: &str) -> Result<()> {
    browser.open(&format!("{base}/users/new")).await?;
    browser.fill("#id", "2001").await?;
    browser.fill("#name", "<script>alert(1)</script> Ünal").await?;
    browser.fill("#description", "Line one\n\"quoted\" & <b>bold</b>").await?;
    browser.shot("07-add").await?;
    browser.submit("main form button[type=submit]").await?;
    assert!(browser.path().await?.starts_with("/users/2001"), "{}", browser.text().await?);
    let text = browser.text().await?;
    assert!(text.contains("<script>alert(1)</script> Ünal"), "shown as text: {text}");
    assert_eq!(browser.all("main script, main b").await?, 0, "and never as markup");
    browser.shot("08-added").await?;

    browser.open(&format!("{base}/users/new")).await?;
    browser.fill("#id", "2001").await?;
    browser.fill("#name", "Again").await?;
    browser.submit("main form button[type=submit]").await?;
    assert_eq!(browser.all(".alert").await?, 1, "a taken id is told: {}", browser.text().await?);

    browser.open(&format!("{base}/users?page=1&edit=1003")).await?;
    browser.fill("tr.editing input[name=name]", "Clara Geändert").await?;
    browser.choose("#edit-right", "read-write").await?;
    browser.shot("09-edit-in-the-list").await?;
    browser.submit("tr.editing button[type=submit]").await?;
    let text = browser.text().await?;
    assert!(text.contains("Clara Geändert") && text.contains("1..10 of 13"), "back on the list: {text}");
    Ok(())
}

async fn keys_and_retrieval(browser: &Browser, base: &str) -> Result<()> {
    browser.open(&format!("{base}/users")).await?;
    browser.submit("a[href='/users/1002']").await?;
    assert_eq!(browser.path().await?, "/users/1002", "a click on the id opens the detail page");
    browser.shot("10-detail").await?;
    browser.submit("form[action='/users/1002/key'] button").await?;
    let key = browser.client.find(Locator::Css("code.secret")).await?.text().await?;
    assert!(key.len() >= 43, "256 random bits: {} characters", key.len());
    browser.shot("11-key-issued").await?;
    browser.open(&format!("{base}/users/1002")).await?;
    assert!(!browser.client.source().await?.contains(&key), "shown once only");

    for (tried, said) in [(key.as_str(), "The key is right"), ("mk_wrong", "The key is wrong")] {
        browser.fill("#key", tried).await?;
        browser.submit("form[action='/users/1002/verify'] button").await?;
        assert!(browser.text().await?.contains(said), "{tried:.4}: {}", browser.text().await?);
    }
    browser.shot("12-key-wrong").await?;

    browser.open(&format!("{base}/lookup")).await?;
    browser.fill("#id", "1002").await?;
    browser.submit("main form button[type=submit]").await?;
    let text = browser.text().await?;
    assert!(
        text.contains("Bruno Muster") && text.contains("Access right") && text.contains("Secure hash key"),
        "{text}"
    );
    assert!(!text.contains(&key), "the hash, not the key");
    browser.shot("13-look-up").await?;
    browser.open(&format!("{base}/lookup?id=9999")).await?;
    assert_eq!(browser.all(".alert").await?, 1, "an unknown id is told: {}", browser.text().await?);

    browser.open(&format!("{base}/users/1002")).await?;
    browser.submit("form[action='/users/1002/key/revoke'] button").await?;
    assert!(browser.text().await?.contains("no key"), "{}", browser.text().await?);
    browser.fill("#resource", "patient/1001").await?;
    browser.submit("form.grant button[type=submit]").await?;
    assert!(browser.text().await?.contains("patient/1001"), "{}", browser.text().await?);
    browser.shot("14-right-granted").await
}

/// 1010 is a doctor without any right: the refusal is clear, and it is in the audit log.
async fn a_doctor_is_refused(browser: &Browser, base: &str) -> Result<()> {
    browser.open(&format!("{base}/accounts")).await?;
    browser.fill("#name", DOCTOR.0).await?;
    browser.fill("#subject", "1010").await?;
    browser.fill("#password", DOCTOR.1).await?;
    browser.submit("section form button[type=submit]").await?;
    assert!(browser.text().await?.contains(DOCTOR.0), "{}", browser.text().await?);
    browser.shot("15-accounts").await?;
    browser.submit("form[action='/logout'] button").await?;

    log_in(browser, base, DOCTOR).await?;
    browser.open(&format!("{base}/users/1001")).await?;
    let text = browser.text().await?;
    assert!(text.contains("403") && !text.contains("Ward 7"), "{text}");
    browser.shot("16-doctor-refused").await?;
    browser.open(&format!("{base}/audit")).await?;
    assert!(browser.text().await?.contains("403"), "{}", browser.text().await?);
    browser.submit("form[action='/logout'] button").await
}

async fn audit_and_log_out(browser: &Browser, base: &str) -> Result<()> {
    log_in(browser, base, ADMIN).await?;
    browser.open(&format!("{base}/audit")).await?;
    let text = browser.text().await?;
    for line in ["Refused", DOCTOR.0, "Key issued", "Right granted", "Viewed"] {
        assert!(text.contains(line) || pages_contain(browser, base, line).await?, "audit has no {line:?}");
    }
    browser.open(&format!("{base}/audit")).await?;
    browser.shot("17-audit").await?;
    browser.narrow().await?;
    browser.open(&format!("{base}/users")).await?;
    browser.shot("18-list-on-a-phone").await?;
    browser.submit("form[action='/logout'] button").await?;
    browser.open(&format!("{base}/users")).await?;
    assert!(browser.path().await?.starts_with("/login"), "logged out is logged out: {}", browser.path().await?);
    Ok(())
}

async fn pages_contain(browser: &Browser, base: &str, text: &str) -> Result<bool> {
    for page in 2..8 {
        browser.open(&format!("{base}/audit?page={page}")).await?;
        if browser.text().await?.contains(text) {
            return Ok(true);
        }
    }
    Ok(false)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_pages_carry_their_protections() -> Result<()> {
    let (cluster, token) = pushed().await?;
    let health = cluster.app_secure("health")?;
    let page = health.get(&format!("/setup?token={token}")).await?;
    assert_eq!(page.status, 200, "{}", page.text());
    let policy = page.header("content-security-policy");
    assert!(policy.contains("default-src 'none'") || policy.contains("default-src 'self'"), "{policy}");
    assert!(!policy.contains("unsafe"), "{policy}");
    assert!(policy.contains("frame-ancestors 'none'"), "{policy}");
    assert_eq!(page.header("x-content-type-options"), "nosniff");
    assert!(!page.text().contains("<script"), "usable without scripts");

    for path in ["/users", "/users/1001", "/audit", "/lookup?id=1001", "/api/users"] {
        let answer = health.get(path).await?;
        assert!(answer.status != 200, "{path} without a session: {}", answer.status);
    }
    let form = [("content-type", "application/x-www-form-urlencoded"), ("origin", "https://evil.example")];
    let body = format!("token={token}&name=evil&password=a-long-password&repeat=a-long-password");
    let forged = health.request(http::Method::POST, "/setup", &form, marcato_tests::full(body)).await?;
    assert!(forged.status >= 400, "a form from elsewhere is refused: {}", forged.status);
    let wrong = health.request(http::Method::GET, "/setup?token=wrong", &[], empty()).await?;
    assert_eq!(wrong.status, 404);
    Ok(())
}
