//! Programs that come from Debian packages: installed where that is allowed (root and apt-get), else
//! the exact line to run is the error.

use std::process::{Command, Stdio};

use anyhow::{Result, bail};

use crate::run::{has_program, run};

/// Makes sure that `program` is there; else installs `packages`.
pub(crate) fn ensure_program(program: &str, packages: &[&str]) -> Result<()> {
    if has_program(program) {
        return Ok(());
    }
    install(&format!("program `{program}`"), packages)?;
    if has_program(program) {
        Ok(())
    } else {
        bail!("{packages:?} were installed, yet there is no `{program}` on PATH")
    }
}

/// Installs Debian packages, or says what to run.
pub(crate) fn install(what: &str, packages: &[&str]) -> Result<()> {
    let line = format!("apt-get install -y --no-install-recommends {}", packages.join(" "));
    if !has_program("apt-get") {
        bail!("{what} is missing. On Debian: sudo {line}; elsewhere install what gives the same program");
    }
    if !nix::unistd::geteuid().is_root() {
        bail!("{what} is missing. Run: sudo apt-get update && sudo {line}");
    }
    eprintln!("xtask: {what} is missing: {line}");
    let apt = |args: &[&str]| {
        run(Command::new("apt-get")
            .env("DEBIAN_FRONTEND", "noninteractive")
            .args(["-q", "-y"])
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::null()))
    };
    let arguments: Vec<&str> = ["install", "--no-install-recommends"].iter().chain(packages).copied().collect();
    // Lists may be old or absent on a fresh machine: then fetch them and try once more.
    if apt(&arguments).is_err() {
        apt(&["update"])?;
        apt(&arguments)?;
    }
    Ok(())
}
