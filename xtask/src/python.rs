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

use crate::guests::{clean, copy_if_changed, first_lines, is_newer, touch};
use crate::run::{has_program, output, root};

const PACKAGE: &str = "componentize-py==0.25.0";

/// The world that the component is built for: a WASI 0.2 HTTP proxy, at the version of the package's text.
const WORLD: &str = "wasi:http/proxy";

/// Builds it; the error is the reason for leaving it out.
pub(crate) fn build(folder: &Path) -> Result<PathBuf, String> {
    let source = root().join("tests/guests/python/app.py");
    let work = root().join("target/python");
    let to = folder.join("guest-python.wasm");
    let stamp = work.join("installed");
    let installed = fs::read_to_string(&stamp).is_ok_and(|s| s == PACKAGE);
    if installed && is_newer(&to, &[&source, &stamp]) {
        return Ok(to);
    }
    let fail = |what: &str, error: anyhow::Error| format!("{what}: {}", first_lines(&format!("{error:#}")));
    if !installed {
        install(&work)?;
        fs::write(&stamp, PACKAGE).map_err(|e| e.to_string())?;
    }
    let wit = wit_folder().map_err(|e| fail("no text of the interfaces", e))?;
    // A copy: the Python inside writes its bytecode beside what it imports.
    let copy = work.join("app");
    fs::create_dir_all(&copy).and_then(|()| fs::copy(&source, copy.join("app.py"))).map_err(|e| e.to_string())?;
    eprintln!("xtask: componentizing Python (10 to 30 s, once)");
    let made = work.join("guest-python.wasm");
    let mut tool = Command::new("timeout");
    tool.arg("300").arg(work.join("venv/bin/componentize-py")).arg("--wit-path").arg(wit);
    tool.args(["--world", WORLD, "componentize", "app", "--python-path", "app", "--output"]).arg(&made);
    output(environment(&mut tool).current_dir(&work)).map_err(|e| fail("componentize-py failed", e))?;
    copy_if_changed(&made, &to).and_then(|()| touch(&to)).map_err(|e| fail("copy", e))?;
    Ok(to)
}

/// Makes the venv and installs componentize-py into it.
fn install(work: &Path) -> Result<(), String> {
    if !has_program("python3") {
        return Err("python3 is not installed (Debian: sudo apt-get install python3 python3-venv)".into());
    }
    fs::create_dir_all(work).map_err(|e| e.to_string())?;
    eprintln!("xtask: pip install {PACKAGE} (once, into {})", work.display());
    let mut venv = Command::new("timeout");
    venv.args(["120", "python3", "-m", "venv", "--clear", "venv"]);
    output(environment(&mut venv).current_dir(work)).map_err(|e| {
        let said = first_lines(&format!("{e:#}"));
        format!("python3 makes no venv (Debian: sudo apt-get install python3-venv): {said}")
    })?;
    let mut pip = Command::new("timeout");
    pip.args(["300", "venv/bin/pip", "install", "--quiet", "--disable-pip-version-check", "--only-binary=:all:"]);
    output(environment(pip.arg(PACKAGE)).current_dir(work))
        .map_err(|e| format!("pip install failed: {}", first_lines(&format!("{e:#}"))))?;
    Ok(())
}

/// Neither Cargo's environment nor that of a Python program around us.
fn environment(command: &mut Command) -> &mut Command {
    for name in ["PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV"] {
        command.env_remove(name);
    }
    clean(command)
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
