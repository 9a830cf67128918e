//! `serve`: the control plane itself.

use std::{path::PathBuf, process::ExitCode};

use super::{Logs, output};
use crate::{
    app,
    config::{self, Flags},
};

const EXAMPLES: &str = "\
Flags win over the file; without either the defaults hold: ZooKeeper at 127.0.0.1:2181, services
below /services, xDS at 0.0.0.0:15010, admin at 127.0.0.1:15014.

SIGTERM and SIGINT drain: not ready, then streams end in order, then the session closes. A second
signal stops at once. Health is at /livez and /readyz of the admin address; GET / lists the rest.

Examples:
  meshkeeper serve
  meshkeeper serve --zookeeper zk-1:2181,zk-2:2181/mesh --root /services
  meshkeeper serve --config meshkeeper.yaml --log-format json
  meshkeeper serve --config meshkeeper.yaml --print-config";

/// Mirror ZooKeeper and serve xDS until told to stop
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Read the configuration from this YAML file
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,

    /// The ZooKeeper ensemble: HOST:PORT[,HOST:PORT…][/CHROOT]
    #[arg(long, value_name = "CONNECT")]
    zookeeper: Option<String>,

    /// The znode that services register below
    #[arg(long, value_name = "PATH")]
    root: Option<String>,

    /// Where clients connect: IP:PORT
    #[arg(long, value_name = "ADDR")]
    xds_listen: Option<String>,

    /// Where health, metrics and the admin API are: IP:PORT
    #[arg(long, value_name = "ADDR")]
    admin_listen: Option<String>,

    /// Print the configuration that results from file, flags and defaults, and exit
    #[arg(long)]
    print_config: bool,

    #[command(flatten)]
    logs: Logs,
}

impl Args {
    pub fn run(self) -> anyhow::Result<ExitCode> {
        let flags = Flags {
            zookeeper: self.zookeeper,
            root: self.root,
            xds_listen: self.xds_listen,
            admin_listen: self.admin_listen,
        };
        let config = config::load(self.config.as_deref(), &flags)?;
        if self.print_config {
            output::print(&config.to_yaml())?;
            return Ok(ExitCode::SUCCESS);
        }
        config.check_files()?;
        self.logs.begin()?;
        tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .build()?
            .block_on(app::run(config))?;
        Ok(ExitCode::SUCCESS)
    }
}
