//! Control groups (v2): finding one that this process may divide, and moving into one.

use std::fs;
use std::path::{Path, PathBuf};

use marcato_api::{ConfinementReport, Measure};

use crate::plan::Plan;

/// A control group of v2 that was given to this user to divide.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delegated {
    /// Its folder.
    pub path: PathBuf,
    /// What it can limit: `cpu`, `memory`, `pids`.
    pub controllers: Vec<String>,
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
