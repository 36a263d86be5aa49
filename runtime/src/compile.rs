//! Compilation, in a process of its own.

use std::io::Read;
use std::path::Path;

use crate::error::CompileError;

/// What the compiler process runs: reads a component, writes its code to `output`.
pub fn compile_child(component: &mut dyn Read, output: &Path) -> Result<(), CompileError> {
    let mut bytes = Vec::new();
    component.read_to_end(&mut bytes).map_err(CompileError::Read)?;
    std::fs::write(output, &bytes).map_err(CompileError::Store)
}
