//! `cargo xtask`: everything that a person or CI runs on a clone of Marcato.
//!
//! Owns: set-up of a fresh machine, building guests, the checks and their order, starting a cluster
//! for a person. Does not own: any behaviour of Marcato itself; it only runs the same binaries that
//! an operator runs.

mod bench;
mod debian;
mod deps;
mod fuzz;
mod guests;
mod house;
mod javascript;
mod promises;
mod pypi;
mod python;
mod run;
mod samples;
mod soak;
mod test;
mod up;
mod wasm_target;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Set-up, guests, checks and the whole test run of Marcato.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Set this machine up, build all, start a cluster, push hello and health, stay until Ctrl-C.
    Up {
        /// Passed on to `marcato up` (for example `-- --hosts 2 --data DIR`).
        #[arg(last = true)]
        args: Vec<String>,
    },
    /// Formatting, lints, import table, guests, all tests, docs. What CI runs.
    Test {
        /// Passed on to `cargo test` (for example `-- planner`): then only the tests run.
        #[arg(last = true)]
        args: Vec<String>,
    },
    /// Build every guest component into `target/guests`.
    Guests,
    /// Check who imports whom, and the house rules on files.
    Deps,
    /// Measure Marcato beside its peers; writes benches/results and benches/BUDGETS.md.
    Bench {
        /// Passed on to `marcato-bench` (for example `-- --quick`).
        #[arg(last = true)]
        args: Vec<String>,
    },
    /// Fuzz for longer than the tests do: every target, or those with TARGET in their names.
    Fuzz {
        /// Part of a target's name; `--list` shows them.
        target: Option<String>,
        /// How long each target runs.
        #[arg(long, default_value_t = 60)]
        seconds: u64,
        /// Let libFuzzer choose the inputs by what they cover (installs cargo-bolero into target/tools, builds anew).
        #[arg(long)]
        coverage: bool,
        /// Only name the targets.
        #[arg(long)]
        list: bool,
    },
    /// Ask a cluster of this build for a million things, good and hostile; print what its processes held.
    Soak {
        /// Passed on to `marcato-soak` (for example `-- --requests 20000`).
        #[arg(last = true)]
        args: Vec<String>,
    },
}

fn main() -> ExitCode {
    let result = match Cli::parse().verb {
        Verb::Up { args } => up::up(&args),
        Verb::Test { args } => test::test(&args),
        Verb::Guests => guests::build().map(|built| guests::print(&built)),
        Verb::Deps => deps::check().and_then(|()| house::check()).and_then(|()| promises::check()),
        Verb::Bench { args } => bench::bench(&args),
        Verb::Fuzz { target, seconds, coverage, list } => fuzz::fuzz(&fuzz::Wish { target, seconds, coverage, list }),
        Verb::Soak { args } => soak::soak(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}
