//! Guessing passwords over HTTP: after some wrong ones every attempt has to wait, the right one too, and
//! the wait grows; a log-in ends it.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use http::Method;
use marcato_tests::{Answer, Target, full, until};

use super::{ADMIN, pushed};

/// Wrong attempts that one account has before it waits, as the application has it.
const FREE: usize = 5;
/// The wait after the eighth: long enough that the test's own speed does not matter.
const LONG_S: u64 = 4;

async fn attempt(health: &Target, password: &str) -> Result<Answer> {
    let body = serde_json::json!({"name": ADMIN.0, "password": password}).to_string();
    health.request(Method::POST, "/api/login", &[("content-type", "application/json")], full(body)).await
}

fn wait_s(answer: &Answer) -> Result<u64> {
    let text = answer.header("retry-after");
    text.parse().with_context(|| format!("Retry-After: {text:?} of {}", answer.status))
}

/// Returns when the wait that an answer names is over. Attempts meanwhile would count against the client.
async fn over(answer: &Answer) -> Result<()> {
    let (begin, wait) = (Instant::now(), Duration::from_secs(wait_s(answer)?));
    until("the wait to be over", wait * 2, || async { Ok((begin.elapsed() >= wait).then_some(())) }).await
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_passwords_make_every_log_in_wait() -> Result<()> {
    let (cluster, token) = pushed().await?;
    let health = cluster.app_secure("health")?;
    let form = format!("token={token}&name={}&password={}&repeat={}", ADMIN.0, ADMIN.1, ADMIN.1);
    let kind = [("content-type", "application/x-www-form-urlencoded")];
    let made = health.request(Method::POST, "/setup", &kind, full(form)).await?;
    ensure!(made.status == 303, "{} {}", made.status, made.text());

    for n in 0..FREE {
        let refused = attempt(&health, "not-the-password").await?;
        assert_eq!(refused.status, 422, "attempt {n}: {}", refused.text());
    }
    // From here each wrong one that is looked at doubles the wait.
    let waiting = loop {
        let answer = attempt(&health, "not-the-password").await?;
        match answer.status {
            422 => {}
            429 if wait_s(&answer)? >= LONG_S => break answer,
            429 => over(&answer).await?,
            other => anyhow::bail!("{other} {}", answer.text()),
        }
    };
    assert!(waiting.header("content-type").starts_with("application/problem+json"), "{:?}", waiting.headers);
    assert!(waiting.text().contains("Please wait"), "{}", waiting.text());

    let right = attempt(&health, ADMIN.1).await?;
    assert_eq!(right.status, 429, "the right one waits as well: {}", right.text());
    assert!(wait_s(&right)? >= 1, "{:?}", right.headers);
    assert!(!right.text().contains("token"), "and nothing is told: {}", right.text());
    let page = health.get("/login").await?;
    assert_eq!(page.status, 200, "the page itself is there: {}", page.text());

    over(&right).await?;
    let admitted = attempt(&health, ADMIN.1).await?;
    assert_eq!(admitted.status, 200, "{}", admitted.text());
    assert!(admitted.text().contains("token"), "{}", admitted.text());
    let refused = attempt(&health, "not-the-password").await?;
    assert_eq!(refused.status, 422, "counted from the start again: {}", refused.text());
    Ok(())
}
