//! A child of `marcato up` ends when its supervisor is gone, however that ended.

use anyhow::{Result, bail};
use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::unistd::getppid;

/// The supervisor's process id, as it tells its children.
pub(crate) const SUPERVISOR_VAR: &str = "MARCATO_SUPERVISOR_PID";

/// Asks the kernel for SIGTERM at the supervisor's death. Does nothing without a supervisor.
/// Errors: it is dead already.
pub(crate) fn follow_supervisor() -> Result<()> {
    let Some(expected) = std::env::var(SUPERVISOR_VAR).ok().and_then(|v| v.parse::<i32>().ok()) else {
        return Ok(());
    };
    prctl::set_pdeathsig(Signal::SIGTERM)?;
    // It may have died before the kernel was asked.
    if getppid().as_raw() != expected {
        bail!("the supervisor is gone");
    }
    Ok(())
}
