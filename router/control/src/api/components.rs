//! Components: uploaded once by digest, checked before they are kept.

use bytes::Bytes;
use marcato_api::{ApiResult, Digest, Problem, ProblemKind, Role};

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
        let hashed = bytes.clone();
        let found = tokio::task::spawn_blocking(move || Digest::of(&hashed)).await;
        let found = found.map_err(|e| Problem::new(ProblemKind::Internal, e.to_string()))?;
        if found != *digest {
            let why = format!("the bytes hash to {found}");
            return Err(Problem::new(ProblemKind::DigestMismatch, why).with_field("digest"));
        }
        check_header(&bytes)?;
        if self.api.state.component(digest).await.or_problem()?.is_some() {
            return Ok(());
        }
        let size = marcato_api::Bytes(bytes.len() as u64);
        self.api.blobs.put(digest, bytes).await.map_err(|e| blob_problem(&e))?;
        self.api.state.record_component(digest, size, self.actor()).await.or_problem()
    }
}

fn blob_problem(e: &BlobError) -> Problem {
    tracing::error!(error = ?e, "a component could not be kept");
    Problem::new(ProblemKind::Internal, e.to_string())
}

/// Whether the bytes begin as a component does (component-model, Binary.md): magic, version 0x0d, layer 1.
/// Everything else is the compiler's to judge, in its own process.
fn check_header(bytes: &[u8]) -> ApiResult<()> {
    let why = match bytes.get(..8) {
        Some([0, b'a', b's', b'm', _, _, 1, 0]) => return Ok(()),
        Some([0, b'a', b's', b'm', _, _, 0, 0]) => {
            "this is a core module, not a component: build for wasm32-wasip2, or wrap it with `wasm-tools component new`"
        }
        Some([0, b'a', b's', b'm', ..]) => "this wasm file is of a kind that is not known here",
        _ => "this is not a wasm file",
    };
    Err(Problem::new(ProblemKind::BadComponent, why))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_components_pass() {
        check_header(b"\0asm\x0d\0\x01\0and more").unwrap();
        for bad in [&b""[..], b"\0as", b"\0asm\x01\0\0\0", b"\x7fELF\0\0\0\0", b"\0asm\x0d\0\x02\0"] {
            assert_eq!(check_header(bad).unwrap_err().kind, ProblemKind::BadComponent);
        }
    }
}
