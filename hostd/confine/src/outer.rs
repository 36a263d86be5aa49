//! The process that stays outside: it waits for the confined one and does nothing else.
//!
//! A process only comes into a namespace of process ids by being forked into it, so there must be two. The outer one
//! holds no descriptor, handles no bytes, and lets through a handful of system calls.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::prctl;
use nix::sys::signal::{SigSet, SigmaskHow, Signal, kill, sigprocmask};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, getpid, getppid, pipe2};

use crate::error::{ConfineError, step};
use crate::{seal, sys};

/// What is said for a daemon that is gone, or a wait that failed.
const LOST: i32 = 111;

/// The inner process's end of the pipe whose other end only the outer process holds.
pub(crate) struct Lifeline(OwnedFd);

impl Lifeline {
    /// From here on this process is killed when the outer one dies. Call it after the last change of user, which
    /// takes the wish back (prctl(2)).
    pub(crate) fn hold(self) -> Result<(), ConfineError> {
        prctl::set_pdeathsig(Signal::SIGKILL).map_err(step("ask to die with the parent"))?;
        let mut ends = [PollFd::new(self.0.as_fd(), PollFlags::empty())];
        match poll(&mut ends, PollTimeout::ZERO).map_err(step("look for the parent"))? {
            0 => Ok(()),
            _ => Err(ConfineError::Orphaned),
        }
    }
}

/// Forks. The inner process returns; the outer one waits for its end and never does.
pub(crate) fn split() -> Result<Lifeline, ConfineError> {
    let parent = getppid();
    let watch = sys::pidfd_open(parent).ok();
    if getppid() != parent {
        return Err(ConfineError::Orphaned);
    }
    let (inner, outer) = pipe2(OFlag::O_CLOEXEC).map_err(step("make a pipe"))?;
    match sys::fork().map_err(ConfineError::Fork)? {
        ForkResult::Child => Ok(Lifeline(inner)),
        ForkResult::Parent { child } => {
            drop(inner);
            let code = wait(child, parent, watch.as_ref(), &outer).unwrap_or_else(|_| {
                // Without a way to wait there is no way to answer for the inner process.
                let _ = kill(child, Signal::SIGKILL);
                LOST
            });
            sys::exit_now(code)
        }
    }
}

/// Waits; gives the code to exit with.
fn wait(child: Pid, parent: Pid, watch: Option<&OwnedFd>, pipe: &OwnedFd) -> Result<i32, Errno> {
    let mut handled = SigSet::all();
    handled.remove(Signal::SIGSYS);
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&handled), None)?;
    let mut told = SigSet::empty();
    told.add(Signal::SIGTERM);
    told.add(Signal::SIGCHLD);
    let signals = SignalFd::with_flags(&told, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
    let mut keep = vec![pipe.as_raw_fd(), signals.as_raw_fd()];
    keep.extend(watch.map(AsRawFd::as_raw_fd));
    // The inner process's descriptors must close when it ends: its listener, its line to the daemon.
    let _ = sys::close_others(&keep);
    let _ = prctl::set_name(c"marcato-wait");
    let _ = prctl::set_no_new_privs();
    let _ = prctl::set_dumpable(false);
    if watch.is_none() {
        // An old kernel: the thread that started us counts as the parent then.
        prctl::set_pdeathsig(Signal::SIGKILL)?;
        if getppid() != parent {
            kill(child, Signal::SIGKILL)?;
        }
    }
    let _ = seal::seal_outer(getpid(), child);
    loop {
        // Before the first poll, too: a child that ended before the signals were held back left none behind.
        match waitpid(child, Some(WaitPidFlag::WNOHANG))? {
            WaitStatus::Exited(_, code) => return Ok(code),
            WaitStatus::Signaled(_, signal, _) => return Ok(die_of(signal)),
            _ => {}
        }
        let mut ends = vec![PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
        ends.extend(watch.map(|w| PollFd::new(w.as_fd(), PollFlags::POLLIN)));
        // From here on a signal stays pending until it is read.
        match poll(&mut ends, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(e) => return Err(e),
        }
        if ends.get(1).and_then(PollFd::any).unwrap_or(false) {
            let _ = kill(child, Signal::SIGKILL);
            let _ = waitpid(child, None);
            return Ok(LOST);
        }
        while let Some(info) = signals.read_signal()? {
            if info.ssi_signo == Signal::SIGTERM as u32 {
                // It may be gone already; then its end is about to be told.
                let _ = kill(child, Signal::SIGTERM);
            }
        }
    }
}

/// Ends this process as the inner one was ended, so that who waits sees the signal.
fn die_of(signal: Signal) -> i32 {
    if signal != Signal::SIGKILL {
        sys::default_action(signal);
    }
    let mut only = SigSet::empty();
    only.add(signal);
    let _ = sigprocmask(SigmaskHow::SIG_UNBLOCK, Some(&only), None);
    let _ = kill(getpid(), signal);
    128 + signal as i32
}
