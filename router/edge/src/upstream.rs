//! Kept-alive connections to hosts, and one request over one of them.
//!
//! A pool per address, found without a lock; taking a connection out of a pool is a short lock that
//! only requests to that host share. Last in, first out: the connections that a quiet time does not
//! need grow old at the front and are closed.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::http1::SendRequest;
use marcato_api::HostAddress;
use marcato_balance::{Endpoint, RouteTable};

use crate::connect::{ConnectError, Connector};
use crate::conns::Clock;
use crate::upload::RequestBody;

/// Why a request got no response.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SendError {
    /// The host has seen nothing of it.
    #[error("the host could not be reached")]
    NotSent(#[source] ConnectError),
    /// It was sent, in part at least.
    #[error("the connection broke before a response came")]
    Sent(#[source] hyper::Error),
}

/// All pools.
pub(crate) struct Upstream {
    connector: Connector,
    clock: Clock,
    pools: arc_swap::ArcSwap<HashMap<HostAddress, Arc<HostPool>>>,
    idle_per_host: usize,
    idle_ms: u64,
}

/// Idle connections to one address.
pub(crate) struct HostPool {
    clock: Clock,
    most: usize,
    /// Oldest first, with the time since when they are idle.
    idle: Mutex<Vec<(SendRequest<RequestBody>, u64)>>,
}

impl HostPool {
    fn idle(&self) -> MutexGuard<'_, Vec<(SendRequest<RequestBody>, u64)>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection while it carries a request; closed when dropped, unless released.
pub(crate) struct Lease {
    sender: SendRequest<RequestBody>,
    pool: Arc<HostPool>,
}

impl Lease {
    /// Back to its pool. The connection's task may need a moment to be ready for the next request.
    pub(crate) fn release(self) {
        if self.sender.is_closed() {
            return;
        }
        let now = self.pool.clock.now_ms();
        let mut idle = self.pool.idle();
        if idle.len() < self.pool.most {
            idle.push((self.sender, now));
        }
    }
}

impl Upstream {
    pub(crate) fn new(connector: Connector, clock: Clock, idle_per_host: usize, idle_ms: u64) -> Self {
        Self { connector, clock, pools: arc_swap::ArcSwap::default(), idle_per_host, idle_ms }
    }

    fn pool(&self, address: &HostAddress) -> Arc<HostPool> {
        if let Some(pool) = self.pools.load().get(address) {
            return Arc::clone(pool);
        }
        let new = Arc::new(HostPool { clock: self.clock, most: self.idle_per_host, idle: Mutex::default() });
        self.pools.rcu(|pools| {
            let mut pools = HashMap::clone(pools);
            pools.entry(address.clone()).or_insert_with(|| Arc::clone(&new));
            pools
        });
        // Another request may have been first.
        self.pools.load().get(address).map_or(new, Arc::clone)
    }

    /// Sends a request and waits for the response's header. A kept-alive connection that turns out to
    /// be dead before the request was written costs nothing: the next one is taken.
    pub(crate) async fn send(
        &self,
        endpoint: &Endpoint,
        mut request: Request<RequestBody>,
    ) -> Result<(Response<Incoming>, Lease), SendError> {
        let pool = self.pool(&endpoint.address);
        loop {
            let kept = pool.idle().pop();
            let (mut sender, reused) = match kept {
                Some((mut sender, _)) => {
                    if sender.ready().await.is_err() {
                        continue;
                    }
                    (sender, true)
                }
                None => (self.connector.connect(endpoint).await.map_err(SendError::NotSent)?, false),
            };
            match sender.try_send_request(request).await {
                Ok(response) => return Ok((response, Lease { sender, pool })),
                Err(mut error) => match error.take_message() {
                    Some(unsent) if reused => request = unsent,
                    Some(_) => return Err(SendError::NotSent(ConnectError::Closed(error.into_error()))),
                    None => return Err(SendError::Sent(error.into_error())),
                },
            }
        }
    }

    /// Closes connections that were idle too long, and pools of addresses that no table names.
    pub(crate) fn tidy(&self, table: &RouteTable) {
        let now = self.clock.now_ms();
        let pools = self.pools.load_full();
        for pool in pools.values() {
            pool.idle().retain(|(c, since)| !c.is_closed() && now.saturating_sub(*since) < self.idle_ms);
        }
        let named: HashSet<&HostAddress> = table.apps().flat_map(|a| &a.endpoints).map(|e| &e.address).collect();
        let unused = |(address, pool): (&HostAddress, &Arc<HostPool>)| {
            !named.contains(address) && pool.idle().is_empty() && Arc::strong_count(pool) == 1
        };
        if pools.iter().any(unused) {
            self.pools.rcu(|pools| {
                pools.iter().filter(|p| !unused(*p)).map(|(a, p)| (a.clone(), Arc::clone(p))).collect::<HashMap<_, _>>()
            });
        }
    }

    /// Closes every idle connection.
    pub(crate) fn close(&self) {
        self.pools.load().values().for_each(|pool| pool.idle().clear());
    }
}
