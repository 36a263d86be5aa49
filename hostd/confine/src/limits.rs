//! Resource limits (setrlimit(2)): soft and hard ones alike, never above what holds already.

use marcato_api::{ConfinementReport, Measure};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::plan::Plan;

/// Where a machine has no memory left, this process should end and not the daemon, nor anything else that the machine is
/// there for (proc(5), `oom_score_adj`; -1000 to 1000). Call it while there is a `/proc`.
pub(crate) fn end_first() {
    // Without a /proc the kernel chooses by size alone.
    let _ = std::fs::write("/proc/self/oom_score_adj", "800");
}

/// Takes the plan's limits.
pub(crate) fn take(plan: &Plan, report: &mut ConfinementReport) {
    let mut limits = vec![
        (Resource::RLIMIT_CORE, 0),
        (Resource::RLIMIT_NOFILE, plan.open_files),
        (Resource::RLIMIT_MEMLOCK, 0),
        (Resource::RLIMIT_MSGQUEUE, 0),
        (Resource::RLIMIT_NICE, 0),
        (Resource::RLIMIT_RTPRIO, 0),
    ];
    limits.extend(plan.address_space.map(|b| (Resource::RLIMIT_AS, b.0)));
    limits.extend(plan.file_size.map(|b| (Resource::RLIMIT_FSIZE, b.0)));
    limits.extend(plan.cpu_seconds.map(|s| (Resource::RLIMIT_CPU, s)));
    // Elsewhere the kernel counts all processes of the user.
    let own_count = report.has(Measure::UserNamespace);
    if own_count {
        limits.push((Resource::RLIMIT_NPROC, plan.threads));
    }
    let mut refused = Vec::new();
    for (resource, limit) in limits {
        let set = getrlimit(resource).and_then(|(_, hard)| {
            let limit = limit.min(hard);
            setrlimit(resource, limit, limit)
        });
        if let Err(e) = set {
            refused.push(format!("{resource:?}: {}", e.desc()));
        }
    }
    if refused.is_empty() {
        report.had(Measure::ResourceLimits, if own_count { "" } else { "threads are not counted" });
    } else {
        report.not_had(Measure::ResourceLimits, refused.join(", "));
    }
}
