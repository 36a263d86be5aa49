//! What needs no server: completions and the manifest's schema.

use std::path::PathBuf;

use anyhow::Result;
use clap::{CommandFactory, Subcommand};
use clap_complete::Shell;

use crate::manifest::{self, FILE_NAME, Manifest};
use crate::output::Output;

/// About marcato.toml
#[derive(Debug, Subcommand)]
pub(crate) enum ManifestCommand {
    /// Print the JSON schema, for editors
    Schema,
    /// Check a manifest without pushing
    Check {
        /// The folder or the file
        #[arg(default_value = ".", value_name = "DIR|FILE")]
        path: PathBuf,
    },
}

pub(crate) fn completions(shell: Shell, out: Output) -> Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut crate::args::Cli::command(), "marcato", &mut script);
    out.line(String::from_utf8_lossy(&script).trim_end())
}

pub(crate) fn manifest(command: ManifestCommand, out: Output) -> Result<()> {
    match command {
        ManifestCommand::Schema => out.line(manifest::schema().trim_end()),
        ManifestCommand::Check { path } => {
            let file = if path.is_dir() { path.join(FILE_NAME) } else { path };
            let manifest = Manifest::load(&file)?;
            let sentence = format!("{} is a valid manifest of {}", file.display(), manifest.name);
            out.done(&serde_json::json!({ "name": manifest.name, "config": manifest.config() }), sentence)
        }
    }
}
