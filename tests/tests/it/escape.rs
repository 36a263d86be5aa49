//! The escape drill: machine code that is free to call the kernel, as after a break-out of WebAssembly's sandbox,
//! inside the confinement of a worker. Each attack is first made outside of it, to show that it is one; inside it
//! must be refused, or end the process. `marcato-drill` enters and seals with the plan and the code of a worker.
//!
//! What a machine does not have is not asked of it: the reason is printed.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, UdpSocket};
use std::os::fd::AsRawFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::{fs, thread};

use anyhow::{Context, Result, ensure};
use marcato_tests::{Deploy, Pid, children, guest, tree};
use nix::libc::SIGSYS;

use crate::cluster;

/// What the drill says when the kernel refused.
const REFUSED: i32 = 10;

/// Beside this test, where cargo puts the binaries of the workspace.
fn drill() -> Result<PathBuf> {
    let own = std::env::current_exe()?;
    let beside = own.ancestors().take(3).map(|dir| dir.join("marcato-drill")).find(|path| path.is_file());
    beside.context("no `marcato-drill` beside this test: build the workspace")
}

/// What lies around a worker: the daemon, its key, other workers' folders, sockets to reach.
struct Scene {
    folder: tempfile::TempDir,
    /// Stands for the daemon: same user as this test.
    daemon: Child,
    tcp: TcpListener,
    udp: UdpSocket,
    key: fs::File,
    name: String,
}

impl Drop for Scene {
    fn drop(&mut self) {
        // It may be dead already: one attack is to kill it.
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
    }
}

/// Answers every connection with a secret, for as long as the process lives; there are a few dozen.
fn answer<L: Send + 'static, S: Write>(listener: L, accept: impl Fn(&L) -> std::io::Result<S> + Send + 'static) {
    thread::spawn(move || {
        while let Ok(mut connection) = accept(&listener) {
            let _ = connection.write_all(b"secret");
        }
    });
}

impl Scene {
    fn new(number: usize) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("marcato-drill-").tempdir()?;
        let root = folder.path();
        for name in ["own", "other"] {
            fs::create_dir(root.join(name))?;
            fs::set_permissions(root.join(name), fs::Permissions::from_mode(0o755))?;
            fs::write(root.join(name).join("code"), "secret machine code")?;
            fs::set_permissions(root.join(name).join("code"), fs::Permissions::from_mode(0o644))?;
        }
        fs::write(root.join("key"), "secret key of the host")?;
        let key = fs::File::open(root.join("key"))?;
        // As a careless daemon would leave it to its children.
        nix::fcntl::fcntl(&key, nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty()))?;

        let tcp = TcpListener::bind("127.0.0.1:0")?;
        answer(tcp.try_clone()?, |l| l.accept().map(|(s, _)| s));
        answer(UnixListener::bind(root.join("socket"))?, |l| l.accept().map(|(s, _)| s));
        let name = format!("marcato-drill-{}-{number}", std::process::id());
        answer(UnixListener::bind_addr(&SocketAddr::from_abstract_name(&name)?)?, |l| l.accept().map(|(s, _)| s));

        let mut daemon = Command::new(drill()?)
            .args(["free", "wait"])
            .env("SECRET", "secret of the daemon")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut line = String::new();
        BufReader::new(daemon.stdout.take().context("piped")?).read_line(&mut line)?;
        ensure!(line == "ready\n", "the daemon's stand-in did not start");
        Ok(Self { folder, daemon, tcp, udp: UdpSocket::bind("127.0.0.1:0")?, key, name })
    }

    /// Puts this scene's names into an attack's words.
    fn words(&self, attack: &Attack) -> Result<Vec<String>> {
        let memory = || -> Result<String> {
            let maps = fs::read_to_string(format!("/proc/{}/maps", self.daemon.id()))?;
            Ok(maps.split('-').next().context("no mapping")?.to_owned())
        };
        let word = |word: &str| -> Result<String> {
            Ok(match word {
                "TCP" => self.tcp.local_addr()?.to_string(),
                "UDP" => self.udp.local_addr()?.to_string(),
                "NAME" => self.name.clone(),
                "KEY" => self.key.as_raw_fd().to_string(),
                "MEMORY" => memory()?,
                other => other
                    .replace("PID", &self.daemon.id().to_string())
                    .replace("ROOT", self.folder.path().to_str().context("UTF-8")?),
            })
        };
        attack.words.split(' ').map(word).collect()
    }

    fn make(&self, mode: &str, attack: &Attack) -> Result<Output> {
        let own = self.folder.path().join("own");
        let mut command = Command::new(drill()?);
        command.arg(mode).arg("--read").arg(own).args(self.words(attack)?).stdin(Stdio::null());
        Ok(command.output()?)
    }
}

