//! What the host daemon and a worker say to each other, over a socket pair that both got at the worker's start.
//!
//! Owns the messages and how they travel (`peer`), and how connected sockets travel (`sockets`). Both directions are
//! calls with answers; the daemon believes a worker nothing but what concerns the worker's own instances.

mod peer;
mod sockets;

use std::collections::BTreeMap;

use marcato_api::{
    AccessError, AccessRequest, AccessResponse, AppBudget, AppName, Bytes, ConfinementReport, Digest, HostUsage,
    InstanceCounters, InstanceId, KeyValueError, KeyValueRequest, KeyValueResponse, LimitUsage, LogStream,
    RevisionConfig, RevisionNumber, ServiceKind,
};
use marcato_runtime::DialError;
use serde::{Deserialize, Serialize};

pub(crate) use peer::{Direction, Peer, read_first, send_first};
pub(crate) use sockets::{SocketReceiver, SocketSender};

/// The first message to a worker: what it is made from.
#[derive(Serialize, Deserialize)]
pub(crate) struct Setup {
    /// The worker's name, for its log.
    pub(crate) worker: String,
    /// Most live sandboxes of the host at once.
    pub(crate) sandboxes: u32,
    /// Linear memory of all live sandboxes of the host together.
    pub(crate) memory: Bytes,
    /// What of both this worker may use, to begin with.
    pub(crate) lease: LeaseOrder,
    /// Authorities (PEM) that outbound HTTPS trusts beside the public ones.
    pub(crate) outbound_ca_pem: Option<String>,
    /// What a TCP ingress shows; absent on a Unix socket.
    pub(crate) tls: Option<IngressTls>,
    /// Refuse to run with less than the whole confinement.
    pub(crate) require_confinement: bool,
}

/// What of the host's memory and sandboxes a worker may use.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LeaseOrder {
    /// Later ones have higher numbers.
    pub(crate) number: u64,
    pub(crate) memory: Bytes,
    pub(crate) sandboxes: u32,
    /// Whether more can be had by asking.
    pub(crate) more: bool,
}

/// What a worker uses of its lease.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Holding {
    /// The last lease that it keeps to; it used the rest of this after it took it.
    pub(crate) number: u64,
    pub(crate) memory: Bytes,
    pub(crate) sandboxes: u32,
    /// What it wants beyond that, by what it wanted in the last seconds.
    pub(crate) wants_memory: Bytes,
    pub(crate) wants_sandboxes: u32,
}

/// Key and certificate of an ingress, as PEM. Never the host's own.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct IngressTls {
    pub(crate) key_pem: String,
    pub(crate) cert_pem: String,
    /// Callers must be of this authority.
    pub(crate) ca_pem: String,
}

/// An instance to start.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct StartOrder {
    pub(crate) id: InstanceId,
    pub(crate) app: AppName,
    pub(crate) revision: RevisionNumber,
    pub(crate) digest: Digest,
    pub(crate) config: RevisionConfig,
    pub(crate) budget: AppBudget,
    /// Kinds of bound services, by the name that the guest uses.
    pub(crate) bindings: BTreeMap<String, ServiceKind>,
}

/// From the daemon to a worker.
#[derive(Serialize, Deserialize)]
pub(crate) enum Order {
    /// Start instances. Answer: `Started`, one result for each.
    Start(Vec<StartOrder>),
    /// Finish what runs in it and take no more. Answer: `Done`.
    Drain(InstanceId),
    /// Drain it and forget it once it is idle. Answer: `Done`.
    Remove(InstanceId),
    /// Take connections from now on. Answer: `Done`.
    Open,
    /// Show this from now on. Answer: `Done`.
    Tls(Box<IngressTls>),
    /// Keep to this lease from now on. Answer: none, but a `Holding`.
    Lease(LeaseOrder),
    /// Say how things stand. Answer: `Report`.
    Report,
    /// Take no more connections, finish requests, end. Answer: none, but the end.
    Stop,
}

/// A worker's answers.
#[derive(Serialize, Deserialize)]
pub(crate) enum OrderAnswer {
    Done,
    Started(Vec<Result<(), NotStarted>>),
    Report(Box<Report>),
}

/// Why an instance was not started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum NotStarted {
    /// There is no code, or it is not usable: compile again.
    Code,
    /// Another reason, in words.
    Reason(String),
}

/// How a worker stands.
#[derive(Clone, Default, Serialize, Deserialize)]
pub(crate) struct Report {
    pub(crate) usage: HostUsage,
    pub(crate) holding: Holding,
    pub(crate) ingress: IngressNumbers,
    pub(crate) instances: Vec<InstanceReport>,
    /// Log lines that did not fit into the queue to the daemon.
    pub(crate) log_lines_lost: u64,
}

/// How an instance stands.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct InstanceReport {
    pub(crate) id: InstanceId,
    pub(crate) in_flight: u32,
    pub(crate) queued: u32,
    pub(crate) counters: InstanceCounters,
    pub(crate) limits: Vec<LimitUsage>,
}

/// What the ingress answered so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct IngressNumbers {
    /// By the first digit of the status, from 1 to 5.
    pub(crate) responses: [u64; 5],
    /// Those that the platform made instead of a guest.
    pub(crate) platform_errors: u64,
}

/// From a worker to the daemon.
#[derive(Serialize, Deserialize)]
pub(crate) enum Ask {
    /// The worker has its engine and is confined as well as can be. Answer: `Done`.
    Ready(Box<Readiness>),
    /// The name of the file with this code, in the worker's folder. Answer: `Code`.
    Code(Digest),
    /// A call on a bound service. Answer: `Access`.
    Access { instance: InstanceId, binding: String, request: AccessRequest },
    /// A call on a bound service. Answer: `KeyValue`.
    KeyValue { instance: InstanceId, binding: String, request: KeyValueRequest },
    /// A connection; the socket comes under the ticket. Answer: `Connected`.
    Connect { instance: InstanceId, host: String, port: u16, ticket: u64 },
    /// Lines of guests. Answer: none.
    Lines(Vec<Line>),
    /// What it uses of its lease. Answer: none, but another lease where that changes it.
    Holding(Holding),
    /// How things stood at the end of a worker that was told to stop. Answer: `Done`.
    Last(Box<Report>),
}

/// What a worker says of itself at its start.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Readiness {
    /// What it goes without.
    pub(crate) confinement: ConfinementReport,
}

/// A log line of a guest.
#[derive(Serialize, Deserialize)]
pub(crate) struct Line {
    pub(crate) instance: InstanceId,
    pub(crate) request_id: String,
    pub(crate) stream: LogStream,
    pub(crate) text: String,
}

/// The daemon's answers.
#[derive(Serialize, Deserialize)]
pub(crate) enum AskAnswer {
    Done,
    /// The file's name, or why there is none.
    Code(Result<String, NoCode>),
    Access(Result<AccessResponse, AccessError>),
    KeyValue(Result<KeyValueResponse, KeyValueError>),
    Connected(Result<(), DialError>),
    /// The worker has no such instance or binding, or its call has no sense.
    Refused,
}

/// Why there is no code.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum NoCode {
    /// It is not compiled here.
    NotCompiled,
    /// It cannot be read, or is refused.
    Unusable(String),
}

/// Calls of the daemon.
pub(crate) struct Orders;
/// Calls of a worker.
pub(crate) struct Asks;

impl Direction for Orders {
    type Call = Order;
    type Answer = OrderAnswer;
}

impl Direction for Asks {
    type Call = Ask;
    type Answer = AskAnswer;
}

#[cfg(test)]
mod fuzz;
#[cfg(test)]
mod tests;
