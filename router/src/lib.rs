//! The router process: edge and control plane in one program.
//!
//! Owns: how they are wired, and the order of start and end. Does not own what either does.

mod app;

pub use app::{RouterConfig, RouterError, run};
