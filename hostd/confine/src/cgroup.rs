//! Control groups (v2): finding one that this process may divide, dividing it, and moving into a part.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use marcato_api::{Bytes, ConfinementReport, Measure};

use crate::plan::Plan;

/// A control group of v2 that was given to this user to divide.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delegated {
    /// Its folder.
    pub path: PathBuf,
    /// What it can limit: `cpu`, `memory`, `pids`.
    pub controllers: Vec<String>,
}

/// What a control group is held to. `None`: as much as the one above has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct GroupLimits {
    /// Memory, kernel memory included; beyond it a process of the group is killed.
    pub memory: Option<Bytes>,
    /// Processes and threads together.
    pub threads: Option<u64>,
    /// Share of the CPU beside other groups, 1 to 10,000; 100 where none is named.
    pub cpu_weight: Option<u32>,
}

/// The part with the processes of the daemon itself.
const DAEMON: &str = "daemon";
/// The part with a part for each worker, which bounds them together.
const WORKERS: &str = "workers";
/// The daemon comes before any worker that wants the CPU: without it none of them gets on.
const DAEMON_WEIGHT: &str = "10000";

impl Delegated {
    /// Moves this process, the daemon, into a part of its own, so that there can be others beside it: a group that
    /// has parts may not have processes itself (kernel: cgroup-v2, "no internal processes"). Parts of workers that are
    /// gone with the daemon that had them are removed.
    pub fn divide(&self) -> io::Result<()> {
        let (daemon, workers) = (self.path.join(DAEMON), self.path.join(WORKERS));
        ensure_folder(&daemon)?;
        fs::write(daemon.join("cgroup.procs"), "0")?;
        self.pass_on(&self.path)?;
        ensure_folder(&workers)?;
        self.pass_on(&workers)?;
        if self.has("cpu") {
            fs::write(daemon.join("cpu.weight"), DAEMON_WEIGHT)?;
        }
        for entry in fs::read_dir(&workers)?.filter_map(Result::ok) {
            // One that still has a process is found again by its name.
            let _ = fs::remove_dir(entry.path());
        }
        Ok(())
    }

    /// Lets parts of this group have the controllers, too.
    fn pass_on(&self, group: &Path) -> io::Result<()> {
        let wanted: Vec<String> = self.controllers.iter().map(|c| format!("+{c}")).collect();
        fs::write(group.join("cgroup.subtree_control"), wanted.join(" "))
    }

    fn has(&self, controller: &str) -> bool {
        self.controllers.iter().any(|c| c == controller)
    }

    /// What all workers may have together.
    pub fn limit_workers(&self, limits: &GroupLimits) -> io::Result<()> {
        self.write(&self.path.join(WORKERS), limits)
    }

    /// A part for one worker, made or found, with these limits; those without a controller here are left out.
    /// Its path is for [`Plan::cgroup`].
    pub fn ensure_group(&self, name: &str, limits: &GroupLimits) -> io::Result<PathBuf> {
        let path = self.group(name)?;
        ensure_folder(&path)?;
        self.write(&path, limits)?;
        Ok(path)
    }

    fn group(&self, name: &str) -> io::Result<PathBuf> {
        if name.is_empty() || name.starts_with('.') || name.contains(['/', '\0']) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not the name of a control group"));
        }
        Ok(self.path.join(WORKERS).join(name))
    }

    fn write(&self, group: &Path, limits: &GroupLimits) -> io::Result<()> {
        let settings = [
            ("memory", "memory.max", limits.memory.map(|b| b.0)),
            ("pids", "pids.max", limits.threads),
            ("cpu", "cpu.weight", limits.cpu_weight.map(|w| u64::from(w.clamp(1, 10_000)))),
        ];
        for (controller, file, value) in settings {
            if let Some(value) = value.filter(|_| self.has(controller)) {
                fs::write(group.join(file), value.to_string())?;
            }
        }
        Ok(())
    }

    /// Removes a worker's part; nothing when it is not there. Fails while a process is in it.
    pub fn remove_group(&self, name: &str) -> io::Result<()> {
        match fs::remove_dir(self.group(name)?) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            result => result,
        }
    }
}

