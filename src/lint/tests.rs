use bytes::Bytes;

use super::*;
use crate::registry::{FormatChoice, Layout, Shape, Stat};

const DAY: i64 = 86_400_000;
const NOW: i64 = 1_000 * DAY;
const LIMITS: Limits = Limits {
    untouched: Duration::from_secs(30 * 86_400),
    payload: 1_000,
};

fn config(format: FormatChoice) -> Config {
    Config {
        name: "main".to_owned(),
        root: "/services".to_owned(),
        layout: Layout::flat(),
        format,
        priority: 0,
        required: true,
        ttl: None,
        shape: Shape::default(),
    }
}

/// An ephemeral znode of today.
fn put(path: &str, data: &str) -> Event {
    let stat = Stat {
        czxid: 1,
        mzxid: 1,
        ctime: NOW,
        mtime: NOW,
        ephemeral_owner: 7,
    };
    Event::Put {
        path: Arc::from(path),
        data: Bytes::copy_from_slice(data.as_bytes()),
        stat,
    }
}

/// A persistent znode that was written so many days ago.
fn old(path: &str, data: &str, days: i64) -> Event {
    let Event::Put { path, data, stat } = put(path, data) else {
        unreachable!("a put");
    };
    let stat = Stat {
        mtime: NOW - days * DAY,
        ephemeral_owner: 0,
        ..stat
    };
    Event::Put { path, data, stat }
}

fn found(events: Vec<Event>, unreadable: &[&str]) -> Vec<(Level, Check, String)> {
    let unreadable = unreadable.iter().map(|path| Arc::from(*path)).collect();
    let survey = Survey::new(
        config(FormatChoice::Plain),
        LIMITS,
        events,
        &unreadable,
        NOW,
    );
    let findings = survey.findings().into_iter();
    findings.map(|f| (f.level, f.check, f.subject)).collect()
}

#[test]
fn a_tree_in_order_has_no_findings() {
    let events = vec![put("orders", ""), put("orders/i-1", "10.0.0.1:80")];
    assert_eq!(found(events, &[]), []);
}

#[test]
fn what_is_left_out_is_an_error() {
    let events = vec![
        put("orders", ""),
        put("orders/bad", "nonsense"),
        put("orders/i-1", "10.0.0.1:80"),
    ];
    let expected = [
        (
            Level::Error,
            Check::Unreadable,
            "/services/vault".to_owned(),
        ),
        (
            Level::Error,
            Check::Rejected,
            "/services/orders/bad".to_owned(),
        ),
    ];
    assert_eq!(found(events, &["vault"]), expected);
}

#[test]
fn services_whose_host_names_collide_are_an_error() {
    let events = vec![
        put("orders_a", ""),
        put("orders_a/i-1", "10.0.0.1:80"),
        put("orders-a", ""),
        put("orders-a/i-1", "10.0.0.2:80"),
    ];
    let findings = found(events, &[]);
    let rejected: Vec<_> = findings.iter().filter(|f| f.0 == Level::Error).collect();
    assert_eq!(rejected.len(), 1, "{findings:?}");
    assert_eq!(rejected[0].1, Check::Rejected);
}

#[test]
fn an_empty_service_and_one_address_in_several_services_are_warned_of() {
    let events = vec![
        put("empty", ""),
        put("orders", ""),
        put("orders/i-1", "10.0.0.1:80"),
        put("users", ""),
        put("users/i-1", "10.0.0.1:80"),
    ];
    let expected = [
        (Level::Warning, Check::EmptyService, "empty".to_owned()),
        (
            Level::Warning,
            Check::SharedAddress,
            "10.0.0.1:80".to_owned(),
        ),
    ];
    assert_eq!(found(events, &[]), expected);
}

#[test]
fn a_persistent_instance_is_warned_of_when_nobody_wrote_it_for_long() {
    let events = vec![
        put("orders", ""),
        old("orders/new", "10.0.0.1:80", 29),
        old("orders/old", "10.0.0.2:80", 400),
        put("orders/mine", "10.0.0.3:80"),
    ];
    let survey = Survey::new(
        config(FormatChoice::Plain),
        LIMITS,
        events,
        &BTreeSet::new(),
        NOW,
    );
    let findings = survey.findings();
    assert_eq!(findings.len(), 1, "{findings:?}");
    assert_eq!(findings[0].subject, "/services/orders/old");
    assert!(findings[0].message.contains("400 days"), "{findings:?}");
}

#[test]
fn a_large_payload_is_warned_of() {
    let data = format!(
        r#"{{"host": "10.0.0.1", "port": 80, "metadata": {{"x": "{}"}}}}"#,
        "x".repeat(2_000)
    );
    let findings = found(vec![put("orders", ""), put("orders/i-1", &data)], &[]);
    let large = |f: &(Level, Check, String)| f.1 == Check::LargePayload;
    assert!(findings.iter().any(large), "{findings:?}");
}

#[test]
fn a_name_that_is_no_host_name_is_noted() {
    let events = vec![put("com.foo.Bar", ""), put("com.foo.Bar/i", "10.0.0.1:80")];
    let expected = [(Level::Note, Check::MappedName, "com.foo.Bar".to_owned())];
    assert_eq!(found(events, &[]), expected);
}

#[test]
fn a_host_name_is_no_error_once_it_resolves() {
    let events = vec![put("orders", ""), put("orders/i-1", "backend.example:80")];
    let mut survey = Survey::new(
        config(FormatChoice::Plain),
        LIMITS,
        events,
        &BTreeSet::new(),
        NOW,
    );
    let [host] = &survey.wanted_hosts()[..] else {
        panic!("one host is wanted");
    };
    survey.resolved(host, Ok(vec!["10.0.0.1".parse().unwrap()]));
    assert_eq!(survey.findings(), []);
}

#[test]
fn a_host_name_that_does_not_resolve_is_an_error() {
    let events = vec![put("orders", ""), put("orders/i-1", "backend.example:80")];
    let config = config(FormatChoice::Plain);
    let mut survey = Survey::new(config, LIMITS, events, &BTreeSet::new(), NOW);
    survey.resolved("backend.example", Err("no such name".to_owned()));
    let findings = survey.findings();
    let rejected = findings.iter().find(|f| f.check == Check::Rejected);
    let rejected = rejected.unwrap_or_else(|| panic!("{findings:?}"));
    assert_eq!(
        (rejected.level, &*rejected.subject),
        (Level::Error, "/services/orders/i-1")
    );
}

#[test]
fn interfaces_of_dubbo_share_their_address_by_design() {
    let provider = |interface: &str| {
        let path = format!("{interface}/providers/dubbo%3A%2F%2F10.0.0.1%3A20880%2F{interface}");
        put(&path, "")
    };
    let events = vec![provider("com.foo.A"), provider("com.foo.B")];
    let config = Config {
        layout: Layout::dubbo(),
        ..config(FormatChoice::Dubbo)
    };
    let survey = Survey::new(config, LIMITS, events, &BTreeSet::new(), NOW);
    assert_eq!(survey.view().services.len(), 2);
    let findings = survey.findings();
    assert!(
        findings.iter().all(|f| f.level == Level::Note),
        "{findings:?}"
    );
}
