//! The hidden `compile-component`: a host runs it in a process of its own, confined, for each new component.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;

/// Compile the component on stdin
#[derive(Debug, Args)]
pub(crate) struct CompileArgs {
    /// Fail where this machine lacks a part of the confinement
    #[arg(long)]
    require_confinement: bool,
    /// Where the machine code goes
    output: PathBuf,
}

pub(crate) fn run(args: &CompileArgs) -> Result<()> {
    marcato_hostd::compile_confined(&args.output, args.require_confinement)?;
    Ok(())
}
