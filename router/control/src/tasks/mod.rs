//! The tasks that make desired state so: collect, plan, publish, push, renew certificates, gather usage, collect
//! garbage.
//!
//! Owns: when each runs and what it carries out. Does not own decisions (`marcato-plan`) nor what is wanted
//! (`state`). Each is driven by a signal and a timer, acts on state and never on the event that woke it, and may run
//! again at any time. Flow: store and inventories -> plan -> route table (publish) -> hosts (push).

mod collect;
mod conduct;
mod gc;
mod hosts;
mod publish;
mod push;
mod renew;
mod usage;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use marcato_api::HostId;
use marcato_balance::TableCell;
use marcato_plan::{HostPlan, Settings};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::blobs::Blobs;
use crate::ca::Authority;
use crate::observed::ObservedCell;
use crate::state::{DebugSecret, State};
use crate::usage::UsageStore;

pub(crate) use gc::KEPT_REVISIONS;

/// What the tasks work with.
#[derive(Clone)]
pub struct Tasks {
    /// What is wanted.
    pub state: State,
    /// What debug tokens hang on.
    pub debug: DebugSecret,
    /// What is.
    pub observed: Arc<ObservedCell>,
    /// Components' bytes.
    pub components: Blobs,
    /// The router's identity towards hosts.
    pub host_tls: Arc<rustls::ClientConfig>,
    /// Signs hosts' certificates anew.
    pub authority: Arc<Authority>,
    /// What apps used.
    pub usage: UsageStore,
    /// Where the edge reads its table.
    pub table: Arc<TableCell>,
    /// Tells the edge of a new table.
    pub changed: watch::Sender<u64>,
    /// Bounds of roll-outs, and when a host is given up.
    pub settings: Settings,
}

/// What the tasks tell each other.
pub(crate) struct Shared {
    tasks: Tasks,
    /// The last plan's share of each host.
    plans: watch::Sender<Arc<BTreeMap<HostId, HostPlan>>>,
    /// Something was observed that a plan may depend on.
    observed: Notify,
    /// Something is on its way: hosts are asked often.
    unsettled: AtomicBool,
}

/// How often a host is asked while nothing is on its way.
const CALM: Duration = Duration::from_secs(1);
/// And while an instance starts or drains.
const EAGER: Duration = Duration::from_millis(20);

/// Starts the tasks on `tracker`; they end with `shutdown`. The receiver turns true once the first table is
/// published: made from hosts that answered, or after two seconds from those that did.
#[must_use]
pub fn spawn(tasks: Tasks, tracker: &TaskTracker, shutdown: &CancellationToken) -> watch::Receiver<bool> {
    let shared = Arc::new(Shared {
        tasks,
        plans: watch::Sender::new(Arc::default()),
        observed: Notify::new(),
        unsettled: AtomicBool::new(true),
    });
    let (ready, receiver) = watch::channel(false);
    tracker.spawn(hosts::run(Arc::clone(&shared), tracker.clone(), shutdown.clone()));
    tracker.spawn(conduct::run(Arc::clone(&shared), ready, shutdown.clone()));
    tracker.spawn(usage::run_sizes(Arc::clone(&shared), shutdown.clone()));
    tracker.spawn(gc::run(shared, shutdown.clone()));
    receiver
}
