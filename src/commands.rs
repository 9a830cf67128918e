//! The command line: what is typed, checked before anything is done.
//!
//! Each command is a file of its own: its arguments, its help and its `run`. Exit statuses are a
//! contract: 0; 1 for a failure at run time; 2 for usage or configuration, with every problem on
//! standard error. Standard output carries nothing but the answer, and may be closed at any time.

pub mod bootstrap;
pub mod clients;
pub mod compare;
pub mod completions;
pub mod dump;
pub mod explain;
mod flags;
pub mod holds;
mod output;
pub mod ready;
pub mod register;
pub mod release;
mod remote;
pub mod serve;
pub mod services;
mod table;
pub mod validate;

use std::{
    io::{self, Write},
    process::ExitCode,
};

use clap::{Parser, Subcommand};

use crate::{
    config::Problems,
    telemetry::{self, Format, Level},
};

const EXAMPLES: &str = "\
Examples:
  meshkeeper serve --zookeeper zk-1:2181,zk-2:2181
  meshkeeper bootstrap envoy --xds 127.0.0.1:15010 --node-id sidecar-1 > envoy.json
  meshkeeper register --zookeeper zk-1:2181 --service orders --address 10.0.0.7:8080 -- ./orders
  meshkeeper services

Exit status: 0; 1 for a failure at run time; 2 for usage or configuration.";

/// A control plane: registrations in ZooKeeper in, live configuration for Envoy and gRPC out
///
/// MeshKeeper mirrors the services that registered in ZooKeeper, and sends them as clusters,
/// endpoints, routes and listeners to Envoy sidecars and proxyless gRPC clients over xDS.
#[derive(Debug, Parser)]
#[command(name = "meshkeeper", version, propagate_version = true, after_help = EXAMPLES)]
#[command(
    arg_required_else_help = true,
    subcommand_required = true,
    verbatim_doc_comment
)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Serve(serve::Args),
    Bootstrap(bootstrap::Args),
    Register(Box<register::Args>),
    Services(services::Args),
    Clients(clients::Args),
    Dump(dump::Args),
    Holds(holds::Args),
    Release(release::Args),
    Explain(explain::Args),
    Compare(compare::Args),
    Ready(ready::Args),
    Validate(validate::Args),
    Completions(completions::Args),
}

/// How commands that go on running log.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct Logs {
    /// How log lines on standard error look
    #[arg(long, value_name = "FORMAT", value_enum, default_value_t = Format::Text)]
    log_format: Format,

    /// The least of our own log lines to show [default: info, or what `RUST_LOG` says]
    #[arg(long, value_name = "LEVEL", value_enum)]
    log_level: Option<Level>,
}

impl Logs {
    fn begin(self) -> anyhow::Result<()> {
        telemetry::init(self.log_format, self.log_level).map_err(|error| match error {
            telemetry::Error::Variable { .. } => Usage(error.to_string()).into(),
            telemetry::Error::Twice => error.into(),
        })
    }
}

/// Something typed that cannot be meant; the message has the remedy.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Usage(pub String);

/// Runs what the process was asked to do.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help that nobody reads is no failure.
            let _ = error.print();
            return exit_code(error.exit_code());
        }
    };
    run(cli.command).unwrap_or_else(|error| fail(&error))
}

fn run(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Serve(args) => args.run(),
        Command::Bootstrap(args) => args.run(),
        Command::Register(args) => args.run(),
        Command::Services(args) => args.run(),
        Command::Clients(args) => args.run(),
        Command::Dump(args) => args.run(),
        Command::Holds(args) => args.run(),
        Command::Release(args) => args.run(),
        Command::Explain(args) => args.run(),
        Command::Compare(args) => args.run(),
        Command::Ready(args) => args.run(),
        Command::Validate(args) => args.run(),
        Command::Completions(args) => args.run(),
    }
}

fn exit_code(status: i32) -> ExitCode {
    ExitCode::from(u8::try_from(status).unwrap_or(1))
}

/// Says what went wrong; a closed standard error changes nothing about it.
fn fail(error: &anyhow::Error) -> ExitCode {
    let usage = error.is::<Usage>();
    let text = match error.downcast_ref::<Problems>() {
        Some(problems) => format!("{problems}\nmeshkeeper: {}", count(problems)),
        None => format!("meshkeeper: {error:#}"),
    };
    complain(&text);
    if usage || error.is::<Problems>() {
        ExitCode::from(2)
    } else {
        ExitCode::FAILURE
    }
}

fn count(problems: &Problems) -> String {
    match problems.0.len() {
        1 => "1 problem; nothing was done".to_owned(),
        n => format!("{n} problems; nothing was done"),
    }
}

fn complain(text: &str) {
    let _ = writeln!(io::stderr().lock(), "{text}");
}

/// For commands that wait for one thing at a time.
fn block_on<T>(future: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(future)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_and_argument_is_explained() {
        for command in Cli::command().get_subcommands() {
            let name = command.get_name();
            assert!(command.get_about().is_some(), "{name}");
            let help = command.get_after_help().map(ToString::to_string);
            assert!(help.unwrap_or_default().contains("Examples:"), "{name}");
            for argument in command.get_arguments() {
                assert!(
                    argument.get_help().is_some(),
                    "{name} {}",
                    argument.get_id()
                );
            }
        }
    }

    #[test]
    fn usage_and_configuration_exit_with_2_and_the_rest_with_1() {
        let text = |error: anyhow::Error| format!("{:?}", fail(&error));
        assert_eq!(
            text(Usage(String::new()).into()),
            format!("{:?}", ExitCode::from(2))
        );
        assert_eq!(
            text(Problems(vec![]).into()),
            format!("{:?}", ExitCode::from(2))
        );
        assert_eq!(
            text(anyhow::anyhow!("x")),
            format!("{:?}", ExitCode::from(1))
        );
    }
}
