//! `cargo xtask up`: from a fresh clone to a running cluster with two apps, in one command.
//!
//! Owns: the order of set-up and what a person is told. `marcato up` is its own process group, so that
//! Ctrl-C reaches it once, through us, and we wait for its drain.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::run::{cargo, root, run, target_dir};
use crate::{debian, guests};

/// First start makes keys and a database, later ones are quicker; past this something is wrong.
const READY_BOUND: Duration = Duration::from_secs(60);

/// What `marcato up --json` prints once it serves.
struct Ready {
    http: String,
    https: String,
    admin: String,
    ca: String,
    token_file: String,
}

/// What ends the wait.
enum Event {
    Ready(String),
    OutputEnded,
    Signal,
}

/// Sets up, builds, starts, pushes and stays.
pub(crate) fn up(arguments: &[String]) -> Result<()> {
    debian::ensure_program("cc", &["gcc", "libc6-dev"])?;
    say("guests");
    guests::print(&guests::rust()?);
    say("the release binary (5 to 15 minutes the first time, a second after that)");
    run(cargo().args(["build", "--release", "--locked", "-p", "marcato-cli"]))?;
    let binary = target_dir().join("release/marcato");

    let log = root().join("target/up.log");
    let mut child = start(&binary, arguments, &log)?;
    let (events, inbox) = mpsc::sync_channel(16);
    watch_signals(events.clone())?;
    watch_output(&mut child, events);
    let outcome = serve(&binary, &inbox, &log);
    let stopped = stop(&mut child);
    outcome.and(stopped)
}

fn say(what: &str) {
    println!("xtask: {what}");
}

fn start(binary: &Path, arguments: &[String], log: &Path) -> Result<Child> {
    std::fs::create_dir_all(log.parent().context("log folder")?)?;
    say(&format!("marcato up {} (log: {})", arguments.join(" "), log.display()));
    Command::new(binary)
        .args(["up", "--json"])
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(File::create(log)?)
        .process_group(0)
        .spawn()
        .with_context(|| format!("cannot start {}", binary.display()))
}

fn watch_signals(events: mpsc::SyncSender<Event>) -> Result<()> {
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP])?;
    std::thread::spawn(move || {
        for _ in signals.forever() {
            if events.send(Event::Signal).is_err() {
                return;
            }
        }
    });
    Ok(())
}

fn watch_output(child: &mut Child, events: mpsc::SyncSender<Event>) {
    let Some(stdout) = child.stdout.take() else { return };
    std::thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            if events.send(Event::Ready(line)).is_err() {
                return;
            }
        }
        drop(events.send(Event::OutputEnded));
    });
}

/// Waits for readiness, pushes the apps, then waits for a signal.
fn serve(binary: &Path, inbox: &mpsc::Receiver<Event>, log: &Path) -> Result<()> {
    let ready = match inbox.recv_timeout(READY_BOUND) {
        Ok(Event::Ready(line)) => parse(&line)?,
        Ok(Event::Signal) => return Ok(()),
        Ok(Event::OutputEnded) => bail!("`marcato up` ended before it was ready:\n{}", tail(log)),
        Err(_) => bail!("`marcato up` was not ready within {} s:\n{}", READY_BOUND.as_secs(), tail(log)),
    };
    let hello = push(binary, &ready, "hello")?;
    let health = push(binary, &ready, "health")?;
    greet(binary, &ready, &hello, &health);
    loop {
        match inbox.recv() {
            Ok(Event::Ready(_)) => {}
            Ok(Event::Signal) => {
                say("draining");
                return Ok(());
            }
            Ok(Event::OutputEnded) | Err(_) => bail!("`marcato up` ended by itself:\n{}", tail(log)),
        }
    }
}

fn parse(line: &str) -> Result<Ready> {
    let value: Value = serde_json::from_str(line).with_context(|| format!("`marcato up --json` printed {line:?}"))?;
    let field = |name: &str| {
        value[name].as_str().map(str::to_owned).with_context(|| format!("`marcato up --json` gave no {name:?}: {line}"))
    };
    Ok(Ready {
        http: field("http")?,
        https: field("https")?,
        admin: field("admin")?,
        ca: field("ca")?,
        token_file: field("token_file")?,
    })
}

/// Pushes `apps/NAME` with the release command; the token travels in the environment, not in argv.
fn push(binary: &Path, ready: &Ready, app: &str) -> Result<Value> {
    say(&format!("marcato push apps/{app}"));
    let token = std::fs::read_to_string(&ready.token_file).with_context(|| ready.token_file.clone())?;
    let out = Command::new(binary)
        .current_dir(root())
        .args(["push", "--json"])
        .arg(Path::new("apps").join(app))
        .env("MARCATO_ADMIN", &ready.admin)
        .env("MARCATO_CA", &ready.ca)
        .env("MARCATO_TOKEN", token.trim())
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()?;
    if !out.status.success() {
        bail!("`marcato push apps/{app}` failed: {}", out.status);
    }
    let text = String::from_utf8_lossy(&out.stdout);
    let last = text.lines().rev().find(|l| l.starts_with('{')).context("push --json printed no object")?;
    serde_json::from_str(last).or_else(|_| serde_json::from_str(&text)).context("push --json")
}

fn greet(binary: &Path, ready: &Ready, hello: &Value, health: &Value) {
    let port = ready.https.rsplit(':').next().unwrap_or_default().trim_end_matches('/');
    let url = |value: &Value, app: &str| {
        let first = value["urls"]
            .as_array()
            .and_then(|u| u.iter().find_map(|u| u.as_str().filter(|u| u.starts_with("https:"))));
        first
            .or(value["url"].as_str())
            .map_or(format!("https://{app}.localhost:{port}"), |u| u.trim_end_matches('/').to_owned())
    };
    let (hello, health_url) = (url(hello, "hello"), url(health, "health"));
    let marcato = binary.display();
    println!();
    println!("Marcato runs. Until Ctrl-C:");
    println!("  hello      {hello}");
    println!("  health     {health_url}");
    match health["generated"]["SETUP_TOKEN"].as_str() {
        Some(token) => println!("             first account, once: {health_url}/setup?token={token}"),
        None => {
            println!("             log in with the account made by the first run's link: {health_url}/login");
            println!("             without one, give it a new link: {marcato} env set health SETUP_TOKEN");
        }
    }
    println!("  plain      {}", ready.http);
    println!("  admin API  {}", ready.admin);
    println!();
    println!("Log in to the admin API:");
    println!("  {marcato} login {} --ca {} --token-file {}", ready.admin, ready.ca, ready.token_file);
    println!("Then try:");
    println!("  curl --cacert {} {hello}/", ready.ca);
    println!("  {marcato} apps");
    println!("  {marcato} scale hello 3");
    println!("  {marcato} logs -f hello");
    println!("  {marcato} push YOUR.wasm");
}

/// Asks for a drain and waits for its end; a second Ctrl-C by the terminal does not reach the child.
fn stop(child: &mut Child) -> Result<()> {
    if child.try_wait()?.is_some() {
        return Ok(());
    }
    kill(Pid::from_raw(i32::try_from(child.id())?), Signal::SIGTERM)?;
    let status = child.wait()?;
    say(&format!("stopped ({status}); the data is kept, the next `cargo xtask up` goes on with it"));
    Ok(())
}

fn tail(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let mut last: VecDeque<&str> = VecDeque::with_capacity(20);
    for line in text.lines() {
        if last.len() == 20 {
            last.pop_front();
        }
        last.push_back(line);
    }
    format!("{}\n(all of it: {})", last.into_iter().collect::<Vec<_>>().join("\n"), log.display())
}
