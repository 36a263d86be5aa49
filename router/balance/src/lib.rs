//! The route table and the choice of an endpoint: pure, without I/O, clock or randomness of its own.
//!
//! Owns: which app a host name and path lead to ([`RouteTable`]), which instance takes a request
//! ([`pick()`]), when an endpoint that fails is left out ([`BreakerPolicy`]), what is counted of an app
//! ([`AppStats`]), what debug tokens are made and checked with ([`DebugKey`]), and the one cell through which the
//! control plane hands tables to the request path ([`TableCell`]). Does not own: connections (edge) nor what should be
//! in a table (plan). Time comes in (monotonic milliseconds; for tokens seconds since 1970), randomness as a function.

mod cell;
mod debug;
mod endpoint;
mod pick;
mod stats;
mod table;

pub use cell::TableCell;
pub use debug::{DebugKey, DebugVerdict};
pub use endpoint::{BreakerPolicy, Endpoint, EndpointSpec, EndpointStats, InFlight};
pub use pick::pick;
pub use stats::{AppStats, CLASSES, DURATION_BOUNDS_US, Durations, class};
pub use table::{AppEntry, AppSpec, RouteTable};

#[cfg(test)]
mod tests;
