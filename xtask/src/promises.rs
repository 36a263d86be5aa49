//! The promises of `docs/security.md`: each names the tests that prove it, and each of these has to exist.
//!
//! A test is named in backticks by its module path, as libtest prints it: `hostile::cpu::a_loop_ends`. What has
//! no `::`, or ends in `.rs`, is not a test's name.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::run::root;

const DOCUMENT: &str = "docs/security.md";
/// Where tests are that the document may name.
const FOLDERS: [&str; 6] = ["tests/tests", "runtime/src", "hostd", "router", "sdk", "xtask/src"];

/// Checks the clone; the error lists each name without a test.
pub(crate) fn check() -> Result<()> {
    let text = fs::read_to_string(root().join(DOCUMENT)).context(DOCUMENT)?;
    let mut tests = BTreeSet::new();
    for folder in FOLDERS {
        collect(&root().join(folder), &mut tests)?;
    }
    let named = names(&text);
    let missing: Vec<_> = named.iter().filter(|name| !exists(name, &tests)).collect();
    if !missing.is_empty() {
        bail!(
            "{DOCUMENT} names tests that do not exist:\n  {}",
            missing.iter().map(|m| m.as_str()).collect::<Vec<_>>().join("\n  ")
        );
    }
    println!("deps: {} tests that {DOCUMENT} names exist", named.len());
    Ok(())
}

/// Names of tests in the document.
fn names(text: &str) -> BTreeSet<String> {
    let quoted = text.lines().filter(|l| l.starts_with('|')).flat_map(|l| l.split('`').skip(1).step_by(2));
    quoted
        .filter(|q| q.contains("::") && q.bytes().all(|b| b.is_ascii_alphanumeric() || b"_:".contains(&b)))
        .map(str::to_owned)
        .collect()
}

/// A test by that name, in a file by that module.
fn exists(name: &str, tests: &BTreeSet<(String, String)>) -> bool {
    let mut parts = name.rsplit("::");
    let (function, module) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    tests.contains(&(module.to_owned(), function.to_owned()))
}

/// Every test function with the name of its file, or of its file's folder.
fn collect(folder: &Path, tests: &mut BTreeSet<(String, String)>) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        if path.is_dir() {
            collect(&path, tests)?;
        } else if path.extension().is_some_and(|e| e == "rs") {
            let stem = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            let parent = path.parent().and_then(Path::file_name).unwrap_or_default().to_string_lossy().into_owned();
            for function in functions(&fs::read_to_string(&path)?) {
                for module in [&stem, &parent] {
                    tests.insert((module.clone(), function.clone()));
                }
                tests.insert(("tests".to_owned(), function));
            }
        }
    }
    Ok(())
}

/// The functions of a file that a `test` attribute stands before.
fn functions(text: &str) -> Vec<String> {
    let (mut found, mut marked) = (Vec::new(), false);
    for line in text.lines().map(str::trim) {
        if line.starts_with("#[test]") || line.starts_with("#[tokio::test") {
            marked = true;
        } else if let Some(at) = line.find("fn ").filter(|_| marked) {
            let name: String = line[at + 3..].chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
            found.push(name);
            marked = false;
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_found_in_rows_and_in_files() {
        let text = "| a promise | `hostile::cpu::loops_end`, `runtime/src/egress.rs` |\nno row: `a::b`\n";
        assert_eq!(names(text), BTreeSet::from(["hostile::cpu::loops_end".to_owned()]));
        let file = "#[tokio::test(flavor = \"multi_thread\")]\n/// Doc.\nasync fn loops_end() {}\nfn helper() {}\n";
        assert_eq!(functions(file), ["loops_end"]);
        let tests = BTreeSet::from([("cpu".to_owned(), "loops_end".to_owned())]);
        assert!(exists("hostile::cpu::loops_end", &tests));
        assert!(!exists("hostile::memory::loops_end", &tests) && !exists("hostile::cpu::other", &tests));
    }
}
