//! `cargo xtask bench`: builds what is measured and its peers, then runs `marcato-bench`.
//!
//! Owns: getting wasmtime's own command from the registry into `target/peers` (once; it takes minutes)
//! and nginx from Debian. The measuring itself is in `benches/`.

use std::path::PathBuf;

use anyhow::Result;

use crate::run::{cargo, root, run, target_dir};
use crate::{debian, guests};

/// The same wasmtime as ours, so that only what is built around it differs.
const WASMTIME: &str = "48.0.8";

/// Builds everything and measures.
pub(crate) fn bench(arguments: &[String]) -> Result<()> {
    debian::ensure_program("cc", &["gcc", "libc6-dev"])?;
    if let Err(error) = debian::ensure_program("nginx", &["nginx-light"]) {
        println!("xtask: without nginx: {error:#}");
    }
    guests::print(&guests::rust()?);
    let wasmtime = peer()?;
    run(cargo().args(["build", "--release", "--locked", "-p", "marcato-cli", "-p", "marcato-benches"]))?;
    run(std::process::Command::new(target_dir().join("release/marcato-bench"))
        .current_dir(root())
        .env("MARCATO_BIN", target_dir().join("release/marcato"))
        .env("MARCATO_GUESTS", guests::folder())
        // As `marcato up` has it; the peers log no requests either.
        .env("MARCATO_LOG", "warn")
        .arg("--wasmtime")
        .arg(wasmtime)
        .arg("--guests")
        .arg(guests::folder())
        .args(arguments))
}

fn peer() -> Result<PathBuf> {
    let folder = root().join("target/peers");
    let binary = folder.join("bin/wasmtime");
    if !binary.exists() {
        println!("xtask: cargo install wasmtime-cli {WASMTIME} into {} (minutes, once)", folder.display());
        run(guests::clean(&mut cargo()).args(["install", "--quiet", "--locked", "--root"]).arg(&folder).args([
            "wasmtime-cli",
            "--version",
            WASMTIME,
            "--no-default-features",
            "--features",
            "serve,run,cranelift,pooling-allocator,component-model,component-model-async,parallel-compilation,cache",
        ]))?;
    }
    Ok(binary)
}
