//! `release`: lets go what a running server holds back of mass deregistrations.

use std::process::ExitCode;

use super::{
    block_on, output,
    remote::{self, Remote, encoded},
};

const EXAMPLES: &str = "\
The released instances are told to clients as gone. Run it where the server runs: it takes orders from its own
machine only.

Examples:
  meshkeeper release orders
  meshkeeper release --registry main
  meshkeeper release";

/// Let go the instances that a running server goes on serving though they are gone
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Only those of this service
    service: Option<String>,

    /// Only those of this registry
    #[arg(long, value_name = "NAME")]
    registry: Option<String>,

    #[command(flatten)]
    server: remote::Server,
}

impl Args {
    pub fn run(&self) -> anyhow::Result<ExitCode> {
        let remote = Remote::new(&self.server)?;
        let answer = block_on(remote.post(&self.path()))?;
        let released = answer["released"].as_u64().unwrap_or_default();
        output::print(&match released {
            0 => "nothing was held\n".to_owned(),
            1 => "1 instance is released\n".to_owned(),
            n => format!("{n} instances are released\n"),
        })?;
        Ok(ExitCode::SUCCESS)
    }

    fn path(&self) -> String {
        let named = [("service", &self.service), ("registry", &self.registry)];
        let given = named.iter().filter_map(|(key, value)| {
            let value = encoded(value.as_deref()?);
            Some(format!("{key}={value}"))
        });
        let query: Vec<_> = given.collect();
        format!("/api/v1/release?{}", query.join("&"))
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    #[test]
    fn what_is_named_is_asked_for() {
        for (line, path) in [
            (&["release"][..], "/api/v1/release?"),
            (&["release", "a:b"], "/api/v1/release?service=a%3Ab"),
            (
                &["release", "--registry", "main", "orders"],
                "/api/v1/release?service=orders&registry=main",
            ),
        ] {
            assert_eq!(Line::parse_from(line).args.path(), path);
        }
    }
}
