//! `validate`: checks configuration files without starting anything, and on demand what is registered.

mod live;

use std::{path::PathBuf, process::ExitCode};

use super::{complain, output};
use crate::config::{self, Config};

const EXAMPLES: &str = "\
Every problem of every file is told on standard error, with its line, its key and what to write
instead.

With --zookeeper, or with --live for the registries that the files name, each tree is read once and
nothing is written. An error is a znode that is not served: rejected or unreadable. A warning is
likely a mistake: a service without instances, one address in several services, a persistent instance
that nobody wrote for long, a large payload. Notes are names whose hosts are spelled otherwise.

Exit status: 0 when all files are good and no tree has an error; 1 when one has, or cannot be read;
2 when a file is not good.

Examples:
  meshkeeper validate meshkeeper.yaml
  meshkeeper validate config/*.yaml
  meshkeeper validate --zookeeper zk-1:2181 --root /services
  meshkeeper validate --live meshkeeper.yaml -o json";

/// Check configuration files, or what is registered in an ensemble
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The files to check
    #[arg(required_unless_present = "zookeeper", value_name = "FILE")]
    files: Vec<PathBuf>,

    /// Also check what is registered in the trees that the files name
    #[arg(long, requires = "files")]
    live: bool,

    #[command(flatten)]
    tree: live::Tree,
}

impl Args {
    pub fn run(&self) -> anyhow::Result<ExitCode> {
        let live = self.tree.check()?;
        if let Some(config) = self.tree.named()? {
            return live.run(&[config]);
        }
        let Some(configs) = self.read() else {
            return Ok(ExitCode::from(2));
        };
        if self.live {
            return live.run(&configs);
        }
        for file in &self.files {
            output::print(&format!("{}: ok\n", file.display()))?;
        }
        Ok(ExitCode::SUCCESS)
    }

    /// Nothing if one of the files is not good; the good ones are told then, too.
    fn read(&self) -> Option<Vec<Config>> {
        let mut configs = Vec::new();
        for file in &self.files {
            match config::load(Some(file), &config::Flags::default()) {
                Ok(config) => configs.push((file, config)),
                Err(problems) => complain(&problems.to_string()),
            }
        }
        if configs.len() == self.files.len() {
            return Some(configs.into_iter().map(|(_, config)| config).collect());
        }
        for (file, _) in configs {
            let _ = output::print(&format!("{}: ok\n", file.display()));
        }
        None
    }
}
