//! Marcato as a subject: a cluster with the hello component deployed fresh and with reuse, reached
//! directly at a host's ingress and through the router.

use std::path::Path;

use anyhow::{Context, Result};
use http::Method;
use marcato_api::{Millis, headers};
use marcato_tests::{Cluster, ClusterOptions, Deploy, Pid, Target, children, full, tree};

use crate::subjects::Subject;

/// Requests per sandbox where reuse is on; the peer gets the same.
pub const REUSE: u32 = 1000;

/// A cluster under measure.
pub struct Marcato {
    /// The cluster.
    pub cluster: Cluster,
}

impl Marcato {
    /// Starts one host and deploys hello twice: `fresh`, one sandbox per request, and `reused`.
    pub async fn start(hello: &Path) -> Result<Self> {
        let cluster = Cluster::start(ClusterOptions::single()).await?;
        let admin = cluster.admin()?;
        admin.deploy(hello, &Deploy::new("fresh")).await?;
        let reused = Deploy::new("reused").with(|c| {
            c.reuse.max_requests = REUSE;
            c.reuse.idle_ms = Millis::secs(60);
        });
        admin.deploy(hello, &reused).await?;
        Ok(Self { cluster })
    }

    /// The host's ingress as one instance of `app`, without the router.
    pub async fn direct(&self, name: &str, app: &str) -> Result<Subject> {
        let host = self.cluster.host(1)?;
        let instance =
            self.cluster.admin()?.status(app).await?.instances.first().context("no instance")?.id.to_string();
        Ok(Subject {
            name: name.to_owned(),
            target: Target::unix(ingress(&self.cluster, host)?, format!("{app}.localhost")),
            path: "/".into(),
            headers: vec![
                (headers::INSTANCE.to_owned(), instance),
                (headers::REQUEST_ID.to_owned(), "bench".to_owned()),
            ],
            servers: tree(host),
        })
    }

    /// Through the router, plain HTTP.
    pub fn routed(&self, name: &str, app: &str) -> Result<Subject> {
        Ok(Subject {
            name: name.to_owned(),
            target: self.cluster.app(app)?,
            path: "/".into(),
            headers: Vec::new(),
            servers: [vec![self.cluster.router()?], tree(self.cluster.host(1)?)].concat(),
        })
    }
}

/// The path after `--ingress unix:` in the host's arguments.
pub fn ingress(cluster: &Cluster, host: Pid) -> Result<String> {
    let (_, words) = children(cluster.pid()).into_iter().find(|(pid, _)| *pid == host).context("no host process")?;
    let at = words.iter().position(|w| w == "--ingress").context("no --ingress")?;
    Ok(words[at + 1].strip_prefix("unix:").context("the ingress is no unix socket")?.to_owned())
}

/// Pushes the health application, makes its first account and logs in; gives a subject for its list page.
pub async fn health_session(marcato: &Marcato, health: &Path) -> Result<Subject> {
    let pushed = marcato.cluster.cli(&["push", health.to_str().context("path")?, "--json"]).await?;
    let out: serde_json::Value =
        serde_json::from_slice(&pushed.stdout).with_context(|| String::from_utf8_lossy(&pushed.stderr).into_owned())?;
    let token = out["generated"]["SETUP_TOKEN"].as_str().context("push generated no SETUP_TOKEN")?;
    let target = marcato.cluster.app_secure("health")?;
    let cookie = sign_up(&target, token).await?;
    let mut subject = marcato.routed("health list page, through the router (TLS)", "health")?;
    subject.target = target;
    subject.path = "/users".into();
    subject.headers = vec![("cookie".into(), cookie)];
    Ok(subject)
}

/// Makes the first account by the one-time link, logs in, loads the demo records; gives the session cookie.
async fn sign_up(target: &Target, setup_token: &str) -> Result<String> {
    let password = "a-long-enough-Passw0rd!";
    let mut jar = Jar::default();
    let account = [("name", "bench"), ("password", password), ("repeat", password)];
    let page = jar.get(target, &format!("/setup?token={setup_token}")).await?;
    jar.post(target, "/setup", &page, &account).await?;
    let page = jar.get(target, "/login").await?;
    jar.post(target, "/login", &page, &account[..2]).await?;
    let page = jar.get(target, "/users").await?;
    jar.post(target, "/demo", &page, &[]).await?;
    Ok(jar.header())
}

/// Cookies by name, as a browser keeps them.
#[derive(Default)]
struct Jar {
    cookies: std::collections::BTreeMap<String, String>,
}

impl Jar {
    fn header(&self) -> String {
        self.cookies.iter().map(|(n, v)| format!("{n}={v}")).collect::<Vec<_>>().join("; ")
    }

    fn keep(&mut self, answer: &marcato_tests::Answer) {
        for value in answer.headers.get_all("set-cookie").iter().filter_map(|v| v.to_str().ok()) {
            let pair = value.split(';').next().unwrap_or_default();
            if let Some((name, value)) = pair.split_once('=') {
                self.cookies.insert(name.to_owned(), value.to_owned());
            }
        }
    }

    async fn get(&mut self, target: &Target, path: &str) -> Result<String> {
        let cookie = self.header();
        let answer = target.request(Method::GET, path, &[("cookie", &cookie)], marcato_tests::empty()).await?;
        self.keep(&answer);
        Ok(answer.text())
    }

    async fn post(&mut self, target: &Target, path: &str, page: &str, fields: &[(&str, &str)]) -> Result<()> {
        let mut body: Vec<String> = fields.iter().map(|(n, v)| format!("{n}={}", encode(v))).collect();
        body.extend(hidden(page).into_iter().map(|(n, v)| format!("{n}={}", encode(&v))));
        let cookie = self.header();
        let origin = format!("https://{}", target.host);
        let headers = [
            ("cookie", cookie.as_str()),
            ("content-type", "application/x-www-form-urlencoded"),
            ("origin", origin.as_str()),
        ];
        let answer = target.request(Method::POST, path, &headers, full(body.join("&"))).await?;
        if answer.status >= 400 {
            anyhow::bail!("POST {path}: {} {}", answer.status, answer.text());
        }
        self.keep(&answer);
        Ok(())
    }
}

/// Hidden fields of a page's forms (the CSRF token), by name.
fn hidden(page: &str) -> Vec<(String, String)> {
    page.split("<input")
        .skip(1)
        .filter(|tag| tag.contains("type=\"hidden\""))
        .filter_map(|tag| Some((attribute(tag, "name")?, attribute(tag, "value")?)))
        .collect()
}

fn attribute(tag: &str, name: &str) -> Option<String> {
    let rest = tag.split_once(&format!("{name}=\""))?.1;
    Some(rest.split_once('"')?.0.to_owned())
}

fn encode(text: &str) -> String {
    text.bytes()
        .map(|b| {
            if b.is_ascii_alphanumeric() || b"-_.~".contains(&b) {
                char::from(b).to_string()
            } else {
                format!("%{b:02X}")
            }
        })
        .collect()
}
