//! `holds`: what a running server holds back of mass deregistrations.

use std::process::ExitCode;

use serde_json::Value;

use super::{
    block_on, output,
    remote::{self, Remote, address, list, text},
    table::Table,
};

const EXAMPLES: &str = "\
Held instances are not registered any more and served all the same, since too many went at once. They are let
go when as many are registered again as there were, after guard.holdFor, or by `meshkeeper release`.

Examples:
  meshkeeper holds
  meshkeeper holds -o json | jq '.[].held'";

/// List the instances that a running server goes on serving though they are gone
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(flatten)]
    remote: remote::Target,
}

impl Args {
    pub fn run(&self) -> anyhow::Result<ExitCode> {
        let remote = Remote::new(&self.remote.server)?;
        let holds = block_on(remote.get("/api/v1/holds"))?;
        output::print_as(self.remote.output, &holds, || table(&holds))?;
        Ok(ExitCode::SUCCESS)
    }
}

fn table(registries: &Value) -> String {
    let mut table = Table::new(["REGISTRY", "SERVICE", "WERE", "INSTANCE", "SINCE", "ZNODE"]);
    for registry in list(registries) {
        for service in list(&registry["services"]) {
            for instance in list(&service["instances"]) {
                table.push([
                    text(registry, "registry").to_owned(),
                    text(service, "name").to_owned(),
                    service["were"].to_string(),
                    address(instance),
                    text(instance, "since").to_owned(),
                    text(instance, "path").to_owned(),
                ]);
            }
        }
    }
    table.render()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_table_has_a_row_for_each_held_instance() {
        let instance = json!({
            "address": "10.0.0.7", "port": 80, "since": "2026-11-21T15:00:00Z", "path": "/services/orders/i-1",
        });
        let holds = json!([
            {"registry": "main", "services": [{"name": "orders", "were": 20, "instances": [instance]}]},
            {"registry": "other", "services": []},
        ]);
        assert_eq!(
            table(&holds),
            "\
REGISTRY  SERVICE  WERE  INSTANCE     SINCE                 ZNODE
main      orders   20    10.0.0.7:80  2026-11-21T15:00:00Z  /services/orders/i-1
"
        );
    }
}
