//! `cargo xtask fuzz`: the fuzz targets for longer than `cargo xtask test` runs them, with random inputs or with libFuzzer.
//!
//! Owns the table of targets. A target is a test beside the parser that it drives; crate `marcato-fuzz` has what they share.

use anyhow::{Result, bail};

use crate::debian;
use crate::guests::host_selection;
use crate::run::{cargo, root, run, target_dir};

/// The targets: package and test.
const TARGETS: &[(&str, &str)] = &[
    ("marcato-api", "files::fuzz::fuzz_archive"),
    ("marcato-api", "files::fuzz::fuzz_pack"),
    ("marcato-api", "files::fuzz::fuzz_section"),
    ("marcato-cli", "manifest::fuzz::fuzz_manifest"),
    ("marcato-cli", "manifest::fuzz::fuzz_sizes"),
    ("marcato-cli", "component::fuzz::fuzz_push"),
    ("marcato-runtime", "tests::fuzz::fuzz_module"),
    ("marcato-runtime", "tests::fuzz::fuzz_compile"),
    ("marcato-runtime", "tests::fuzz::fuzz_files"),
    ("marcato-runtime", "tests::fuzz::fuzz_cache"),
    ("marcato-runtime", "tests::fuzz::fuzz_cache_key"),
    ("marcato-runtime", "cgi::head::fuzz::fuzz_cgi_head"),
    ("marcato-edge", "tests::fuzz::fuzz_connection"),
    ("marcato-control", "api::tests::fuzz::fuzz_admin_api"),
    ("marcato-hostd", "control::fuzz::fuzz_host_api"),
    ("marcato-hostd", "channel::fuzz::fuzz_frames"),
    ("marcato-hostd", "ledger::fuzz::fuzz_ledger"),
    ("marcato-hostd", "ledger::fuzz::fuzz_seal_key"),
    ("marcato-hostd", "usage::fuzz::fuzz_usage_file"),
    ("marcato-hostd", "usage::fuzz::fuzz_usage_numbers"),
];

/// The release of cargo-bolero that fits the crate.
const BOLERO: &str = "0.13.5";

/// What was asked for.
pub(crate) struct Wish {
    pub(crate) target: Option<String>,
    pub(crate) seconds: u64,
    pub(crate) coverage: bool,
    pub(crate) list: bool,
}

/// Runs the targets one after the other; the first that fails ends it.
pub(crate) fn fuzz(wish: &Wish) -> Result<()> {
    let part = wish.target.as_deref().unwrap_or_default();
    let chosen: Vec<_> = TARGETS.iter().filter(|(_, test)| test.contains(part)).collect();
    if chosen.is_empty() {
        bail!("no target has {part:?} in its name; `cargo xtask fuzz --list` shows them");
    }
    if wish.list {
        for (package, test) in chosen {
            println!("{test}  ({package})");
        }
        return Ok(());
    }
    if wish.coverage {
        ensure_bolero()?;
    }
    for (package, test) in chosen {
        println!("xtask: fuzz {test}: {} s", wish.seconds);
        if wish.coverage { with_libfuzzer(package, test, wish.seconds)? } else { with_chance(test, wish.seconds)? }
    }
    Ok(())
}

/// As in the tests, and for longer. The whole selection is named, so that nothing is compiled twice.
fn with_chance(test: &str, seconds: u64) -> Result<()> {
    run(cargo()
        .args(["test", "--quiet", "--locked", "--lib", "--bins"])
        .args(host_selection()?)
        .args(["--", "--exact", "--nocapture", test])
        .env("BOLERO_RANDOM_ITERATIONS", usize::MAX.to_string())
        .env("BOLERO_RANDOM_TEST_TIME_MS", (seconds * 1000).to_string()))
}

/// What was found to cover more is kept beside the build and is where the next run begins.
fn with_libfuzzer(package: &str, test: &str, seconds: u64) -> Result<()> {
    let kept = target_dir().join("fuzz-corpus").join(test.replace("::", "-"));
    let (corpus, crashes) = (kept.join("corpus"), kept.join("crashes"));
    for folder in [&corpus, &crashes] {
        std::fs::create_dir_all(folder)?;
    }
    run(std::process::Command::new(bolero())
        .current_dir(root())
        // No sanitizer, which needs a compiler of the day: the code under test is safe Rust.
        .args(["bolero", "test", "--engine", "libfuzzer", "--sanitizer", "NONE", "--package", package])
        .args(["-T", &format!("{seconds}s")])
        .arg("--target-dir")
        .arg(target_dir().join("fuzz"))
        .arg("--corpus-dir")
        .arg(&corpus)
        .arg("--crashes-dir")
        .arg(&crashes)
        .arg(test))
}

fn bolero() -> std::path::PathBuf {
    target_dir().join("tools/bin/cargo-bolero")
}

fn ensure_bolero() -> Result<()> {
    debian::ensure_program("c++", &["g++"])?;
    if bolero().is_file() {
        return Ok(());
    }
    let tools = target_dir().join("tools");
    run(cargo().args(["install", "cargo-bolero", "--version", BOLERO, "--locked", "--root"]).arg(tools))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use super::*;

    /// The functions by the name of a target in the sources below a folder.
    fn collect(folder: &Path, found: &mut BTreeSet<String>) {
        for entry in std::fs::read_dir(folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                collect(&path, found);
            } else if path.file_name().is_some_and(|name| name == "fuzz.rs") {
                let text = std::fs::read_to_string(&path).expect("readable");
                found.extend(
                    text.lines().filter_map(|line| Some(line.strip_prefix("fn fuzz_")?.split('(').next()?.to_owned())),
                );
            }
        }
    }

    #[test]
    fn every_target_is_in_the_table_and_there() {
        let mut found = BTreeSet::new();
        for folder in ["sdk", "runtime", "hostd", "router"] {
            collect(&root().join(folder), &mut found);
        }
        let named = TARGETS.iter().filter_map(|(_, test)| test.rsplit("fuzz_").next().map(str::to_owned));
        assert_eq!(found, named.collect());
    }
}
