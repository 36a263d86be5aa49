//! From machine code to what a sandbox is made of: the platform's interfaces, linked to a component's imports.
//!
//! Owns: one linker per dialect, and the words for what does not link. The compiler process asks the same question
//! ([`check`]), so that a missing import is known when a component is pushed and not at its first request.

use std::path::Path;
use std::sync::Arc;

use marcato_api::Digest;
use wasmtime::component::{Component, Linker};
use wasmtime::{CustomCodeMemory, Engine};

use crate::artifact;
use crate::cgi::CommandPre;
use crate::config::PoolConfig;
use crate::engine::{Dialect, Engines, MEMORIES, TABLE_ELEMENTS, TABLES, code_config};
use crate::error::{LoadError, RuntimeError};
use crate::sandbox::{Host, Pre, link};

/// Changes whenever an interface is taken away or changed: code that linked before may not link any more, and is
/// compiled and checked again. Part of the key of compiled code.
pub(crate) const INTERFACES: u32 = 1;

/// The platform's interfaces, for each dialect.
pub(crate) struct Linkers {
    plain: Linker<Host>,
    concurrent: Linker<Host>,
}

impl Linkers {
    pub(crate) fn new(engines: &Engines) -> Result<Self, RuntimeError> {
        Ok(Self {
            plain: linker(engines.of(Dialect::Plain), Dialect::Plain)?,
            concurrent: linker(engines.of(Dialect::Concurrent), Dialect::Concurrent)?,
        })
    }

    /// Maps verified code and links it.
    pub(crate) fn load(&self, digest: &Digest, verified: &Path) -> Result<Pre, LoadError> {
        // What was compiled for the other engine says so in its head, before anything else is read.
        match artifact::map(self.plain.engine(), verified) {
            Ok(component) => link_component(&self.plain, &component),
            Err(plain) => match artifact::map(self.concurrent.engine(), verified) {
                Ok(component) => link_component(&self.concurrent, &component),
                // Its file carries this version's key and a right signature, so compiling it again would change nothing.
                Err(concurrent) => {
                    let (plain, concurrent) = (format!("{plain:#}"), format!("{concurrent:#}"));
                    tracing::warn!(%digest, plain, concurrent, "compiled code does not load");
                    Err(LoadError::Link(concurrent))
                }
            },
        }
    }
}

fn linker(engine: &Engine, dialect: Dialect) -> Result<Linker<Host>, RuntimeError> {
    let mut linker = Linker::new(engine);
    link(&mut linker, dialect).map_err(|e| RuntimeError::Link(format!("{e:#}")))?;
    Ok(linker)
}

/// Code that is looked at and never runs: it needs no page that can be executed, which the compiler process may not have.
struct NeverRun;

impl CustomCodeMemory for NeverRun {
    fn required_alignment(&self) -> usize {
        1
    }

    fn publish_executable(&self, _: *const u8, _: usize) -> wasmtime::Result<()> {
        Ok(())
    }

    fn unpublish_executable(&self, _: *const u8, _: usize) -> wasmtime::Result<()> {
        Ok(())
    }
}

/// Whether code that this process has just made links. Call it from a process that does nothing else.
pub(crate) fn check(dialect: Dialect, code: &[u8]) -> Result<(), LoadError> {
    let unusable = |e: wasmtime::Error| LoadError::Link(format!("{e:#}"));
    let mut config = code_config(dialect);
    config.with_custom_code_memory(Some(Arc::new(NeverRun)));
    let engine = Engine::new(&config).map_err(unusable)?;
    let linker = linker(&engine, dialect).map_err(|e| LoadError::Link(e.to_string()))?;
    // SAFETY: `code` comes from this very process, which compiled it; nothing of it is run.
    #[allow(unsafe_code, reason = "the only way to look at code that was compiled ahead; see SAFETY")]
    let component = unsafe { Component::deserialize(&engine, code) }.map_err(unusable)?;
    check_size(&component)?;
    link_component(&linker, &component).map(drop)
}

/// Refuses what no sandbox of the pool could hold.
fn check_size(component: &Component) -> Result<(), LoadError> {
    // `None`: it instantiates what it imports, of which the platform offers nothing.
    let Some(needs) = component.resources_required() else { return Ok(()) };
    let memory = PoolConfig::MEMORY_PER_SANDBOX.0;
    let checks = [
        ("memories", u64::from(needs.num_memories), u64::from(MEMORIES)),
        ("tables", u64::from(needs.num_tables), u64::from(TABLES)),
        ("pages of one memory at its start", needs.max_initial_memory_size.unwrap_or(0), memory >> 16),
        ("elements of one table at its start", needs.max_initial_table_size.unwrap_or(0), TABLE_ELEMENTS as u64),
    ];
    match checks.into_iter().find(|(_, wanted, most)| wanted > most) {
        Some((what, wanted, most)) => {
            Err(LoadError::Link(format!("it has {wanted} {what}; at most {most} are allowed")))
        }
        None => Ok(()),
    }
}

fn link_component(linker: &Linker<Host>, component: &Component) -> Result<Pre, LoadError> {
    let pre = linker.instantiate_pre(component).map_err(|e| missing_import(&format!("{e:#}")))?;
    let exports_handler =
        |prefix: &str| component.component_type().exports(linker.engine()).any(|(name, _)| name.starts_with(prefix));
    let mismatch = |e: wasmtime::Error| LoadError::Link(format!("{e:#}"));
    let command = CommandPre::find(component, pre.clone());
    if exports_handler("wasi:http/handler@0.3.") {
        return wasmtime_wasi_http::p3::bindings::ServicePre::new(pre).map(Pre::P3).map_err(mismatch);
    }
    if exports_handler("wasi:http/incoming-handler@0.2.") {
        return wasmtime_wasi_http::p2::bindings::ProxyPre::new(pre).map(Pre::P2).map_err(mismatch);
    }
    match command {
        Some(command) => command.map(Pre::Command).map_err(mismatch),
        None => Err(LoadError::NoHandler),
    }
}

/// wasmtime names the import in backticks; nothing else tells an import that is missing.
fn missing_import(text: &str) -> LoadError {
    let named = text.split_once("imports ").and_then(|(_, rest)| rest.split('`').nth(1));
    match named {
        Some(import) => {
            let detail: String = text.chars().filter(|c| !c.is_control()).take(400).collect();
            LoadError::MissingImport { import: import.to_owned(), detail }
        }
        None => LoadError::Link(text.to_owned()),
    }
}
