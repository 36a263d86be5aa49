//! The import table of `docs/architecture.md`: which workspace crate may depend on which, and which
//! outside crates only one part may use. Checked over `cargo metadata`, so that a forbidden edge
//! fails the build and not a review.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, bail};
use cargo_metadata::{DependencyKind, MetadataCommand};

use crate::run::root;

/// Who may import whom, by package. A workspace package that is not here may import none and is an
/// error, so that a new part gets its line.
const TABLE: &[(&str, &[&str])] = &[
    ("marcato-api", &[]),
    ("marcato-client", &["marcato-api"]),
    ("marcato-socket", &[]),
    ("marcato-guest", &[]),
    ("marcato-fuzz", &[]),
    ("hello", &["marcato-guest"]),
    ("health", &["marcato-guest"]),
    ("guest-behaviour", &["marcato-guest"]),
    ("guest-async", &["marcato-guest"]),
    ("guest-hostile", &["marcato-guest"]),
    ("guest-swarm", &["marcato-guest"]),
    ("marcato-runtime", &["marcato-api"]),
    ("marcato-confine", &["marcato-api"]),
    ("marcato-hostd", &["marcato-runtime", "marcato-confine", "marcato-api", "marcato-socket"]),
    ("marcato-balance", &["marcato-api"]),
    ("marcato-plan", &["marcato-api"]),
    ("marcato-edge", &["marcato-balance", "marcato-api", "marcato-socket"]),
    ("marcato-control", &["marcato-plan", "marcato-balance", "marcato-api", "marcato-client"]),
    ("marcato-router", &["marcato-edge", "marcato-control", "marcato-balance", "marcato-api"]),
    ("marcato-cli", &["marcato-api", "marcato-client", "marcato-router", "marcato-hostd"]),
];

/// Packages that may import anything, and that nothing may import.
const ENDS: &[&str] = &["marcato-tests", "marcato-benches", "xtask"];

/// Outside crates that only these packages may name; a trailing `*` matches a prefix.
const OWNED: &[(&str, &[&str])] = &[
    ("wasmtime*", &["marcato-runtime"]),
    ("wit-component", &["marcato-runtime"]),
    ("wasi-preview1-component-adapter-provider", &["marcato-runtime"]),
    ("virt", &["marcato-hostd-vm"]),
    ("landlock", &["marcato-confine"]),
    ("seccompiler", &["marcato-confine"]),
    ("rusqlite", &["marcato-hostd", "marcato-control"]),
];

/// Pure parts: nothing with an async runtime, a socket or a file behind it, not even indirectly.
const PURE: &[&str] = &["marcato-api", "marcato-balance", "marcato-plan"];
const IMPURE: &[&str] =
    &["tokio", "mio", "async-std", "smol", "hyper", "reqwest", "rusqlite", "rustls", "object_store"];

/// A workspace package and what it depends on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Edges {
    /// Normal and build dependencies.
    pub(crate) direct: BTreeSet<String>,
    /// Dependencies of its tests.
    pub(crate) dev: BTreeSet<String>,
    /// All normal dependencies, also indirect ones.
    pub(crate) closure: BTreeSet<String>,
}

/// Checks the clone; the error lists each forbidden edge.
pub(crate) fn check() -> Result<()> {
    let edges = read()?;
    let wrong = violations(&edges);
    if !wrong.is_empty() {
        bail!("the import table (docs/architecture.md, xtask/src/deps.rs) forbids:\n  {}", wrong.join("\n  "));
    }
    println!("deps: {} packages keep the import table", edges.len());
    Ok(())
}

