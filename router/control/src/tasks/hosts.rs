//! Keeps four tasks, collect, push, renew and gather usage, per host that joined.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use marcato_api::HostId;
use marcato_client::HostClient;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::{Shared, collect, push, renew, usage};
use crate::observed::ObservedHost;
use crate::state::HostRecord;

/// What the tasks of a host share.
pub(crate) struct Link {
    pub(crate) shared: Arc<Shared>,
    pub(crate) id: HostId,
    pub(crate) client: HostClient,
    /// Ask the host now: something was just sent to it.
    pub(crate) ask: Notify,
    /// The host said something new: see whether it has what it should.
    pub(crate) heard: Notify,
    /// The host shows another certificate than before: see whether it is due.
    pub(crate) certificate: Notify,
}

pub(crate) async fn run(shared: Arc<Shared>, tracker: TaskTracker, shutdown: CancellationToken) {
    let mut latest = shared.tasks.state.store().latest();
    let mut running: BTreeMap<HostId, (HostRecord, CancellationToken)> = BTreeMap::new();
    loop {
        latest.mark_unchanged();
        match shared.tasks.state.hosts().await {
            Ok(hosts) => reconcile(&shared, &tracker, &shutdown, &mut running, hosts),
            Err(error) => tracing::warn!(%error, "the list of hosts cannot be read"),
        }
        tokio::select! {
            () = shutdown.cancelled() => return,
            changed = latest.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(Duration::from_secs(30)) => {}
        }
    }
}

fn reconcile(
    shared: &Arc<Shared>,
    tracker: &TaskTracker,
    shutdown: &CancellationToken,
    running: &mut BTreeMap<HostId, (HostRecord, CancellationToken)>,
    hosts: Vec<HostRecord>,
) {
    running.retain(|id, (record, stop)| {
        // What an operator lets it do is no reason to forget what it said.
        let stays = hosts.iter().any(|h| {
            (&h.id, &h.control, &h.ingress, h.joined_at)
                == (&record.id, &record.control, &record.ingress, record.joined_at)
        });
        if !stays {
            stop.cancel();
            shared.tasks.observed.update(|o| drop(o.hosts.remove(id)));
        }
        stays
    });
    for record in hosts {
        if running.contains_key(&record.id) {
            continue;
        }
        let tls = Arc::clone(&shared.tasks.host_tls);
        let link = Arc::new(Link {
            shared: Arc::clone(shared),
            id: record.id.clone(),
            client: HostClient::new(record.control.clone(), record.id.clone(), tls),
            ask: Notify::new(),
            heard: Notify::new(),
            certificate: Notify::new(),
        });
        shared.tasks.observed.update(|o| drop(o.hosts.insert(record.id.clone(), ObservedHost::unknown())));
        let stop = shutdown.child_token();
        tracker.spawn(collect::run(Arc::clone(&link), stop.clone()));
        tracker.spawn(push::run(Arc::clone(&link), stop.clone()));
        tracker.spawn(usage::run(Arc::clone(&link), stop.clone()));
        tracker.spawn(renew::run(link, stop.clone()));
        running.insert(record.id.clone(), (record, stop));
    }
}
