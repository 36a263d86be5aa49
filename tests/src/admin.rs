//! The admin API as raw HTTP with the wire types: tests see statuses and problem bodies as they are.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use http::Method;
use marcato_api::{
    AppName, AppState, AppStatus, AppUpdate, Digest, InstancePhase, LogLine, NewApp, NewRevision, OrgName, Problem,
    Revision, RevisionConfig, RevisionNumber, RevisionPhase, SpaceName, admin_paths,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::client::{Answer, Target, empty, full};

/// A generous bound: debug builds on a busy machine compile a component in seconds.
const ROLL_BOUND: Duration = Duration::from_secs(90);

/// A caller of the admin API.
#[derive(Clone)]
pub struct Admin {
    target: Target,
    authorization: String,
}

/// What to deploy.
#[derive(Debug, Clone)]
pub struct Deploy {
    /// The app.
    pub app: String,
    /// How many instances.
    pub instances: u32,
    /// What they run with.
    pub config: RevisionConfig,
}

impl Deploy {
    /// One instance with the defaults.
    pub fn new(app: &str) -> Self {
        Self { app: app.to_owned(), instances: 1, config: RevisionConfig::default() }
    }

    /// Changes the configuration.
    #[must_use]
    pub fn with(mut self, change: impl FnOnce(&mut RevisionConfig)) -> Self {
        change(&mut self.config);
        self
    }

    /// So many instances.
    #[must_use]
    pub fn instances(mut self, instances: u32) -> Self {
        self.instances = instances;
        self
    }
}

impl Admin {
    /// A caller with this token.
    pub fn new(target: Target, token: &str) -> Self {
        Self { target, authorization: format!("Bearer {token}") }
    }

    /// Any request; the answer as it is.
    pub async fn raw(&self, method: Method, path: &str, content_type: &str, body: Vec<u8>) -> Result<Answer> {
        let headers = [("authorization", self.authorization.as_str()), ("content-type", content_type)];
        let (headers, body) = if body.is_empty() { (&headers[..1], empty()) } else { (&headers[..], full(body)) };
        self.target.request(method, path, headers, body).await
    }

    /// A JSON request with a body; the answer as it is.
    pub async fn send(&self, method: Method, path: &str, body: &impl Serialize) -> Result<Answer> {
        self.raw(method, path, "application/json", serde_json::to_vec(body)?).await
    }

    /// A JSON request that demands a version.
    pub async fn send_if_match(&self, method: Method, path: &str, etag: &str, body: &impl Serialize) -> Result<Answer> {
        let headers =
            [("authorization", self.authorization.as_str()), ("content-type", "application/json"), ("if-match", etag)];
        self.target.request(method, path, &headers, full(serde_json::to_vec(body)?)).await
    }

    /// A request that must succeed.
    pub async fn call<T: DeserializeOwned>(&self, method: Method, path: &str, body: &impl Serialize) -> Result<T> {
        let answer = self.send(method, path, body).await?;
        parse(path, &answer)
    }

    /// GET of something that must be there.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        parse(path, &self.raw(Method::GET, path, "", Vec::new()).await?)
    }

    /// Uploads a component.
    pub async fn upload(&self, bytes: Vec<u8>) -> Result<Digest> {
        let digest = Digest::of(&bytes);
        let path = admin_paths::component(&digest);
        let answer = self.raw(Method::PUT, &path, "application/wasm", bytes).await?;
        if answer.status >= 300 {
            bail!("PUT {path}: {} {}", answer.status, answer.text());
        }
        Ok(digest)
    }

    /// Uploads, makes the app if need be and a revision; does not wait.
    pub async fn create(&self, component: &Path, deploy: &Deploy) -> Result<Revision> {
        let digest = self.upload(std::fs::read(component)?).await?;
        let app = AppName::new(&deploy.app)?;
        let new = NewApp {
            org: OrgName::default_org(),
            space: SpaceName::default_space(),
            instances: deploy.instances,
            routes: Vec::new(),
        };
        let _: serde_json::Value = self.call(Method::PUT, &admin_paths::app(&app), &new).await?;
        let revision = NewRevision {
            digest: Some(digest),
            config: Some(deploy.config.clone()),
            env: Default::default(),
            bind: Vec::new(),
            unbind: Vec::new(),
            reason: "test".into(),
        };
        self.call(Method::POST, &admin_paths::revisions(&app), &revision).await
    }

    /// Deploys and waits until the new revision serves.
    pub async fn deploy(&self, component: &Path, deploy: &Deploy) -> Result<Revision> {
        let revision = self.create(component, deploy).await?;
        self.rolled(&deploy.app, revision.number).await
    }

    /// Waits for a revision's roll-out; an error when it failed.
    pub async fn rolled(&self, app: &str, number: RevisionNumber) -> Result<Revision> {
        let path = admin_paths::revision(&AppName::new(app)?, number);
        let revision = crate::until(&format!("{app} revision {number} to be rolled out"), ROLL_BOUND, || async {
            let revision: Revision = self.get(&path).await?;
            Ok((revision.phase != RevisionPhase::Rolling).then_some(revision))
        })
        .await?;
        match revision.phase {
            RevisionPhase::Serving => Ok(revision),
            phase => bail!("{app} revision {number} is {phase:?}: {:?}", revision.failure),
        }
    }

    /// The app's status.
    pub async fn status(&self, app: &str) -> Result<AppStatus> {
        self.get(&admin_paths::app_status(&AppName::new(app)?)).await
    }

    /// Changes the app.
    pub async fn update(&self, app: &str, update: &AppUpdate) -> Result<Answer> {
        self.send(Method::PATCH, &admin_paths::app(&AppName::new(app)?), update).await
    }

    /// Scales and waits until so many instances are ready and none is left over.
    pub async fn scale(&self, app: &str, instances: u32) -> Result<()> {
        let answer = self.update(app, &AppUpdate { instances: Some(instances), ..Default::default() }).await?;
        if answer.status != 200 {
            bail!("scale {app}: {} {}", answer.status, answer.text());
        }
        self.ready(app, instances).await
    }

    /// Starts or stops.
    pub async fn set_state(&self, app: &str, state: AppState) -> Result<Answer> {
        self.update(app, &AppUpdate { state: Some(state), ..Default::default() }).await
    }

    /// Waits until exactly so many instances are ready.
    pub async fn ready(&self, app: &str, instances: u32) -> Result<()> {
        crate::until(&format!("{app} to have {instances} ready instances"), ROLL_BOUND, || async {
            let status = self.status(app).await?;
            let ready = status.instances.iter().filter(|i| i.phase == InstancePhase::Ready).count();
            Ok((ready == instances as usize && status.instances.len() == ready).then_some(()))
        })
        .await
    }

    /// The last log lines of an app.
    pub async fn logs(&self, app: &str) -> Result<Vec<LogLine>> {
        let path = format!("{}?tail=1000", admin_paths::app_logs(&AppName::new(app)?));
        let answer = self.raw(Method::GET, &path, "", Vec::new()).await?;
        if answer.status != 200 {
            bail!("{path}: {} {}", answer.status, answer.text());
        }
        answer.text().lines().map(|line| serde_json::from_str(line).with_context(|| line.to_owned())).collect()
    }

    /// Waits for a log line that holds `text`.
    pub async fn logged(&self, app: &str, text: &str) -> Result<LogLine> {
        crate::until(&format!("{app} to log {text:?}"), Duration::from_secs(20), || async {
            Ok(self.logs(app).await?.into_iter().find(|line| line.text.contains(text)))
        })
        .await
    }
}

fn parse<T: DeserializeOwned>(path: &str, answer: &Answer) -> Result<T> {
    if answer.status >= 300 {
        let problem = serde_json::from_slice::<Problem>(&answer.body).map_or_else(|_| answer.text(), |p| p.to_string());
        bail!("{path}: {} {problem}", answer.status);
    }
    serde_json::from_slice(&answer.body).with_context(|| format!("{path}: {}", answer.text()))
}
