//! Checks a component before it is uploaded: is it one, does it answer HTTP, would its imports be granted?
//!
//! It only reads the outer structure, so a wrong file is refused in milliseconds and with words that
//! help. It proves nothing: the platform checks again when it compiles.

use std::collections::BTreeSet;
use std::fmt;

use marcato_api::{Grant, Reuse, ServiceKind, grant_for, interface_of};
use wasmparser::{ComponentExternalKind, ComponentTypeRef, Encoding, ExternalKind, Parser, Payload};

/// Longest component that the platform takes.
pub(crate) const MAX_BYTES: usize = 64 << 20;

/// Why a file cannot be pushed.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum ComponentError {
    /// Not WebAssembly at all.
    #[error("{0} is not WebAssembly; expected a .wasm component")]
    NotWasm(String),
    /// A core module that is no command.
    #[error(
        "{file} is a core module that {why}; push a component (wasm32-wasip2), or a WASI 0.1 command, which runs as CGI"
    )]
    CoreModule {
        /// Which file.
        file: String,
        /// What makes it no command.
        why: String,
    },
    /// Cut off or damaged.
    #[error("{file} is damaged: {why}")]
    Damaged {
        /// Which file.
        file: String,
        /// What the parser met.
        why: String,
    },
    /// Too long.
    #[error("{file} is {} long; at most {} are taken", marcato_api::Bytes(*bytes), marcato_api::Bytes(MAX_BYTES as u64))]
    TooLarge {
        /// Which file.
        file: String,
        /// How long.
        bytes: u64,
    },
    /// No HTTP handler.
    #[error(
        "{file} has no HTTP handler: it exports {}; expected wasi:http/incoming-handler@0.2, wasi:http/handler@0.3, or \
         wasi:cli/run for a CGI command",
        if exports.is_empty() { "nothing".to_owned() } else { listed(exports) }
    )]
    NoHandler {
        /// Which file.
        file: String,
        /// What it exports instead.
        exports: Vec<String>,
    },
    /// Imports that the platform does not have.
    #[error("{file} imports what the platform does not have: {}", listed(imports))]
    NotGranted {
        /// Which file.
        file: String,
        /// Which imports.
        imports: Vec<String>,
    },
    /// An import that needs a binding.
    #[error(
        "{import} needs a binding of kind {kind}; add to marcato.toml: [[bindings]] name = \"…\", service = \"…\", kind = \"{kind}\""
    )]
    BindingMissing {
        /// Which import.
        import: String,
        /// Which kind of service.
        kind: ServiceKind,
    },
    /// `reuse.concurrent` with a component that cannot.
    #[error("reuse.concurrent above 1 needs a component that exports wasi:http/handler@0.3; {0} is {1}")]
    NotConcurrent(String, Kind),
    /// `reuse` with a command.
    #[error("reuse.max_requests above 1 needs an HTTP handler; {0} is {1}, which is a process per request")]
    NotReusable(String, Kind),
}

/// Most names in a message.
const NAMES: usize = 12;

/// A name from a file, for a person's terminal: any component may be pushed, also one from elsewhere.
fn shown(name: &str) -> String {
    name.chars().map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c }).take(120).collect()
}

fn listed(names: &[String]) -> String {
    let shown: Vec<_> = names.iter().take(NAMES).map(|n| shown(n)).collect();
    let more = names.len().saturating_sub(NAMES);
    let rest = if more == 0 { String::new() } else { format!(", and {more} more") };
    shown.join(", ") + &rest
}

/// How a file answers HTTP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// `wasi:http/incoming-handler@0.2`.
    Http02,
    /// `wasi:http/handler@0.3`.
    Http03,
    /// A component that exports `wasi:cli/run`: CGI.
    Command,
    /// A core module with `_start`: CGI.
    Module,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Http02 => "a WASI 0.2 HTTP component",
            Self::Http03 => "a WASI 0.3 HTTP component",
            Self::Command => "a WASI command, served as CGI",
            Self::Module => "a WASI 0.1 command, served as CGI",
        })
    }
}

/// What a component says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Inspected {
    imports: Vec<String>,
    kind: Kind,
    file: String,
}

