//! Asks one host for its inventory, often while something is on its way, and notes when it falls silent.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use jiff::Timestamp;
use marcato_api::{HostApi, HostState, InstancePhase, Inventory};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::hosts::Link;
use super::{CALM, EAGER};

/// A host that has not answered for this long is suspected; its endpoints are set aside.
const SUSPECTED_AFTER: Duration = Duration::from_secs(3);
/// How long one answer may take.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);

pub(crate) async fn run(link: Arc<Link>, stop: CancellationToken) {
    let mut last_answer = Instant::now();
    loop {
        let answer = tokio::select! {
            () = stop.cancelled() => return,
            answer = tokio::time::timeout(ANSWER_WITHIN, link.client.inventory()) => answer,
        };
        match answer {
            Ok(Ok(inventory)) => {
                last_answer = Instant::now();
                heard(&link, inventory);
            }
            Ok(Err(problem)) => {
                // Where nobody listens, there is no use in waiting.
                let refused = link.client.refuses_connections().await;
                silent(&link, if refused { Duration::MAX } else { last_answer.elapsed() }, &problem.detail);
            }
            Err(_) => silent(&link, last_answer.elapsed(), &format!("no answer within {ANSWER_WITHIN:?}")),
        }
        let pause = if link.shared.unsettled.load(Ordering::Relaxed) { EAGER } else { CALM };
        tokio::select! {
            () = stop.cancelled() => return,
            () = link.ask.notified() => {}
            () = tokio::time::sleep(pause) => {}
        }
    }
}

fn heard(link: &Link, inventory: Inventory) {
    let observed = &link.shared.tasks.observed;
    let before = observed.load().hosts.get(&link.id).cloned();
    let certificate = |i: &Inventory| (i.certificate, i.ingress_certificate, i.started_at);
    let known = before.as_ref().and_then(|b| b.inventory.as_deref().map(certificate));
    if known != Some(certificate(&inventory)) {
        link.certificate.notify_one();
    }
    let news =
        before.is_none_or(|b| b.state != HostState::Up || b.inventory.is_none_or(|i| matter(&i) != matter(&inventory)));
    let inventory = Arc::new(inventory);
    observed.update(|o| {
        if let Some(host) = o.hosts.get_mut(&link.id) {
            if host.state == HostState::Suspected {
                host.steadiness = host.steadiness.returned(Timestamp::now());
            }
            host.state = HostState::Up;
            host.inventory = Some(Arc::clone(&inventory));
            host.last_seen = Some(Timestamp::now());
            host.error = None;
        }
    });
    if news {
        link.heard.notify_one();
        link.shared.observed.notify_one();
    }
}

/// What of an inventory a plan or a push depends on. Counters and load grow all the time and do not.
fn matter(inventory: &Inventory) -> impl PartialEq + use<> {
    let instances: Vec<_> = inventory
        .instances
        .iter()
        .map(|i| {
            let busy = i.phase == InstancePhase::Draining && (i.in_flight > 0 || i.queued > 0);
            (i.id.clone(), i.phase, i.reason.clone(), busy, i.ingress.clone())
        })
        .collect();
    let services: Vec<_> = inventory.services.iter().map(|s| (s.id.clone(), s.ready)).collect();
    (inventory.started_at, inventory.generation, inventory.capacity, inventory.components.clone(), instances, services)
}

fn silent(link: &Link, silent_for: Duration, error: &str) {
    let suspected = silent_for > SUSPECTED_AFTER;
    let was = link.shared.tasks.observed.load().hosts.get(&link.id).map(|h| h.state);
    let falls = suspected && was == Some(HostState::Up);
    if falls {
        tracing::warn!(host = %link.id, %error, "the host does not answer");
    }
    link.shared.tasks.observed.update(|o| {
        if let Some(host) = o.hosts.get_mut(&link.id) {
            host.error = Some(error.to_owned());
            if falls {
                host.state = HostState::Suspected;
            }
        }
    });
    if falls {
        link.shared.observed.notify_one();
    }
}
