//! `meshkeeper validate` on real trees: what it finds, how it says so, and that it leaves no trace.

use std::process::{Command, Output};

use serde_json::Value;
use zookeeper_client::{Acls, Client, CreateMode};

use crate::support::{tree::Tree, wait::free_address, zookeeper::ZooKeeper};

fn validate(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_meshkeeper"))
        .arg("validate")
        .args(arguments)
        .output()
        .unwrap()
}

async fn validate_live(arguments: &[&str]) -> (i32, String, String) {
    let arguments: Vec<_> = arguments.iter().map(ToString::to_string).collect();
    let run = move || validate(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
    let output = tokio::task::spawn_blocking(run).await.unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (
        output.status.code().unwrap(),
        text(output.stdout),
        text(output.stderr),
    )
}

/// Something of everything that is worth telling.
async fn untidy(zookeeper: &ZooKeeper) -> (Tree, Client) {
    let tree = Tree::connect(zookeeper).await;
    tree.register("orders", "good", b"10.0.0.1:80").await;
    tree.register("orders", "bad", b"10.0.0.2:nonsense").await;
    tree.register("Users_v2", "shared", b"10.0.0.1:80").await;
    tree.register("users-v2", "later", b"10.0.0.4:80").await;
    tree.write_persistent("legacy", "forgotten", b"10.0.0.3:80")
        .await;
    tree.add_service("empty").await;
    let client = zookeeper.client().await;
    client.auth("digest", b"owner:secret").await.unwrap();
    let private = CreateMode::Persistent.with_acls(Acls::creator_all());
    let path = "/services/orders/hidden";
    client.create(path, b"10.0.0.9:80", &private).await.unwrap();
    (tree, client)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_live_tree_is_checked_and_nothing_is_left_behind() {
    let zookeeper = ZooKeeper::start();
    let (_tree, client) = untidy(&zookeeper).await;
    let (_, before) = client.get_data("/services").await.unwrap();
    let sessions = zookeeper.sessions();
    let connect = zookeeper.connect();

    let live = ["--zookeeper", &connect, "--untouched", "0s", "--notes"];
    let (status, stdout, stderr) = validate_live(&live).await;
    assert_eq!(status, 1, "{stderr}");
    for part in [
        "registry main, /services: 4 services, 3 instances; 3 errors, 3 warnings, 1 note",
        "error    rejected        /services/orders/bad",
        "error    unreadable      /services/orders/hidden",
        "/services/users-v2",
        "warning  empty-service   empty",
        "warning  shared-address  10.0.0.1:80",
        "Users_v2, orders",
        "warning  untouched       /services/legacy/forgotten",
        "note     mapped-name     Users_v2",
    ] {
        assert!(stdout.contains(part), "{part}\n{stdout}");
    }
    assert!(!stdout.contains("/services/orders/good"), "{stdout}");

    let (status, stdout, _) = validate_live(&["--zookeeper", &connect, "-o", "json"]).await;
    assert_eq!(status, 1);
    let reports: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(reports[0]["services"], 4, "{stdout}");
    assert_eq!(reports[0]["errors"], 3, "{stdout}");
    let findings = reports[0]["findings"].as_array().unwrap();
    assert!(findings.iter().all(|finding| finding["level"] != "note"));
    assert!(
        findings
            .iter()
            .all(|finding| finding["check"] != "untouched")
    );

    let (_, after) = client.get_data("/services").await.unwrap();
    assert_eq!(
        (before.cversion, before.pzxid),
        (after.cversion, after.pzxid)
    );
    assert_eq!(zookeeper.sessions(), sessions);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tidy_tree_passes_by_flags_and_by_file() {
    let zookeeper = ZooKeeper::start();
    let tree = Tree::connect(&zookeeper).await;
    tree.register("orders", "i-1", b"10.0.0.1:80").await;
    tree.register("users", "i-1", br#"{"host": "localhost", "port": 80}"#)
        .await;
    let connect = zookeeper.connect();
    let flags = ["--zookeeper", &connect, "--format", "plain"];
    let (status, stdout, stderr) = validate_live(&flags).await;
    assert_eq!(status, 0, "{stdout}{stderr}");

    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("meshkeeper.yaml");
    let yaml = format!(
        "registries:\n- {{name: one, connect: \"{connect}\"}}\n- {{name: two, connect: \"{connect}\", root: /absent}}\n"
    );
    std::fs::write(&file, &yaml).unwrap();
    let file = file.display().to_string();
    let (status, stdout, _) = validate_live(&[&file]).await;
    assert_eq!((status, stdout), (0, format!("{file}: ok\n")));
    let (status, _, stderr) = validate_live(&["--live", &file]).await;
    assert_eq!(status, 1);
    assert!(
        stderr.contains("registry two: /absent does not exist"),
        "{stderr}"
    );

    std::fs::write(&file, yaml.replace("/absent", "/services")).unwrap();
    let (status, stdout, stderr) = validate_live(&["--live", &file]).await;
    assert_eq!(status, 0, "{stderr}");
    assert!(
        stdout.contains("registry one, /services: 2 services, "),
        "{stdout}"
    );
    assert!(
        stdout.contains("registry two, /services: 2 services, "),
        "{stdout}"
    );
}

#[test]
fn what_cannot_be_read_or_meant_is_told() {
    let nowhere = free_address().to_string();
    let says = |arguments: &[&str], status: i32, part: &str| {
        let output = validate(arguments);
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(status), "{stderr}");
        assert!(stderr.contains(part), "{part}: {stderr}");
    };
    says(
        &["--zookeeper", &nowhere, "--wait", "500ms"],
        1,
        "Connection refused",
    );
    says(&["--zookeeper", &nowhere, "--format", "x"], 2, "--format: ");
    says(&["--zookeeper", &nowhere, "--wait", "x"], 2, "--wait: ");
    says(&["--zookeeper", "nonsense"], 2, "nonsense");
    says(&["--live"], 2, "FILE");
    says(&["--root", "/services"], 2, "--zookeeper");
}
