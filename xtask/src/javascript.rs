//! A JavaScript component of some 10 MB, bundled with esbuild and made by componentize-js, so that
//! the tests push a component of another toolchain and of real size.
//!
//! Its tools come from npm into `target/js`. Where npm or its registry is missing, the component is
//! skipped with the reason, which the tests print: a skip is never counted as a pass.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::guests::{clean, copy_if_changed, first_lines, is_newer, touch};
use crate::run::{has_program, output, root};

const PACKAGES: [&str; 2] = ["@bytecodealliance/componentize-js@0.23.0", "esbuild@0.28.2"];

/// Builds a component from one JavaScript or TypeScript file; the error is the reason for leaving it out.
pub(crate) fn build(source: &Path, to: &Path) -> Result<PathBuf, String> {
    let tools = root().join("tests/guests/javascript");
    let work = root().join("target/js");
    if is_newer(to, &[source, &tools.join("componentize.mjs"), &tools.join("world.wit")]) {
        return Ok(to.to_path_buf());
    }
    if !has_program("node") || !has_program("npm") {
        return Err("node and npm are not installed (Debian: sudo apt-get install nodejs npm)".into());
    }
    let fail = |what: &str, error: anyhow::Error| format!("{what}: {}", first_lines(&format!("{error:#}")));
    let stamp = work.join("installed");
    if !fs::read_to_string(&stamp).is_ok_and(|s| s == PACKAGES.join(" ")) {
        fs::create_dir_all(&work).map_err(|e| e.to_string())?;
        fs::write(work.join("package.json"), "{\"private\":true,\"type\":\"module\"}\n").map_err(|e| e.to_string())?;
        eprintln!("xtask: npm install {} (once, into {})", PACKAGES.join(" "), work.display());
        let mut npm = Command::new("timeout");
        npm.args(["300", "npm", "install", "--no-audit", "--no-fund", "--prefer-offline"]).args(PACKAGES);
        output(clean(&mut npm).current_dir(&work)).map_err(|e| fail("npm install failed", e))?;
        fs::write(&stamp, PACKAGES.join(" ")).map_err(|e| e.to_string())?;
    }
    for name in ["componentize.mjs", "world.wit"] {
        fs::copy(tools.join(name), work.join(name)).map_err(|e| format!("{name}: {e}"))?;
    }
    eprintln!("xtask: componentizing {} (7 to 30 s, once)", source.display());
    let made = work.join("made.wasm");
    let mut node = Command::new("timeout");
    node.args(["300", "node", "componentize.mjs"]).arg(source).arg(&made).stderr(Stdio::piped());
    output(clean(&mut node).current_dir(&work)).map_err(|e| fail("componentize-js failed", e))?;
    copy_if_changed(&made, to).and_then(|()| touch(to)).map_err(|e| fail("copy failed", e))?;
    Ok(to.to_path_buf())
}
