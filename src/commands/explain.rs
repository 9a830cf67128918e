//! `explain`: why an instance, a service or a znode is or is not served, by a running server.

use std::{fmt::Write, process::ExitCode};

use serde_json::Value;

use super::{
    block_on, output,
    remote::{self, Remote, address, encoded, list, text},
    table::{Table, plain},
};

const EXAMPLES: &str = "\
Examples:
  meshkeeper explain 10.0.0.7:8080
  meshkeeper explain orders
  meshkeeper explain orders.mesh:8080
  meshkeeper explain vm-7
  meshkeeper explain /services/orders/i-1 -o yaml";

/// Explain why an instance, a service or a znode is or is not served
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// An instance's IP or registered host name, with or without its port; a service's name or any of its hosts;
    /// or the path of a service's or an instance's znode, below the chroot
    #[arg(value_name = "ADDRESS | SERVICE | ZNODE")]
    subject: String,

    #[command(flatten)]
    remote: remote::Target,
}

impl Args {
    pub fn run(&self) -> anyhow::Result<ExitCode> {
        let remote = Remote::new(&self.remote.server)?;
        let path = format!("/api/v1/explain?subject={}", encoded(&self.subject));
        let explanation = block_on(remote.get(&path))?;
        output::print_as(self.remote.output, &explanation, || page(&explanation))?;
        Ok(ExitCode::SUCCESS)
    }
}

fn page(explanation: &Value) -> String {
    let subject = plain(text(explanation, "subject"));
    let mut page = format!("{subject}: {}\n", plain(text(explanation, "summary")));
    for note in list(&explanation["notes"]) {
        let _ = writeln!(page, "note: {}", plain(note.as_str().unwrap_or_default()));
    }
    for service in list(&explanation["services"]) {
        let clients = &service["clients"];
        let _ = writeln!(
            page,
            "\nservice {} (host {}): {} instances; followed by {} clients that have acknowledged all, {} that \
             have not yet, {} that rejected",
            plain(text(service, "name")),
            plain(text(service, "host")),
            service["instances"],
            clients["acked"],
            clients["waiting"],
            clients["rejected"],
        );
    }
    add(&mut page, instances(list(&explanation["instances"])));
    add(&mut page, rejected(list(&explanation["rejected"])));
    add(&mut page, waiting(list(&explanation["waiting"])));
    add(&mut page, journal(list(&explanation["journal"])));
    page
}

fn add(page: &mut String, part: Option<String>) {
    if let Some(part) = part {
        page.push('\n');
        page.push_str(&part);
    }
}

fn instances(instances: &[Value]) -> Option<String> {
    let mut table = Table::new([
        "SERVICE", "INSTANCE", "REGISTRY", "ZNODE", "FORMAT", "CZXID", "MZXID", "SESSION",
        "WEIGHT", "HEALTH", "STATE", "SERVED",
    ]);
    for instance in instances {
        table.push([
            text(instance, "service").to_owned(),
            address(instance),
            text(instance, "registry").to_owned(),
            text(instance, "path").to_owned(),
            text(instance, "format").to_owned(),
            instance["czxid"].to_string(),
            instance["mzxid"].to_string(),
            text(instance, "session").to_owned(),
            instance["weight"].to_string(),
            text(instance, "health").to_owned(),
            text(instance, "state").to_owned(),
            text(instance, "served").to_owned(),
        ]);
    }
    (!instances.is_empty()).then(|| table.render())
}

fn rejected(rejected: &[Value]) -> Option<String> {
    let mut table = Table::new(["REJECTED", "FORMAT", "REASON"]);
    for one in rejected {
        table.push(["path", "format", "reason"].map(|key| text(one, key).to_owned()));
    }
    (!rejected.is_empty()).then(|| table.render())
}

fn waiting(waiting: &[Value]) -> Option<String> {
    let mut table = Table::new(["WAITING", "REGISTRY", "HOST NAME"]);
    for one in waiting {
        table.push(["path", "registry", "host"].map(|key| text(one, key).to_owned()));
    }
    (!waiting.is_empty()).then(|| table.render())
}

fn journal(entries: &[Value]) -> Option<String> {
    let mut table = Table::new(["TIME", "REGISTRY", "WHAT", "SERVICE", "INSTANCE", "WHY"]);
    for entry in entries {
        let keys = ["at", "registry", "what", "service", "instance", "why"];
        table.push(keys.map(|key| text(entry, key).to_owned()));
    }
    (!entries.is_empty()).then(|| table.render())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_page_has_the_summary_first_and_only_what_there_is() {
        let explanation = json!({
            "subject": "10.0.0.7:80\u{1b}", "summary": "not registered",
            "services": [], "instances": [], "rejected": [],
            "journal": [{"at": "T", "registry": "main", "what": "removed", "service": "s",
                         "instance": "10.0.0.7:80", "why": "its znode was deleted"}],
        });
        assert_eq!(
            page(&explanation),
            "\
10.0.0.7:80\\u{1b}: not registered

TIME  REGISTRY  WHAT     SERVICE  INSTANCE     WHY
T     main      removed  s        10.0.0.7:80  its znode was deleted
"
        );
    }
}
