//! The compiler's process: confined before it reads the first byte of a component. Intent flow; started by
//! `marcato_runtime`'s cache through the `marcato` command, it ends with one component compiled.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::path::Path;

use marcato_confine::{ConfineError, Plan, enter, seal};
use marcato_runtime::{CONFINEMENT_PREFIX, CompileError, compile_to, limit_compiler};

/// Why the compiler's process failed.
#[derive(Debug, thiserror::Error)]
pub enum CompilerError {
    /// The component, or its output.
    #[error(transparent)]
    Compile(#[from] CompileError),
    /// The way into the confinement failed half way.
    #[error("the compiler cannot be confined")]
    Confine(#[from] ConfineError),
    /// The operator asks for more than this machine has.
    #[error("the compiler's confinement is {0}, and the operator requires all of it")]
    NotFull(String),
}

/// Compiles the component on standard input into `output`, confined. Call it first in a process that has one thread.
///
/// Its limits come from its environment. It keeps its standard streams and the output, opened before; nothing else
/// of the machine is left to it. What this machine does not have is said on standard error.
pub fn compile_confined(output: &Path, require_confinement: bool) -> Result<(), CompilerError> {
    limit_compiler()?;
    let mut file = File::create(output).map_err(CompileError::Store)?;
    let plan = Plan::compiler(vec![file.as_raw_fd()]);
    let mut report = enter(&plan)?;
    seal(&plan, &mut report)?;
    if !report.is_full() {
        if require_confinement {
            return Err(CompilerError::NotFull(report.to_string()));
        }
        // The daemon logs it. Nobody reads what cannot be written.
        let _ = writeln!(io::stderr(), "{CONFINEMENT_PREFIX}{report}");
    }
    Ok(compile_to(&mut io::stdin().lock(), &mut file)?)
}
