//! The cache of compiled code as the host daemon has it: it compiles in a process of its own, signs, verifies and
//! forgets. Makes no sandbox. Intent flow: `hostd::reconcile` -> here; workers get the paths of verified files.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures::future::BoxFuture;
use marcato_api::Digest;
use tokio::sync::Semaphore;

use crate::artifact::ArtifactCache;
use crate::config::CompilerCommand;
use crate::engine::code_key;
use crate::error::{CompileError, LoadError, RuntimeError};
use crate::files::Files;
use crate::runtime::blocking;

/// Compilations at once: each may take hundreds of MiB.
const COMPILERS: usize = 2;

/// Where a runtime gets compiled code from.
pub trait CodeSource: Send + Sync + 'static {
    /// The path of the code of `digest`, verified to be this host's own. Errors: there is none, or it is refused.
    fn open<'a>(&'a self, digest: &'a Digest) -> BoxFuture<'a, Result<PathBuf, LoadError>>;
}

/// The cache of a host. Cheap to clone.
#[derive(Clone)]
pub struct CodeCache(Arc<Shared>);

struct Shared {
    files: ArtifactCache,
    compiler: CompilerCommand,
    compilers: Semaphore,
}

impl std::fmt::Debug for CodeCache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CodeCache").finish_non_exhaustive()
    }
}

impl CodeCache {
    /// Opens the cache in `dir`, a private directory that is made when it is not there.
    pub fn open(dir: &Path, compiler: CompilerCommand) -> Result<Self, RuntimeError> {
        let key = code_key().map_err(|e| RuntimeError::Link(format!("{e:#}")))?;
        let files = ArtifactCache::open(dir, &key)?;
        Ok(Self(Arc::new(Shared { files, compiler, compilers: Semaphore::new(COMPILERS) })))
    }

    /// Compiles the component at `component`; fine when it is there already.
    pub async fn compile(&self, digest: &Digest, component: &Path) -> Result<(), CompileError> {
        let shared = &self.0;
        let _turn = shared.compilers.acquire().await.map_err(|e| CompileError::Process(io::Error::other(e)))?;
        if shared.files.contains(digest) {
            return Ok(());
        }
        let (wanted, path) = (digest.clone(), component.to_owned());
        let bytes =
            blocking(move || crate::compile::read_verified(&wanted, &path)).await.map_err(CompileError::Process)??;
        let scratch = shared.files.scratch().map_err(CompileError::Store)?;
        crate::compile::run(&shared.compiler, &bytes, scratch.path()).await?;
        let (owner, digest) = (Arc::clone(shared), digest.clone());
        let keep = move || {
            // Before the code: code that is there has its files.
            Files::extract(owner.files.dir(), &digest, &bytes)?;
            owner.files.commit(&digest, scratch).map_err(CompileError::Store)
        };
        blocking(keep).await.map_err(CompileError::Process)?
    }

    /// Whether it has the code, for this version of the runtime.
    #[must_use]
    pub fn is_compiled(&self, digest: &Digest) -> bool {
        self.0.files.contains(digest)
    }

    /// The file with the code, verified. A file that is not right is removed. Reads it all the first time.
    pub async fn verified(&self, digest: &Digest) -> Result<PathBuf, LoadError> {
        let (owner, digest) = (Arc::clone(&self.0), digest.clone());
        blocking(move || owner.files.verified(&digest)).await.map_err(LoadError::Read)?
    }

    /// Gives a worker's folder the files that the component brought along; fine when there are none. They lie beside
    /// its code there, as [`CodeSource::open`] names it.
    pub fn link_files(&self, digest: &Digest, folder: &Path) -> io::Result<()> {
        Files::link(self.0.files.dir(), digest, folder)
    }

    /// Takes the files of a component from a worker's folder; fine when there are none.
    pub fn unlink_files(digest: &Digest, folder: &Path) -> io::Result<()> {
        Files::remove(folder, digest)
    }

    /// Removes a component's code and files; fine when it is not there. Code that runs goes on.
    pub fn forget(&self, digest: &Digest) -> io::Result<()> {
        self.0.files.remove(digest)?;
        Files::remove(self.0.files.dir(), digest)
    }

    #[cfg(test)]
    pub(crate) fn compile_here(&self, bytes: &[u8]) -> Result<Digest, CompileError> {
        let (_, code) = crate::compile::compile_bytes(bytes)?;
        let scratch = self.0.files.scratch().map_err(CompileError::Store)?;
        std::fs::write(scratch.path(), code).map_err(CompileError::Store)?;
        let digest = Digest::of(bytes);
        Files::extract(self.0.files.dir(), &digest, bytes)?;
        self.0.files.commit(&digest, scratch).map_err(CompileError::Store)?;
        Ok(digest)
    }
}

impl CodeSource for CodeCache {
    fn open<'a>(&'a self, digest: &'a Digest) -> BoxFuture<'a, Result<PathBuf, LoadError>> {
        Box::pin(self.verified(digest))
    }
}