/// Reads a component's outer structure; `file` is how errors call it.
pub(crate) fn inspect(bytes: &[u8], file: &str) -> Result<Inspected, ComponentError> {
    let file = file.to_owned();
    if bytes.len() > MAX_BYTES {
        return Err(ComponentError::TooLarge { file, bytes: bytes.len() as u64 });
    }
    if !bytes.starts_with(b"\0asm") {
        return Err(ComponentError::NotWasm(file));
    }
    let (mut imports, mut exports) = (Vec::new(), Vec::new());
    let damaged = |e: wasmparser::BinaryReaderError| ComponentError::Damaged {
        file: file.clone(),
        why: format!("{} at byte {}", shown(e.message()), e.offset()),
    };
    // Nested modules and components come in between; only the outermost level counts.
    let mut depth = 0_u32;
    for payload in Parser::new(0).parse_all(bytes) {
        match payload.map_err(damaged)? {
            Payload::Version { encoding: Encoding::Module, .. } if depth == 0 => {
                return inspect_module(bytes, file);
            }
            Payload::ModuleSection { .. } | Payload::ComponentSection { .. } => depth += 1,
            Payload::End(_) => depth = depth.saturating_sub(1),
            Payload::ComponentImportSection(section) if depth == 0 => {
                for import in section {
                    let import = import.map_err(damaged)?;
                    // A type alone asks for nothing.
                    if !matches!(import.ty, ComponentTypeRef::Type(_)) {
                        imports.push(import.name.name.to_owned());
                    }
                }
            }
            Payload::ComponentExportSection(section) if depth == 0 => {
                for export in section {
                    let export = export.map_err(damaged)?;
                    if export.kind != ComponentExternalKind::Type {
                        exports.push(export.name.name.to_owned());
                    }
                }
            }
            _ => {}
        }
    }
    let known = [
        ("wasi:http/handler", "0.3", Kind::Http03),
        ("wasi:http/incoming-handler", "0.2", Kind::Http02),
        ("wasi:cli/run", "0.3", Kind::Command),
        ("wasi:cli/run", "0.2", Kind::Command),
    ];
    let found = known.into_iter().find(|(name, version, _)| exports.iter().any(|e| is_version(e, name, version)));
    let Some((_, _, kind)) = found else {
        return Err(ComponentError::NoHandler { file, exports });
    };
    let missing: Vec<String> = imports.iter().filter(|i| grant_for(i).is_none()).cloned().collect();
    if !missing.is_empty() {
        return Err(ComponentError::NotGranted { file, imports: missing });
    }
    Ok(Inspected { imports, kind, file })
}

/// A core module: does it export `_start`, and import nothing but WASI 0.1?
fn inspect_module(bytes: &[u8], file: String) -> Result<Inspected, ComponentError> {
    let damaged = |e: wasmparser::BinaryReaderError| ComponentError::Damaged {
        file: file.clone(),
        why: format!("{} at byte {}", shown(e.message()), e.offset()),
    };
    let (mut starts, mut alien) = (false, None);
    for payload in Parser::new(0).parse_all(bytes) {
        match payload.map_err(damaged)? {
            Payload::ImportSection(section) => {
                for import in section.into_imports() {
                    let import = import.map_err(damaged)?;
                    if import.module != "wasi_snapshot_preview1" {
                        alien.get_or_insert(format!("{}.{}", shown(import.module), shown(import.name)));
                    }
                }
            }
            Payload::ExportSection(section) => {
                for export in section {
                    let export = export.map_err(damaged)?;
                    starts |= export.name == "_start" && export.kind == ExternalKind::Func;
                }
            }
            _ => {}
        }
    }
    match alien {
        _ if !starts => Err(ComponentError::CoreModule { file, why: "exports no _start".into() }),
        Some(import) => Err(ComponentError::CoreModule { file, why: format!("imports {import}") }),
        None => Ok(Inspected { imports: Vec::new(), kind: Kind::Module, file }),
    }
}

/// `interface@0.2`, `interface@0.2.6`, `interface@0.3.0-rc-1`.
fn is_version(name: &str, interface: &str, version: &str) -> bool {
    let rest = name.strip_prefix(interface).and_then(|r| r.strip_prefix('@')).and_then(|r| r.strip_prefix(version));
    rest.is_some_and(|r| r.is_empty() || r.starts_with(['.', '-']))
}

