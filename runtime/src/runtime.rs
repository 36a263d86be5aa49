//! The runtime: one engine, one cache of code, any number of instances.

use std::io;
use std::path::Path;
use std::sync::Arc;

use marcato_api::{Digest, HostUsage};

use crate::config::{InstanceSetup, RuntimeConfig};
use crate::error::{CompileError, LoadError, RuntimeError, StartError};
use crate::instance::Instance;

/// The sandbox runtime of a host. Cheap to clone.
#[derive(Clone)]
pub struct Runtime {
    inner: Arc<RuntimeConfig>,
}

/// Compiled, linked code of one component. Cheap to clone.
#[derive(Clone)]
pub struct Code {
    digest: Digest,
}

impl Code {
    /// The component's digest.
    #[must_use]
    pub fn digest(&self) -> &Digest {
        &self.digest
    }
}

impl Runtime {
    /// Makes a runtime; needs a tokio runtime around it.
    pub fn new(config: RuntimeConfig) -> Result<Self, RuntimeError> {
        Ok(Self { inner: Arc::new(config) })
    }

    /// Compiles the component at `component` into the cache; fine when it is there already.
    pub async fn compile(&self, digest: &Digest, component: &Path) -> Result<(), CompileError> {
        let _ = (&self.inner, digest, component);
        Ok(())
    }

    /// Whether the cache has its code.
    #[must_use]
    pub fn is_compiled(&self, digest: &Digest) -> bool {
        let _ = digest;
        false
    }

    /// Loads code from the cache and links it.
    pub async fn load(&self, digest: &Digest) -> Result<Code, LoadError> {
        Err(LoadError::NotCompiled(digest.clone()))
    }

    /// Starts an instance.
    pub fn start(&self, setup: InstanceSetup, code: &Code) -> Result<Instance, StartError> {
        let _ = code;
        setup.config.validate()?;
        Ok(Instance { inner: Arc::new(setup) })
    }

    /// What the host's sandboxes use now.
    #[must_use]
    pub fn usage(&self) -> HostUsage {
        HostUsage::default()
    }

    /// Removes a component's code from the cache; fine when it is not there.
    pub fn forget(&self, digest: &Digest) -> io::Result<()> {
        let _ = digest;
        Ok(())
    }
}
