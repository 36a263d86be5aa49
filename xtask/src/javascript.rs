//! A JavaScript component of some 10 MB, bundled with esbuild and made by componentize-js, so that
//! the tests push a component of another toolchain and of real size.
//!
//! Its tools come from npm into `target/js`. Where npm or its registry is missing, the component is
//! skipped with the reason, which the tests print: a skip is never counted as a pass.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::Result;

use crate::guests::{clean, copy_if_changed};
use crate::run::{has_program, output, root};

const PACKAGES: [&str; 2] = ["@bytecodealliance/componentize-js@0.23.0", "esbuild@0.28.2"];

/// Builds it; the inner error is the reason for leaving it out.
pub(crate) fn build(folder: &Path) -> Result<Result<PathBuf, String>> {
    let sources = root().join("tests/guests/javascript");
    let to = folder.join("guest-javascript.wasm");
    let note = folder.join("guest-javascript.skipped");
    let work = root().join("target/js");
    let result = attempt(&sources, &work, &to);
    match &result {
        Ok(_) => drop(fs::remove_file(&note)),
        Err(reason) => {
            fs::create_dir_all(folder)?;
            fs::write(&note, reason)?;
        }
    }
    Ok(result)
}

fn attempt(sources: &Path, work: &Path, to: &Path) -> Result<PathBuf, String> {
    if is_newer(to, &[&sources.join("app.js"), &sources.join("componentize.mjs"), &sources.join("world.wit")]) {
        return Ok(to.to_path_buf());
    }
    if !has_program("node") || !has_program("npm") {
        return Err("node and npm are not installed (Debian: sudo apt-get install nodejs npm)".into());
    }
    let fail = |what: &str, error: anyhow::Error| format!("{what}: {}", first_lines(&format!("{error:#}")));
    let stamp = work.join("installed");
    if !fs::read_to_string(&stamp).is_ok_and(|s| s == PACKAGES.join(" ")) {
        fs::create_dir_all(work).map_err(|e| e.to_string())?;
        fs::write(work.join("package.json"), "{\"private\":true,\"type\":\"module\"}\n").map_err(|e| e.to_string())?;
        eprintln!("xtask: npm install {} (once, into {})", PACKAGES.join(" "), work.display());
        let mut npm = Command::new("timeout");
        npm.args(["300", "npm", "install", "--no-audit", "--no-fund", "--prefer-offline"]).args(PACKAGES);
        output(clean(&mut npm).current_dir(work)).map_err(|e| fail("npm install failed", e))?;
        fs::write(&stamp, PACKAGES.join(" ")).map_err(|e| e.to_string())?;
    }
    for name in ["app.js", "componentize.mjs", "world.wit"] {
        fs::copy(sources.join(name), work.join(name)).map_err(|e| format!("{name}: {e}"))?;
    }
    eprintln!("xtask: componentizing JavaScript (7 to 30 s, once)");
    let made = work.join("guest-javascript.wasm");
    let mut node = Command::new("timeout");
    node.args(["300", "node", "componentize.mjs"]).arg(&made).stderr(Stdio::piped());
    output(clean(&mut node).current_dir(work)).map_err(|e| fail("componentize-js failed", e))?;
    copy_if_changed(&made, to).map_err(|e| fail("copy", e))?;
    // The bytes may be the same as before: mark the component as fresh all the same.
    let now = std::time::SystemTime::now();
    fs::File::open(to).and_then(|f| f.set_modified(now)).map_err(|e| e.to_string())?;
    Ok(to.to_path_buf())
}

fn is_newer(file: &Path, sources: &[&Path]) -> bool {
    let modified = |p: &Path| fs::metadata(p).and_then(|m| m.modified()).ok();
    match modified(file) {
        Some(made) => sources.iter().all(|s| modified(s).is_some_and(|t| t <= made)),
        None => false,
    }
}

fn first_lines(text: &str) -> String {
    text.lines().take(6).collect::<Vec<_>>().join(" | ")
}
