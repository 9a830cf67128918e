//! What the process tells of itself: log lines on standard error, and the registry of metrics.
//!
//! It refuses to know what is logged and measured; each module registers its own metrics.
//! Invariant: standard output is never touched. Quiet by default: our own lines from `info` up,
//! those of the libraries from `warn` up, and those of the ZooKeeper client from `error` up: it warns
//! in every healthy start, and of every trouble that the watcher tells in better words.

use std::{env, fmt, io};

use clap::ValueEnum;
use prometheus::{IntGauge, Opts, Registry, core::Collector};
use tracing_subscriber::{EnvFilter, fmt::MakeWriter};

/// Its directives win over the default, and `--log-level` wins over them.
const VARIABLE: &str = "RUST_LOG";

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// A line for a person
    #[default]
    Text,
    /// A JSON object for each line
    Json,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Level {
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

/// Why logging cannot begin.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("RUST_LOG is `{value}`: {source}; write directives as in `warn,meshkeeper=debug`")]
    Variable {
        value: String,
        source: tracing_subscriber::filter::ParseError,
    },
    #[error("logging began already")]
    Twice,
}

/// Sends log lines to standard error from here on.
pub fn init(format: Format, level: Option<Level>) -> Result<(), Error> {
    let filter = filter(level, env::var(VARIABLE).ok().as_deref())?;
    subscribe(format, filter, io::stderr).map_err(|_| Error::Twice)
}

fn subscribe<W>(format: Format, filter: EnvFilter, writer: W) -> Result<(), impl fmt::Display>
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(writer)
        .with_ansi(false)
        // A reader that hung up would turn the complaint about it into a panic.
        .log_internal_errors(false);
    match format {
        Format::Text => builder.try_init(),
        Format::Json => builder.json().flatten_event(true).try_init(),
    }
}

fn filter(level: Option<Level>, variable: Option<&str>) -> Result<EnvFilter, Error> {
    let directives = match (level, variable) {
        (Some(level), _) => of_level(level),
        (None, Some(value)) if !value.trim().is_empty() => value.to_owned(),
        (None, _) => of_level(Level::Info),
    };
    EnvFilter::try_new(&directives).map_err(|source| Error::Variable {
        value: directives,
        source,
    })
}

/// Ours from the level up, others never below `warn`; the ZooKeeper client's only where all is asked.
fn of_level(level: Level) -> String {
    let name = format!("{level:?}").to_lowercase();
    match level {
        Level::Error => name,
        Level::Warn | Level::Info => format!("warn,zookeeper_client=error,meshkeeper={name}"),
        Level::Debug | Level::Trace => format!("warn,meshkeeper={name}"),
    }
}

/// A registry with `meshkeeper_build_info` and the `process_*` metrics.
pub fn metrics() -> prometheus::Result<Registry> {
    let registry = Registry::new();
    let options = Opts::new(
        "meshkeeper_build_info",
        "Always 1; the version is the label.",
    )
    .const_label("version", env!("CARGO_PKG_VERSION"));
    let build = IntGauge::with_opts(options)?;
    build.set(1);
    let collector: Box<dyn Collector> = Box::new(build);
    registry.register(collector)?;
    #[cfg(target_os = "linux")]
    registry.register(Box::new(
        prometheus::process_collector::ProcessCollector::for_self(),
    ))?;
    Ok(registry)
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUIET: &str = "zookeeper_client=error,meshkeeper=info,warn";

    #[test]
    fn it_is_quiet_by_default_and_the_level_is_for_our_own_lines() {
        assert_eq!(filter(None, None).unwrap().to_string(), QUIET);
        assert_eq!(filter(None, Some(" ")).unwrap().to_string(), QUIET);
        let debug = filter(Some(Level::Debug), Some("trace")).unwrap();
        assert_eq!(debug.to_string(), "meshkeeper=debug,warn");
        assert_eq!(
            filter(Some(Level::Error), None).unwrap().to_string(),
            "error"
        );
    }

    #[test]
    fn the_variable_is_respected_and_a_wrong_one_is_told() {
        assert_eq!(filter(None, Some("debug")).unwrap().to_string(), "debug");
        let error = filter(None, Some("meshkeeper=loud"))
            .unwrap_err()
            .to_string();
        assert!(
            error.starts_with("RUST_LOG is `meshkeeper=loud`"),
            "{error}"
        );
    }

    #[test]
    fn the_build_is_among_the_metrics() {
        let families = metrics().unwrap().gather();
        assert_eq!(families[0].name(), "meshkeeper_build_info");
        assert_eq!(
            families[0].get_metric()[0].get_label()[0].value(),
            env!("CARGO_PKG_VERSION")
        );
    }
}
