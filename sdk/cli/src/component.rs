//! Checks a component before it is uploaded: is it one, does it answer HTTP, would its imports be granted?
//!
//! It only reads the outer structure, so a wrong file is refused in milliseconds and with words that
//! help. It proves nothing: the platform checks again when it compiles.

use std::collections::BTreeSet;

use marcato_api::{Grant, ServiceKind, grant_for, interface_of};
use wasmparser::{ComponentExternalKind, ComponentTypeRef, Encoding, Parser, Payload};

/// Longest component that the platform takes.
pub(crate) const MAX_BYTES: usize = 64 << 20;

/// Why a file cannot be pushed.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum ComponentError {
    /// Not WebAssembly at all.
    #[error("{0} is not WebAssembly; expected a .wasm component")]
    NotWasm(String),
    /// A core module.
    #[error(
        "{0} is a core module, not a component; build for wasm32-wasip2, or wrap it: wasm-tools component new MODULE.wasm --adapt \
         wasi_snapshot_preview1.reactor.wasm -o COMPONENT.wasm"
    )]
    CoreModule(String),
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
        "{file} has no HTTP handler: it exports {}; expected wasi:http/incoming-handler@0.2 or wasi:http/handler@0.3",
        if exports.is_empty() { "nothing".to_owned() } else { exports.join(", ") }
    )]
    NoHandler {
        /// Which file.
        file: String,
        /// What it exports instead.
        exports: Vec<String>,
    },
    /// Imports that the platform does not have.
    #[error("{file} imports what the platform does not have: {}", imports.join(", "))]
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
    #[error(
        "reuse.concurrent above 1 needs a component that exports wasi:http/handler@0.3; {0} exports the 0.2 handler"
    )]
    NotConcurrent(String),
}

/// What a component says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Inspected {
    imports: Vec<String>,
    /// Whether it exports the WASI 0.3 handler.
    p3: bool,
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
        why: format!("{} at byte {}", e.message(), e.offset()),
    };
    // Nested modules and components come in between; only the outermost level counts.
    let mut depth = 0_u32;
    for payload in Parser::new(0).parse_all(bytes) {
        match payload.map_err(damaged)? {
            Payload::Version { encoding: Encoding::Module, .. } if depth == 0 => {
                return Err(ComponentError::CoreModule(file));
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
    let p2 = exports.iter().any(|e| is_version(e, "wasi:http/incoming-handler", "0.2"));
    let p3 = exports.iter().any(|e| is_version(e, "wasi:http/handler", "0.3"));
    if !p2 && !p3 {
        return Err(ComponentError::NoHandler { file, exports });
    }
    let missing: Vec<String> = imports.iter().filter(|i| grant_for(i).is_none()).cloned().collect();
    if !missing.is_empty() {
        return Err(ComponentError::NotGranted { file, imports: missing });
    }
    Ok(Inspected { imports, p3, file })
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

    /// Checks `reuse.concurrent`.
    pub(crate) fn check_concurrent(&self, concurrent: u32) -> Result<(), ComponentError> {
        if concurrent > 1 && !self.p3 { Err(ComponentError::NotConcurrent(self.file.clone())) } else { Ok(()) }
    }
}

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
        plain.check_concurrent(1).unwrap();
        assert!(matches!(plain.check_concurrent(2), Err(ComponentError::NotConcurrent(_))));
        let p3 = outer(r#"(instance $i) (export "wasi:http/handler@0.3.0-rc-2026-01-06" (instance $i))"#).unwrap();
        p3.check_concurrent(9).unwrap();
    }

    #[test]
    fn what_is_not_a_component_is_told_apart() {
        assert!(matches!(inspect(b"", "x"), Err(ComponentError::NotWasm(_))));
        assert!(matches!(inspect(b"#!/bin/sh", "x"), Err(ComponentError::NotWasm(_))));
        let module = wat::parse_str("(module (func (export \"_start\")))").unwrap();
        let message = inspect(&module, "m.wasm").unwrap_err().to_string();
        assert!(message.contains("core module") && message.contains("wasm32-wasip2"), "{message}");
        assert!(matches!(inspect(b"\0asm", "x"), Err(ComponentError::Damaged { .. })));
        let long = [b"\0asm".to_vec(), vec![0; MAX_BYTES]].concat();
        assert!(matches!(inspect(&long, "x"), Err(ComponentError::TooLarge { .. })));
    }

    #[test]
    fn a_component_without_a_handler_is_refused_with_what_it_exports() {
        let command = outer(r#"(instance $i) (export "wasi:cli/run@0.2.6" (instance $i))"#).unwrap_err();
        assert!(command.to_string().contains("exports wasi:cli/run@0.2.6;"), "{command}");
        assert!(outer("").unwrap_err().to_string().contains("exports nothing"));
        // A handler inside a nested component is not the outer one's; nor is another version.
        assert!(matches!(outer(HANDLER), Err(ComponentError::NoHandler { .. })));
        let other = outer(r#"(instance $i) (export "wasi:http/incoming-handler@0.20.0" (instance $i))"#);
        assert!(matches!(other, Err(ComponentError::NoHandler { .. })));
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