impl Inspected {
    /// Checks that every import that needs a binding has one of these kinds.
    pub(crate) fn check_bindings(&self, kinds: &BTreeSet<ServiceKind>) -> Result<(), ComponentError> {
        for import in &self.imports {
            if let Some(Grant::Binding(kind)) = grant_for(import)
                && !kinds.contains(&kind)
            {
                return Err(ComponentError::BindingMissing { import: interface_of(import).to_owned(), kind });
            }
        }
        Ok(())
    }

    /// Whether any import needs a binding.
    pub(crate) fn needs_bindings(&self) -> bool {
        self.imports.iter().any(|i| matches!(grant_for(i), Some(Grant::Binding(_))))
    }

    /// How it answers HTTP.
    pub(crate) fn kind(&self) -> Kind {
        self.kind
    }

    /// Checks `reuse`.
    pub(crate) fn check_reuse(&self, reuse: &Reuse) -> Result<(), ComponentError> {
        if reuse.concurrent > 1 && self.kind != Kind::Http03 {
            return Err(ComponentError::NotConcurrent(self.file.clone(), self.kind));
        }
        if reuse.max_requests > 1 && matches!(self.kind, Kind::Command | Kind::Module) {
            return Err(ComponentError::NotReusable(self.file.clone(), self.kind));
        }
        Ok(())
    }
}

#[cfg(test)]
mod fuzz;

#[cfg(test)]
mod tests {
    use super::*;

    const HANDLER: &str = r#"(component $h (instance $i) (export "wasi:http/incoming-handler@0.2.6" (instance $i)))"#;

    fn component(body: &str) -> Vec<u8> {
        wat::parse_str(format!("(component {body})")).unwrap()
    }

    fn outer(body: &str) -> Result<Inspected, ComponentError> {
        inspect(&component(body), "x.wasm")
    }

