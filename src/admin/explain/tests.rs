use bytes::Bytes;
use serde_json::{Value, json};

use super::*;
use crate::registry::{Batch, Catalog, Config, Event, FormatChoice, Shape, Stat, guard};

pub fn catalog() -> Catalog {
    let config = |name: &str, priority| Config {
        name: name.to_owned(),
        root: "/services".to_owned(),
        layout: FormatChoice::Auto.layout(),
        format: FormatChoice::Auto,
        priority,
        required: true,
        ttl: None,
        shape: Shape::default(),
    };
    Catalog::new(
        vec![config("old", 1), config("new", 0)],
        &guard::Config::default(),
    )
}

pub fn tell(catalog: &mut Catalog, registry: usize, znodes: &[(&str, &str)]) {
    let put = |(path, data): &(&str, &str)| match *data {
        "" => Event::Delete {
            path: (*path).into(),
        },
        data => Event::Put {
            path: (*path).into(),
            data: Bytes::copy_from_slice(data.as_bytes()),
            stat: Stat {
                czxid: 7,
                ephemeral_owner: 0x2a,
                ..Stat::default()
            },
        },
    };
    let batch = Batch {
        events: znodes.iter().map(put).collect(),
        complete: !catalog.picture().registries[registry].loaded,
        ..Batch::default()
    };
    catalog.apply(registry, batch, 1_700_000_000_500);
}

fn explained(catalog: &Catalog, subject: &str) -> Value {
    let follower = |state| Follower {
        node_id: "sidecar-1".into(),
        state,
    };
    let followers = |_: &str| {
        vec![
            follower(status::State::Synced),
            follower(status::State::Stale),
        ]
    };
    let moment = Moment {
        picture: &catalog.picture(),
        status: Status::default(),
        suffix: "mesh",
        clients: Vec::new(),
    };
    serde_json::to_value(Explanation::of(&moment, subject, followers)).unwrap()
}

#[test]
fn an_instance_is_explained_by_its_address_its_znode_and_its_service() {
    let mut catalog = catalog();
    tell(&mut catalog, 0, &[]);
    tell(
        &mut catalog,
        0,
        &[("Orders/i-1", "10.0.0.1:80"), ("Orders/bad", "x")],
    );
    for subject in ["10.0.0.1:80", "/services/Orders/i-1", "Orders", "orders"] {
        let found = explained(&catalog, subject);
        let instance = &found["instances"][0];
        assert_eq!(instance["session"], "0x2a", "{subject}");
        assert_eq!(instance["told"], true);
        assert_eq!(instance["service"], "Orders");
        let clients = &found["services"][0]["clients"];
        assert_eq!(
            (&clients["acked"], &clients["waiting"]),
            (&json!(1), &json!(1))
        );
        assert_eq!(found["journal"][0]["at"], "2023-11-14T22:13:20.500Z");
    }
    let bad = explained(&catalog, "/services/Orders/bad");
    assert!(
        bad["rejected"][0]["reason"]
            .as_str()
            .unwrap()
            .contains("no port")
    );
    assert_eq!(bad["journal"][0]["what"], "rejected");
    tell(&mut catalog, 0, &[("Orders/i-1", "")]);
    let gone = explained(&catalog, "10.0.0.1:80");
    let summary = gone["summary"].as_str().unwrap();
    assert!(
        summary.starts_with("not registered; last removed at"),
        "{summary}"
    );
    assert!(
        summary.contains("session 0x2a ended or expired"),
        "{summary}"
    );
}

