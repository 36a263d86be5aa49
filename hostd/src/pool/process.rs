//! A worker's process: started, given its instances, started again when it dies.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixDatagram as StdDatagram, UnixStream as StdStream};
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use command_fds::{CommandFdExt, FdMapping};
use futures::FutureExt;
use marcato_api::{Bytes, Measure};
use tokio::net::UnixStream;
use tokio::process::{Child, Command};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::broker::Broker;
use super::lessor::Tenancy;
use super::worker::{Link, Worker, WorkerPeer};
use super::{Settings, Shared};
use crate::channel::{LeaseOrder, Order, OrderAnswer, Peer, Readiness, Setup, SocketSender, send_first};
use crate::worker::{CGROUP_VAR, CHANNEL_FD, DIR_VAR, DRAIN, INGRESS_FD, NUMBER_VAR, SOCKETS_FD};

/// A process that lived this long did not die of its start: the next one starts at once.
const STABLE: Duration = Duration::from_secs(10);
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// From the start of a process to its word that it is ready.
const READY_WITHIN: Duration = Duration::from_secs(15);
/// Instances that a process is given at once.
const BATCH: usize = 512;

/// Runs processes of a worker, one after another, until it should end or the pool stops.
pub(super) async fn conduct(worker: Arc<Worker>, with: Arc<Shared>, stop: CancellationToken) {
    keep_alive(&worker, &with, &stop).await;
    with.groups.remove(&worker.group()).await;
}

async fn keep_alive(worker: &Arc<Worker>, with: &Arc<Shared>, stop: &CancellationToken) {
    let mut pause = Duration::ZERO;
    while !worker.ending.is_cancelled() && !stop.is_cancelled() {
        if !pause.is_zero() {
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = worker.ending.cancelled() => return,
                () = stop.cancelled() => return,
            }
        }
        let begun = Instant::now();
        let lived = tokio::select! {
            lived = Box::pin(live(worker, with)) => lived,
            () = stop.cancelled() => return,
        };
        worker.went();
        if worker.ending.is_cancelled() {
            return;
        }
        let how = match lived {
            Ok(how) => how,
            Err(error) => error.to_string(),
        };
        // The first death of one that stood long costs no pause; one that dies again and again is held off.
        pause = if begun.elapsed() >= STABLE { Duration::ZERO } else { (pause * 2).clamp(FIRST_PAUSE, LONGEST_PAUSE) };
        tracing::error!(worker = worker.name(), %how, pause_ms = pause.as_millis(), "a worker died; starting it again");
    }
}

/// Resident memory of a process: pages of 4 KiB, the second number of statm (proc(5)). 0 when it is gone.
pub(super) fn resident(pid: &str) -> Bytes {
    let statm = std::fs::read_to_string(format!("/proc/{pid}/statm")).unwrap_or_default();
    let pages = statm.split(' ').nth(1).and_then(|n| n.parse::<u64>().ok()).unwrap_or(0);
    Bytes(pages * 4096)
}

/// CPU time of all threads that a process has and had, by its own clock (clock_getcpuclockid(3)). Nothing when it is gone.
pub(super) fn cpu_us(pid: u32) -> Option<u64> {
    let pid = nix::unistd::Pid::from_raw(i32::try_from(pid).ok()?);
    let used = nix::time::clock_gettime(nix::time::clock_getcpuclockid(pid).ok()?).ok()?;
    let (seconds, nanos) = (u64::try_from(used.tv_sec()).ok()?, u64::try_from(used.tv_nsec()).ok()?);
    Some(seconds * 1_000_000 + nanos / 1_000)
}

struct Started {
    child: Child,
    channel: StdStream,
    sockets: StdDatagram,
}

