//! `clients`: who is connected to a running server, and how far they are.

use std::{fmt::Write, process::ExitCode};

use serde_json::Value;

use super::{
    block_on, output,
    remote::{self, Remote, list, text},
    table::{Table, plain},
};
use crate::resource::ResourceType;

const EXAMPLES: &str = "\
States, for each type: SYNCED (accepted), STALE (sent, not answered yet), ERROR (rejected),
NOT_SENT (nothing to send yet), - (not asked for).

Examples:
  meshkeeper clients
  meshkeeper clients --admin mesh.internal:15014 -o json";

/// List the clients that are connected to a running server, and how they stand
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(flatten)]
    remote: remote::Target,
}

impl Args {
    pub fn run(&self) -> anyhow::Result<ExitCode> {
        let remote = Remote::new(&self.remote.server)?;
        let clients = block_on(remote.get("/api/v1/clients"))?;
        output::print_as(self.remote.output, &clients, || table(&clients))?;
        Ok(ExitCode::SUCCESS)
    }
}

/// A row for each client, then a line for each note, each type that it rejected and each unregistered name.
fn table(clients: &Value) -> String {
    let mut table = Table::new([
        "NODE",
        "KIND",
        "ADDRESS",
        "CONNECTED",
        "CLUSTERS",
        "ENDPOINTS",
        "LISTENERS",
        "ROUTES",
    ]);
    let mut errors = String::new();
    for client in list(clients) {
        let state = |kind: ResourceType| text(&client["types"][kind.as_str()], "state").to_owned();
        let [clusters, endpoints, _, listeners, routes, _] = ResourceType::ALL.map(state);
        table.push([
            text(client, "nodeId").to_owned(),
            text(client, "kind").to_owned(),
            text(client, "address").to_owned(),
            text(client, "connectedAt").to_owned(),
            clusters,
            endpoints,
            listeners,
            routes,
        ]);
        errors.push_str(&note(client));
        errors.push_str(&rejections(client));
        errors.push_str(&unregistered(client));
    }
    table.render() + &errors
}

fn note(client: &Value) -> String {
    let text = |key| plain(text(client, key));
    match text("note") {
        note if note.is_empty() => String::new(),
        note => format!("{} {note}\n", text("nodeId")),
    }
}

fn rejections(client: &Value) -> String {
    let node = plain(text(client, "nodeId"));
    let types = client["types"].as_object().into_iter().flatten();
    let mut lines = String::new();
    for (kind, status) in types.filter(|(_, status)| status["error"].is_string()) {
        let reason = plain(text(status, "error"));
        let since = plain(text(status, "rejectedSince"));
        let times = &status["rejections"];
        let _ = writeln!(
            lines,
            "{node} rejects {} ({times} times since {since}): {reason}",
            plain(kind)
        );
    }
    lines
}

/// A line for each name that it asks for and that nothing is registered under.
fn unregistered(client: &Value) -> String {
    let node = plain(text(client, "nodeId"));
    let listeners = &client["types"][ResourceType::Listener.as_str()];
    let names = listeners["unregistered"].as_array().into_iter().flatten();
    let mut lines = String::new();
    for name in names.filter_map(Value::as_str) {
        let _ = writeln!(
            lines,
            "{node} asks for {}, which is not registered",
            plain(name)
        );
    }
    lines
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_table_shows_the_state_of_each_type_and_the_reasons_below() {
        let clients = json!([{
            "nodeId": "sidecar-1", "kind": "envoy", "address": "127.0.0.1:4000",
            "connectedAt": "2023-11-14T22:13:20Z",
            "note": "gets all services",
            "types": {
                "clusters": {"state": "SYNCED", "error": null},
                "listeners": {"state": "SYNCED", "error": null, "unregistered": ["ghost"]},
                "endpoints": {
                    "state": "ERROR", "error": "no\nsuch address",
                    "rejectedSince": "2023-11-14T22:13:25Z", "rejections": 3,
                },
            },
        }]);
        let table = table(&clients);
        let lines: Vec<_> = table.lines().collect();
        assert_eq!(lines.len(), 5, "{table}");
        assert!(lines[1].starts_with("sidecar-1  envoy"), "{table}");
        assert!(
            lines[1].ends_with("SYNCED    ERROR      SYNCED     -"),
            "{table}"
        );
        assert_eq!(lines[2], "sidecar-1 gets all services");
        assert_eq!(
            lines[3],
            "sidecar-1 rejects endpoints (3 times since 2023-11-14T22:13:25Z): no\\nsuch address"
        );
        assert_eq!(
            lines[4],
            "sidecar-1 asks for ghost, which is not registered"
        );
    }
}
