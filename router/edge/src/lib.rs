//! The request path: from a client's connection to a host's ingress and back.
//!
//! Flow: `listen` (accept, TLS, protocol; each connection on one of `workers`) → `admit` (strict checks, headers) → `proxy` (route, wait,
//! attempts) → `upstream` (pooled connections to hosts) → `download` (the response on its way back).
//! Owns the edge's limits, timeouts, retries, access log and metrics. Does not own the route table:
//! it reads one [`marcato_balance::TableCell`] per request, and never a lock, store or disk of the
//! control plane.

mod admit;
mod config;
mod connect;
mod conns;
mod download;
mod edge;
mod errors;
mod forwarded;
mod listen;
mod metrics;
mod observe;
mod owner;
mod proxy;
mod retry;
mod scrape;
mod upload;
mod upstream;
mod workers;

pub use config::{EdgeConfig, IpRange};
pub use edge::{Edge, EdgeError};

#[cfg(test)]
mod tests;
