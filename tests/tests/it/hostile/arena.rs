//! Where the attacks of this folder take place: one cluster for all of them, with a neighbour.
//!
//! Apps of the hostile guests stand ready twice: `wild-*` with limits so wide that an attack is seen to
//! work, and `tame-*` with narrow ones. Every test keeps the neighbour under load while it attacks, and
//! ends with [`Arena::unharmed`]: not one of the neighbour's requests may have failed.

use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use http::Method;
use marcato_api::{AppName, Bytes, LogLine, LogStream, Millis, RevisionConfig, admin_paths};
use marcato_tests::{Admin, Answer, Cluster, ClusterOptions, Deploy, Load, Target, guest, until};
use tokio::sync::{OnceCell, OwnedSemaphorePermit};

const LOG_BOUND: Duration = Duration::from_secs(20);
const ROLL_BOUND: Duration = Duration::from_secs(90);

/// Limits that an attack meets soon.
pub(super) fn tame(c: &mut RevisionConfig) {
    c.concurrency = 8;
    c.queue = 8;
    c.limits.memory_bytes = Bytes::mib(32);
    c.limits.instance_memory_bytes = Bytes::mib(160);
    // Far enough apart that a busy machine does not turn one into the other.
    c.limits.time_ms = Millis(3_000);
    c.limits.cpu_ms = Millis(150);
    c.limits.request_body_bytes = Bytes::kib(64);
    c.limits.response_body_bytes = Bytes::mib(1);
}

/// The widest limits that there are, as good as none.
pub(super) fn wild(c: &mut RevisionConfig) {
    c.limits.memory_bytes = Bytes::mib(1024);
    // What an instance may use is set aside for it on its host: more would leave no room for the other tests.
    c.limits.instance_memory_bytes = Bytes::mib(1024);
    c.limits.time_ms = Millis::secs(600);
    c.limits.cpu_ms = Millis::secs(600);
    c.limits.request_body_bytes = Bytes::mib(1024);
    c.limits.response_body_bytes = Bytes::mib(4096);
    c.limits.first_byte_ms = Millis::secs(600);
    c.limits.idle_ms = Millis::secs(600);
    c.limits.buffer_bytes = Bytes::mib(64);
    c.limits.outbound_requests = 10_000;
    c.limits.outbound_concurrent = 256;
    c.limits.outbound_bytes = Bytes::mib(4096);
}

/// The cluster. It lives as long as the test binary.
struct Ground {
    cluster: Cluster,
    _guardian: Child,
}

static GROUND: OnceCell<Ground> = OnceCell::const_new();

/// Ends the cluster when this process is gone, however it went: a static is never dropped. It waits for the
/// end of its standard input, which only this process holds open.
fn guardian(cluster: &Cluster) -> Result<Child> {
    let script = "read -r line; kill -TERM \"$1\" 2>/dev/null; n=0; \
        while kill -0 \"$1\" 2>/dev/null && [ $n -lt 150 ]; do sleep 0.1; n=$((n+1)); done; \
        kill -KILL -- \"-$1\" 2>/dev/null; rm -rf \"$2\"";
    let folder = cluster.data().parent().context("the data lie in a folder of their own")?;
    let child = Command::new("/bin/sh")
        .args(["-c", script, "guardian", &cluster.pid().to_string()])
        .arg(folder)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0)
        .spawn();
    child.context("cannot start the guardian")
}

async fn ground() -> Result<&'static Ground> {
    GROUND
        .get_or_try_init(|| async {
            let cluster = Cluster::start(ClusterOptions::single()).await?;
            let guardian = guardian(&cluster)?;
            let admin = cluster.admin()?;
            let neighbour = Deploy::new("neighbour").with(|c| {
                c.env.insert("REVISION".into(), "neighbour".into());
            });
            admin.deploy(&guest("guest-behaviour")?, &neighbour).await?;
            for kind in ["hostile", "swarm"] {
                let component = guest(&format!("guest-{kind}"))?;
                admin.deploy(&component, &Deploy::new(&format!("wild-{kind}")).with(wild)).await?;
                admin.deploy(&component, &Deploy::new(&format!("tame-{kind}")).with(tame)).await?;
            }
            Ok(Ground { cluster, _guardian: guardian })
        })
        .await
}

/// One test's stay: the cluster, with the neighbour under load.
pub(super) struct Arena {
    pub(super) cluster: &'static Cluster,
    pub(super) admin: Admin,
    load: Option<Load>,
    /// Apps of this test, which go with it.
    own: Mutex<Vec<String>>,
    _permit: OwnedSemaphorePermit,
}

/// An app to attack with.
pub(super) struct Prey {
    pub(super) name: String,
    pub(super) target: Target,
    admin: Admin,
}

impl Arena {
    pub(super) async fn enter() -> Result<Self> {
        let permit = crate::permit().await;
        let cluster = &ground().await?.cluster;
        let load = Load::start(&cluster.app("neighbour")?, "/", 2, |answer| answer.text() == "hello\n");
        Ok(Self { cluster, admin: cluster.admin()?, load: Some(load), own: Mutex::default(), _permit: permit })
    }

    /// An app that stands ready, or one that was deployed.
    pub(super) fn app(&self, name: &str) -> Result<Prey> {
        Ok(Prey { name: name.to_owned(), target: self.cluster.app(name)?, admin: self.admin.clone() })
    }

    pub(super) fn wild(&self) -> Result<Prey> {
        self.app("wild-hostile")
    }

    pub(super) fn tame(&self) -> Result<Prey> {
        self.app("tame-hostile")
    }

