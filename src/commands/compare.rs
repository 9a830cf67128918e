//! `compare`: where two registries of a running server differ, for those who move from one to the other.

use std::{
    fmt::{Display, Write},
    process::ExitCode,
};

use hyper::StatusCode;
use serde_json::Value;

use super::{
    Usage, block_on, complain, output,
    remote::{self, Refused, Remote, encoded, list, text},
    table::{Table, plain},
};

const EXAMPLES: &str = "\
Examples:
  meshkeeper compare old new
  meshkeeper compare old new -o json | jq .onlyLeft

What is registered is compared; an instance that is held, or lingers after its deregistration, is listed as \
unregistered and counts as a difference.

Exit status: 0 if they are equal, 1 if they differ, 2 if the server has no such registry, 3 if there is no
comparison: no server answers, or it has not read one of the two yet.";

const DIFFER: u8 = 1;

/// A failure at run time is 1 elsewhere, which means here that they differ.
const NO_COMPARISON: u8 = 3;

/// Compare two registries of a running server, service by service
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// A registry's name
    left: String,

    /// The other's
    right: String,

    #[command(flatten)]
    remote: remote::Target,
}

impl Args {
    pub fn run(&self) -> anyhow::Result<ExitCode> {
        let remote = Remote::new(&self.remote.server)?;
        let (left, right) = (encoded(&self.left), encoded(&self.right));
        let path = format!("/api/v1/compare?left={left}&right={right}");
        let comparison = match block_on(remote.get(&path)) {
            Ok(comparison) => comparison,
            Err(error) => return refused(error),
        };
        let printed = output::print_as(self.remote.output, &comparison, || page(&comparison));
        if let Err(error) = printed {
            return Ok(no_comparison(&format_args!("{error:#}")));
        }
        let parts = ["onlyLeft", "onlyRight", "differing"];
        let equal = parts.iter().all(|part| list(&comparison[*part]).is_empty());
        Ok(ExitCode::from(if equal { 0 } else { DIFFER }))
    }
}

/// Tells a registry that is not there, which is a mistake of whoever asks, from everything else.
fn refused(error: anyhow::Error) -> anyhow::Result<ExitCode> {
    match error.downcast::<Refused>() {
        Ok(refused) if refused.status == StatusCode::BAD_REQUEST => {
            Err(Usage(refused.to_string()).into())
        }
        Ok(refused) => Ok(no_comparison(&refused)),
        Err(error) => Ok(no_comparison(&format_args!("{error:#}"))),
    }
}

fn no_comparison(why: &dyn Display) -> ExitCode {
    complain(&format!("meshkeeper: {why}"));
    ExitCode::from(NO_COMPARISON)
}

fn page(comparison: &Value) -> String {
    let [left, right] = ["left", "right"].map(|side| plain(text(comparison, side)));
    let mut table = Table::new(["SERVICE", "DIFFERENCE"]);
    let mut rows = 0;
    let mut row = |service: &str, difference: String| {
        rows += 1;
        table.push([service.to_owned(), difference]);
    };
    for (part, side) in [("onlyLeft", &left), ("onlyRight", &right)] {
        for service in list(&comparison[part]) {
            row(
                service.as_str().unwrap_or_default(),
                format!("only in {side}"),
            );
        }
    }
    for differing in list(&comparison["differing"]) {
        let service = text(differing, "service");
        for (part, side) in [("onlyLeft", &left), ("onlyRight", &right)] {
            for instance in list(&differing[part]) {
                let instance = instance.as_str().unwrap_or_default();
                row(service, format!("{instance} only in {side}"));
            }
        }
        for (part, side) in [("unregisteredLeft", &left), ("unregisteredRight", &right)] {
            for instance in list(&differing[part]) {
                let instance = instance.as_str().unwrap_or_default();
                row(
                    service,
                    format!("{instance} served and not registered in {side}"),
                );
            }
        }
        for changed in list(&differing["changed"]) {
            let what: Vec<_> = list(&changed["what"])
                .iter()
                .filter_map(Value::as_str)
                .collect();
            row(
                service,
                format!(
                    "{} differs in {}",
                    text(changed, "instance"),
                    what.join(", ")
                ),
            );
        }
    }
    let mut page = format!(
        "{left} and {right}: {} services are equal",
        comparison["equal"]
    );
    if rows == 0 {
        page.push_str(", none differs\n");
    } else {
        let _ = write!(page, "\n\n{}", table.render());
    }
    page
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_page_has_a_row_for_each_difference() {
        let comparison = json!({
            "left": "old", "right": "new", "equal": 3, "onlyLeft": ["a"], "onlyRight": [],
            "differing": [{
                "service": "b", "onlyLeft": [], "onlyRight": ["10.0.0.9:80"],
                "changed": [{"instance": "10.0.0.2:80", "what": ["weight", "zone"]}],
            }],
        });
        assert_eq!(
            page(&comparison),
            "\
old and new: 3 services are equal

SERVICE  DIFFERENCE
a        only in old
b        10.0.0.9:80 only in new
b        10.0.0.2:80 differs in weight, zone
"
        );
    }
}
