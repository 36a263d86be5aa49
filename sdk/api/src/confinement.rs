//! What a process that runs tenants' code could take from itself, and the workers of a host that did so.
//!
//! Owns the wire types only; taking is `hostd/confine`. Observation flow: worker -> hostd -> inventory -> router.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{Bytes, IsolationClass};

/// One thing that a confined process goes without.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum Measure {
    /// No program that it could start would gain rights (`PR_SET_NO_NEW_PRIVS`).
    NoNewPrivileges,
    /// It runs as a user without rights.
    UnprivilegedUser,
    /// No capability is left, nor can one be had.
    NoCapabilities,
    /// Its user ids mean nothing outside.
    UserNamespace,
    /// It sees and signals no process but itself.
    PidNamespace,
    /// Its files are its own few folders, read-only.
    MountNamespace,
    /// It has no network: only descriptors that it was given.
    NetworkNamespace,
    /// System V and POSIX queues and memory of nobody else.
    IpcNamespace,
    /// A host name of its own.
    UtsNamespace,
    /// Landlock: no file beyond its own folders.
    LandlockFiles,
    /// Landlock (ABI 4): no TCP port is bound or connected to.
    LandlockNetwork,
    /// Landlock (ABI 6): no signal and no abstract socket outside.
    LandlockScope,
    /// Limits on descriptors, threads, core dumps (setrlimit(2)).
    ResourceLimits,
    /// A control group of its own.
    ControlGroup,
    /// It ends when the host's daemon ends.
    DiesWithParent,
    /// No other process of its user can look into it (`PR_SET_DUMPABLE`).
    NotDumpable,
    /// System calls that it does not need kill it.
    SystemCallFilter,
    /// A measure of a newer release.
    #[serde(other)]
    Unknown,
}

impl Measure {
    /// All of them, in the order in which they are taken.
    pub const ALL: [Self; 17] = [
        Self::NoNewPrivileges,
        Self::ControlGroup,
        Self::PidNamespace,
        Self::MountNamespace,
        Self::NetworkNamespace,
        Self::IpcNamespace,
        Self::UtsNamespace,
        Self::UnprivilegedUser,
        Self::UserNamespace,
        Self::NoCapabilities,
        Self::ResourceLimits,
        Self::DiesWithParent,
        Self::LandlockFiles,
        Self::LandlockNetwork,
        Self::LandlockScope,
        Self::NotDumpable,
        Self::SystemCallFilter,
    ];

    /// As it is written on the wire and in metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NoNewPrivileges => "no_new_privileges",
            Self::UnprivilegedUser => "unprivileged_user",
            Self::NoCapabilities => "no_capabilities",
            Self::UserNamespace => "user_namespace",
            Self::PidNamespace => "pid_namespace",
            Self::MountNamespace => "mount_namespace",
            Self::NetworkNamespace => "network_namespace",
            Self::IpcNamespace => "ipc_namespace",
            Self::UtsNamespace => "uts_namespace",
            Self::LandlockFiles => "landlock_files",
            Self::LandlockNetwork => "landlock_network",
            Self::LandlockScope => "landlock_scope",
            Self::ResourceLimits => "resource_limits",
            Self::ControlGroup => "control_group",
            Self::DiesWithParent => "dies_with_parent",
            Self::NotDumpable => "not_dumpable",
            Self::SystemCallFilter => "system_call_filter",
            Self::Unknown => "unknown",
        }
    }

    /// What stands in for it where the kernel does not have it. `None`: nothing, it is required.
    ///
    /// A control group shares out what the limits already bound; it keeps nobody in. The newer parts of Landlock
    /// repeat what namespaces do.
    const fn covered_by(self) -> Option<&'static [Self]> {
        match self {
            Self::ControlGroup | Self::Unknown => Some(&[]),
            Self::LandlockNetwork => Some(&[Self::NetworkNamespace]),
            Self::LandlockScope => Some(&[Self::NetworkNamespace, Self::PidNamespace]),
            _ => None,
        }
    }
}

impl fmt::Display for Measure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// How one measure went.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct MeasureStatus {
    /// Which.
    pub measure: Measure,
    /// Whether it holds.
    pub had: bool,
    /// How it was had, or why not.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub detail: String,
}

/// What a process could take from itself on this machine.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ConfinementReport {
    /// The process, as the host's daemon sees it: in a namespace of its own it is 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// Each measure once.
    #[serde(default)]
    pub measures: Vec<MeasureStatus>,
}

