//! Landlock: the same folders once more, by another part of the kernel, and no way to the network or to signals.

use std::path::Path;

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, LandlockStatus, PathBeneath, PathFd, Ruleset, RulesetAttr,
    RulesetCreatedAttr, RulesetError, RulesetStatus, Scope,
};
use marcato_api::{ConfinementReport, Measure};

use crate::plan::Plan;

/// The newest rules that were tried; older kernels take what they know of them.
const ABI_KNOWN: ABI = ABI::V7;

/// Binds this thread, and those that it will start.
pub(crate) fn restrict(plan: &Plan, report: &mut ConfinementReport) {
    const ALL: [Measure; 3] = [Measure::LandlockFiles, Measure::LandlockNetwork, Measure::LandlockScope];
    let status = match rules(plan) {
        Ok(status) => status,
        Err(e) => return ALL.iter().for_each(|m| report.not_had(*m, e.to_string())),
    };
    let abi = match (status.ruleset, status.landlock) {
        (RulesetStatus::NotEnforced, _) | (_, LandlockStatus::NotEnabled | LandlockStatus::NotImplemented) => {
            return ALL.iter().for_each(|m| report.not_had(*m, "the kernel has no Landlock, or it is off"));
        }
        (_, LandlockStatus::Available { effective_abi, .. }) => effective_abi as i32,
    };
    for (measure, since) in ALL.into_iter().zip([1, 4, 6]) {
        if abi >= since {
            report.had(measure, format!("ABI {abi}"));
        } else {
            report.not_had(measure, format!("ABI {abi}, it needs {since}"));
        }
    }
}

fn rules(plan: &Plan) -> Result<landlock::RestrictionStatus, RulesetError> {
    let read = AccessFs::ReadFile | AccessFs::ReadDir;
    let write = read | AccessFs::WriteFile | AccessFs::Truncate | AccessFs::MakeReg | AccessFs::RemoveFile;
    let mut rules = Ruleset::default()
        .handle_access(AccessFs::from_all(ABI_KNOWN))?
        .handle_access(AccessNet::from_all(ABI_KNOWN))?
        .scope(Scope::from_all(ABI_KNOWN))?
        .create()?;
    // Its own process, for the page map. In a namespace of its own that is all of /proc.
    let own = [Path::new("/proc/self")];
    let paths = own.into_iter().map(|p| (p, read));
    let paths = paths.chain(plan.read_only.iter().map(|p| (p.as_path(), read)));
    for (path, access) in paths.chain(plan.read_write.iter().map(|p| (p.as_path(), write))) {
        // What is not there needs no rule; `root` has opened what must be there.
        let Ok(fd) = PathFd::new(path) else { continue };
        let access: BitFlags<AccessFs> = if path.is_dir() { access } else { access & AccessFs::from_file(ABI_KNOWN) };
        rules = rules.add_rule(PathBeneath::new(fd, access))?;
    }
    rules.restrict_self()
}
