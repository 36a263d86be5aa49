//! `cargo xtask soak`: builds the guests and the binaries, then runs `marcato-soak` from the tests' package.

use anyhow::Result;

use crate::guests;
use crate::run::{cargo, root, run, target_dir};

/// Builds everything and soaks.
pub(crate) fn soak(arguments: &[String]) -> Result<()> {
    guests::print(&guests::rust()?);
    run(cargo().args(["build", "--release", "--locked", "-p", "marcato-cli", "-p", "marcato-tests", "--bins"]))?;
    run(std::process::Command::new(target_dir().join("release/marcato-soak"))
        .current_dir(root())
        .env("MARCATO_BIN", target_dir().join("release/marcato"))
        .env("MARCATO_GUESTS", guests::folder())
        .env("MARCATO_LOG", "warn")
        .args(arguments))
}
