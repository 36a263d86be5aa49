//! The system calls that no safe wrapper offers.
#![allow(unsafe_code, reason = "raw system calls; each is alone in a function that says why it is sound")]

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use nix::libc;
use nix::unistd::{ForkResult, Pid};

fn result(ret: libc::c_long) -> io::Result<libc::c_long> {
    if ret < 0 { Err(io::Error::last_os_error()) } else { Ok(ret) }
}

/// Forks.
pub(crate) fn fork() -> io::Result<ForkResult> {
    // SAFETY: `enter` made sure that there is one thread, so that no lock is held by a thread that the child lacks.
    unsafe { nix::unistd::fork() }.map_err(Into::into)
}

/// A descriptor that becomes readable when the process ends.
pub(crate) fn pidfd_open(pid: Pid) -> io::Result<OwnedFd> {
    // SAFETY: two numbers; on success the descriptor is new and nobody else's.
    unsafe {
        let fd = result(libc::syscall(libc::SYS_pidfd_open, pid.as_raw(), 0))?;
        Ok(OwnedFd::from_raw_fd(i32::try_from(fd).map_err(io::Error::other)?))
    }
}

/// Closes every descriptor that is not in `keep`.
pub(crate) fn close_others(keep: &[RawFd]) -> io::Result<()> {
    let mut keep: Vec<u32> = keep.iter().filter_map(|fd| u32::try_from(*fd).ok()).collect();
    keep.sort_unstable();
    keep.dedup();
    let mut from = 0;
    for kept in keep {
        if kept > from {
            close_range(from, kept - 1)?;
        }
        from = kept + 1;
    }
    close_range(from, u32::MAX)
}

fn close_range(first: u32, last: u32) -> io::Result<()> {
    // SAFETY: numbers only. Who owns a descriptor in the range was told by the plan that it goes.
    match result(unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) }) {
        Ok(_) => Ok(()),
        Err(e) if e.raw_os_error() == Some(libc::ENOSYS) => {
            let (_, most) = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE)?;
            for fd in first..=last.min(u32::try_from(most).unwrap_or(1 << 20).min(1 << 20)) {
                // SAFETY: as above; a number that is not open is an error that says so.
                unsafe { libc::close(fd.cast_signed()) };
            }
            Ok(())
        }
        Err(e) => Err(e),
    }
}

#[repr(C)]
struct CapHeader {
    version: u32,
    pid: i32,
}

/// `_LINUX_CAPABILITY_VERSION_3` (capset(2)): two words per set.
const CAPABILITY_VERSION: u32 = 0x2008_0522;

/// Whether any capability is effective.
pub(crate) fn has_capabilities() -> io::Result<bool> {
    let mut header = CapHeader { version: CAPABILITY_VERSION, pid: 0 };
    let mut data = [[0_u32; 3]; 2];
    // SAFETY: both point to what capget(2) asks for with this version.
    result(unsafe { libc::syscall(libc::SYS_capget, &raw mut header, data.as_mut_ptr()) })?;
    Ok(data.iter().flatten().any(|word| *word != 0))
}

/// Gives up every capability: effective, permitted, inheritable, and as far as can be the bounding set.
pub(crate) fn drop_capabilities() -> io::Result<()> {
    for capability in 0..64 {
        // SAFETY: numbers only. Refused beyond the last one, and without CAP_SETPCAP; then no program is there that
        // could gain from the set, as there are no new privileges.
        unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) };
    }
    // SAFETY: numbers only.
    unsafe { libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) };
    let header = CapHeader { version: CAPABILITY_VERSION, pid: 0 };
    let data = [[0_u32; 3]; 2];
    // SAFETY: both point to what capset(2) asks for with this version.
    result(unsafe { libc::syscall(libc::SYS_capset, &raw const header, data.as_ptr()) })?;
    Ok(())
}

/// Leaves the keys of the session that started this process behind.
pub(crate) fn new_session_keyring() {
    const JOIN_SESSION_KEYRING: libc::c_long = 1;
    // SAFETY: no name, so no pointer. Where there are no keyrings there is nothing to leave.
    unsafe { libc::syscall(libc::SYS_keyctl, JOIN_SESSION_KEYRING, std::ptr::null::<u8>()) };
}

/// Ends this process at once, without anybody's destructors or exit handlers.
pub(crate) fn exit_now(code: i32) -> ! {
    // SAFETY: does not return; the outer process has nothing to flush.
    unsafe { libc::_exit(code) }
}

/// Restores the default action of a signal.
pub(crate) fn default_action(signal: nix::sys::signal::Signal) {
    // SAFETY: no handler is installed.
    let _ = unsafe { nix::sys::signal::signal(signal, nix::sys::signal::SigHandler::SigDfl) };
}

/// The raw number of a borrowed descriptor, for messages to the kernel that name it by path.
pub(crate) fn by_descriptor(fd: &impl AsRawFd) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}
