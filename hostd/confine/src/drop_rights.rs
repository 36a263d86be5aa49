//! Rights: another user, no capabilities.

use std::path::Path;

use marcato_api::{ConfinementReport, Measure};
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::prctl;
use nix::sys::stat::Mode;
use nix::unistd::{Gid, Uid, geteuid, seteuid, setgroups, setresgid, setresuid};

use crate::error::{ConfineError, step};
use crate::plan::Plan;
use crate::sys;

/// "nobody", where ids beyond 16 bits have no meaning: a container that maps few of them.
const NOBODY: u32 = 65_534;

/// Becomes the plan's user, if this is root with the right to.
pub(crate) fn user(plan: &Plan, report: &mut ConfinementReport) -> Result<(), ConfineError> {
    let now = geteuid();
    if !now.is_root() {
        report.had(Measure::UnprivilegedUser, format!("user {now}"));
        return Ok(());
    }
    let Some((uid, gid)) = plan.unprivileged_user else {
        report.not_had(Measure::UnprivilegedUser, "none is named");
        return Ok(());
    };
    if let Some(path) = unreadable(plan, uid) {
        report.not_had(Measure::UnprivilegedUser, format!("user {uid} cannot read {}", path.display()));
        return Ok(());
    }
    // Groups first: without root's user there is no right to change them.
    if let Err(e) = setgroups(&[]) {
        report.not_had(Measure::UnprivilegedUser, format!("setgroups: {}", e.desc()));
        return Ok(());
    }
    let become_user = |uid: u32, gid: u32| {
        let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
        setresgid(gid, gid, gid).and_then(|()| setresuid(uid, uid, uid))
    };
    let became = match become_user(uid, gid) {
        Err(Errno::EINVAL) => become_user(NOBODY, NOBODY),
        other => other,
    };
    match became {
        Ok(()) => report.had(Measure::UnprivilegedUser, format!("user {}", geteuid())),
        Err(e) => report.not_had(Measure::UnprivilegedUser, format!("setresuid: {}", e.desc())),
    }
    // A change of user takes the files in /proc/self away (proc(5)); the pool and the user map need them until `seal`.
    prctl::set_dumpable(true).map_err(step("keep /proc/self"))
}

/// A folder of the plan that this user could not read: staying root without rights is better than not working.
fn unreadable(plan: &Plan, uid: u32) -> Option<&Path> {
    if seteuid(Uid::from_raw(uid)).is_err() {
        return None; // The change itself will say why.
    }
    let cannot = |path: &&Path| open(*path, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty()).is_err();
    let found = plan.read_only.iter().map(std::path::PathBuf::as_path).find(cannot);
    // The saved user is root still, so this cannot be refused.
    let back = seteuid(Uid::from_raw(0));
    if back.is_ok() { found } else { plan.read_only.first().map(std::path::PathBuf::as_path) }
}

/// Gives every capability up, those of a new user namespace too.
pub(crate) fn capabilities(report: &mut ConfinementReport) {
    let dropped = sys::drop_capabilities();
    match (dropped, sys::has_capabilities()) {
        (_, Ok(false)) => report.had(Measure::NoCapabilities, ""),
        (Err(e), _) | (_, Err(e)) => report.not_had(Measure::NoCapabilities, e.to_string()),
        (Ok(()), Ok(true)) => report.not_had(Measure::NoCapabilities, "some are left"),
    }
}
