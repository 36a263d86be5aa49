//! A Python component of some 19 MB, made by componentize-py, so that the tests push a component of a
//! third toolchain: CPython and its standard library inside.
//!
//! componentize-py comes from PyPI into a venv under `target/python`; the interfaces' text is that of the
//! wasmtime-wasi-http package that this workspace builds with. Where Python or PyPI is missing, the
//! component is skipped with the reason, which the tests print: a skip is never counted as a pass.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};
use cargo_metadata::MetadataCommand;

use crate::guests::{copy_if_changed, first_lines, is_newer, touch};
use crate::pypi;
use crate::run::{output, root};

const PACKAGE: &str = "componentize-py==0.25.0";

/// The world that the component is built for: a WASI 0.2 HTTP proxy, at the version of the package's text.
const WORLD: &str = "wasi:http/proxy";

/// Builds a component from one source file; the error is the reason for leaving it out.
pub(crate) fn build(source: &Path, to: &Path) -> Result<PathBuf, String> {
    let work = root().join("target/python");
    let stamp = work.join("installed");
    let installed = fs::read_to_string(&stamp).is_ok_and(|s| s == PACKAGE);
    if installed && is_newer(to, &[source, &stamp]) {
        return Ok(to.to_path_buf());
    }
    let fail = |what: &str, error: anyhow::Error| format!("{what}: {}", first_lines(&format!("{error:#}")));
    pypi::ensure(&work, PACKAGE)?;
    let wit = wit_folder().map_err(|e| fail("no text of the interfaces", e))?;
    // A copy: the Python inside writes its bytecode beside what it imports.
    let copy = work.join("app");
    fs::create_dir_all(&copy).and_then(|()| fs::copy(source, copy.join("app.py"))).map_err(|e| e.to_string())?;
    eprintln!("xtask: componentizing {} (10 to 30 s, once)", source.display());
    let made = work.join("made.wasm");
    let mut tool = Command::new("timeout");
    tool.arg("300").arg(work.join("venv/bin/componentize-py")).arg("--wit-path").arg(wit);
    tool.args(["--world", WORLD, "componentize", "app", "--python-path", "app", "--output"]).arg(&made);
    output(pypi::environment(&mut tool).current_dir(&work)).map_err(|e| fail("componentize-py failed", e))?;
    copy_if_changed(&made, to).and_then(|()| touch(to)).map_err(|e| fail("copy failed", e))?;
    Ok(to.to_path_buf())
}

/// Where Cargo has the text of the WASI 0.2 interfaces, at the version that the runtime links.
fn wit_folder() -> Result<PathBuf> {
    let metadata = MetadataCommand::new()
        .current_dir(root())
        .other_options(vec!["--locked".into()])
        .exec()
        .context("cargo metadata failed")?;
    let package = metadata
        .packages
        .iter()
        .find(|p| p.name.as_str() == "wasmtime-wasi-http")
        .context("no package wasmtime-wasi-http in the workspace")?;
    let folder = package.manifest_path.with_file_name("wit").into_std_path_buf();
    anyhow::ensure!(folder.is_dir(), "{} is not there", folder.display());
    Ok(folder)
}
