//! Tells one host what it should run, whenever that differs from what it holds.
//!
//! The generation is one above what the host holds, which it keeps on disk: so it never goes back, even
//! when the router's own memory is gone. Components go first; instances of one that is on its way wait on the host.

use std::sync::Arc;
use std::time::Duration;

use marcato_api::{ApiResult, Digest, Generation, HostApi, HostConfig, Inventory, Problem, ProblemKind};
use marcato_plan::HostPlan;
use tokio_util::sync::CancellationToken;

use super::hosts::Link;

/// After a failure: how long until the next try.
const RETRY: Duration = Duration::from_millis(500);

/// What the host was last told, and under which generation.
struct Told {
    plan: HostPlan,
    generation: Generation,
}

pub(crate) async fn run(link: Arc<Link>, stop: CancellationToken) {
    let mut plans = link.shared.plans.subscribe();
    let mut told: Option<Told> = None;
    loop {
        let wanted = plans.borrow_and_update().get(&link.id).cloned();
        let inventory = link.shared.tasks.observed.load().hosts.get(&link.id).and_then(|h| h.inventory.clone());
        let mut retry = Duration::from_secs(30);
        if let (Some(wanted), Some(inventory)) = (wanted, inventory)
            && needs(told.as_ref(), &wanted, &inventory)
        {
            let outcome = tokio::select! {
                () = stop.cancelled() => return,
                outcome = push(&link, &wanted, &inventory, told.as_ref()) => outcome,
            };
            match outcome {
                Ok(generation) => told = Some(Told { plan: wanted, generation }),
                Err(problem) => {
                    tracing::warn!(host = %link.id, %problem, "the host cannot be told its config");
                    told = None;
                    retry = RETRY;
                }
            }
            link.ask.notify_one();
        }
        tokio::select! {
            () = stop.cancelled() => return,
            changed = plans.changed() => if changed.is_err() { return },
            () = link.heard.notified() => {}
            () = tokio::time::sleep(retry) => {}
        }
    }
}

/// Whether the host must be told: never told by this process, other content, or it lost what it was told.
fn needs(told: Option<&Told>, wanted: &HostPlan, inventory: &Inventory) -> bool {
    let Some(told) = told else { return true };
    let missing = wanted.instances.iter().any(|i| !inventory.components.iter().any(|c| c.digest == i.digest));
    // An inventory may be older than the last push, so only a lower generation after a new start counts as loss;
    // a component that the host does not know is offered again, which is idempotent.
    told.plan != *wanted || (inventory.generation < told.generation && inventory.instances.is_empty()) || missing
}

async fn push(link: &Link, wanted: &HostPlan, inventory: &Inventory, told: Option<&Told>) -> ApiResult<Generation> {
    let mut digests: Vec<&Digest> = wanted.instances.iter().map(|i| &i.digest).collect();
    digests.sort();
    digests.dedup();
    for digest in digests.into_iter().filter(|d| !inventory.components.iter().any(|c| c.digest == **d)) {
        let missing = |why: String| Problem::new(ProblemKind::Unavailable, format!("component {digest}: {why}"));
        let found = link.shared.tasks.components.get(digest).await.map_err(|e| missing(e.to_string()))?;
        let bytes =
            found.ok_or_else(|| missing("its bytes are gone from the component store; push it again".into()))?;
        link.client.put_component(digest, bytes.into()).await?;
    }
    let held = told.map_or(inventory.generation, |t| t.generation.max(inventory.generation));
    let config = HostConfig {
        generation: Generation(held.0 + 1),
        instances: wanted.instances.clone(),
        services: wanted.services.clone(),
        peers: wanted.peers.clone(),
    };
    link.client.put_config(config).await
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use marcato_api::{Bytes, HostCapacity, HostId, HostUsage};

    use super::*;

    fn inventory(generation: u64) -> Inventory {
        Inventory {
            host: HostId::new("h1").unwrap(),
            version: "0".into(),
            started_at: Timestamp::UNIX_EPOCH,
            generation: Generation(generation),
            capacity: HostCapacity { memory_bytes: Bytes(0), cpu_millis: 0, sandboxes: 0 },
            used: HostUsage::default(),
            components: vec![],
            instances: vec![],
            services: vec![],
            certificate: None,
            ingress_tls: false,
            ingress_certificate: None,
            workers: Vec::new(),
        }
    }

    #[test]
    fn a_host_is_told_at_first_on_change_and_on_loss_only() {
        let plan = HostPlan::default();
        let told = Told { plan: plan.clone(), generation: Generation(4) };
        assert!(needs(None, &plan, &inventory(4)));
        assert!(!needs(Some(&told), &plan, &inventory(4)));
        assert!(needs(Some(&told), &plan, &inventory(0)), "the host lost its ledger");
        let peer = marcato_api::Peer { id: HostId::new("h2").unwrap(), control: "tcp:127.0.0.1:1".parse().unwrap() };
        assert!(needs(Some(&told), &HostPlan { peers: vec![peer], ..plan }, &inventory(4)));
    }
}