#[test]
fn what_is_registered_and_not_served_says_why() {
    let mut catalog = catalog();
    tell(
        &mut catalog,
        0,
        &[("s/i", r#"{"host":"10.0.0.1","port":80,"enabled":false}"#)],
    );
    let found = explained(&catalog, "10.0.0.1:80");
    let summary = found["summary"].as_str().unwrap();
    assert!(summary.starts_with("registered, and not served: disabled: enabled is false"));
    // Another registry holds the same, and counts more.
    tell(&mut catalog, 1, &[("s/j", "10.0.0.1:80")]);
    let found = explained(&catalog, "/services/s/i");
    assert_eq!(found["instances"][0]["told"], false);
}

#[test]
fn what_gets_no_new_requests_is_draining_and_what_is_held_is_not_registered() {
    let mut catalog = catalog();
    let summary = |catalog: &Catalog, subject: &str| {
        let found = explained(catalog, subject);
        found["summary"].as_str().unwrap().to_owned()
    };
    let all: Vec<_> = (1..=10)
        .map(|n| (format!("s/i{n}"), format!("10.0.0.{n}:80")))
        .collect();
    for (path, data) in &all {
        tell(&mut catalog, 0, &[(path, data)]);
    }
    let drained = r#"{"host":"10.0.0.10","port":80,"weight":0}"#;
    tell(&mut catalog, 0, &[("s/i10", drained)]);
    let text = summary(&catalog, "10.0.0.10");
    assert!(
        text.starts_with("registered, and draining: its weight is 0"),
        "{text}"
    );
    let found = explained(&catalog, "10.0.0.10");
    assert_eq!(found["instances"][0]["served"], "draining");
    assert_eq!(
        found["journal"][0]["why"],
        "weight 100 → 0 (draining) (mzxid 0)"
    );

    for (path, _) in &all[..6] {
        tell(&mut catalog, 0, &[(path, "")]);
    }
    for subject in ["10.0.0.1:80", "/services/s/i1"] {
        let text = summary(&catalog, subject);
        let since = "not registered since 2023-11-14T22:13:20.500Z; held because too many went at once, and served";
        assert!(text.starts_with(since), "{text}");
    }
    let text = summary(&catalog, "s");
    assert!(
        text.starts_with("4 registered, 6 held; 9 served, 1 draining;"),
        "{text}"
    );
}

#[test]
fn nothing_is_served_before_the_server_is_ready() {
    let mut catalog = catalog();
    tell(&mut catalog, 0, &[("s/i", "10.0.0.1:80")]);
    let moment = Moment {
        picture: &catalog.picture(),
        status: Status {
            pending: ["registry new".to_owned()].into(),
            ..Status::default()
        },
        suffix: "mesh",
        clients: Vec::new(),
    };
    let found = serde_json::to_value(Explanation::of(&moment, "s", |_| Vec::new())).unwrap();
    let summary = found["summary"].as_str().unwrap();
    let unready = "nothing is served yet; registered, and not served: the server is not ready";
    assert!(summary.starts_with(unready), "{summary}");
    assert_eq!(found["notes"], json!(["waiting for: registry new"]));
}

#[test]
fn what_clients_reject_is_noted_once_for_each_type() {
    let taken = "cannot bind\n";
    let rejected = [("a", "listeners", taken), ("c", "listeners", taken)];
    let expected = "rejected listeners: 2 clients, as a: cannot bind (`meshkeeper clients`)";
    assert_eq!(rejections(rejected.into_iter()), [expected]);
}

#[test]
fn a_host_name_that_is_looked_up_is_waited_for() {
    let mut catalog = catalog();
    tell(&mut catalog, 0, &[("s/i", r#"{"host":"db","port":80}"#)]);
    for subject in ["db:80", "s", "/services/s/i", "/services/s"] {
        let found = explained(&catalog, subject);
        assert_eq!(found["waiting"][0]["host"], "db", "{subject}");
        assert_eq!(found["rejected"], json!([]), "{subject}");
    }
    catalog.resolved("db", &Err("no such name".to_owned()), 0);
    for subject in ["db:80", "DB", "s", "/services/s/i"] {
        let found = explained(&catalog, subject);
        assert_eq!(found["waiting"], json!([]), "{subject}");
        let reason = found["rejected"][0]["reason"].as_str().unwrap();
        assert!(reason.contains("no such name"), "{subject}: {reason}");
    }
}
