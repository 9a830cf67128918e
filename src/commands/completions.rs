//! `completions`: scripts that complete the command line in a shell.

use std::process::ExitCode;

use clap::CommandFactory;
use clap_complete::Shell;

use super::{Cli, output};

const EXAMPLES: &str = "\
Examples:
  meshkeeper completions bash > /etc/bash_completion.d/meshkeeper
  meshkeeper completions zsh > \"${fpath[1]}/_meshkeeper\"
  meshkeeper completions fish > ~/.config/fish/completions/meshkeeper.fish";

/// Print a script that completes the command line in a shell
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The shell that reads the script
    shell: Shell,
}

impl Args {
    pub fn run(&self) -> anyhow::Result<ExitCode> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut Cli::command(), "meshkeeper", &mut script);
        output::print(&String::from_utf8_lossy(&script))?;
        Ok(ExitCode::SUCCESS)
    }
}
