//! Tools that come from PyPI: componentize-py, and the compilers of Zig and Go, which nothing else packages for
//! every machine in a version that is new enough. Each has a venv of its own below `target/`; only ready-made packages are taken.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::guests::{clean, first_lines};
use crate::run::{has_program, output};

/// Makes sure that `work/venv` holds `package` (`name==version`). Errors: why it cannot be had.
pub(crate) fn ensure(work: &Path, package: &str) -> Result<(), String> {
    let stamp = work.join("installed");
    if fs::read_to_string(&stamp).is_ok_and(|s| s == package) {
        return Ok(());
    }
    if !has_program("python3") {
        return Err("python3 is not installed (Debian: sudo apt-get install python3 python3-venv)".into());
    }
    fs::create_dir_all(work).map_err(|e| e.to_string())?;
    eprintln!("xtask: pip install {package} (once, into {})", work.display());
    let mut venv = Command::new("timeout");
    venv.args(["120", "python3", "-m", "venv", "--clear", "venv"]);
    output(environment(&mut venv).current_dir(work)).map_err(|e| {
        let said = first_lines(&format!("{e:#}"));
        format!("python3 makes no venv (Debian: sudo apt-get install python3-venv): {said}")
    })?;
    let mut pip = Command::new("timeout");
    pip.args(["300", "venv/bin/pip", "install", "--quiet", "--disable-pip-version-check", "--only-binary=:all:"]);
    output(environment(pip.arg(package)).current_dir(work))
        .map_err(|e| format!("{package} cannot be had from PyPI: {}", first_lines(&format!("{e:#}"))))?;
    fs::write(&stamp, package).map_err(|e| e.to_string())
}

/// Neither Cargo's environment nor that of a Python program around us.
pub(crate) fn environment(command: &mut Command) -> &mut Command {
    for name in ["PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV"] {
        command.env_remove(name);
    }
    clean(command)
}