/// Every breach of the table, in words.
pub(crate) fn violations(edges: &BTreeMap<String, Edges>) -> Vec<String> {
    let mut wrong = Vec::new();
    for (package, edge) in edges {
        let is_end = ENDS.contains(&package.as_str());
        let allowed = TABLE.iter().find(|(name, _)| name == package).map(|(_, allowed)| *allowed);
        if allowed.is_none() && !is_end {
            wrong.push(format!("{package}: not in the table; give it a line"));
        }
        for import in edge.direct.iter().chain(&edge.dev).filter(|d| edges.contains_key(*d)) {
            let tests_only = !edge.direct.contains(import);
            if ENDS.contains(&import.as_str()) && !is_end {
                wrong.push(format!("{package} -> {import}: nothing imports {import}"));
            } else if !is_end && !tests_only && !allowed.unwrap_or(&[]).contains(&import.as_str()) {
                wrong.push(format!("{package} -> {import}"));
            }
        }
        for (pattern, owners) in OWNED {
            let matches = |name: &str| match pattern.strip_suffix('*') {
                Some(prefix) => name.starts_with(prefix),
                None => name == *pattern,
            };
            if is_end || owners.contains(&package.as_str()) {
                continue;
            }
            for import in edge.direct.iter().filter(|d| matches(d)) {
                wrong.push(format!("{package} -> {import}: only {} may use it", owners.join(", ")));
            }
        }
        if PURE.contains(&package.as_str()) {
            for import in edge.closure.iter().filter(|d| IMPURE.contains(&d.as_str())) {
                wrong.push(format!("{package} -> … -> {import}: {package} is pure, without I/O or a runtime"));
            }
        }
    }
    wrong
}

fn read() -> Result<BTreeMap<String, Edges>> {
    let metadata = MetadataCommand::new().current_dir(root()).exec().context("cargo metadata failed")?;
    let resolve = metadata.resolve.as_ref().context("cargo metadata gave no graph")?;
    let names: BTreeMap<_, _> = metadata.packages.iter().map(|p| (&p.id, p.name.to_string())).collect();
    let normal: BTreeMap<_, Vec<_>> = resolve
        .nodes
        .iter()
        .map(|node| {
            let of_kind = node.deps.iter().filter(|d| d.dep_kinds.iter().any(|k| k.kind == DependencyKind::Normal));
            (&node.id, of_kind.map(|d| &d.pkg).collect())
        })
        .collect();
    let mut edges = BTreeMap::new();
    for package in metadata.workspace_packages() {
        let mut edge = Edges::default();
        for dependency in &package.dependencies {
            let set = if dependency.kind == DependencyKind::Development { &mut edge.dev } else { &mut edge.direct };
            set.insert(dependency.name.clone());
        }
        let mut open = vec![&package.id];
        let mut seen = BTreeSet::new();
        while let Some(id) = open.pop() {
            for next in normal.get(id).into_iter().flatten() {
                if seen.insert(*next) {
                    edge.closure.insert(names[*next].clone());
                    open.push(next);
                }
            }
        }
        edges.insert(package.name.to_string(), edge);
    }
    Ok(edges)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn graph(lines: &[(&str, &[&str])]) -> BTreeMap<String, Edges> {
        let set = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect::<BTreeSet<_>>();
        lines
            .iter()
            .map(|(name, deps)| {
                ((*name).to_owned(), Edges { direct: set(deps), dev: BTreeSet::new(), closure: set(deps) })
            })
            .collect()
    }

    #[test]
    fn an_allowed_graph_passes() {
        let edges = graph(&[
            ("marcato-api", &["serde"]),
            ("marcato-balance", &["marcato-api"]),
            ("marcato-edge", &["marcato-balance", "tokio"]),
        ]);
        assert_eq!(violations(&edges), Vec::<String>::new());
    }

    #[test]
    fn a_forbidden_edge_is_found() {
        let edges = graph(&[("marcato-edge", &["marcato-plan"]), ("marcato-plan", &[])]);
        assert_eq!(violations(&edges), ["marcato-edge -> marcato-plan"]);
    }

    #[test]
    fn a_second_user_of_wasmtime_is_found() {
        let found = violations(&graph(&[("marcato-hostd", &["wasmtime-wasi"])]));
        assert_eq!(found, ["marcato-hostd -> wasmtime-wasi: only marcato-runtime may use it"]);
    }

    #[test]
    fn a_pure_part_with_a_runtime_is_found() {
        let found = violations(&graph(&[("marcato-plan", &["tokio"])]));
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].contains("is pure"), "{found:?}");
    }

    #[test]
    fn nothing_imports_the_ends_and_a_new_part_needs_a_line() {
        let found = violations(&graph(&[("marcato-edge", &["xtask"]), ("xtask", &[]), ("marcato-new", &[])]));
        assert_eq!(
            found,
            ["marcato-edge -> xtask: nothing imports xtask", "marcato-new: not in the table; give it a line"]
        );
    }

    #[test]
    fn the_clone_keeps_the_table() {
        let edges = read().expect("cargo metadata");
        assert!(edges.len() > 10, "{}", edges.len());
        assert_eq!(violations(&edges), Vec::<String>::new());
    }
}