/// What an attack is stopped by. The filter alone, or already by what is left of the machine without it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stop {
    /// The filter of system calls.
    Filter,
    /// Namespaces, user, capabilities, Landlock or limits: the filter is not needed.
    Without,
}

struct Attack {
    words: &'static str,
    stop: Stop,
    /// What it takes to work outside, where that is more than a user has on any machine.
    needs: &'static str,
}

const fn attack(words: &'static str, stop: Stop, needs: &'static str) -> Attack {
    Attack { words, stop, needs }
}

const ROOT: &str = "needs root, and a kernel that has it";

const ATTACKS: &[Attack] = &[
    // Files: the host's key, the machine's, another worker's, its own.
    attack("read ROOT/key", Stop::Without, ""),
    attack("read /etc/passwd", Stop::Without, ""),
    attack("read ROOT/other/code", Stop::Without, ""),
    attack("list ROOT", Stop::Without, ""),
    attack("list ROOT/other", Stop::Without, ""),
    attack("list /", Stop::Without, ""),
    attack("overwrite ROOT/other/code", Stop::Without, ""),
    attack("overwrite ROOT/own/code", Stop::Without, ""),
    attack("share-code-file ROOT/own/code", Stop::Without, ""),
    attack("create ROOT/own/new", Stop::Without, ""),
    attack("create ROOT/other/new", Stop::Without, ""),
    attack("remove ROOT/own/code", Stop::Without, ""),
    attack("chmod ROOT/own/code", Stop::Without, ""),
    attack("link ROOT/own/code ROOT/own/second", Stop::Without, ""),
    attack("handle ROOT/own", Stop::Without, ROOT),
    attack("use-descriptor KEY", Stop::Without, ""),
    // The network, and sockets of the machine.
    attack("connect TCP", Stop::Without, ""),
    attack("listen", Stop::Without, ""),
    attack("datagram UDP", Stop::Without, ""),
    attack("connect-unix ROOT/socket", Stop::Without, ""),
    attack("connect-abstract NAME", Stop::Without, ""),
    attack("listen-unix ROOT/own/socket", Stop::Without, ""),
    attack("netlink", Stop::Filter, ""),
    attack("raw-socket", Stop::Without, ROOT),
    attack("socket-filter", Stop::Filter, ""),
    // Other processes: the daemon, and new ones.
    attack("signal PID", Stop::Without, ""),
    attack("signal-all", Stop::Without, ""),
    attack("trace PID", Stop::Without, "needs root where Yama guards ptrace"),
    attack("read-memory PID MEMORY", Stop::Without, "needs root where Yama guards ptrace"),
    attack("steal-descriptor PID", Stop::Without, "needs root where Yama guards ptrace"),
    attack("read /proc/PID/environ", Stop::Without, ""),
    attack("list /proc/PID/fd", Stop::Without, ""),
    attack("list /proc", Stop::Without, ""),
    attack("exec /bin/true", Stop::Without, ""),
    attack("exec-memory-file", Stop::Filter, ""),
    attack("fork", Stop::Filter, ""),
    attack("priority", Stop::Without, ROOT),
    attack("become-root", Stop::Without, ROOT),
    // The kernel.
    attack("user-namespace", Stop::Filter, "needs a kernel that gives them to users"),
    attack("network-namespace", Stop::Without, ROOT),
    attack("enter-namespace /proc/PID/ns/net", Stop::Without, ROOT),
    attack("mount ROOT/own", Stop::Without, ROOT),
    attack("unmount /proc", Stop::Without, ROOT),
    attack("chroot", Stop::Without, ROOT),
    attack("host-name", Stop::Without, ROOT),
    attack("module", Stop::Without, ROOT),
    attack("keyring", Stop::Filter, "needs a kernel with keyrings"),
    attack("io-uring", Stop::Filter, "needs a kernel that gives it to users"),
    attack("bpf", Stop::Without, ROOT),
    attack("perf", Stop::Filter, "needs a kernel that gives it to users"),
    attack("userfault", Stop::Filter, "needs a kernel that gives it to users"),
    attack("shared-memory", Stop::Filter, "needs the right to a copy of the names that it could leave behind"),
    attack("type-into-terminal", Stop::Filter, "needs a terminal; a test has none"),
    attack("dumpable", Stop::Filter, ""),
    attack("raise-limit", Stop::Without, "needs root where core dumps are limited"),
    #[cfg(target_arch = "x86_64")]
    attack("old-calls", Stop::Filter, "needs a kernel with the 32-bit table"),
    // Memory that is written and run.
    attack("map-writable-code", Stop::Filter, ""),
    attack("make-data-code", Stop::Filter, ""),
    #[cfg(target_arch = "x86_64")]
    attack("write-then-run", Stop::Filter, ""),
    attack("memory-file", Stop::Filter, ""),
    attack("write-own-code", Stop::Without, ""),
];

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// Refused, or ended by the filter: anything else is a hole, also a drill that did not run.
fn stopped(output: &Output) -> bool {
    output.status.code() == Some(REFUSED) || output.status.signal() == Some(SIGSYS)
}

