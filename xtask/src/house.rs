//! House rules that a machine can check: every Rust file says what it is for, and none grows past
//! what a person reads at one sitting.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::run::root;

/// Lines before the tests; "about 500", so that a file may grow a little before it is split.
const MOST_LINES: usize = 560;
const FOLDERS: [&str; 8] = ["sdk", "runtime", "hostd", "router", "apps", "tests", "benches", "xtask"];

/// Checks the clone; the error lists each file.
pub(crate) fn check() -> Result<()> {
    let mut files = Vec::new();
    for folder in FOLDERS {
        collect(&root().join(folder), &mut files)?;
    }
    let mut wrong = Vec::new();
    for file in &files {
        let text = fs::read_to_string(file).with_context(|| file.display().to_string())?;
        let name = file.strip_prefix(root()).unwrap_or(file).display().to_string();
        wrong.extend(faults(&text).into_iter().map(|fault| format!("{name}: {fault}")));
    }
    if !wrong.is_empty() {
        bail!("house rules:\n  {}", wrong.join("\n  "));
    }
    println!("deps: {} files keep the house rules", files.len());
    Ok(())
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        if path.is_dir() && !path.ends_with("target") {
            collect(&path, files)?;
        } else if path.extension().is_some_and(|e| e == "rs") {
            files.push(path);
        }
    }
    Ok(())
}

fn faults(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    if !text.trim_start().starts_with("//!") {
        found.push("does not open with `//!`: what it owns, what not, which flow it sits in".to_owned());
    }
    let lines = text.lines().take_while(|line| !line.starts_with("#[cfg(test)]")).count();
    let is_tests = !text.contains("#[cfg(test)]") && text.contains("#[test]") || text.contains("#[tokio::test");
    if lines > MOST_LINES && !is_tests {
        found.push(format!("{lines} lines before its tests; split it at about 500"));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_are_named() {
        assert!(faults("//! Owns x.\nfn f() {}\n").is_empty());
        assert!(faults("fn f() {}\n")[0].contains("//!"));
        let long = format!("//! x\n{}", "// y\n".repeat(MOST_LINES));
        assert!(faults(&long)[0].contains("split"));
        let tested = format!("//! x\n#[cfg(test)]\nmod tests {{\n{}}}\n", "// y\n".repeat(MOST_LINES));
        assert!(faults(&tested).is_empty());
    }
}
