//! The hidden `compile-component`: a host runs it in a process of its own, under limits, for each new component.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;

/// Compile the component on stdin
#[derive(Debug, Args)]
pub(crate) struct CompileArgs {
    /// Where the machine code goes
    output: PathBuf,
}

pub(crate) fn run(args: &CompileArgs) -> Result<()> {
    marcato_hostd::compile_child(&mut std::io::stdin().lock(), &args.output)?;
    Ok(())
}