/// What this machine has, by measure.
fn measures() -> Result<BTreeMap<String, bool>> {
    let output = Command::new(drill()?).args(["sealed", "report"]).stdin(Stdio::null()).output()?;
    let told = text(&output);
    let word = |line: &str| {
        let mut words = line.split(' ');
        Some((words.next()?.to_owned(), matches!(words.next()?, "had" | "true")))
    };
    println!("{told}");
    Ok(told.lines().filter_map(word).collect())
}

#[test]
fn arbitrary_system_calls_in_a_worker_reach_nothing() -> Result<()> {
    let had = measures()?;
    ensure!(had.contains_key("full"), "the drill did not report: {had:?}");
    // What stops an attack without the filter is many measures together; where one lacks, the filter is asked alone.
    let layers = had["full"];
    let filter = had["system_call_filter"];
    let (mut shown, mut holes) = (0, Vec::new());
    for (number, attack) in ATTACKS.iter().enumerate() {
        let scene = Scene::new(number)?;
        let free = scene.make("free", attack)?;
        let works = free.status.success();
        println!("{:40} outside: {}", attack.words, if works { "works".into() } else { text(&free) });
        // An attack that does not work outside proves nothing; then the table must say why that can be.
        if !works && attack.needs.is_empty() {
            holes.push(format!("{}: not shown to be an attack: {} {}", attack.words, free.status, text(&free)));
        }
        shown += usize::from(works);
        if works && attack.words.starts_with("read ROOT") {
            ensure!(text(&free).contains("secret"), "{}: {}", attack.words, text(&free));
        }
        let scene = Scene::new(ATTACKS.len() + number)?;
        if layers || filter && attack.stop == Stop::Filter {
            let sealed = scene.make("sealed", attack)?;
            println!("{:40}  sealed: {} {}", "", sealed.status, text(&sealed));
            if !stopped(&sealed) {
                holes.push(format!("{}: sealed: {} {}", attack.words, sealed.status, text(&sealed)));
            }
        }
        if layers && attack.stop == Stop::Without {
            let entered = scene.make("entered", attack)?;
            println!("{:40} without the filter: {} {}", "", entered.status, text(&entered));
            if entered.status.code() != Some(REFUSED) {
                holes.push(format!("{}: without the filter: {} {}", attack.words, entered.status, text(&entered)));
            }
        }
        let scene_lives = nix::sys::signal::kill(nix::unistd::Pid::from_raw(scene.daemon.id().cast_signed()), None);
        ensure!(scene_lives.is_ok(), "{}: the daemon did not survive", attack.words);
    }
    if !layers {
        eprintln!("skipped in part: this machine has no full confinement: {had:?}");
    }
    ensure!(holes.is_empty(), "{}", holes.join("\n"));
    ensure!(shown >= 20, "only {shown} of {} attacks work on this machine without confinement", ATTACKS.len());
    Ok(())
}

