//! Headless Chromium over WebDriver: starting both, and the few gestures that the flows are made of.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use fantoccini::{Client, ClientBuilder, Locator};
use hyper_util::client::legacy::connect::HttpConnector;
use marcato_tests::{Pid, end, until};
use serde_json::json;
use tempfile::TempDir;

/// A browser; ends when dropped.
pub(super) struct Browser {
    /// For gestures that are not here.
    pub(super) client: Client,
    driver: Child,
    _profile: TempDir,
}

impl Drop for Browser {
    fn drop(&mut self) {
        end(Pid::from_raw(self.driver.id().cast_signed()), Duration::from_secs(3));
        drop(self.driver.wait());
    }
}

impl Browser {
    /// Starts chromedriver and a headless Chromium with an empty profile.
    pub(super) async fn start() -> Result<Self> {
        let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let driver = Command::new("chromedriver")
            .arg(format!("--port={port}"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("cannot start chromedriver: sudo apt-get install chromium-driver")?;
        let profile = tempfile::Builder::new().prefix("marcato-test-chromium-").tempdir()?;
        let arguments = json!([
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--disable-dev-shm-usage",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--window-size=1100,900",
            format!("--user-data-dir={}", profile.path().display()),
        ]);
        // The cluster's authority is not in the browser's store; that the chain is right is tested elsewhere.
        let wanted = json!({
            "acceptInsecureCerts": true,
            "goog:chromeOptions": { "args": arguments, "binary": "/usr/bin/chromium" },
        });
        let capabilities = wanted.as_object().context("object")?.clone();
        let url = format!("http://127.0.0.1:{port}");
        let client = until("the browser to start", Duration::from_secs(60), || async {
            let mut builder = ClientBuilder::new(HttpConnector::new());
            Ok(Some(builder.capabilities(capabilities.clone()).connect(&url).await?))
        })
        .await?;
        Ok(Self { client, driver, _profile: profile })
    }

    /// Opens an address.
    pub(super) async fn open(&self, url: &str) -> Result<()> {
        self.client.goto(url).await.with_context(|| url.to_owned())
    }

    /// Clears a field and types.
    pub(super) async fn fill(&self, field: &str, text: &str) -> Result<()> {
        let element = self.client.find(Locator::Css(field)).await.with_context(|| field.to_owned())?;
        element.clear().await?;
        Ok(element.send_keys(text).await?)
    }

    /// Chooses an option by its value.
    pub(super) async fn choose(&self, field: &str, value: &str) -> Result<()> {
        let element = self.client.find(Locator::Css(field)).await.with_context(|| field.to_owned())?;
        Ok(element.select_by_value(value).await?)
    }

    /// Clicks what leads to another page, and waits until that page is there.
    pub(super) async fn submit(&self, button: &str) -> Result<()> {
        let element = self.client.find(Locator::Css(button)).await.with_context(|| button.to_owned())?;
        self.client.execute("window.wasHere = true", Vec::new()).await?;
        element.click().await.with_context(|| button.to_owned())?;
        until("the next page", Duration::from_secs(30), || async {
            let script = "return !window.wasHere && document.readyState === 'complete'";
            Ok((self.client.execute(script, Vec::new()).await? == json!(true)).then_some(()))
        })
        .await
        .with_context(|| button.to_owned())
    }

    /// What a person reads on the page.
    pub(super) async fn text(&self) -> Result<String> {
        Ok(self.client.find(Locator::Css("main")).await?.text().await?)
    }

    /// How many elements match.
    pub(super) async fn all(&self, selector: &str) -> Result<usize> {
        Ok(self.client.find_all(Locator::Css(selector)).await?.len())
    }

    /// The address without its host.
    pub(super) async fn path(&self) -> Result<String> {
        Ok(self.client.current_url().await?.path().to_owned())
    }

    /// As wide as a phone.
    pub(super) async fn narrow(&self) -> Result<()> {
        Ok(self.client.set_window_size(420, 900).await?)
    }

    /// Keeps a screenshot for people.
    pub(super) async fn shot(&self, name: &str) -> Result<()> {
        let folder = folder();
        std::fs::create_dir_all(&folder)?;
        std::fs::write(folder.join(format!("{name}.png")), self.client.screenshot().await?)?;
        Ok(())
    }

    /// Ends the session.
    pub(super) async fn close(self) -> Result<()> {
        Ok(self.client.clone().close().await?)
    }
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/screenshots")
}
