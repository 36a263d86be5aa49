//! Decides what runs where: a pure function of desired state, inventories, the previous placement and time.
//!
//! Owns: placement, roll-out, drain, phases of revisions, and the checker. Does not own: any I/O, clock or
//! execution; tasks carry a [`Plan`] out without choices of their own. Flow: store and inventories ->
//! [`plan`] -> push and publish.

mod app;
mod check;
mod host;
mod inputs;
mod place;
mod planner;

pub use check::{Violation, check};
pub use inputs::{
    AppInput, Endpoint, HostInput, HostPlan, Inputs, PhaseChange, Placed, Placement, Plan, Provision, ServiceInput,
    Settings,
};
pub use planner::plan;

#[cfg(test)]
mod tests;
