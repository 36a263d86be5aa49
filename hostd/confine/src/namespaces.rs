//! Namespaces: which way into them this machine offers, and the ones that are nothing but a call.

use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};

use marcato_api::{ConfinementReport, Measure};
use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat};
use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::Mode;
use nix::unistd::{getegid, geteuid, sethostname};

/// With whose rights namespaces are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// Root's own. They belong to the machine's user namespace, in which the process has no rights once it is another
    /// user; it goes into one of its own after that.
    Privileged,
    /// Those that a new user namespace gives; the process is the same user in it as outside.
    OwnUser,
    /// None.
    Closed,
}

/// `/proc` as it is before the root changes: the maps of a user namespace are written there.
pub(crate) fn proc_folder() -> Option<OwnedFd> {
    open("/proc", OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty()).ok()
}

/// Asks for a process id namespace, which the next fork goes into, by the first way that is open.
pub(crate) fn begin(proc: Option<&OwnedFd>, report: &mut ConfinementReport) -> Way {
    let way = match unshare(CloneFlags::CLONE_NEWPID) {
        Ok(()) => {
            report.had(Measure::PidNamespace, "");
            return Way::Privileged;
        }
        // With rights of root's, but without this kind of namespace.
        Err(Errno::EINVAL | Errno::ENOSPC) if geteuid().is_root() => Way::Privileged,
        Err(_) => own_user(proc, report),
    };
    match unshare(CloneFlags::CLONE_NEWPID) {
        Ok(()) => report.had(Measure::PidNamespace, ""),
        Err(e) => report.not_had(Measure::PidNamespace, e.desc()),
    }
    way
}

/// A user namespace in which this user is who it was.
pub(crate) fn own_user(proc: Option<&OwnedFd>, report: &mut ConfinementReport) -> Way {
    let (uid, gid) = (geteuid(), getegid());
    if let Err(e) = unshare(CloneFlags::CLONE_NEWUSER) {
        report.not_had(Measure::UserNamespace, e.desc());
        return Way::Closed;
    }
    let maps = [
        ("self/setgroups", "deny".to_owned()),
        ("self/uid_map", format!("{uid} {uid} 1")),
        ("self/gid_map", format!("{gid} {gid} 1")),
    ];
    let mut failed = None;
    for (file, text) in maps {
        if let Err(e) = write(proc, file, &text) {
            failed.get_or_insert(format!("/proc/{file}: {e}"));
        }
    }
    // Without a map it is nobody in there, which is no worse.
    report.had(Measure::UserNamespace, failed.map_or_else(String::new, |e| format!("without names for its user: {e}")));
    Way::OwnUser
}

fn write(proc: Option<&OwnedFd>, file: &str, text: &str) -> std::io::Result<()> {
    let proc = proc.ok_or(Errno::ENOENT)?;
    let fd = openat(proc.as_fd(), file, OFlag::O_WRONLY | OFlag::O_CLOEXEC, Mode::empty())?;
    std::fs::File::from(fd).write_all(text.as_bytes())
}

/// The namespaces that need nothing after the call. The mount namespace is `root`'s.
pub(crate) fn rest(report: &mut ConfinementReport) {
    let kinds = [
        (Measure::NetworkNamespace, CloneFlags::CLONE_NEWNET),
        (Measure::IpcNamespace, CloneFlags::CLONE_NEWIPC),
        (Measure::UtsNamespace, CloneFlags::CLONE_NEWUTS),
    ];
    for (measure, flag) in kinds {
        match unshare(flag) {
            Ok(()) => report.had(measure, ""),
            Err(e) => report.not_had(measure, e.desc()),
        }
    }
    if report.has(Measure::UtsNamespace) {
        // Its name says nothing of the machine any more.
        let _ = sethostname("marcato");
    }
    // Only hides the names of control groups; not worth a measure of its own.
    let _ = unshare(CloneFlags::CLONE_NEWCGROUP);
}
