//! `dump`: everything that a running server tells, as one document.

use std::process::ExitCode;

use serde_json::{Map, Value, json};

use super::{
    block_on, output,
    remote::{self, Remote, list, text},
    table::Table,
};
use crate::resource::{Edition, ResourceType};

const EXAMPLES: &str = "\
The document has the keys services, rejected, clients and config; config holds the resources of each
kind of client by type. As a table it is a summary of counts.

Examples:
  meshkeeper dump
  meshkeeper dump -o json > before.json
  meshkeeper dump -o yaml | less";

/// Show everything that a running server holds, as one document
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(flatten)]
    remote: remote::Target,
}

impl Args {
    pub fn run(&self) -> anyhow::Result<ExitCode> {
        let remote = Remote::new(&self.remote.server)?;
        let dump = block_on(gather(&remote))?;
        output::print_as(self.remote.output, &dump, || summary(&dump))?;
        Ok(ExitCode::SUCCESS)
    }
}

async fn gather(remote: &Remote) -> anyhow::Result<Value> {
    let mut config = Map::new();
    for edition in Edition::ALL {
        let mut types = Map::new();
        for kind in held_types(edition) {
            let (name, kind) = (edition.as_str(), kind.as_str());
            let path = format!("/api/v1/config?kind={name}&type={kind}");
            let mut answer = remote.get(&path).await?;
            types.insert(kind.to_owned(), answer["resources"].take());
        }
        config.insert(edition.as_str().to_owned(), Value::Object(types));
    }
    Ok(json!({
        "services": remote.get("/api/v1/services").await?,
        "rejected": remote.get("/api/v1/rejected").await?,
        "clients": remote.get("/api/v1/clients").await?,
        "config": config,
    }))
}

fn held_types(edition: Edition) -> impl Iterator<Item = ResourceType> {
    let types = ResourceType::ALL.into_iter();
    types.filter(move |kind| edition.holds(*kind))
}

fn summary(dump: &Value) -> String {
    let services = list(&dump["services"]);
    let instances = || {
        services
            .iter()
            .flat_map(|service| list(&service["instances"]))
    };
    let healthy = instances().filter(|instance| text(instance, "health") == "healthy");
    let mut table = Table::new(["WHAT", "COUNT"]);
    let mut row = |what: &str, count: usize| table.push([what.to_owned(), count.to_string()]);
    row("services", services.len());
    row("instances", instances().count());
    row("instances, healthy", healthy.count());
    row("rejected znodes", list(&dump["rejected"]).len());
    row("clients", list(&dump["clients"]).len());
    for edition in Edition::ALL {
        for kind in held_types(edition) {
            let (edition, kind) = (edition.as_str(), kind.as_str());
            row(
                &format!("{edition} {kind}"),
                list(&dump["config"][edition][kind]).len(),
            );
        }
    }
    table.render()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_summary_counts_what_the_document_holds() {
        let instances = json!([{"health": "healthy"}, {"health": "draining"}]);
        let dump = json!({
            "services": [{"name": "orders", "instances": instances}],
            "rejected": [],
            "clients": [],
            "config": {"envoy": {"clusters": [{}]}},
        });
        let summary = summary(&dump);
        for line in [
            "services                1",
            "instances               2",
            "instances, healthy      1",
            "envoy clusters          1",
            "grpc routes             0",
        ] {
            assert!(summary.lines().any(|l| l == line), "{line} in {summary}");
        }
    }
}
