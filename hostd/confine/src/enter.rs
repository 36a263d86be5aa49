//! The way in, step by step. Each step's place has a reason; the order is this file's content.

use std::fs;

use marcato_api::{ConfinementReport, Measure};
use nix::sys::prctl;
use nix::sys::resource::{Resource, setrlimit};

use crate::error::{ConfineError, step};
use crate::namespaces::{self, Way};
use crate::plan::Plan;
use crate::{cgroup, drop_rights, files, limits, outer, root, sys};

/// Confines this process, as far as this machine allows. Returns in the inner process only.
///
/// Call it first in `main`, with one thread. After it `/proc/self` can still be read, if there is a `/proc`, and every
/// system call made; [`seal`](crate::seal()) ends both. No guest may run before that.
///
/// # Errors
/// Where the plan is wrong, or a step that had begun cannot be finished. The process must end then: it may have lost
/// some rights and not others. What the kernel refuses is in the report.
pub fn enter(plan: &Plan) -> Result<ConfinementReport, ConfineError> {
    one_thread()?;
    root::check(plan)?;
    let mut report = ConfinementReport::default();
    // Nothing below can be undone by starting a set-user-id program. The outer process is bound as well.
    prctl::set_no_new_privs().map_err(step("give up new privileges"))?;
    report.had(Measure::NoNewPrivileges, "");
    // No image of a tenant's memory on disk, from the first moment.
    setrlimit(Resource::RLIMIT_CORE, 0, 0).map_err(step("give up core dumps"))?;
    keep_only(plan)?;
    // As who it was started, and while the folder is in sight.
    cgroup::join(plan, &mut report);
    limits::end_first();
    let proc = namespaces::proc_folder();
    let way = namespaces::begin(proc.as_ref(), &mut report);

    let lifeline = outer::split()?;

    // The old /proc knows this process by its number outside; a new one says 1.
    report.pid = fs::read_link("/proc/self").ok().and_then(|p| p.to_str()?.parse().ok());
    sys::new_session_keyring();
    // Mounting takes rights that the next steps give up.
    root::change(plan, &mut report)?;
    namespaces::rest(&mut report);
    drop_rights::user(plan, &mut report)?;
    if way == Way::Privileged {
        // After the change of user: the other namespaces stay the machine's, and the rights that this one gives
        // concern none of them.
        namespaces::own_user(proc.as_ref(), &mut report);
    }
    drop(proc);
    drop_rights::capabilities(&mut report);
    limits::take(plan, &mut report);
    lifeline.hold()?;
    report.had(Measure::DiesWithParent, "");
    // Last: it forbids mounts.
    files::restrict(plan, &mut report);
    Ok(report)
}

fn one_thread() -> Result<(), ConfineError> {
    // Without a /proc nobody can count; then the caller's word stands.
    let threads = fs::read_dir("/proc/self/task").map_or(1, Iterator::count);
    if threads == 1 { Ok(()) } else { Err(ConfineError::Threads(threads)) }
}

fn keep_only(plan: &Plan) -> Result<(), ConfineError> {
    let mut keep = vec![0, 1, 2];
    keep.extend(&plan.keep_open);
    sys::close_others(&keep).map_err(|source| ConfineError::Step { step: "close descriptors", source })
}
