//! Processes that a test started: their children, memory and CPU time from `/proc`, and signals to them.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::signal::{Signal, kill};
pub use nix::unistd::Pid;

use crate::soak::Held;

/// The fields of `/proc/PID/stat` after the name, which may itself hold blanks and brackets.
fn stat(pid: Pid) -> Result<Vec<String>> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let after = text.rsplit_once(')').context("stat without a name")?.1;
    Ok(after.split_whitespace().map(str::to_owned).collect())
}

/// Direct children, each with its command line.
pub fn children(of: Pid) -> Vec<(Pid, Vec<String>)> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok().map(Pid::from_raw))
        .filter(|pid| stat(*pid).is_ok_and(|s| s.get(1) == Some(&of.to_string()) && s[0] != "Z"))
        .map(|pid| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let words = line.split(|b| *b == 0).filter(|w| !w.is_empty());
            (pid, words.map(|w| String::from_utf8_lossy(w).into_owned()).collect())
        })
        .collect()
}

/// The process and everything below it.
pub fn tree(of: Pid) -> Vec<Pid> {
    let mut all = vec![of];
    let mut next = 0;
    while next < all.len() {
        all.extend(children(all[next]).into_iter().map(|(pid, _)| pid));
        next += 1;
    }
    all
}

/// Resident memory, in bytes.
pub fn resident_bytes(pid: Pid) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).context("no VmRSS")?;
    let kilobytes: u64 = line.trim().trim_end_matches("kB").trim().parse()?;
    Ok(kilobytes * 1024)
}

/// Resident memory of the process and everything below it, in bytes; shared pages count in each.
pub fn tree_resident_bytes(of: Pid) -> u64 {
    tree(of).into_iter().filter_map(|pid| resident_bytes(pid).ok()).sum()
}

/// What a process is called: its verb and who it is, as `hostd h1` or `worker shared`.
pub(crate) fn name(pid: Pid) -> Result<String> {
    let line = fs::read(format!("/proc/{pid}/cmdline"))?;
    let words: Vec<_> = line.split(|b| *b == 0).map(|w| String::from_utf8_lossy(w).into_owned()).collect();
    let verb = words.get(1).filter(|w| !w.is_empty()).context("no verb")?;
    let who = words.windows(2).find(|w| w[0] == "--id" || w[0] == "--name").map_or("", |w| w[1].as_str());
    Ok(format!("{verb} {who}").trim_end().to_owned())
}

/// What a process holds, from `/proc`.
pub(crate) fn held(pid: Pid) -> Result<Held> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let number = |field: &str| -> Result<u64> {
        let line = status.lines().find_map(|l| l.strip_prefix(field)).context("a field of status")?;
        Ok(line.trim().trim_end_matches("kB").trim().parse()?)
    };
    Ok(Held {
        resident_bytes: number("VmRSS:")? << 10,
        private_bytes: number("RssAnon:")? << 10,
        descriptors: fs::read_dir(format!("/proc/{pid}/fd"))?.count() as u64,
        threads: number("Threads:")?,
    })
}

/// CPU time used so far, user and system, by all threads that it has and had, in microseconds: the kernel's own count.
pub fn cpu_micros(pid: Pid) -> Result<u64> {
    let used = nix::time::clock_gettime(nix::time::clock_getcpuclockid(pid)?)?;
    Ok(u64::try_from(used.tv_sec())? * 1_000_000 + u64::try_from(used.tv_nsec())? / 1_000)
}

/// Whether it runs; a zombie does not.
pub fn is_alive(pid: Pid) -> bool {
    stat(pid).is_ok_and(|fields| fields[0] != "Z")
}

/// `kill -9`, of a process that this test started.
pub fn kill_now(pid: Pid) -> Result<()> {
    kill(pid, Signal::SIGKILL).with_context(|| format!("kill -9 {pid}"))
}

/// SIGHUP, to a process that this test started.
pub fn hang_up(pid: Pid) -> Result<()> {
    kill(pid, Signal::SIGHUP).with_context(|| format!("kill -HUP {pid}"))
}

/// SIGSTOP now, SIGCONT when dropped: the process is there and answers nobody.
pub fn stop_and_continue(pid: Pid) -> Result<impl Drop> {
    struct Stopped(Pid);
    impl Drop for Stopped {
        fn drop(&mut self) {
            let _ = kill(self.0, Signal::SIGCONT);
        }
    }
    kill(pid, Signal::SIGSTOP)?;
    Ok(Stopped(pid))
}

/// Keeps processes that this test started, with all their threads, to the first so many cores.
pub fn keep_to_cores(pids: &[Pid], cores: usize) -> Result<()> {
    let mut set = CpuSet::new();
    (0..cores).try_for_each(|core| set.set(core))?;
    for pid in pids {
        let threads = fs::read_dir(format!("/proc/{pid}/task"))?;
        for thread in threads.filter_map(|t| t.ok()?.file_name().to_str()?.parse().ok()) {
            // A thread may have ended meanwhile.
            let _ = sched_setaffinity(Pid::from_raw(thread), &set);
        }
    }
    Ok(())
}

/// SIGTERM to `root`, then SIGKILL to what is left of its tree after `bound`. Only for own children.
pub fn end(root: Pid, bound: Duration) {
    let all = tree(root);
    let _ = kill(root, Signal::SIGTERM);
    let begin = Instant::now();
    while all.iter().any(|pid| is_alive(*pid)) && begin.elapsed() < bound {
        std::thread::sleep(Duration::from_millis(20));
    }
    for pid in all.into_iter().filter(|pid| is_alive(*pid)) {
        let _ = kill(pid, Signal::SIGKILL);
    }
}
