//! Answers on standard output.

use std::io::{self, ErrorKind, Write};

use anyhow::Context;
use clap::ValueEnum;
use serde::Serialize;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Columns for a person
    #[default]
    Table,
    Json,
    Yaml,
}

/// A reader that has seen enough (`| head`) is no failure.
pub fn print(text: &str) -> anyhow::Result<()> {
    let mut stdout = io::stdout().lock();
    match stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
    {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        result => result.context("cannot write to standard output"),
    }
}

/// The document itself, or the table that is made of it.
pub fn print_as(
    format: Format,
    document: &impl Serialize,
    table: impl FnOnce() -> String,
) -> anyhow::Result<()> {
    print(&match format {
        Format::Table => table(),
        Format::Json => serde_json::to_string_pretty(document)? + "\n",
        Format::Yaml => serde_yaml::to_string(document)?,
    })
}
