//! Typed clients of both APIs: [`AdminClient`] for operators and tests, [`HostClient`] for the control
//! plane and for hosts that use another host's service.
//!
//! Owns: transport (TLS over TCP and Unix sockets), timeouts per call, and turning every failure into
//! a [`marcato_api::Problem`]. Does not own: types and paths (`marcato-api`), retries beyond what a pooled connection
//! needs, or anything that reads a saved login (`marcato-cli`).

mod admin;
mod body;
mod call;
mod connect;
mod host;
mod logs;
mod trust;
mod unverified;

pub use admin::AdminClient;
pub use host::HostClient;
pub use trust::{Fingerprint, Trust, TrustError};
pub use unverified::fetch_ca;

#[cfg(test)]
mod tests;
