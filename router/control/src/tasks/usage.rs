//! Gathers usage: from each host's ledger what changed since the last time, and of each service how much it stores.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use marcato_api::{AppName, HostApi, ServiceName};
use tokio_util::sync::CancellationToken;

use super::Shared;
use super::hosts::Link;
use crate::state::Desired;
use crate::usage::{StoredBytes, UsageError, hour_of};

/// How often a host is asked.
const EVERY: Duration = Duration::from_secs(2);
/// After a failure.
const RETRY: Duration = Duration::from_secs(10);
/// Hours that a host is asked for at once.
const PAGE: u32 = 1_000;
/// A host that has nothing new is noted as heard this often: each note is a write to the disk.
const HEARD_EVERY: Duration = Duration::from_secs(30);
/// How often sizes of services are noted.
const SIZES_EVERY: Duration = Duration::from_secs(60);

/// Gathers one host's ledger.
pub(crate) async fn run(link: Arc<Link>, stop: CancellationToken) {
    let mut noted = None;
    loop {
        let pause = match stop.run_until_cancelled(gather(&link, &mut noted)).await {
            None => return,
            Some(true) => EVERY,
            Some(false) => RETRY,
        };
        if stop.run_until_cancelled(tokio::time::sleep(pause)).await.is_none() {
            return;
        }
    }
}

/// Reads until nothing is new. False: it did not work.
async fn gather(link: &Link, noted: &mut Option<tokio::time::Instant>) -> bool {
    let store = &link.shared.tasks.usage;
    loop {
        let cursor = match store.cursor(&link.id).await {
            Ok(cursor) => cursor,
            Err(error) => return failed(&error),
        };
        let page = match link.client.usage(cursor, PAGE).await {
            Ok(page) => page,
            Err(problem) => {
                // A silent host is said where it is asked for its inventory.
                tracing::debug!(host = %link.id, %problem, "the host's usage cannot be read");
                return false;
            }
        };
        let now = Timestamp::now();
        let moved = page.next != cursor;
        if moved {
            let more = page.more;
            if let Err(error) = store.fold(&link.id, page.items, page.next, now).await {
                return failed(&error);
            }
            *noted = Some(tokio::time::Instant::now());
            if more {
                continue;
            }
        } else if noted.is_none_or(|at| at.elapsed() > HEARD_EVERY) {
            if let Err(error) = store.heard(&link.id, now).await {
                return failed(&error);
            }
            *noted = Some(tokio::time::Instant::now());
        }
        return true;
    }
}

fn failed(error: &UsageError) -> bool {
    tracing::error!(?error, "usage cannot be kept; trying again");
    false
}

/// Notes what services store, and forgets what is too old.
pub(crate) async fn run_sizes(shared: Arc<Shared>, shutdown: CancellationToken) {
    let mut trimmed = 0;
    loop {
        let now = Timestamp::now();
        match shared.tasks.state.desired(&[]).await {
            Ok(desired) => {
                let sizes = sizes(&shared, &desired);
                if let Err(error) = shared.tasks.usage.stored(sizes, now).await {
                    failed(&error);
                }
            }
            Err(error) => tracing::warn!(%error, "services cannot be read"),
        }
        if hour_of(now) != trimmed {
            match shared.tasks.usage.trim(now).await {
                Ok(()) => trimmed = hour_of(now),
                Err(error) => drop(failed(&error)),
            }
        }
        if shutdown.run_until_cancelled(tokio::time::sleep(SIZES_EVERY)).await.is_none() {
            return;
        }
    }
}

/// The apps that services belong to: of several that bind one, the first by name.
fn owners(desired: &Desired) -> BTreeMap<&ServiceName, &AppName> {
    let mut owners = BTreeMap::new();
    for (app, _) in &desired.apps {
        for number in [app.current, app.stable].into_iter().flatten() {
            let bindings = desired.revisions.get(&(app.name.clone(), number)).map(|r| &r.config.bindings);
            for binding in bindings.into_iter().flatten() {
                owners.entry(&binding.service).or_insert(&app.name);
            }
        }
    }
    owners
}

fn sizes(shared: &Shared, desired: &Desired) -> Vec<StoredBytes> {
    let (owners, observed) = (owners(desired), shared.tasks.observed.snapshot());
    desired
        .services
        .iter()
        .filter_map(|service| {
            let inventory = observed.hosts.get(&service.owner)?.inventory.as_ref()?;
            let status = inventory.services.iter().find(|s| s.id == service.id)?;
            Some(StoredBytes {
                service: service.id.clone(),
                org: service.org.clone(),
                app: owners.get(&service.name).map(|app| (*app).clone()),
                bytes: status.bytes.0,
            })
        })
        .collect()
}
