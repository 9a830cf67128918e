//! `services`: the services that a running server mirrors.

use std::process::ExitCode;

use anyhow::bail;
use serde_json::Value;

use super::{
    block_on, output,
    remote::{self, Remote, address, encoded, list, text},
    table::{Table, plain},
};

const EXAMPLES: &str = "\
Examples:
  meshkeeper services
  meshkeeper services orders -o yaml
  meshkeeper services --admin mesh.internal:15014 -o json | jq length";

/// List the services that a running server mirrors, with their instances
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Only this service
    name: Option<String>,

    #[command(flatten)]
    remote: remote::Target,
}

impl Args {
    pub fn run(&self) -> anyhow::Result<ExitCode> {
        let remote = Remote::new(&self.remote.server)?;
        let path = match &self.name {
            Some(name) => format!("/api/v1/services?name={}", encoded(name)),
            None => "/api/v1/services".to_owned(),
        };
        let services = block_on(remote.get(&path))?;
        if let (Some(name), []) = (&self.name, list(&services)) {
            bail!(
                "no such service: `{}`; `meshkeeper services` lists those that there are",
                plain(name)
            );
        }
        output::print_as(self.remote.output, &services, || table(&services))?;
        Ok(ExitCode::SUCCESS)
    }
}

/// A row for each instance; a service without any has a row of its own.
fn table(services: &Value) -> String {
    let mut table = Table::new([
        "SERVICE", "INSTANCE", "WEIGHT", "ZONE", "HEALTH", "STATE", "ZNODE",
    ]);
    for service in list(services) {
        let name = || text(service, "name").to_owned();
        let instances = list(&service["instances"]);
        if instances.is_empty() {
            table.push([name(), none(), none(), none(), none(), none(), none()]);
        }
        for instance in instances {
            table.push([
                name(),
                address(instance),
                instance["weight"].to_string(),
                text(instance, "zone").to_owned(),
                text(instance, "health").to_owned(),
                text(instance, "state").to_owned(),
                text(instance, "path").to_owned(),
            ]);
        }
    }
    table.render()
}

fn none() -> String {
    String::new()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_table_has_a_row_for_each_instance_and_each_empty_service() {
        let instance = json!({
            "address": "2001:db8::7", "port": 8080, "weight": 30, "zone": null,
            "health": "healthy", "state": "held", "path": "/services/orders/i-1",
        });
        let services = json!([
            {"name": "orders", "instances": [instance]},
            {"name": "payments", "instances": []},
        ]);
        assert_eq!(
            table(&services),
            "\
SERVICE   INSTANCE            WEIGHT  ZONE  HEALTH   STATE  ZNODE
orders    [2001:db8::7]:8080  30      -     healthy  held   /services/orders/i-1
payments  -                   -       -     -        -      -
"
        );
    }
}