impl ConfinementReport {
    /// Whether this measure holds.
    #[must_use]
    pub fn has(&self, measure: Measure) -> bool {
        self.measures.iter().any(|m| m.measure == measure && m.had)
    }

    /// Notes a measure that holds; a second word on the same one replaces the first.
    pub fn had(&mut self, measure: Measure, detail: impl Into<String>) {
        self.put(measure, true, detail.into());
    }

    /// Notes a measure that could not be had.
    pub fn not_had(&mut self, measure: Measure, why: impl Into<String>) {
        self.put(measure, false, why.into());
    }

    fn put(&mut self, measure: Measure, had: bool, detail: String) {
        let status = MeasureStatus { measure, had, detail };
        match self.measures.iter_mut().find(|m| m.measure == measure) {
            Some(old) => *old = status,
            None => self.measures.push(status),
        }
    }

    /// What does not hold, with the reason; also what nobody spoke of.
    #[must_use]
    pub fn missing(&self) -> Vec<MeasureStatus> {
        let status = |measure: &Measure| {
            let found = self.measures.iter().find(|m| m.measure == *measure).cloned();
            found.unwrap_or_else(|| MeasureStatus { measure: *measure, had: false, detail: "not tried".into() })
        };
        Measure::ALL.iter().map(status).filter(|m| !m.had).collect()
    }

    /// Whether nothing is missing that another measure does not stand in for: what `--require-confinement` asks.
    ///
    /// A control group is not asked for, as few machines delegate one, and limits stand in for it. Landlock's
    /// network and scope rules are not asked for where namespaces of its own hold.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.missing().iter().all(|m| m.measure.covered_by().is_some_and(|by| by.iter().all(|c| self.has(*c))))
    }
}

impl fmt::Display for ConfinementReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let missing = self.missing();
        if missing.is_empty() {
            return f.write_str("full");
        }
        f.write_str(if self.is_full() { "full, without " } else { "partial, without " })?;
        for (at, m) in missing.iter().enumerate() {
            let comma = if at == 0 { "" } else { ", " };
            write!(f, "{comma}{} ({})", m.measure, m.detail)?;
        }
        Ok(())
    }
}

/// A process of a host that runs apps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct WorkerStatus {
    /// `shared`, `shared-GROUP` or `app-NAME`.
    pub name: String,
    /// Its process, as the host sees it; absent while it is being started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// Whose apps run in it.
    pub class: IsolationClass,
    /// What it goes without.
    #[serde(default)]
    pub confinement: ConfinementReport,
    /// How often it was started again after it died.
    #[serde(default)]
    pub restarts: u64,
    /// Its resident memory.
    #[serde(default)]
    pub resident_bytes: Bytes,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn full() -> ConfinementReport {
        let mut report = ConfinementReport::default();
        for measure in Measure::ALL {
            report.had(measure, "");
        }
        report
    }

    #[test]
    fn nothing_said_is_nothing_had() {
        let report = ConfinementReport::default();
        assert!(!report.is_full());
        assert_eq!(report.missing().len(), Measure::ALL.len());
    }

    #[test]
    fn full_is_what_stands_without_a_control_group_and_with_stand_ins() {
        let mut report = full();
        assert!(report.is_full() && report.to_string() == "full");
        report.not_had(Measure::ControlGroup, "none is delegated");
        report.not_had(Measure::LandlockScope, "ABI 5");
        assert!(report.is_full(), "{report}");
        assert_eq!(report.missing().len(), 2);
        report.not_had(Measure::PidNamespace, "EPERM");
        assert!(!report.is_full(), "nothing stands in for signals now");
        for measure in [Measure::SystemCallFilter, Measure::MountNamespace, Measure::UnprivilegedUser] {
            let mut report = full();
            report.not_had(measure, "EPERM");
            assert!(!report.is_full(), "{measure}");
            assert_eq!(report.to_string(), format!("partial, without {measure} (EPERM)"));
        }
    }

    #[test]
    fn wire_names_are_one_set_and_newer_ones_are_read() {
        for measure in Measure::ALL {
            assert_eq!(serde_json::to_value(measure).unwrap(), measure.as_str());
        }
        let newer: ConfinementReport =
            serde_json::from_str(r#"{"pid":7,"measures":[{"measure":"warded_by_wizards","had":true}]}"#).unwrap();
        assert_eq!(newer.measures[0].measure, Measure::Unknown);
    }
}
