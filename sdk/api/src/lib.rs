//! Every type that crosses a process boundary in Marcato.
//!
//! Owns: ids and units, what an app, a revision, a host and a service are on the wire, the error
//! body, and both APIs as a trait plus its paths. Does not own: transport (`marcato-client`), nor any
//! behaviour beyond validation. No async runtime, no I/O.

mod access;
mod admin_api;
mod app;
mod budgets;
mod capability;
mod confinement;
mod event;
pub mod files;
mod fleet;
mod host;
mod host_api;
mod ids;
mod keyvalue;
mod logs;
mod outbound;
mod policy;
mod problem;
mod service;
pub mod trailers;
mod units;
mod usage;

pub use access::{
    AccessError, AccessRequest, AccessResponse, AccessRight, Change, HistoryEntry, IssuedKey, Page, PageRequest,
    Permission, Subject, SubjectKind,
};
pub use admin_api::{AdminApi, ApiResult, Etag, PageOf, admin_paths};
pub use app::{
    App, AppState, AppStatus, AppSummary, AppUpdate, Binding, InstanceView, Limits, LimitsError, NewApp, NewRevision,
    PlacementRules, Reuse, Revision, RevisionConfig, RevisionPhase, Route,
};
pub use budgets::{AppLimits, LimitSource, LimitView};
pub use capability::{Grant, grant_for, interface_of};
pub use confinement::{ConfinementReport, Measure, MeasureStatus, WorkerStatus};
pub use event::{Event, Outcome};
pub use fleet::{
    DebugToken, HostDetail, HostDuty, HostRemoval, HostState, HostUpdate, HostView, JoinRequest, JoinResponse,
    JoinToken, NewDebugToken, NewToken, Role, Token, TokenSecret,
};
pub use host::{
    CertificateRequest, CertificateTerm, ComponentState, ComponentStatus, HostAddress, HostCapacity, HostConfig,
    HostUsage, InstanceCounters, InstancePhase, InstanceSpec, InstanceState, InstanceStatus, Inventory, LimitScope,
    LimitUsage, NewCertificate, Peer, ServiceSpec, ServiceStatus,
};
pub use host_api::{HostApi, headers, host_paths};
pub use ids::{
    AppName, Digest, Generation, HostId, IdError, InstanceId, OrgName, RevisionNumber, ServiceId, ServiceName,
    SpaceName, StoreRevision,
};
pub use keyvalue::{KeyValueError, KeyValueRequest, KeyValueResponse};
pub use logs::{LogCursor, LogLine, LogPage, LogQuery, LogStream};
pub use outbound::OutboundHost;
pub use policy::{
    AppBudget, Effective, Exceeded, Isolation, IsolationClass, Policy, PolicyError, PolicyScope, PolicyView,
};
pub use problem::{OwnerProblem, Problem, ProblemKind};
pub use service::{Backup, NewService, Service, ServiceKind};
pub use units::{Bytes, Millis, amount};
pub use usage::{
    AppUsageHour, UsageCursor, UsageDelta, UsageGap, UsagePage, UsagePeriod, UsageQuery, UsageReport, UsageRow,
};

#[cfg(test)]
mod tests;
