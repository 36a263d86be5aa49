//! The seccomp filter: what `system_calls` lists passes, everything else ends the process (seccomp(2)).

use std::collections::BTreeMap;

use marcato_api::{ConfinementReport, Measure};
use nix::libc;
use nix::sys::prctl;
use nix::unistd::{Pid, getpid};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, TargetArch, apply_filter_all_threads};

use crate::error::{ConfineError, step};
use crate::plan::{Plan, Profile};
use crate::system_calls::{self, Rules};

/// Ends the way in: from here a system call that is not needed ends the process, in every thread, and no process of
/// the same user can look into this one.
///
/// Call it when threads and engine exist, before the first guest. What the kernel refuses is in the report.
///
/// # Errors
/// A filter that cannot be built, which is a fault of its list.
pub fn seal(plan: &Plan, report: &mut ConfinementReport) -> Result<(), ConfineError> {
    prctl::set_dumpable(false).map_err(step("hide memory from processes of the same user"))?;
    report.had(Measure::NotDumpable, "");
    let rules = match plan.profile {
        Profile::Worker => system_calls::worker(getpid(), plan.mapped_code)?,
        Profile::Compiler => system_calls::compiler(getpid())?,
    };
    match install(rules)? {
        Ok(()) => report.had(Measure::SystemCallFilter, ""),
        Err(why) => report.not_had(Measure::SystemCallFilter, why),
    }
    Ok(())
}

/// The filter of the process that only waits.
pub(crate) fn seal_outer(own: Pid, child: Pid) -> Result<(), ConfineError> {
    install(system_calls::outer(own, child)?)?.map_err(ConfineError::Filter)
}

/// The inner result is the kernel's refusal.
fn install(rules: Rules) -> Result<Result<(), String>, ConfineError> {
    let Ok(arch) = TargetArch::try_from(std::env::consts::ARCH) else {
        return Ok(Err(format!("not made for {}", std::env::consts::ARCH)));
    };
    let fault = |e: seccompiler::BackendError| ConfineError::Filter(e.to_string());
    let compile = |rules, otherwise, on_match| -> Result<BpfProgram, ConfineError> {
        SeccompFilter::new(rules, otherwise, on_match, arch).and_then(TryInto::try_into).map_err(fault)
    };
    let not_there = u32::try_from(libc::ENOSYS).unwrap_or(38);
    let absent: BTreeMap<_, _> = rules.absent.into_iter().map(|call| (call, Vec::new())).collect();
    let filters = [
        // The stricter of two answers counts, so calls that are answered with "there is none" are in both lists.
        compile(absent, SeccompAction::Allow, SeccompAction::Errno(not_there))?,
        compile(rules.allowed, SeccompAction::KillProcess, SeccompAction::Allow)?,
    ];
    for filter in &filters {
        if let Err(e) = apply_filter_all_threads(filter) {
            return Ok(Err(e.to_string()));
        }
    }
    Ok(Ok(()))
}
