//! Control groups of the workers, where the daemon was delegated one: a part for each, and a bound for all together.
//!
//! The kernel holds here what the daemon's own arithmetic says of workers that do as they are told: that there is an end
//! to their memory, and whose turn it is on the CPU. Without a group the reason stands in each worker's report.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use marcato_api::Bytes;
use marcato_confine::{Delegated, GroupLimits, delegated};

/// Processes and threads of a worker: what it may have by its own limits, and the one that waits for it.
const THREADS: u64 = 520;
/// A process that was killed may be in its group for a moment.
const REMOVE_TRIES: u32 = 50;
const REMOVE_EVERY: Duration = Duration::from_millis(20);

/// See the module.
pub(super) struct Groups(Result<Delegated, String>);

impl Groups {
    /// Divides the daemon's own group.
    pub(super) fn take() -> Self {
        Self::of(delegated())
    }

    fn of(found: Result<Delegated, String>) -> Self {
        let divided = found.and_then(|group| match group.divide() {
            Ok(()) => Ok(group),
            Err(e) => Err(format!("{} cannot be divided: {e}", group.path.display())),
        });
        match &divided {
            Ok(group) => tracing::info!(path = %group.path.display(), limits = ?group.controllers, "control groups"),
            Err(why) => tracing::info!(%why, "workers have no control groups"),
        }
        Self(divided)
    }

    /// None, for this reason.
    #[cfg(test)]
    pub(super) fn none(why: &str) -> Self {
        Self(Err(why.to_owned()))
    }

    /// The group of a worker with this share of the CPU, or why there is none.
    pub(super) fn ensure(&self, worker: &str, cpu_weight: u32) -> Result<PathBuf, String> {
        let group = self.0.as_ref().map_err(Clone::clone)?;
        let limits = GroupLimits { memory: None, threads: Some(THREADS), cpu_weight: Some(cpu_weight) };
        let made = group.ensure_group(worker, &limits);
        made.map_err(|e| format!("no group can be made in {}: {e}", group.path.display()))
    }

    /// What all workers may have together.
    pub(super) fn bound(&self, memory: Bytes) {
        let Ok(group) = &self.0 else { return };
        let limits = GroupLimits { memory: Some(memory), ..GroupLimits::default() };
        if let Err(error) = group.limit_workers(&limits) {
            tracing::warn!(%error, "the memory of all workers together is not bounded by the kernel");
        }
    }

    /// Removes the group of a worker whose process is gone.
    pub(super) async fn remove(&self, worker: &str) {
        let Ok(group) = &self.0 else { return };
        for _ in 0..REMOVE_TRIES {
            match group.remove_group(worker) {
                Err(e) if e.kind() == io::ErrorKind::ResourceBusy => tokio::time::sleep(REMOVE_EVERY).await,
                Err(error) => return tracing::warn!(worker, %error, "a worker's control group cannot be removed"),
                Ok(()) => return,
            }
        }
        tracing::warn!(worker, "a worker's control group still has processes and is left");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Files where the kernel's would be; the kernel's own go with their group's folder, these do not.
    fn read(path: PathBuf) -> Option<String> {
        std::fs::read_to_string(path).ok()
    }

    #[tokio::test]
    async fn a_worker_has_a_group_with_its_share_while_it_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let controllers = ["cpu", "memory", "pids"].map(str::to_owned).to_vec();
        let groups = Groups::of(Ok(Delegated { path: dir.path().into(), controllers }));
        let path = groups.ensure("shared", 300).unwrap();
        assert_eq!(read(path.join("cpu.weight")).as_deref(), Some("300"));
        assert_eq!(read(path.join("pids.max")).as_deref(), Some("520"));
        groups.ensure("shared", 450).unwrap();
        assert_eq!(read(path.join("cpu.weight")).as_deref(), Some("450"));
        groups.bound(Bytes::mib(64));
        assert_eq!(read(dir.path().join("workers/memory.max")).as_deref(), Some("67108864"));
        for file in ["cpu.weight", "pids.max"] {
            std::fs::remove_file(path.join(file)).unwrap();
        }
        groups.remove("shared").await;
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn without_a_group_the_reason_is_told() {
        let groups = Groups::of(Ok(Delegated { path: "/nowhere".into(), controllers: vec!["cpu".into()] }));
        let why = groups.ensure("shared", 1).unwrap_err();
        assert!(why.contains("/nowhere cannot be divided"), "{why}");
        groups.bound(Bytes(1));
        groups.remove("shared").await;
        assert_eq!(Groups::none("no group").ensure("shared", 1), Err("no group".into()));
    }
}
