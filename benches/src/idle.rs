//! What an app at rest costs: one host daemon, told over HostApi to run 1, 100, 1,000 and 10,000 apps, killed and started
//! again each time. Memory is read after the restart, before any request; then the first requests are timed.
//!
//! The apps are as many instances, each with a name and a configuration of its own, over [`COMPONENTS`] components that
//! differ by a custom section: to compile 10,000 would take an hour and tell nothing more.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use http::Method;
use marcato_api::{
    AppName, Digest, Generation, HostConfig, InstanceId, InstancePhase, InstanceSpec, InstanceState, Inventory,
    OrgName, RevisionConfig, RevisionNumber, SpaceName, headers,
};
use marcato_tests::{Pid, Target, empty, end, full, kill_now, marcato, resident_bytes, tls_config, tree, until};
use tempfile::TempDir;

use crate::identity::{HOST, write_identity};

/// Distinct components.
const COMPONENTS: usize = 100;
/// First requests of a large component, each after a restart of its own.
const LARGE: usize = 10;
/// Warm requests that cold ones are compared with.
const WARM: usize = 200;
const BOUND: Duration = Duration::from_secs(300);

/// So many apps at rest.
#[derive(Debug, Clone)]
pub struct Rest {
    /// Apps.
    pub apps: usize,
    /// From the config's arrival to the last app ready, in milliseconds.
    pub told_ms: f64,
    /// From the start of a killed daemon to an answer of the last app, in milliseconds.
    pub again_ms: f64,
    /// Resident memory of the daemon and its workers.
    pub resident: u64,
    /// The same by proportional share.
    pub proportional: u64,
}

/// First requests beside warm ones, in milliseconds.
#[derive(Debug, Clone)]
pub struct Cold {
    /// Which component.
    pub name: String,
    /// How many first requests.
    pub times: usize,
    /// Their median.
    pub cold_p50_ms: f64,
    /// Their 99th percentile; the slowest, where there are fewer than a hundred.
    pub cold_p99_ms: f64,
    /// Of requests to the same apps afterwards, each still in a fresh sandbox.
    pub warm_p50_ms: f64,
    /// Their 99th percentile.
    pub warm_p99_ms: f64,
}

/// All of it.
#[derive(Debug, Clone)]
pub struct Idle {
    /// By number of apps.
    pub rests: Vec<Rest>,
    /// By component.
    pub colds: Vec<Cold>,
}

struct Host {
    child: Child,
    folder: TempDir,
    control: Target,
    generation: u64,
}

impl Drop for Host {
    fn drop(&mut self) {
        end(self.pid(), Duration::from_secs(15));
        drop(self.child.wait());
    }
}

