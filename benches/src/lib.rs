//! Measuring Marcato beside its peers: a closed-loop load generator, CPU and memory of the servers from
//! `/proc`, the servers themselves, and the report.
//!
//! Everything here reports and nothing judges by the clock: a benchmark never fails because a machine was
//! slow. Ratios between subjects of the same run are what counts; see `BUDGETS.md`.

mod budgets;
mod closed_loop;
mod fair;
mod identity;
mod idle;
mod moments;
mod plot;
mod rounds;
mod serving;
mod subjects;
mod table;

pub use budgets::{Budget, Verdict, judge, update};
pub use closed_loop::{Round, run};
pub use fair::{Beside, measure as measure_fairness};
pub use idle::{Cold, Idle, Rest, measure as measure_idle};
pub use moments::{Moments, measure as measure_moments};
pub use plot::draw;
pub use rounds::{Measured, Shape, measure};
pub use serving::{Marcato, REUSE, health_session, ingress};
pub use subjects::{Peer, Peers, Subject};
pub use table::{Results, render};
