//! What integration tests and benchmarks stand on: a cluster of the real binaries in a temporary
//! folder, a plain HTTP client that hides no retry, a steady load that counts every failure, and what
//! `/proc` says of a process.
//!
//! Nothing here knows how Marcato works inside: it starts `marcato up`, speaks HTTP, and sends signals
//! to processes that it started itself.

mod admin;
mod client;
mod cluster;
mod load;
mod process;
mod soak;
mod wait;

pub use admin::{Admin, Deploy};
pub use client::{Answer, Connection, RequestBody, Socket, Target, empty, full, tls_config};
pub use cluster::{Cluster, ClusterOptions, Endpoints, guest, guest_if_built, marcato};
pub use load::{Failure, Load, LoadReport};
pub use process::{
    Pid, children, cpu_micros, end, hang_up, is_alive, keep_to_cores, kill_now, resident_bytes, stop_and_continue,
    tree, tree_resident_bytes,
};
pub use soak::{Held, Sample, SoakReport, soak};
pub use wait::until;