    fn with_handler(body: &str) -> Result<Inspected, ComponentError> {
        outer(&format!(r#"{body} (instance $i) (export "wasi:http/incoming-handler@0.2.6" (instance $i))"#))
    }

    #[test]
    fn an_http_component_passes() {
        let plain = with_handler(r#"(import "wasi:cli/environment@0.2.0" (instance))"#).unwrap();
        plain.check_bindings(&BTreeSet::new()).unwrap();
        let reuse = |max_requests, concurrent| Reuse { max_requests, concurrent, ..Reuse::default() };
        plain.check_reuse(&reuse(9, 1)).unwrap();
        assert!(matches!(plain.check_reuse(&reuse(9, 2)), Err(ComponentError::NotConcurrent(..))));
        let p3 = outer(r#"(instance $i) (export "wasi:http/handler@0.3.0-rc-2026-01-06" (instance $i))"#).unwrap();
        p3.check_reuse(&reuse(9, 9)).unwrap();
        assert_eq!((plain.kind(), p3.kind()), (Kind::Http02, Kind::Http03));
        let both = with_handler(r#"(instance $r) (export "wasi:cli/run@0.2.6" (instance $r))"#).unwrap();
        assert_eq!(both.kind(), Kind::Http02, "the handler counts");
    }

    #[test]
    fn commands_pass_and_are_told() {
        let start = r#"(import "wasi_snapshot_preview1" "proc_exit" (func (param i32))) (func (export "_start"))"#;
        let module = |body: &str| inspect(&wat::parse_str(format!("(module {body})")).unwrap(), "m.wasm");
        let plain = module(start).unwrap();
        assert_eq!(plain.kind().to_string(), "a WASI 0.1 command, served as CGI");
        plain.check_reuse(&Reuse::default()).unwrap();
        let reuse = Reuse { max_requests: 2, ..Reuse::default() };
        assert!(matches!(plain.check_reuse(&reuse), Err(ComponentError::NotReusable(..))));
        for (body, why) in [
            (r#"(func (export "_initialize"))"#, "exports no _start"),
            (r#"(memory (export "_start") 1)"#, "exports no _start"),
            (r#"(import "env" "system" (func)) (func (export "_start"))"#, "imports env.system"),
        ] {
            let error = module(body).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
        for version in ["0.2.6", "0.3.0"] {
            let command = outer(&format!(r#"(instance $i) (export "wasi:cli/run@{version}" (instance $i))"#)).unwrap();
            assert_eq!(command.kind(), Kind::Command);
        }
    }

    #[test]
    fn what_is_not_a_component_is_told_apart() {
        assert!(matches!(inspect(b"", "x"), Err(ComponentError::NotWasm(_))));
        assert!(matches!(inspect(b"#!/bin/sh", "x"), Err(ComponentError::NotWasm(_))));
        let module = wat::parse_str("(module (func (export \"start\")))").unwrap();
        let message = inspect(&module, "m.wasm").unwrap_err().to_string();
        assert!(message.contains("core module") && message.contains("wasm32-wasip2"), "{message}");
        assert!(matches!(inspect(b"\0asm", "x"), Err(ComponentError::Damaged { .. })));
        let long = [b"\0asm".to_vec(), vec![0; MAX_BYTES]].concat();
        assert!(matches!(inspect(&long, "x"), Err(ComponentError::TooLarge { .. })));
    }

    #[test]
    fn a_component_without_a_handler_is_refused_with_what_it_exports() {
        let other = outer(r#"(instance $i) (export "wasi:cli/runs@0.2.6" (instance $i))"#).unwrap_err();
        assert!(other.to_string().contains("exports wasi:cli/runs@0.2.6;"), "{other}");
        assert!(outer("").unwrap_err().to_string().contains("exports nothing"));
        // A handler inside a nested component is not the outer one's; nor is another version.
        assert!(matches!(outer(HANDLER), Err(ComponentError::NoHandler { .. })));
        let other = outer(r#"(instance $i) (export "wasi:http/incoming-handler@0.20.0" (instance $i))"#);
        assert!(matches!(other, Err(ComponentError::NoHandler { .. })));
    }

    /// Found by the fuzz target: a name went to the terminal as it was.
    #[test]
    fn names_of_a_file_are_text_in_a_message_and_not_too_many() {
        let hostile = "\u{1b}]0;x\u{7}".repeat(100);
        let many = ComponentError::NotGranted { file: "x".into(), imports: vec![hostile.clone(); 1000] }.to_string();
        assert!(many.ends_with("and 988 more") && many.len() < 5000, "{many}");
        let exports = ComponentError::NoHandler { file: "x".into(), exports: vec![hostile] }.to_string();
        assert!(!many.contains('\u{1b}') && !exports.contains(['\u{1b}', '\u{7}']), "{exports:?}");
        let module = r#"(module (import "\1b[2J" "\07" (func)) (func (export "_start")))"#;
        let error = inspect(&wat::parse_str(module).unwrap(), "m.wasm").unwrap_err().to_string();
        assert!(error.contains("imports") && !error.contains(['\u{1b}', '\u{7}']), "{error:?}");
    }

    #[test]
    fn imports_are_compared_with_the_grants() {
        let missing = with_handler(r#"(import "wasi:nn/graph@0.2.0" (instance)) (import "run" (func))"#).unwrap_err();
        assert_eq!(
            missing,
            ComponentError::NotGranted {
                file: "x.wasm".into(),
                imports: vec!["wasi:nn/graph@0.2.0".into(), "run".into()]
            }
        );
        let kv = with_handler(r#"(import "wasi:keyvalue/store@0.2.0-draft" (instance))"#).unwrap();
        assert!(kv.needs_bindings());
        let error = kv.check_bindings(&BTreeSet::from([ServiceKind::Access])).unwrap_err();
        assert!(error.to_string().contains("kind keyvalue"), "{error}");
        kv.check_bindings(&BTreeSet::from([ServiceKind::Keyvalue])).unwrap();
        // A nested component's imports are satisfied inside.
        with_handler(r#"(component (import "wasi:nn/graph@0.2.0" (instance)))"#).unwrap();
    }

    #[test]
    fn damaged_bytes_never_panic() {
        let good = component(
            r#"(import "wasi:cli/environment@0.2.0" (instance)) (core module (func))
               (instance $i) (export "wasi:http/incoming-handler@0.2.6" (instance $i))"#,
        );
        inspect(&good, "x").unwrap();
        for cut in 0..good.len() {
            let _ = inspect(&good[..cut], "x");
        }
        for at in 0..good.len() {
            for value in [0, 1, 0x7f, 0x80, 0xff] {
                let mut bytes = good.clone();
                bytes[at] = value;
                let _ = inspect(&bytes, "x");
            }
        }
    }
}
