//! `validate`: checks configuration files without starting anything.

use std::{path::PathBuf, process::ExitCode};

use super::{complain, output};
use crate::config::{self, Flags};

const EXAMPLES: &str = "\
Every problem of every file is told on standard error, with its line, its key and what to write
instead. Exit status: 0 when all files are good, else 2.

Examples:
  meshkeeper validate meshkeeper.yaml
  meshkeeper validate config/*.yaml";

/// Check configuration files
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The files to check
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
}

impl Args {
    pub fn run(&self) -> anyhow::Result<ExitCode> {
        let mut code = ExitCode::SUCCESS;
        for file in &self.files {
            match config::load(Some(file), &Flags::default()) {
                Ok(_) => output::print(&format!("{}: ok\n", file.display()))?,
                Err(problems) => {
                    complain(&problems.to_string());
                    code = ExitCode::from(2);
                }
            }
        }
        Ok(code)
    }
}
