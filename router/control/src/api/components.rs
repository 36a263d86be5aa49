//! Components: uploaded once by digest, checked before they are kept.

use std::collections::BTreeSet;

use bytes::Bytes;
use marcato_api::{ApiResult, Digest, Grant, Problem, ProblemKind, Role, ServiceKind, grant_for};
use wasmparser::{Parser, Payload};

use super::session::{OrProblem, Session};
use crate::blobs::BlobError;

/// Longest component.
pub(super) const LIMIT_BYTES: usize = 64 << 20;

impl Session {
    pub(crate) async fn has_component(&self, digest: &Digest) -> ApiResult<bool> {
        self.may_look("component.look", "components").await?;
        Ok(self.api.state.component(digest).await.or_problem()?.is_some())
    }

    pub(crate) async fn put_component(&self, digest: &Digest, bytes: Bytes) -> ApiResult<()> {
        let target = format!("component/{}", digest.short());
        self.may(Role::Deployer, self.token.org.as_ref(), "component.upload", &target).await?;
        let result = self.keep_component(digest, bytes).await;
        self.failed("component.upload", target, result).await
    }

    async fn keep_component(&self, digest: &Digest, bytes: Bytes) -> ApiResult<()> {
        if bytes.len() > LIMIT_BYTES {
            let why = format!("a component may have at most {LIMIT_BYTES} bytes");
            return Err(Problem::new(ProblemKind::TooLarge, why));
        }
        let copy = bytes.clone();
        let looked = tokio::task::spawn_blocking(move || (Digest::of(&copy), needs(&copy))).await;
        let (found, needs) = looked.map_err(|e| Problem::new(ProblemKind::Internal, e.to_string()))?;
        if found != *digest {
            let why = format!("the bytes hash to {found}");
            return Err(Problem::new(ProblemKind::DigestMismatch, why).with_field("digest"));
        }
        check_header(&bytes)?;
        let size = marcato_api::Bytes(bytes.len() as u64);
        // Also when it is known: the collector may be about to remove it.
        self.api.blobs.put(digest, bytes).await.map_err(|e| blob_problem(&e))?;
        self.api.state.record_component(digest, size, needs, self.actor()).await.or_problem()
    }
}

fn blob_problem(e: &BlobError) -> Problem {
    tracing::error!(error = ?e, "a component could not be kept");
    Problem::new(ProblemKind::Internal, e.to_string())
}

/// Whether the bytes begin as a component does (component-model, Binary.md: magic, version 0x0d, layer 1), or are a
/// module that exports `_start`: a WASI 0.1 command. Everything else is the compiler's to judge, in its own process.
fn check_header(bytes: &[u8]) -> ApiResult<()> {
    let why = match bytes.get(..8) {
        Some([0, b'a', b's', b'm', _, _, 1, 0]) => return Ok(()),
        Some([0, b'a', b's', b'm', _, _, 0, 0]) => {
            if exports_start(bytes) {
                return Ok(());
            }
            "this is a core module without _start: push a component (wasm32-wasip2) or a WASI 0.1 command"
        }
        Some([0, b'a', b's', b'm', ..]) => "this wasm file is of a kind that is not known here",
        _ => "this is not a wasm file",
    };
    Err(Problem::new(ProblemKind::BadComponent, why))
}

/// Whether a module exports `_start`.
fn exports_start(module: &[u8]) -> bool {
    for payload in Parser::new(0).parse_all(module) {
        match payload {
            Ok(Payload::ExportSection(section)) => {
                return section.into_iter().any(|export| export.is_ok_and(|e| e.name == "_start"));
            }
            Ok(_) => {}
            Err(_) => return false,
        }
    }
    false
}

/// The kinds of service that a component's imports use. `None`: it cannot be read; the compiler will say why.
fn needs(bytes: &[u8]) -> Option<BTreeSet<ServiceKind>> {
    let mut kinds = BTreeSet::new();
    // Nested modules and components come in between; only what the outermost level imports is asked of the platform.
    let mut depth = 0_u32;
    for payload in Parser::new(0).parse_all(bytes) {
        match payload.ok()? {
            Payload::ModuleSection { .. } | Payload::ComponentSection { .. } => depth += 1,
            Payload::End(_) => depth = depth.saturating_sub(1),
            Payload::ComponentImportSection(section) if depth == 0 => {
                for import in section {
                    if let Some(Grant::Binding(kind)) = grant_for(import.ok()?.name.name) {
                        kinds.insert(kind);
                    }
                }
            }
            _ => {}
        }
    }
    Some(kinds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kinds_that_imports_need_are_told_and_garbage_is_not_known() {
        let component = |body: &str| wat::parse_str(format!("(component {body})")).unwrap();
        let keyvalue = r#"(import "wasi:keyvalue/store@0.2.0-draft" (instance))"#;
        let access = r#"(import "marcato:access/registry@0.1.0" (instance))"#;
        assert_eq!(needs(&component("")), Some(BTreeSet::new()));
        assert_eq!(needs(&component(r#"(import "wasi:cli/environment@0.2.0" (instance))"#)), Some(BTreeSet::new()));
        let both = component(&format!("{keyvalue} (core module (func)) {access}"));
        assert_eq!(needs(&both), Some([ServiceKind::Access, ServiceKind::Keyvalue].into()));
        assert_eq!(needs(&component(&format!("(component {keyvalue}) {access}"))), Some([ServiceKind::Access].into()));
        for garbage in [&b""[..], b"\0asm", b"\0asm\x0d\0\x01\0and more"] {
            assert_eq!(needs(garbage), None);
        }
        for at in 0..both.len() {
            needs(&both[..at]);
            for value in [0, 1, 0x7f, 0x80, 0xff] {
                let mut bytes = both.clone();
                bytes[at] = value;
                needs(&bytes);
            }
        }
    }

    #[test]
    fn only_components_pass() {
        check_header(b"\0asm\x0d\0\x01\0and more").unwrap();
        check_header(&wat::parse_str("(module (func (export \"_start\")))").unwrap()).unwrap();
        check_header(&wat::parse_str("(module (func (export \"start\")))").unwrap()).unwrap_err();
        for bad in [&b""[..], b"\0as", b"\0asm\x01\0\0\0", b"\x7fELF\0\0\0\0", b"\0asm\x0d\0\x02\0"] {
            assert_eq!(check_header(bad).unwrap_err().kind, ProblemKind::BadComponent);
        }
    }
}
