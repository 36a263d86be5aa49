//! `cargo xtask test`: the whole proof, in the order in which a mistake is cheapest to find. Stops at
//! the first step that fails and names it. One profile for everything and no release build, so that
//! a fresh clone is through in half an hour on two cores.

use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result};

use crate::guests::{self, guest_cargo, host_selection, wasm_selection};
use crate::run::{cargo, run, target_dir};
use crate::wasm_target::{self, TARGET};
use crate::{debian, deps, house, promises};

/// Runs every step; with arguments only the tests, passing them on.
pub(crate) fn test(arguments: &[String]) -> Result<()> {
    if !arguments.is_empty() {
        step("guests", build_guests)?;
        step("marcato", build_binary)?;
        return step("tests", || run(test_command(&host_selection()?).args(arguments)));
    }
    let begin = Instant::now();
    step("set-up", set_up)?;
    step("format", || run(cargo().args(["fmt", "--all", "--check"])))?;
    step("import table and house rules", || {
        deps::check().and_then(|()| house::check()).and_then(|()| promises::check())
    })?;
    step("guests", build_guests)?;
    step("clippy of guests", clippy_guests)?;
    step("clippy", || {
        run(cargo()
            .args(["clippy", "--quiet", "--locked", "--all-targets"])
            .args(host_selection()?)
            .args(["--", "-D", "warnings"]))
    })?;
    step("docs", || {
        run(cargo()
            .args(["doc", "--quiet", "--locked", "--no-deps", "--document-private-items"])
            .args(host_selection()?)
            .env("RUSTDOCFLAGS", "-D warnings"))
    })?;
    step("marcato", build_binary)?;
    // Its pages and forms are plain code: they are tested on this machine, without a sandbox.
    step("tests of the health application", || run(cargo().args(["test", "--quiet", "--locked", "-p", "health"])))?;
    // Last, so that cargo's closing lines close the run.
    step("tests", || run(test_command(&host_selection()?).arg("--no-fail-fast")))?;
    println!("xtask: all steps passed in {} s", begin.elapsed().as_secs());
    Ok(())
}

fn step(name: &str, work: impl FnOnce() -> Result<()>) -> Result<()> {
    println!("xtask: {name}");
    let begin = Instant::now();
    work().with_context(|| format!("step \"{name}\" failed"))?;
    println!("xtask: {name}: done in {:.1} s", begin.elapsed().as_secs_f32());
    Ok(())
}

fn set_up() -> Result<()> {
    debian::ensure_program("cc", &["gcc", "libc6-dev"])?;
    debian::ensure_program("chromium", &["chromium", "fonts-dejavu-core"])?;
    debian::ensure_program("chromedriver", &["chromium-driver"])
}

fn build_guests() -> Result<()> {
    guests::print(&guests::build()?);
    Ok(())
}

fn clippy_guests() -> Result<()> {
    let toolchain = wasm_target::ensure()?;
    if toolchain.rustc.is_some() {
        // clippy-driver cannot use another compiler's library.
        println!("xtask: clippy of guests: skipped, their library is not the toolchain's own");
        return Ok(());
    }
    run(guest_cargo(&toolchain)
        .args(["clippy", "--quiet", "--locked", "--profile", "guest", "--target", TARGET])
        .args(wasm_selection()?)
        .args(["--", "-D", "warnings"]))
}

/// The binary that integration tests start, together with the tests: one selection and one set of
/// features, so that nothing is compiled twice.
fn build_binary() -> Result<()> {
    run(cargo().args(["build", "--quiet", "--locked", "--bins", "--tests"]).args(host_selection()?))
}

fn test_command(selection: &[String]) -> Command {
    let mut command = cargo();
    command
        .args(["test", "--locked"])
        .args(selection)
        .env("MARCATO_BIN", target_dir().join("debug/marcato"))
        .env("MARCATO_GUESTS", guests::folder())
        // Of panics, not of every error that a test returns.
        .env("RUST_LIB_BACKTRACE", "0");
    command
}
