//! `marcato`: the client verbs, and the servers of a cloud in miniature, in one binary.
//!
//! Owns the command line, the manifest, the saved login and the supervisor `up`. Does not own the servers'
//! work (`marcato-router`, `marcato-hostd`) nor transport (`marcato-client`).

mod args;
mod component;
mod failure;
mod files;
mod login;
mod manifest;
mod output;
mod server;
mod up;
mod verbs;
mod wait;

use std::io::Write;
use std::process::ExitCode;

use clap::Parser;

/// The router's and the hosts' work is many small allocations on many threads.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let cli = args::Cli::parse();
    let json = cli.json();
    let Err(error) = cli.run() else { return ExitCode::SUCCESS };
    let Some(verdict) = failure::judge(&error) else { return ExitCode::SUCCESS };
    let mut err = std::io::stderr().lock();
    // Nobody reads it when stderr is closed; the exit code still tells.
    let _ = if json {
        let value = serde_json::json!({ "error": {
            "code": verdict.code as u8,
            "kind": verdict.kind,
            "message": verdict.message,
            "next": verdict.next,
        }});
        writeln!(err, "{value}")
    } else {
        let next = verdict.next.map(|n| format!("\nnext: {}", output::clean(&n))).unwrap_or_default();
        writeln!(err, "error: {}{next}", output::clean(&verdict.message))
    };
    ExitCode::from(verdict.code as u8)
}
