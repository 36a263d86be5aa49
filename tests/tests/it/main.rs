//! Integration tests over the real binaries. One binary, so that it links once; one module per promise.
//!
//! Each test starts a cluster of its own. They share the machine, so a permit lets only a few run at once:
//! a test's bounds are about Marcato, not about how many tests a runner starts.

mod cli;
mod crash;
mod edge;
mod escape;
mod garbage;
mod guests;
mod health;
mod hostile;
mod hosts;
mod lifecycle;
mod outbound;
mod owner;
mod policy;
mod protocols;
mod samples;
mod security;
mod shares;
mod soak;
mod streams;
mod trailers;
mod usage;

use std::sync::Mutex;

use anyhow::Result;
use marcato_tests::{Cluster, ClusterOptions};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Clusters at once: each is three processes, and the machines this runs on have two cores.
static PERMITS: Mutex<Option<std::sync::Arc<Semaphore>>> = Mutex::new(None);

async fn permit() -> OwnedSemaphorePermit {
    let semaphore = {
        let mut slot = PERMITS.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        slot.get_or_insert_with(|| std::sync::Arc::new(Semaphore::new(2))).clone()
    };
    semaphore.acquire_owned().await.expect("never closed")
}

/// A cluster together with its permit.
struct Running {
    cluster: Cluster,
    _permit: OwnedSemaphorePermit,
}

impl std::ops::Deref for Running {
    type Target = Cluster;
    fn deref(&self) -> &Cluster {
        &self.cluster
    }
}

impl std::ops::DerefMut for Running {
    fn deref_mut(&mut self) -> &mut Cluster {
        &mut self.cluster
    }
}

async fn cluster(hosts: u32) -> Result<Running> {
    cluster_with(hosts, &[]).await
}

/// A cluster with more arguments for `marcato up`.
async fn cluster_with(hosts: u32, arguments: &[&str]) -> Result<Running> {
    let permit = permit().await;
    let arguments = arguments.iter().map(|a| (*a).to_owned()).collect();
    Ok(Running { cluster: Cluster::start(ClusterOptions { hosts, arguments }).await?, _permit: permit })
}
