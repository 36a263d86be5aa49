//! What a process takes from itself before it touches a tenant's bytes: the second wall, behind WebAssembly's.
//!
//! Owns: namespaces, a root of a few read-only folders, an unprivileged user, resource limits, Landlock, the seccomp
//! filter, and the report of what of it this machine had. Does not own: who is started with which plan (`hostd`, the
//! `marcato` command) and what a lack means (`--require-confinement`). Intent flow, once per process.
//!
//! ```no_run
//! # fn serve() {}
//! use marcato_confine::{Plan, enter, seal};
//! // First in main, while there is one thread:
//! let plan = Plan::worker(vec!["/var/lib/marcato/workers/shared".into()], vec![3, 4]);
//! let mut report = enter(&plan)?; // from here in a process of its own, without privileges, files, network
//! // ... threads, engine, pool: what must open /proc/self/pagemap does it now ...
//! seal(&plan, &mut report)?; // before the first guest
//! assert!(report.is_full(), "{report}");
//! serve();
//! # Ok::<(), marcato_confine::ConfineError>(())
//! ```
//!
//! [`enter()`] forks. The outer process closes every descriptor, waits, hands SIGTERM on, ends as the inner one ends, and
//! takes it along when it dies, or when its own parent does. What the kernel refuses is in the report and not an error.
//! An error means that the plan is wrong or that the process is half way in: end it.

mod cgroup;
mod drop_rights;
mod enter;
mod error;
mod files;
mod limits;
mod namespaces;
mod outer;
mod plan;
mod root;
mod seal;
mod sys;
mod system_calls;

pub use cgroup::{Delegated, GroupLimits, delegated};
pub use enter::enter;
pub use error::ConfineError;
pub use marcato_api::{ConfinementReport, Measure, MeasureStatus};
pub use plan::{Plan, Profile, worker_user};
pub use seal::seal;
