//! The way into the confinement, and what keeps working inside: each test runs the drill in a process of its own, as
//! a test's own process has threads. The attacks, with what each gains without confinement, are in `tests` of the
//! workspace (`escape`); here is what holds on any machine, whatever its kernel refuses.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use nix::libc::{SIGSYS, SIGTERM};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, geteuid};

const DRILL: &str = env!("CARGO_BIN_EXE_marcato-drill");
const REFUSED: i32 = 10;

fn drill(mode: &str, words: &[&str]) -> Output {
    Command::new(DRILL).arg(mode).args(words).stdin(Stdio::null()).output().expect("the drill starts")
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// What this machine has, and whether that counts as full.
fn report(mode: &str) -> (BTreeMap<String, bool>, bool, u32) {
    let output = drill(mode, &["report"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    let told = text(&output);
    let words = |line: &str| line.split(' ').map(str::to_owned).collect::<Vec<_>>();
    let mut had: BTreeMap<_, _> = told.lines().map(words).map(|w| (w[0].clone(), w[1].clone())).collect();
    let full = had.remove("full").expect("it says whether it is full") == "true";
    let pid = had.remove("pid").and_then(|p| p.parse().ok()).unwrap_or_default();
    (had.into_iter().map(|(measure, word)| (measure, word == "had")).collect(), full, pid)
}

/// Whether the machine has it, so that a test can ask for what it promises.
fn has(measure: &str) -> bool {
    report("sealed").0[measure]
}

/// A folder that an unprivileged process can read, with one file, below one that others cannot pass.
fn folder() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let own = dir.path().join("own");
    std::fs::create_dir(&own).unwrap();
    std::fs::set_permissions(&own, std::fs::Permissions::from_mode(0o755)).unwrap();
    std::fs::write(own.join("code"), "machine code").unwrap();
    std::fs::set_permissions(own.join("code"), std::fs::Permissions::from_mode(0o644)).unwrap();
    std::fs::write(dir.path().join("key"), "the host's key").unwrap();
    dir
}

fn path(dir: &Path, name: &str) -> String {
    dir.join(name).to_str().expect("UTF-8").to_owned()
}

#[test]
fn every_measure_is_reported_and_a_sealed_process_has_what_needs_no_rights() {
    let (measures, full, pid) = report("sealed");
    assert_eq!(measures.len(), marcato_confine::Measure::ALL.len());
    for sure in ["no_new_privileges", "no_capabilities", "resource_limits", "dies_with_parent", "not_dumpable"] {
        assert!(measures[sure], "{sure}: {measures:?}");
    }
    assert!(pid > 1, "the process as it is seen from outside");
    // This machine's own answer must be the sum of its parts.
    let optional = ["control_group", "landlock_network", "landlock_scope"];
    let others = measures.iter().filter(|(m, _)| !optional.contains(&m.as_str())).all(|(_, had)| *had);
    assert!(!others || full, "{measures:?}");
}

#[test]
fn what_is_not_sealed_is_not_full() {
    let (measures, full, _) = report("entered");
    assert!(!full && !measures["system_call_filter"] && !measures["not_dumpable"]);
}

#[test]
fn threads_memory_and_given_files_go_on_working() {
    let dir = folder();
    let own = path(dir.path(), "own");
    for mode in ["entered", "sealed"] {
        let output = drill(mode, &["--read", &own, "threads"]);
        assert_eq!(text(&output), format!("6 {}", 64 << 20), "{mode}: {:?}", output.status);
        let output = drill(mode, &["--read", &own, "read", &path(dir.path(), "own/code")]);
        assert_eq!(text(&output), "machine code", "{mode}: {:?}", output.status);
        let output = drill(mode, &["--read", &own, "list", &own]);
        assert_eq!(text(&output), "code", "{mode}: {:?}", output.status);
    }
    let output = drill("compiler", &["threads"]);
    assert_ne!(output.status.code(), Some(0), "the compiler has no sockets, not even a pair");
}

#[test]
fn one_file_can_be_given_instead_of_a_folder() {
    let dir = folder();
    let code = path(dir.path(), "own/code");
    let output = drill("sealed", &["--read", &code, "read", &code]);
    assert_eq!(text(&output), "machine code", "{:?}", output.status);
}

#[test]
fn the_file_beside_the_given_folder_is_not_there() {
    let dir = folder();
    let (own, key) = (path(dir.path(), "own"), path(dir.path(), "key"));
    assert_eq!(text(&drill("free", &["read", &key])), "the host's key");
    if has("mount_namespace") || has("landlock_files") {
        let output = drill("sealed", &["--read", &own, "read", &key]);
        assert_eq!(output.status.code(), Some(REFUSED), "{}", text(&output));
    }
}

#[test]
fn the_exit_code_and_the_signal_come_out_as_they_were() {
    assert_eq!(drill("sealed", &["exit", "7"]).status.code(), Some(7));
    assert_eq!(drill("sealed", &["nothing"]).status.code(), Some(0));
    // The first process of a namespace gets SIGSEGV from the instruction that abort() ends with.
    assert!(drill("sealed", &["abort"]).status.signal().is_some());
}

#[test]
fn a_call_that_is_not_needed_kills_every_thread() {
    if has("system_call_filter") {
        let output = drill("sealed", &["dumpable"]);
        assert_eq!(output.status.signal(), Some(SIGSYS), "{}", text(&output));
    }
}

#[test]
fn descriptors_that_nobody_named_are_closed() {
    use std::os::fd::AsRawFd;
    let dir = folder();
    let key = std::fs::File::open(dir.path().join("key")).unwrap();
    let given = std::fs::File::open(dir.path().join("own/code")).unwrap();
    for file in [&key, &given] {
        // As a careless start would leave them.
        nix::fcntl::fcntl(file, nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty())).unwrap();
    }
    let (key, given) = (key.as_raw_fd().to_string(), given.as_raw_fd().to_string());
    assert_eq!(text(&drill("free", &["use-descriptor", &key])), "the host's key");
    let output = drill("sealed", &["--keep", &given, "use-descriptor", &key]);
    assert_eq!(output.status.code(), Some(REFUSED), "{}", text(&output));
    assert_eq!(text(&drill("sealed", &["--keep", &given, "use-descriptor", &given])), "machine code");
}

#[test]
fn wrong_plans_are_refused_before_anything_is_given_up() {
    for wrong in ["relative", "/tmp/../etc"] {
        let output = drill("sealed", &["--read", wrong, "nothing"]);
        assert!(text(&output).contains("absolute path"), "{}", text(&output));
    }
    let output = drill("sealed", &["--read", "/no/such/folder", "nothing"]);
    assert!(!has("mount_namespace") || text(&output).contains("/no/such/folder"), "{}", text(&output));
}

#[test]
fn it_runs_as_somebody_without_rights() {
    let output = drill("sealed", &["--user", "1879050000", "user"]);
    let ids = text(&output);
    if geteuid().is_root() && has("unprivileged_user") {
        assert!(ids == "1879050000 1879050000" || ids == "65534 65534", "{ids}");
    } else if !geteuid().is_root() {
        assert_eq!(ids, format!("{} {}", geteuid(), nix::unistd::getegid()));
    }
}

#[test]
fn it_moves_into_its_control_group() {
    // A group without controllers does for being in it. Machines where this user can make none say so.
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let root = mounts.lines().find_map(|l| {
        let mut fields = l.split(' ');
        let (_, folder, kind) = (fields.next()?, fields.next()?, fields.next()?);
        (kind == "cgroup2").then(|| Path::new(folder).to_owned())
    });
    let group = root.map(|r| r.join(format!("marcato-test-{}", std::process::id())));
    let Some(group) = group.filter(|g| std::fs::create_dir(g).is_ok()) else {
        return eprintln!("skipped: no control group of version 2 can be made here");
    };
    let output = drill("sealed", &["--group", group.to_str().unwrap(), "report"]);
    // The group is empty when its last process is reaped, which is a moment after the outer one was.
    let end = Instant::now() + Duration::from_secs(10);
    while std::fs::remove_dir(&group).is_err() && Instant::now() < end {
        std::thread::yield_now();
    }
    assert!(!group.exists(), "a process is left in {}", group.display());
    assert!(text(&output).contains("control_group had"), "{}", text(&output));
    let wrong = drill("sealed", &["--group", "/no/such/group", "report"]);
    assert!(text(&wrong).contains("control_group missing /no/such/group"), "{}", text(&wrong));
}

/// A drill that said that it is ready.
struct Ready(Child, BufReader<std::process::ChildStdout>);

fn start(attack: &str) -> Ready {
    let mut command = Command::new(DRILL);
    command.args(["entered", attack]).stdin(Stdio::null()).stdout(Stdio::piped());
    let mut child = command.spawn().expect("the drill starts");
    let mut out = BufReader::new(child.stdout.take().expect("piped"));
    let mut line = String::new();
    out.read_line(&mut line).unwrap();
    assert_eq!(line, "ready\n");
    Ready(child, out)
}

fn pid(child: &Child) -> Pid {
    Pid::from_raw(i32::try_from(child.id()).unwrap())
}

#[test]
fn the_order_to_end_reaches_the_inner_process() {
    let Ready(mut child, mut out) = start("await-term");
    kill(pid(&child), Signal::SIGTERM).unwrap();
    let mut rest = String::new();
    out.read_to_string(&mut rest).unwrap();
    assert_eq!(rest.trim(), "told to end");
    let status = child.wait().unwrap();
    assert_eq!(status.code(), Some(0), "{status:?}, not by signal {SIGTERM}");
}

/// Its standard output closes when the last process that holds it is gone.
fn ends(mut out: BufReader<std::process::ChildStdout>) -> bool {
    let (tell, told) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let _ = out.read_to_end(&mut Vec::new());
        let _ = tell.send(());
    });
    told.recv_timeout(Duration::from_secs(10)).is_ok()
}

#[test]
fn killing_the_outer_process_kills_the_inner_one() {
    let Ready(mut child, out) = start("wait");
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(ends(out), "the inner process lives on");
}

#[test]
fn it_ends_when_the_process_that_started_it_ends() {
    // A shell between, so that it can be killed.
    let mut command = Command::new("/bin/sh");
    command.args(["-c", "\"$0\" entered wait & wait", DRILL]).stdin(Stdio::null()).stdout(Stdio::piped());
    let mut shell = command.spawn().expect("a shell");
    let mut out = BufReader::new(shell.stdout.take().expect("piped"));
    let mut line = String::new();
    out.read_line(&mut line).unwrap();
    assert_eq!(line, "ready\n");
    let begin = Instant::now();
    shell.kill().unwrap();
    shell.wait().unwrap();
    assert!(ends(out), "it lives on after {:?}", begin.elapsed());
}