impl Host {
    async fn start() -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("marcato-idle-").tempdir()?;
        let router = write_identity(folder.path())?;
        let tls = tls_config(&router.ca, Some((&router.chain, &router.key)))?;
        let control = Target {
            socket: marcato_tests::Socket::Unix(folder.path().join("c.sock")),
            host: format!("{HOST}.host.marcato.internal"),
            tls: Some(tls),
        };
        let host = Self { child: spawn(folder.path())?, folder, control, generation: 0 };
        host.answers().await?;
        Ok(host)
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }

    async fn answers(&self) -> Result<()> {
        until("the daemon's API", BOUND, || async { self.inventory().await.map(Some).or(Ok(None)) }).await.map(drop)
    }

    async fn inventory(&self) -> Result<Inventory> {
        let answer = self.control.get("/v1/inventory").await?;
        Ok(serde_json::from_slice(&answer.body)?)
    }

    async fn put(&self, path: &str, content_type: &str, body: Vec<u8>) -> Result<()> {
        let headers = [("content-type", content_type)];
        let answer = self.control.request(Method::PUT, path, &headers, full(body)).await?;
        if answer.status >= 300 { bail!("PUT {path}: {} {}", answer.status, answer.text()) } else { Ok(()) }
    }

    async fn upload(&self, component: &[u8]) -> Result<Digest> {
        let digest = Digest::of(component);
        self.put(&format!("/v1/components/{digest}"), "application/wasm", component.to_vec()).await?;
        Ok(digest)
    }

    /// Tells it to run so many apps over these components; the time until all are ready.
    async fn tell(&mut self, apps: usize, digests: &[Digest]) -> Result<f64> {
        self.generation += 1;
        let instances = (0..apps).map(|n| spec(n, &digests[n % digests.len()])).collect::<Result<Vec<_>>>()?;
        let config =
            HostConfig { generation: Generation(self.generation), instances, services: Vec::new(), peers: Vec::new() };
        let body = serde_json::to_vec(&config)?;
        let begin = Instant::now();
        self.put("/v1/config", "application/json", body).await?;
        until("all apps to be ready", BOUND, || async {
            let inventory = self.inventory().await?;
            let ready = inventory.instances.iter().filter(|i| i.phase == InstancePhase::Ready).count();
            Ok((ready == apps).then_some(()))
        })
        .await?;
        Ok(milliseconds(begin))
    }

    /// Kills it and starts it again; the time until the last app's ingress answers, without a request to any app.
    async fn again(&mut self, apps: usize) -> Result<f64> {
        let all = tree(self.pid());
        kill_now(self.pid())?;
        self.child.wait()?;
        for pid in all.iter().skip(1) {
            until("its workers to be gone", BOUND, || async { Ok((!marcato_tests::is_alive(*pid)).then_some(())) })
                .await?;
        }
        let begin = Instant::now();
        self.child = spawn(self.folder.path())?;
        until("the apps to be ready again", BOUND, || async {
            let Ok(inventory) = self.inventory().await else { return Ok(None) };
            let ready = inventory.instances.iter().filter(|i| i.phase == InstancePhase::Ready).count();
            Ok((ready == apps).then_some(()))
        })
        .await?;
        Ok(milliseconds(begin))
    }

    fn ingress(&self) -> Target {
        Target::unix(self.folder.path().join("i.sock"), "idle.localhost")
    }

    /// The time of one request to the `n`-th app, on a connection that is open already.
    async fn ask(connection: &mut marcato_tests::Connection, n: usize) -> Result<f64> {
        let id = instance(n);
        let headers = [(headers::INSTANCE, id.as_str()), (headers::REQUEST_ID, "bench")];
        let begin = Instant::now();
        let answer = connection.request(Method::GET, "/", &headers, empty()).await?;
        let took = milliseconds(begin);
        if answer.status == 200 { Ok(took) } else { bail!("{id}: {} {}", answer.status, answer.text()) }
    }

    /// Memory once nothing is in motion: the least of some readings.
    async fn at_rest(&self) -> Result<(u64, u64)> {
        let mut least = (u64::MAX, u64::MAX);
        for _ in 0..8 {
            tokio::time::sleep(Duration::from_millis(250)).await;
            let pids = tree(self.pid());
            let resident = pids.iter().map(|p| resident_bytes(*p)).sum::<Result<u64>>()?;
            let share = pids.iter().map(|p| crate::moments::proportional_bytes(*p)).sum::<Result<u64>>()?;
            least = (least.0.min(resident), least.1.min(share));
        }
        Ok(least)
    }
}

fn spawn(folder: &Path) -> Result<Child> {
    let socket = |name: &str| format!("unix:{}", folder.join(name).display());
    Command::new(marcato()?)
        .arg("hostd")
        .arg("--data")
        .arg(folder.join("data"))
        .args(["--id", HOST, "--control", &socket("c.sock"), "--ingress", &socket("i.sock")])
        .env("RUST_LIB_BACKTRACE", "0")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(std::fs::File::create(folder.join("log"))?)
        .spawn()
        .context("cannot start the daemon")
}

fn instance(n: usize) -> String {
    format!("app{n}-r1-0")
}

fn spec(n: usize, digest: &Digest) -> Result<InstanceSpec> {
    Ok(InstanceSpec {
        id: InstanceId::new(instance(n))?,
        app: AppName::new(format!("app{n}"))?,
        org: OrgName::default_org(),
        space: SpaceName::default_space(),
        revision: RevisionNumber(1),
        digest: digest.clone(),
        config: RevisionConfig {
            env: [("NAME".to_owned(), format!("app {n}")), ("GREETING".to_owned(), "hello".to_owned())].into(),
            ..RevisionConfig::default()
        },
        bindings: BTreeMap::new(),
        state: InstanceState::Running,
        isolation: Default::default(),
        budget: Default::default(),
    })
}