    /// An app of this test alone.
    pub(super) async fn deploy(
        &self,
        name: &str,
        component: &Path,
        limits: impl FnOnce(&mut RevisionConfig),
    ) -> Result<Prey> {
        self.own.lock().expect("not poisoned").push(name.to_owned());
        self.admin.deploy(component, &Deploy::new(name).with(limits)).await?;
        self.app(name)
    }

    /// The end of every test: the neighbour was served all the time, and is served on.
    pub(super) async fn unharmed(mut self) -> Result<()> {
        let load = self.load.take().context("the load runs until here")?;
        load.answered(20).await?;
        let report = load.stop().await;
        ensure!(report.failures.is_empty(), "the neighbour failed: {:?}", report.failures);
        let own = std::mem::take(&mut *self.own.lock().expect("not poisoned"));
        for app in own {
            self.admin.raw(Method::DELETE, &admin_paths::app(&AppName::new(&app)?), "", Vec::new()).await?;
        }
        Ok(())
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        if self.load.is_some() {
            // The test failed: nothing else shows these logs.
            let logs = self.cluster.logs();
            let lines: Vec<_> = logs.lines().collect();
            eprintln!("---- end of the cluster's logs\n{}\n----", lines[lines.len().saturating_sub(40)..].join("\n"));
        }
    }
}

impl Prey {
    pub(super) async fn get(&self, path: &str) -> Result<Answer> {
        self.target.get(path).await
    }

    /// GET that must be answered with 200; gives the text without its line end.
    pub(super) async fn works(&self, path: &str) -> Result<String> {
        let answer = self.get(path).await?;
        if answer.status != 200 {
            bail!("{} {path}: {} {}", self.name, answer.status, answer.text());
        }
        Ok(answer.text().trim_end().to_owned())
    }

    /// GET that must fail with this status, while a platform line of that very request says `named`.
    pub(super) async fn fails(&self, path: &str, status: u16, named: &str) -> Result<()> {
        let answer = self.get(path).await?;
        ensure!(answer.status == status, "{} {path}: {} {}", self.name, answer.status, answer.text());
        ensure!(!answer.text().contains("wasm"), "no insides to clients: {}", answer.text());
        self.logged(answer.header("x-request-id"), named).await.map(drop)
    }

    /// A platform line of this request that holds `text`.
    pub(super) async fn logged(&self, request_id: &str, text: &str) -> Result<LogLine> {
        ensure!(!request_id.is_empty(), "a response names its request");
        until(&format!("{} to log {text:?} for {request_id}", self.name), LOG_BOUND, || async {
            let mut lines = self.admin.logs(&self.name).await?;
            lines.retain(|l| l.request_id == request_id && l.stream == LogStream::Platform);
            match lines.iter().position(|l| l.text.contains(text)) {
                Some(at) => Ok(Some(lines.swap_remove(at))),
                None => bail!("lines: {:?}", lines.iter().map(|l| &l.text).collect::<Vec<_>>()),
            }
        })
        .await
    }

    /// Sets what the operator says of this app, and waits until it holds: another instance serves then.
    pub(super) async fn policy(&self, cluster: &Cluster, settings: &str) -> Result<()> {
        self.rolls(cluster, &format!("policy set --app {} {settings}", self.name)).await
    }

    /// Takes back what the operator says of this app.
    pub(super) async fn no_policy(&self, cluster: &Cluster) -> Result<()> {
        self.rolls(cluster, &format!("policy unset --app {} --yes", self.name)).await
    }

    async fn rolls(&self, cluster: &Cluster, command: &str) -> Result<()> {
        let instances = async || -> Result<Vec<String>> {
            let status = self.admin.status(&self.name).await?;
            Ok(status.instances.iter().map(|i| i.id.to_string()).collect())
        };
        let before = instances().await?;
        let out = cluster.cli(&command.split(' ').collect::<Vec<_>>()).await?;
        ensure!(out.status.success(), "{command}: {}", String::from_utf8_lossy(&out.stderr));
        until(&format!("other instances after {command}"), ROLL_BOUND, || async {
            let now = instances().await?;
            Ok((now.len() == before.len() && now.iter().all(|i| !before.contains(i))).then_some(()))
        })
        .await?;
        self.admin.ready(&self.name, u32::try_from(before.len())?).await
    }

    /// Waits until so many requests run in it.
    pub(super) async fn busy(&self, requests: u32) -> Result<()> {
        until(&format!("{} to have {requests} in flight", self.name), LOG_BOUND, || async {
            let status = self.admin.status(&self.name).await?;
            let busy: u32 = status.instances.iter().map(|i| i.in_flight).sum();
            Ok((busy >= requests).then_some(()))
        })
        .await
    }

    /// Waits until no request runs in it.
    pub(super) async fn idle(&self) -> Result<()> {
        until(&format!("{} to have nothing in flight", self.name), Duration::from_secs(30), || async {
            let status = self.admin.status(&self.name).await?;
            let busy: u32 = status.instances.iter().map(|i| i.in_flight).sum();
            if busy > 0 {
                bail!("{busy} in flight");
            }
            Ok(Some(()))
        })
        .await
    }
}

/// A component as text: `fields` go into its module, `body` into its handler, `more` beside its module.
/// The file lies in the folder.
pub(super) fn text_component(folder: &Path, name: &str, fields: &str, body: &str, more: &str) -> Result<PathBuf> {
    let text =
        include_str!("handler.wat").replace(";; FIELDS", fields).replace(";; BODY", body).replace(";; MORE", more);
    let file = folder.join(format!("{name}.wasm"));
    std::fs::write(&file, wat::parse_str(text).with_context(|| format!("{name} as text"))?)?;
    Ok(file)
}
