//! The operator's trial: each fault once, with what an operator would see of it, as a table.
//!
//! `make trial` runs it and leaves the table in `target/faults.md`.

use std::fmt::Write as _;

use super::{drill::Drill, fault::Fault, stage::Stage};
use crate::support::{dice::Dice, ensemble::Ensemble};

const HEAD: &str = "| fault | requests (failed) | endpoints before → after | wrong removals | right again after | resyncs | `zookeeper_connected` | `/readyz` | log | `explain` of an instance |\n\
                    | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |\n";

fn row(drill: &Drill) -> String {
    let settled = match &drill.settled {
        Ok(took) => format!("{:.2} s", took.as_secs_f64()),
        Err(difference) => format!("**never: {difference}**"),
    };
    let said = &drill.said;
    let notes: Vec<_> = said.notes.iter().map(String::as_str).collect();
    let connected: Vec<_> = said.connected.iter().map(String::as_str).collect();
    format!(
        "| {} | {} ({}) | {} → {} | {} | {settled} | {} | {} | {} | {} | {} |\n",
        drill.fault.name(),
        drill.requests,
        drill.failures,
        drill.endpoints.0,
        drill.endpoints.1,
        drill.wrong.len(),
        said.resyncs,
        connected.join(", "),
        notes.join("; ").replace('|', "/"),
        said.warnings.join("; ").replace('|', "/"),
        said.explained,
    )
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "make trial runs it, in some minutes"]
async fn each_fault_as_an_operator_sees_it() {
    let ensemble = Ensemble::start_with(3, "", true).await;
    let mut stage = Stage::with(ensemble, 1).await.with_traffic().await;
    let mut table = HEAD.to_owned();
    let mut unclean = String::new();
    for (at, fault) in Fault::ALL.into_iter().enumerate() {
        let mut dice = Dice::new(u64::try_from(at).unwrap());
        let drill = Drill::run(&mut stage, fault, &mut dice).await;
        table += &row(&drill);
        if !drill.is_clean() {
            let _ = writeln!(unclean, "{}: {:#?}", fault.name(), drill.wrong);
        }
    }
    println!("{table}");
    let target = concat!(env!("CARGO_MANIFEST_DIR"), "/target/faults.md");
    std::fs::write(target, &table).unwrap();
    assert!(
        unclean.is_empty(),
        "{unclean}\n{}",
        stage.timeline.last(200)
    );
}
