//! The part of `validate` that reads trees: once, without writing anything.
//!
//! It refuses to know what is odd ([`crate::lint`]) and how a tree is read ([`crate::zookeeper::load`]).

use std::{
    process::ExitCode,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::Context;
use futures_util::{StreamExt, stream};
use serde::Serialize;

use crate::{
    app,
    commands::{
        block_on,
        flags::Flags,
        output,
        table::{Table, plain},
    },
    config::{self, Config, value},
    lint::{Finding, Level, Limits, Survey},
    registry::Resolution,
    zookeeper,
};

/// How many names are looked up at once, and how long each may take.
const LOOKUPS: usize = 16;
const LOOKUP: Duration = Duration::from_secs(5);

#[derive(Debug, clap::Args)]
pub struct Tree {
    /// Check what is registered in this ensemble: HOST:PORT[,HOST:PORT…][/CHROOT]
    #[arg(long, value_name = "CONNECT", conflicts_with = "files")]
    zookeeper: Option<String>,

    /// The znode that services register below
    #[arg(long, value_name = "PATH", requires = "zookeeper")]
    root: Option<String>,

    /// How znodes are written there
    #[arg(long, value_name = "FORMAT", requires = "zookeeper")]
    format: Option<String>,

    /// Where services and instances stand below the root, as in `*/providers/*`
    #[arg(long, value_name = "LAYOUT", requires = "zookeeper")]
    layout: Option<String>,

    /// Warn of persistent instances that were not written for that long
    #[arg(long, value_name = "TIME", default_value = "720h")]
    untouched: String,

    /// Warn of znodes with more data, in bytes
    #[arg(long, value_name = "BYTES", default_value_t = 64 * 1024)]
    payload: usize,

    /// How long reading a tree may take
    #[arg(long, value_name = "TIME", default_value = "30s")]
    wait: String,

    /// List notes too
    #[arg(long)]
    notes: bool,

    /// How to print what is found
    #[arg(short, long, value_enum, default_value_t)]
    output: output::Format,
}

/// What the flags say, checked.
pub struct Live {
    limits: Limits,
    wait: Duration,
    notes: bool,
    output: output::Format,
}

/// One registry's tree.
#[derive(Debug, Serialize)]
struct Report {
    registry: String,
    root: String,
    services: usize,
    instances: usize,
    errors: usize,
    warnings: usize,
    notes: usize,
    findings: Vec<Finding>,
}

impl Tree {
    pub fn check(&self) -> anyhow::Result<Live> {
        let mut flags = Flags::default();
        let untouched = flags.check("--untouched", &self.untouched, value::duration);
        let wait = flags.check("--wait", &self.wait, value::duration);
        let times = flags.finish(untouched.zip(wait));
        let (untouched, wait) = times?;
        Ok(Live {
            limits: Limits {
                untouched,
                payload: self.payload,
            },
            wait,
            notes: self.notes,
            output: self.output,
        })
    }

    /// The registry that the flags name, if they do.
    pub fn named(&self) -> anyhow::Result<Option<Config>> {
        if self.zookeeper.is_none() {
            return Ok(None);
        }
        let mut flags = Flags::default();
        let format = flags.check_given("--format", self.format.as_ref(), value::format);
        let layout = flags.check_given("--layout", self.layout.as_ref(), value::layout);
        flags.finish(Some(()))?;
        let mut config = config::load(
            None,
            &config::Flags {
                zookeeper: self.zookeeper.clone(),
                root: self.root.clone(),
                ..config::Flags::default()
            },
        )?;
        for registry in &mut config.registries {
            registry.format = format.unwrap_or(registry.format);
            registry.layout = layout.clone().flatten();
        }
        Ok(Some(config))
    }
}

impl Live {
    pub fn run(&self, configs: &[Config]) -> anyhow::Result<ExitCode> {
        let mut reports = Vec::new();
        for config in configs {
            for at in 0..config.registries.len() {
                reports.push(block_on(self.look_at(config, at))?);
            }
        }
        output::print_as(self.output, &reports, || {
            reports.iter().map(Report::render).collect()
        })?;
        let clean = reports.iter().all(|report| report.errors == 0);
        Ok(if clean {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        })
    }

    async fn look_at(&self, config: &Config, at: usize) -> anyhow::Result<Report> {
        let registry = &config.registries[at];
        let loaded = zookeeper::load(app::zookeeper_config(config, at), self.wait).await?;
        let mut survey = Survey::new(
            app::registry_config(registry),
            self.limits,
            loaded.events,
            &loaded.unreadable,
            now()?,
        );
        let hosts = survey.wanted_hosts();
        let mut resolutions = stream::iter(hosts)
            .map(|host| async move { (resolve(&host).await, host) })
            .buffer_unordered(LOOKUPS);
        while let Some((resolution, host)) = resolutions.next().await {
            survey.resolved(&host, resolution);
        }
        Ok(self.report(registry, survey))
    }

    fn report(&self, registry: &config::Registry, survey: Survey) -> Report {
        let services = survey.view().services;
        let mut findings = survey.findings();
        let count = |level| findings.iter().filter(|f| f.level == level).count();
        let [errors, warnings, notes] = [Level::Error, Level::Warning, Level::Note].map(count);
        findings.retain(|finding| self.notes || finding.level != Level::Note);
        Report {
            registry: registry.name.clone(),
            root: registry.root.clone(),
            services: services.len(),
            instances: services.values().map(|s| s.instances.iter().count()).sum(),
            errors,
            warnings,
            notes,
            findings,
        }
    }
}

impl Report {
    /// A line, and a table where there is anything to list.
    fn render(&self) -> String {
        let mut text = format!(
            "registry {}, {}: {}, {}; {}, {}, {}\n",
            plain(&self.registry),
            plain(&self.root),
            counted(self.services, "service"),
            counted(self.instances, "instance"),
            counted(self.errors, "error"),
            counted(self.warnings, "warning"),
            counted(self.notes, "note"),
        );
        if !self.findings.is_empty() {
            let mut table = Table::new(["LEVEL", "CHECK", "SUBJECT", "MESSAGE"]);
            for finding in &self.findings {
                table.push([
                    word(&finding.level),
                    word(&finding.check),
                    finding.subject.clone(),
                    finding.message.clone(),
                ]);
            }
            text += &table.render();
        }
        text
    }
}

fn counted(count: usize, what: &str) -> String {
    let s = if count == 1 { "" } else { "s" };
    format!("{count} {what}{s}")
}

/// As the documents have it.
fn word(value: &impl Serialize) -> String {
    let value = serde_json::to_value(value).unwrap_or_default();
    value.as_str().unwrap_or_default().to_owned()
}

async fn resolve(host: &str) -> Resolution {
    match tokio::time::timeout(LOOKUP, tokio::net::lookup_host((host, 0))).await {
        Ok(Ok(found)) => Ok(found.map(|address| address.ip()).collect()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("no answer within {LOOKUP:?}")),
    }
}

/// In milliseconds since the epoch.
fn now() -> anyhow::Result<i64> {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    let since = since.context("the clock is before 1970")?;
    Ok(i64::try_from(since.as_millis())?)
}