#[test]
fn the_compiler_reaches_nothing_either() -> Result<()> {
    let had = measures()?;
    if !had["full"] {
        eprintln!("skipped: this machine has no full confinement: {had:?}");
        return Ok(());
    }
    let scene = Scene::new(1_000_000)?;
    for attack in ATTACKS {
        let output = scene.make("compiler", attack)?;
        ensure!(stopped(&output), "{}: {} {}", attack.words, output.status, text(&output));
    }
    Ok(())
}

/// Confined workers of a cluster: the inner process of each pair.
fn workers(of: Pid) -> Vec<Pid> {
    let is_worker = |words: &[String]| words.get(1).is_some_and(|verb| verb == "worker");
    let started = tree(of).into_iter().flat_map(children).filter(|(_, words)| is_worker(words));
    let inner = started.flat_map(|(pid, _)| children(pid)).filter(|(_, words)| is_worker(words));
    inner.map(|(pid, _)| pid).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_workers_of_a_host_are_confined_as_the_drill_is() -> Result<()> {
    let had = measures()?;
    let cluster = cluster(1).await?;
    cluster.admin()?.deploy(&guest("guest-behaviour")?, &Deploy::new("app")).await?;
    let answer = cluster.app("app")?.get("/").await?;
    ensure!(answer.status == 200, "a guest in a confined worker: {}", answer.text());

    let workers = workers(cluster.pid());
    ensure!(!workers.is_empty(), "no worker of two processes below {}", cluster.pid());
    for worker in workers {
        let status = fs::read_to_string(format!("/proc/{worker}/status"))?;
        let field = |name: &str| -> Result<Vec<String>> {
            let line = status.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(':'));
            Ok(line.with_context(|| format!("no {name}"))?.split_whitespace().map(str::to_owned).collect())
        };
        ensure!(field("NoNewPrivs")? == ["1"], "{status}");
        ensure!(
            field("CapEff")?.iter().chain(&field("CapPrm")?).all(|set| set.trim_matches('0').is_empty()),
            "{status}"
        );
        ensure!(!had["system_call_filter"] || field("Seccomp")? == ["2"], "{status}");
        ensure!(!had["unprivileged_user"] || field("Uid")?.iter().all(|id| id != "0"), "{status}");
        ensure!(!had["pid_namespace"] || field("NSpid")?.last().is_some_and(|pid| pid == "1"), "{status}");
        for (measure, kind) in [
            ("mount_namespace", "mnt"),
            ("network_namespace", "net"),
            ("ipc_namespace", "ipc"),
            ("uts_namespace", "uts"),
            ("user_namespace", "user"),
        ] {
            // A process of the same user may not look: that it is hidden is a measure, too.
            let Ok(own) = fs::read_link(format!("/proc/{worker}/ns/{kind}")) else { continue };
            ensure!(!had[measure] || own != fs::read_link(format!("/proc/self/ns/{kind}"))?, "{kind} is the machine's");
        }
        if had["mount_namespace"] {
            let sees = |path: &str| fs::exists(format!("/proc/{worker}/root{path}")).unwrap_or(false);
            ensure!(!sees("/etc") && !sees("/usr") && !sees("/dev"), "the machine's files are there");
        }
    }
    Ok(())
}
