//! `ready`: whether a running server serves, as a probe asks where there is no HTTP client.
//!
//! It refuses to know what readiness depends on: the server says it, and its status decides.
//! Invariant: exit status 0 only for an answer that says so.

use std::process::ExitCode;

use hyper::StatusCode;

use super::{
    block_on, output,
    remote::{self, Remote},
};

const EXAMPLES: &str = "\
Without ZooKeeper at the start a server lives and is not ready; once it was ready it stays so. Restart
one that does not live; send no clients to one that is not ready.

Examples:
  meshkeeper ready
  meshkeeper ready --live --admin 127.0.0.1:15014
  until meshkeeper ready; do sleep 1; done

Exit status: 0 if it is; 1 if it is not, or does not answer; 2 for usage.";

/// Ask a running server whether it is ready, as /readyz says it
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Ask only whether it lives, as /livez says it
    #[arg(long)]
    live: bool,

    #[command(flatten)]
    server: remote::Server,
}

impl Args {
    pub fn run(&self) -> anyhow::Result<ExitCode> {
        let remote = Remote::new(&self.server)?;
        let path = if self.live { "/livez" } else { "/readyz" };
        let (status, page) = block_on(remote.probe(path))?;
        output::print(&page)?;
        Ok(if status == StatusCode::OK {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        })
    }
}