fn ensure_folder(path: &Path) -> io::Result<()> {
    match fs::create_dir(path) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        result => result,
    }
}

/// The control group of this process, if it may make others in it; else why not.
pub fn delegated() -> Result<Delegated, String> {
    let read = |path: &Path| fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()));
    let mounts = read(Path::new("/proc/self/mounts"))?;
    let own = read(Path::new("/proc/self/cgroup"))?;
    let path = own_folder(&mounts, &own).ok_or("no control groups of version 2 are mounted")?;
    if !path.join("cgroup.type").exists() {
        // The kernel has no such file in the one group that holds all others.
        return Err(format!("{} is the whole machine's group, which nobody delegated", path.display()));
    }
    usable(path)
}

/// A group that can limit something, and that this process may write to.
fn usable(path: PathBuf) -> Result<Delegated, String> {
    let read = |path: &Path| fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()));
    let found = read(&path.join("cgroup.controllers"))?;
    let wanted = ["cpu", "memory", "pids"];
    let controllers: Vec<String> = found.split_whitespace().filter(|c| wanted.contains(c)).map(str::to_owned).collect();
    if controllers.is_empty() {
        return Err(format!("{} has none of the controllers {}", path.display(), wanted.join(", ")));
    }
    for file in ["cgroup.procs", "cgroup.subtree_control"] {
        let file = path.join(file);
        fs::OpenOptions::new().write(true).open(&file).map_err(|e| format!("{}: {e}", file.display()))?;
    }
    // Whoever else is in it would have to be moved, too; and the group would be theirs as well.
    let processes = read(&path.join("cgroup.procs"))?;
    let own = std::process::id().to_string();
    match processes.lines().filter(|pid| *pid != own).count() {
        0 => Ok(Delegated { path, controllers }),
        others => Err(format!("{} has {others} other processes: the daemon needs a group of its own", path.display())),
    }
}

/// Where `/proc/self/mounts` and `/proc/self/cgroup` say that it is.
fn own_folder(mounts: &str, own: &str) -> Option<PathBuf> {
    let mut fields = mounts.lines().map(|l| l.split(' '));
    let mount = fields.find_map(|mut f| {
        let (_, folder, kind) = (f.next()?, f.next()?, f.next()?);
        (kind == "cgroup2").then(|| PathBuf::from(folder))
    })?;
    let path = own.lines().find_map(|l| l.strip_prefix("0::/"))?;
    Some(mount.join(path))
}

