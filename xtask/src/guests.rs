//! Guest components: every crate under `apps/` and `tests/guests/`, built for wasm32-wasip2 into
//! `target/guests/NAME.wasm`.
//!
//! That folder is under the clone whatever `CARGO_TARGET_DIR` says, so that a `marcato.toml` can name
//! its component by a relative path. Cargo decides what is stale; a component whose bytes did not
//! change keeps its file, so nothing downstream is woken.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use cargo_metadata::{Metadata, MetadataCommand, Package};

use crate::run::{cargo, root, run};
use crate::wasm_target::{self, TARGET, Toolchain};
use crate::{javascript, python, samples};

/// What was built.
pub(crate) struct Built {
    /// How the compiler was had.
    pub(crate) way: &'static str,
    /// Component files, by name.
    pub(crate) components: Vec<PathBuf>,
    /// Components of other toolchains that this machine cannot build, and why.
    pub(crate) skipped: Vec<(&'static str, String)>,
}

/// Where finished components lie.
pub(crate) fn folder() -> PathBuf {
    root().join("target/guests")
}

/// The workspace as Cargo sees it.
pub(crate) fn metadata() -> Result<Metadata> {
    MetadataCommand::new().current_dir(root()).no_deps().exec().context("cargo metadata failed")
}

/// Whether a package is built for wasm only: a guest, or the guests' SDK.
pub(crate) fn is_wasm(package: &Package) -> bool {
    let root = root();
    let path = package.manifest_path.as_std_path();
    ["apps", "tests/guests", "sdk/guest"].iter().any(|folder| path.starts_with(root.join(folder)))
}

/// Whether a package is itself a component.
fn is_component(package: &Package) -> bool {
    is_wasm(package) && package.targets.iter().any(|t| t.crate_types.iter().any(|c| c.to_string() == "cdylib"))
}

/// `--workspace` less the packages that do not build for this machine.
pub(crate) fn host_selection() -> Result<Vec<String>> {
    let mut arguments = vec!["--workspace".to_owned()];
    for package in metadata()?.packages.iter().filter(|p| is_wasm(p)) {
        arguments.extend(["--exclude".to_owned(), package.name.to_string()]);
    }
    Ok(arguments)
}

/// `-p` for each package that builds for wasm only.
pub(crate) fn wasm_selection() -> Result<Vec<String>> {
    Ok(metadata()?.packages.iter().filter(|p| is_wasm(p)).flat_map(|p| ["-p".to_owned(), p.name.to_string()]).collect())
}

/// Removes what an outer Cargo put into the environment; a nested build must not see it.
pub(crate) fn clean(command: &mut Command) -> &mut Command {
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        let ours = text.starts_with("CARGO") || text.starts_with("RUST");
        let kept = text == "CARGO_HOME" || text.starts_with("RUSTUP_") || text.starts_with("CARGO_TERM_");
        if ours && !kept {
            command.env_remove(&name);
        }
    }
    command
}

/// Cargo for guests: cleaned environment, its own target folder, the compiler that was found.
pub(crate) fn guest_cargo(toolchain: &Toolchain) -> Command {
    let mut command = cargo();
    clean(&mut command);
    if let Some(rustc) = &toolchain.rustc {
        command.env("RUSTC", rustc);
    }
    command.env("CARGO_TARGET_DIR", folder());
    command
}

/// Builds the guests in Rust, which is all that a running cluster and the benchmarks push.
pub(crate) fn rust() -> Result<Built> {
    let toolchain = wasm_target::ensure()?;
    Ok(Built { way: toolchain.way, components: rust_components(&toolchain)?, skipped: Vec::new() })
}

/// Builds every guest and every sample.
pub(crate) fn build() -> Result<Built> {
    let toolchain = wasm_target::ensure()?;
    let mut components = rust_components(&toolchain)?;
    let mut skipped = Vec::new();
    let others = root().join("tests/guests");
    let to = |name: &str| folder().join(format!("{name}.wasm"));
    let mut results = vec![
        ("guest-javascript", javascript::build(&others.join("javascript/app.js"), &to("guest-javascript"))),
        ("guest-python", python::build(&others.join("python/app.py"), &to("guest-python"))),
    ];
    results.extend(samples::build(&toolchain, &folder()));
    for (name, result) in results {
        // What the tests print in place of a result.
        let note = folder().join(format!("{name}.skipped"));
        match result {
            Ok(path) => {
                drop(fs::remove_file(&note));
                components.push(path);
            }
            Err(reason) => {
                fs::write(&note, &reason)?;
                skipped.push((name, reason));
            }
        }
    }
    Ok(Built { way: toolchain.way, components, skipped })
}

fn rust_components(toolchain: &Toolchain) -> Result<Vec<PathBuf>> {
    let metadata = metadata()?;
    let packages: Vec<&Package> = metadata.packages.iter().filter(|p| is_component(p)).collect();
    let mut command = guest_cargo(toolchain);
    command.args(["build", "--quiet", "--locked", "--profile", "guest", "--target", TARGET]);
    for package in &packages {
        command.args(["-p", package.name.as_str()]);
    }
    run(&mut command)?;
    let output = folder().join(TARGET).join("guest");
    packages
        .iter()
        .map(|package| {
            let built = output.join(format!("{}.wasm", package.name.replace('-', "_")));
            let to = folder().join(format!("{}.wasm", package.name));
            copy_if_changed(&built, &to)?;
            Ok(to)
        })
        .collect()
}

/// Copies a component unless the same bytes are there.
pub(crate) fn copy_if_changed(from: &Path, to: &Path) -> Result<()> {
    let bytes = fs::read(from).with_context(|| format!("no component at {}", from.display()))?;
    if fs::read(to).is_ok_and(|old| old == bytes) {
        return Ok(());
    }
    // Renamed into place, so that no reader sees half a component.
    let part = to.with_extension("part");
    fs::write(&part, bytes)?;
    Ok(fs::rename(&part, to)?)
}

/// Marks a component as made now: its bytes may be the same as before.
pub(crate) fn touch(file: &Path) -> Result<()> {
    Ok(fs::File::open(file)?.set_modified(std::time::SystemTime::now())?)
}

/// Whether a file is there and no older than any of its sources.
pub(crate) fn is_newer(file: &Path, sources: &[&Path]) -> bool {
    let modified = |p: &Path| fs::metadata(p).and_then(|m| m.modified()).ok();
    match modified(file) {
        Some(made) => sources.iter().all(|s| modified(s).is_some_and(|t| t <= made)),
        None => false,
    }
}

/// The beginning of another program's words, on one line.
pub(crate) fn first_lines(text: &str) -> String {
    text.lines().take(6).collect::<Vec<_>>().join(" | ")
}

/// Says what was built, for people.
pub(crate) fn print(built: &Built) {
    println!("guests: {}", built.way);
    for path in &built.components {
        let size = fs::metadata(path).map_or(0, |m| m.len());
        println!("  {:>9.2} MB  {}", size as f64 / 1e6, path.display());
    }
    for (name, reason) in &built.skipped {
        println!("  skipped: {name}: {reason}");
    }
}