fn start(worker: &Worker, settings: &Settings, lease: LeaseOrder, group: Option<&Path>) -> io::Result<Started> {
    let (mut channel, their_channel) = StdStream::pair()?;
    let (sockets, their_sockets) = StdDatagram::pair()?;
    let ingress: OwnedFd = worker.seat.ingress.as_fd().try_clone_to_owned()?;
    let mut command = std::process::Command::new(&settings.command.program);
    command
        .args(&settings.command.args)
        .env_clear()
        .envs(settings.command.env.iter().map(|(k, v)| (k, v)))
        .env(DIR_VAR, &worker.seat.dir)
        .env(NUMBER_VAR, worker.seat.number.to_string())
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    if let Some(group) = group {
        command.env(CGROUP_VAR, group);
    }
    command
        .fd_mappings(vec![
            FdMapping { parent_fd: their_channel.into(), child_fd: CHANNEL_FD },
            FdMapping { parent_fd: their_sockets.into(), child_fd: SOCKETS_FD },
            FdMapping { parent_fd: ingress, child_fd: INGRESS_FD },
        ])
        .map_err(io::Error::other)?;
    let child = Command::from(command).kill_on_drop(true).spawn()?;
    let setup = Setup {
        worker: worker.name().to_owned(),
        sandboxes: settings.sandboxes,
        memory: settings.memory,
        lease,
        outbound_ca_pem: settings.outbound_ca_pem.clone(),
        tls: worker.tls(),
        require_confinement: settings.require_confinement,
    };
    send_first(&mut channel, &setup)?;
    Ok(Started { child, channel, sockets })
}

/// One process, from its start to its end. Gives how it ended.
async fn live(worker: &Arc<Worker>, with: &Arc<Shared>) -> io::Result<String> {
    let tenancy = with.lessor.join(worker.weight());
    let group = with.groups.ensure(&worker.group(), worker.cpu_weight());
    let mut leases = tenancy.orders();
    let first = *leases.borrow_and_update();
    let Started { mut child, channel, sockets } = start(worker, &with.settings, first, group.as_deref().ok())?;
    let seat = Seated { tenancy: &tenancy, leases, no_group: group.err() };
    let how = attend(worker, with, &mut child, channel, sockets, seat).await;
    // Whatever was wrong with it: what it held is free when it is gone, and no sooner.
    let _ = child.kill().await;
    how
}

/// What of the host a process was given.
struct Seated<'a> {
    tenancy: &'a Tenancy,
    leases: watch::Receiver<LeaseOrder>,
    /// Why it has no control group.
    no_group: Option<String>,
}

