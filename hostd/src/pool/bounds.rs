//! How much memory a worker that does as it is told can have at most, all told: more is the sign of one that does not.
//!
//! Linear memory is counted by the worker itself, up to its lease. Beside it there is what its pool keeps of sandboxes
//! that ended, what the host holds for guests, and the process.

use marcato_api::Bytes;
use marcato_runtime::PoolConfig;

/// The process itself: engine, heap, connections.
const PROCESS: u64 = 256 << 20;

/// The bounds of one host.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    memory: u64,
    kept: u64,
}

impl Bounds {
    pub(super) fn new(memory: Bytes, sandboxes: u32) -> Self {
        let each = PoolConfig::for_host(sandboxes, memory).keep_resident.0;
        // What is kept was in use before, so there is no more of it than of that. Each of the two engines keeps its own.
        Self { memory: memory.0, kept: each.saturating_mul(sandboxes.into()).min(memory.0).saturating_mul(2) }
    }

    /// Of a worker with this lease, whose apps may have the host hold this much.
    pub(super) fn worker(&self, held: Bytes, buffers: Bytes) -> Bytes {
        Bytes(held.0.saturating_add(self.kept).saturating_add(PROCESS).saturating_add(buffers.0.min(self.memory / 4)))
    }

    /// Of so many workers together.
    pub(super) fn all(&self, workers: usize) -> Bytes {
        let processes = PROCESS.saturating_mul(workers as u64);
        Bytes(self.memory.saturating_add(self.kept).saturating_add(processes).saturating_add(self.memory / 4))
    }
}

/// Memory of a process that is nobody else's, without files that are mapped (proc(5), `status`). 0 when it is gone.
pub(super) fn private(pid: u32) -> Bytes {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let kib = |field: &str| -> u64 {
        let line = status.lines().find_map(|l| l.strip_prefix(field));
        line.and_then(|l| l.trim().strip_suffix("kB")?.trim().parse().ok()).unwrap_or(0)
    };
    Bytes((kib("RssAnon:") + kib("RssShmem:")).saturating_mul(1024))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_worker_has_less_than_all_and_all_of_it_is_counted() {
        let bounds = Bounds::new(Bytes::mib(1024), 100);
        assert_eq!(bounds.worker(Bytes::mib(100), Bytes::mib(64)), Bytes::mib(100 + 400 + 256 + 64));
        assert_eq!(bounds.worker(Bytes::mib(100), Bytes::mib(6400)), Bytes::mib(100 + 400 + 256 + 256));
        assert_eq!(bounds.all(2), Bytes::mib(1024 + 400 + 512 + 256));
        assert_eq!(Bounds::new(Bytes::mib(64), 100).worker(Bytes(0), Bytes(0)), Bytes::mib(128 + 256));
    }

    #[test]
    fn the_memory_of_a_process_is_read() {
        assert!(private(std::process::id()).0 > 1 << 16);
        assert_eq!(private(0), Bytes(0));
    }
}