/// The component with a custom section of its own.
fn salted(component: &[u8], salt: u64) -> Vec<u8> {
    let mut bytes = component.to_vec();
    bytes.extend([0, 13, 4]);
    bytes.extend(b"salt");
    bytes.extend(salt.to_le_bytes());
    bytes
}

fn milliseconds(begin: Instant) -> f64 {
    begin.elapsed().as_secs_f64() * 1000.0
}

fn percentile(values: &mut [f64], of: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    let at = ((values.len() as f64 * of).ceil() as usize).clamp(1, values.len().max(1)) - 1;
    values.get(at).copied().unwrap_or(f64::NAN)
}

fn cold(name: &str, mut cold: Vec<f64>, mut warm: Vec<f64>) -> Cold {
    Cold {
        name: name.to_owned(),
        times: cold.len(),
        cold_p50_ms: percentile(&mut cold, 0.5),
        cold_p99_ms: percentile(&mut cold, 0.99),
        warm_p50_ms: percentile(&mut warm, 0.5),
        warm_p99_ms: percentile(&mut warm, 0.99),
    }
}

/// Measures apps at rest and first requests. `large` are components of tens of megabytes, by name.
pub async fn measure(hello: &Path, large: &[(&str, PathBuf)], quick: bool) -> Result<Idle> {
    let mut host = Host::start().await?;
    let bytes = std::fs::read(hello)?;
    let mut digests = Vec::new();
    for n in 0..if quick { 4 } else { COMPONENTS } {
        digests.push(host.upload(&salted(&bytes, n as u64)).await?);
    }
    let mut rests = Vec::new();
    let counts: &[usize] = if quick { &[1, 100] } else { &[1, 100, 1_000, 10_000] };
    // Compiles what is new; not part of any number.
    host.tell(digests.len(), &digests).await?;
    for apps in counts {
        let told_ms = host.tell(*apps, &digests).await?;
        let again_ms = host.again(*apps).await?;
        let (resident, proportional) = host.at_rest().await?;
        eprintln!("bench: {apps} apps at rest: {:.1} MB", resident as f64 / 1e6);
        rests.push(Rest { apps: *apps, told_ms, again_ms, resident, proportional });
    }
    let mut colds = vec![first_requests(&mut host, "Rust", digests.len()).await?];
    for (name, file) in large.iter().filter(|(_, file)| file.exists()) {
        let digest = host.upload(&std::fs::read(file)?).await?;
        host.tell(1, std::slice::from_ref(&digest)).await?;
        let (mut first, mut warm) = (Vec::new(), Vec::new());
        for _ in 0..if quick { 1 } else { LARGE } {
            host.again(1).await?;
            let mut connection = host.ingress().connect().await?;
            first.push(Host::ask(&mut connection, 0).await?);
            for _ in 0..WARM / LARGE {
                warm.push(Host::ask(&mut connection, 0).await?);
            }
        }
        colds.push(cold(name, first, warm));
    }
    Ok(Idle { rests, colds })
}

/// The first request to each component, then some more.
async fn first_requests(host: &mut Host, name: &str, components: usize) -> Result<Cold> {
    let mut connection = host.ingress().connect().await?;
    let (mut first, mut warm) = (Vec::new(), Vec::new());
    for n in 0..components {
        first.push(Host::ask(&mut connection, n).await?);
    }
    for n in 0..WARM {
        warm.push(Host::ask(&mut connection, n % components).await?);
    }
    Ok(cold(name, first, warm))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_99th_of_a_hundred_is_the_last_but_one() {
        let mut values: Vec<f64> = (1..=100).rev().map(f64::from).collect();
        assert_eq!((percentile(&mut values, 0.99), percentile(&mut values, 0.5)), (99.0, 50.0));
        assert_eq!(percentile(&mut [7.0], 0.99), 7.0);
    }

    #[test]
    fn components_with_another_salt_have_another_digest() {
        let one = b"\0asm\x0d\0\x01\0";
        assert_ne!(Digest::of(&salted(one, 1)), Digest::of(&salted(one, 2)));
    }
}