async fn attend(
    worker: &Arc<Worker>,
    with: &Arc<Shared>,
    child: &mut Child,
    channel: StdStream,
    sockets: StdDatagram,
    seat: Seated<'_>,
) -> io::Result<String> {
    let settings = &with.settings;
    channel.set_nonblocking(true)?;
    let gone = CancellationToken::new();
    let _end = gone.clone().drop_guard();
    let tasks = TaskTracker::new();
    let (ready, is_ready) = oneshot::channel();
    let (sockets, holder) = (SocketSender::new(sockets)?, seat.tenancy.holder());
    let broker = Arc::new(Broker::new(Arc::clone(worker), Arc::clone(with), sockets, ready, holder));
    let answer = move |ask| {
        let broker = Arc::clone(&broker);
        async move { broker.answer(ask).await }.boxed()
    };
    let peer: WorkerPeer = Peer::start(UnixStream::from_std(channel)?, &tasks, gone.clone(), answer);
    let pid = child.id().unwrap_or_default();
    let (kill, mut killed) = mpsc::channel(1);
    let given = tokio::select! {
        given = tokio::time::timeout(READY_WITHIN, give(worker, &peer, is_ready)) => given,
        status = child.wait() => return Ok(format!("{} before it was ready", status?)),
    };
    match given {
        Ok(Some((readiness, _))) if settings.require_confinement && !readiness.confinement.is_full() => {
            let how = format!("worker {}: {}", worker.name(), readiness.confinement);
            settings.unfit.send_replace(Some(how.clone()));
            return Ok(how);
        }
        Ok(Some((mut readiness, results))) => {
            if let Some(why) = seat.no_group {
                readiness.confinement.not_had(Measure::ControlGroup, why);
            }
            tracing::info!(worker = worker.name(), pid, confinement = %readiness.confinement, "worker ready");
            worker.came(
                Link { peer: peer.clone(), pid: readiness.confinement.pid.unwrap_or(pid), holder, kill },
                readiness.confinement,
                results,
            );
            // What came while the process started was not in its set-up, and there was nobody to tell.
            worker.tell_tls();
            // It has its instances by now, which it may not have had at its start.
            with.lessor.weigh(holder, worker.weight());
            tasks.spawn(tell_leases(peer.clone(), seat.leases));
            settings.wake_instances.notify_one();
        }
        Ok(None) => return Ok(format!("{} before it was ready", child.wait().await?)),
        Err(_) => return Ok("it was not ready in time".into()),
    }
    if worker.is_open() {
        let _ = peer.call(&Order::Open).await;
    }
    let status = tokio::select! {
        status = child.wait() => status?,
        Some(why) = killed.recv() => return Ok(why.into()),
        () = worker.ending.cancelled() => {
            let _ = peer.tell(&Order::Stop).await;
            match tokio::time::timeout(DRAIN + super::END, child.wait()).await {
                Ok(status) => status?,
                Err(_) => return Ok("it did not end in time".into()),
            }
        }
        // Without its channel it can do nothing; it ends by itself, or is killed with `child`.
        () = gone.cancelled() => match tokio::time::timeout(super::END, child.wait()).await {
            Ok(status) => status?,
            Err(_) => return Ok("its channel broke".into()),
        },
    };
    Ok(status.to_string())
}

/// Tells the process of each lease that it gets, the newest only.
async fn tell_leases(peer: WorkerPeer, mut leases: watch::Receiver<LeaseOrder>) {
    let gone = peer.gone().clone();
    let telling = async {
        while leases.changed().await.is_ok() {
            let lease = *leases.borrow_and_update();
            if peer.tell(&Order::Lease(lease)).await.is_err() {
                return;
            }
        }
    };
    gone.run_until_cancelled(telling).await;
}

type Given = (Readiness, Vec<(marcato_api::InstanceId, Result<(), crate::channel::NotStarted>)>);

/// Waits until the process is ready and gives it what it should run. `None`: it is gone.
async fn give(worker: &Worker, peer: &WorkerPeer, ready: oneshot::Receiver<Readiness>) -> Option<Given> {
    let readiness = tokio::select! {
        readiness = ready => readiness.ok()?,
        () = peer.gone().cancelled() => return None,
    };
    let orders = worker.orders();
    let mut results = Vec::with_capacity(orders.len());
    for batch in orders.chunks(BATCH) {
        let Ok(OrderAnswer::Started(started)) = peer.call(&Order::Start(batch.to_vec())).await else { return None };
        results.extend(batch.iter().map(|o| o.id.clone()).zip(started));
    }
    Some((readiness, results))
}

/// Puts a verified file into a worker's folder, as another name of the same bytes.
pub(super) fn link_code(verified: &std::path::Path, link: &std::path::Path) -> io::Result<()> {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    let wanted = File::open(verified)?.metadata()?;
    if wanted.permissions().mode() & 0o444 != 0o444 {
        // The worker is another user, whom only its own folder lets through.
        std::fs::set_permissions(verified, std::fs::Permissions::from_mode(0o644))?;
    }
    match std::fs::metadata(link) {
        Ok(there) if there.ino() == wanted.ino() && there.dev() == wanted.dev() => return Ok(()),
        Ok(_) => std::fs::remove_file(link)?,
        Err(_) => {}
    }
    match std::fs::hard_link(verified, link) {
        // Another request for the same code was faster.
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        result => result,
    }
}