/// Moves this process into the plan's control group, while it still sees it.
pub(crate) fn join(plan: &Plan, report: &mut ConfinementReport) {
    let Some(folder) = &plan.cgroup else {
        report.not_had(Measure::ControlGroup, delegated().err().unwrap_or_else(|| "none is named".into()));
        return;
    };
    match fs::write(folder.join("cgroup.procs"), "0") {
        Ok(()) => {
            let limited = fs::read_to_string(folder.join("cgroup.controllers")).unwrap_or_default();
            report.had(Measure::ControlGroup, limited.trim());
        }
        Err(e) => report.not_had(Measure::ControlGroup, format!("{}: {e}", folder.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_is_divided_into_the_daemon_and_its_workers() {
        // Files where the kernel's would be: what is written is what the kernel would be told.
        let dir = tempfile::tempdir().unwrap();
        let group = Delegated { path: dir.path().into(), controllers: vec!["memory".into(), "pids".into()] };
        let read = |file: &str| fs::read_to_string(dir.path().join(file)).ok();
        let limits = GroupLimits { memory: Some(Bytes::mib(512)), threads: Some(100), cpu_weight: Some(200) };
        for _ in 0..2 {
            group.divide().unwrap();
            group.limit_workers(&GroupLimits { memory: Some(Bytes::mib(1024)), ..GroupLimits::default() }).unwrap();
            assert_eq!(group.ensure_group("app-hello", &limits).unwrap(), dir.path().join("workers/app-hello"));
        }
        assert_eq!(read("daemon/cgroup.procs").as_deref(), Some("0"));
        assert_eq!(read("daemon/cpu.weight"), None, "this machine gives no share of the CPU");
        for file in ["cgroup.subtree_control", "workers/cgroup.subtree_control"] {
            assert_eq!(read(file).as_deref(), Some("+memory +pids"), "{file}");
        }
        assert_eq!(read("workers/memory.max").as_deref(), Some("1073741824"));
        assert_eq!(read("workers/app-hello/memory.max").as_deref(), Some("536870912"));
        assert_eq!(read("workers/app-hello/pids.max").as_deref(), Some("100"));
        assert_eq!(read("workers/app-hello/cpu.weight"), None);
        for wrong in ["", "..", "a/b", "\0"] {
            assert!(group.ensure_group(wrong, &GroupLimits::default()).is_err(), "{wrong:?}");
        }
        group.ensure_group("empty", &GroupLimits::default()).unwrap();
        group.remove_group("empty").unwrap();
        group.remove_group("empty").unwrap();
        // Left by a daemon that was killed.
        group.ensure_group("left", &GroupLimits::default()).unwrap();
        group.divide().unwrap();
        assert!(!dir.path().join("workers/left").exists());
    }

    #[test]
    fn shares_of_the_cpu_are_what_the_kernel_takes() {
        let dir = tempfile::tempdir().unwrap();
        let group = Delegated { path: dir.path().into(), controllers: vec!["cpu".into()] };
        group.divide().unwrap();
        assert_eq!(fs::read_to_string(dir.path().join("daemon/cpu.weight")).unwrap(), "10000");
        for (asked, told) in [(0, "1"), (250, "250"), (1_000_000, "10000")] {
            let limits = GroupLimits { cpu_weight: Some(asked), ..GroupLimits::default() };
            let path = group.ensure_group("shared", &limits).unwrap();
            assert_eq!(fs::read_to_string(path.join("cpu.weight")).unwrap(), told);
        }
    }

    #[test]
    fn what_a_group_has_not_is_said() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
        let told = || usable(dir.path().into()).map(|d| d.controllers);
        assert!(told().unwrap_err().contains("cgroup.controllers"));
        file("cgroup.controllers", "cpuset io\n");
        assert!(told().unwrap_err().contains("none of the controllers cpu, memory, pids"));
        file("cgroup.controllers", "cpuset cpu io memory\n");
        assert!(told().unwrap_err().contains("cgroup.procs"));
        file("cgroup.procs", "");
        file("cgroup.subtree_control", "");
        assert_eq!(told().unwrap(), ["cpu", "memory"]);
        file("cgroup.procs", &format!("{}\n", std::process::id()));
        assert_eq!(told().unwrap(), ["cpu", "memory"]);
        file("cgroup.procs", &format!("{}\n1\n", std::process::id()));
        assert!(told().unwrap_err().contains("1 other processes: the daemon needs a group of its own"));
    }

    #[test]
    fn the_own_group_is_found_beside_version_1() {
        let mounts = "cgroup /sys/fs/cgroup/cpu cgroup rw 0 0\ncgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n";
        let own = "4:cpu:/user\n0::/system.slice/marcato.service\n";
        let folder = own_folder(mounts, own).unwrap();
        assert_eq!(folder, Path::new("/sys/fs/cgroup/unified/system.slice/marcato.service"));
    }

    #[test]
    fn without_version_2_there_is_none() {
        assert_eq!(own_folder("cgroup /sys/fs/cgroup/cpu cgroup rw 0 0\n", "0::/\n"), None);
        assert_eq!(own_folder("cgroup2 /sys/fs/cgroup cgroup2 rw 0 0\n", "4:cpu:/\n"), None);
        assert_eq!(own_folder("", ""), None);
        assert_eq!(own_folder("\u{0}\n\n  ", "0:"), None);
    }
}
