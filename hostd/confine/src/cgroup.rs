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

impl Delegated {
    /// Moves this process, the daemon, into a part of its own, so that there can be others beside it: a group that
    /// has parts may not have processes itself (kernel: cgroup-v2, "no internal processes").
    pub fn divide(&self) -> io::Result<()> {
        let own = self.path.join("daemon");
        ensure_folder(&own)?;
        fs::write(own.join("cgroup.procs"), "0")?;
        let wanted: Vec<String> = self.controllers.iter().map(|c| format!("+{c}")).collect();
        fs::write(self.path.join("cgroup.subtree_control"), wanted.join(" "))
    }

    /// A part for one worker, made or found, with these limits; those without a controller here are left out.
    /// Its path is for [`Plan::cgroup`].
    pub fn ensure_group(&self, name: &str, limits: &GroupLimits) -> io::Result<PathBuf> {
        if name.is_empty() || name.starts_with('.') || name.contains(['/', '\0']) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not the name of a control group"));
        }
        let path = self.path.join(format!("worker-{name}"));
        ensure_folder(&path)?;
        let settings = [
            ("memory", "memory.max", limits.memory.map(|b| b.0)),
            ("pids", "pids.max", limits.threads),
            ("cpu", "cpu.weight", limits.cpu_weight.map(u64::from)),
        ];
        for (controller, file, value) in settings {
            if let Some(value) = value.filter(|_| self.controllers.iter().any(|c| c == controller)) {
                fs::write(path.join(file), value.to_string())?;
            }
        }
        Ok(path)
    }

    /// Removes a worker's part; nothing when it is not there. Fails while a process is in it.
    pub fn remove_group(&self, name: &str) -> io::Result<()> {
        match fs::remove_dir(self.path.join(format!("worker-{name}"))) {
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
    Ok(Delegated { path, controllers })
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
        Ok(()) => report.had(Measure::ControlGroup, ""),
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
        for _ in 0..2 {
            group.divide().unwrap();
            let limits = GroupLimits { memory: Some(Bytes::mib(512)), threads: Some(100), cpu_weight: Some(200) };
            assert_eq!(group.ensure_group("app-hello", &limits).unwrap(), dir.path().join("worker-app-hello"));
        }
        assert_eq!(read("daemon/cgroup.procs").as_deref(), Some("0"));
        assert_eq!(read("cgroup.subtree_control").as_deref(), Some("+memory +pids"));
        assert_eq!(read("worker-app-hello/memory.max").as_deref(), Some("536870912"));
        assert_eq!(read("worker-app-hello/pids.max").as_deref(), Some("100"));
        assert_eq!(read("worker-app-hello/cpu.weight"), None, "this machine gives no share of the CPU");
        for wrong in ["", "..", "a/b", "\0"] {
            assert!(group.ensure_group(wrong, &GroupLimits::default()).is_err(), "{wrong:?}");
        }
        group.ensure_group("empty", &GroupLimits::default()).unwrap();
        group.remove_group("empty").unwrap();
        group.remove_group("empty").unwrap();
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
