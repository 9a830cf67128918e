use anyhow::Context;
use clap::Parser;
use nix::sys::signal::kill;
use tokio::time::sleep;

use super::*;

#[derive(Debug, Parser)]
struct Line {
    #[command(flatten)]
    args: Args,
}

const LEAST: [&str; 7] = [
    "register",
    "--zookeeper",
    "127.0.0.1:2181",
    "--service",
    "orders",
    "--address",
    "10.0.0.7:8080",
];

fn parse(more: &[&str]) -> Result<Args, clap::Error> {
    Line::try_parse_from(LEAST.iter().chain(more)).map(|line| line.args)
}

fn sh(script: &str) -> Child {
    Child::start(&"sh".into(), &["-c".into(), script.into()]).unwrap()
}

fn is(code: ExitCode, status: u8) {
    assert_eq!(format!("{code:?}"), format!("{:?}", ExitCode::from(status)));
}

/// Holds like a good registration.
async fn held(stop: CancellationToken) -> anyhow::Result<()> {
    stop.cancelled().await;
    Ok(())
}

/// The least, but for one flag.
fn with(flag: &str, text: &str) -> Args {
    let mut line = LEAST;
    let at = line.iter().position(|word| *word == flag).unwrap();
    line[at + 1] = text;
    Line::try_parse_from(line).unwrap().args
}

async fn registration(args: Args) -> Registration {
    args.checked().unwrap().resolved().await.unwrap()
}

#[tokio::test]
async fn the_least_is_an_address() {
    let registration = registration(parse(&[]).unwrap()).await;
    assert_eq!(registration.id, "10.0.0.7:8080");
    assert_eq!(registration.root, "/services");
    let data = String::from_utf8(registration.data).unwrap();
    assert_eq!(data, r#"{"address":"10.0.0.7","port":8080}"#);
}

#[tokio::test]
async fn a_host_is_registered_as_its_ip() {
    let registration = registration(with("--address", "localhost:80")).await;
    assert!(
        registration.id.parse::<SocketAddr>().is_ok(),
        "{}",
        registration.id
    );
    assert!(!String::from_utf8_lossy(&registration.data).contains("localhost"));
}

#[test]
fn a_negative_weight_is_told_the_range() {
    let args = parse(&["--weight", "-1"]).unwrap();
    let problems = args.checked().unwrap_err().to_string();
    assert!(problems.contains("from 0 to 10000"), "{problems}");
}

#[tokio::test]
async fn weight_zone_and_metadata_are_in_the_payload() {
    let more = [
        "--weight",
        "0",
        "--zone",
        "a",
        "--meta",
        "version=v2",
        "--meta",
        "q=a=b",
    ];
    let registration = registration(parse(&more).unwrap()).await;
    let data: Value = serde_json::from_slice(&registration.data).unwrap();
    assert_eq!(
        data,
        json!({
            "address": "10.0.0.7", "port": 8080, "weight": 0, "zone": "a",
            "metadata": {"version": "v2", "q": "a=b"},
        })
    );
}

#[test]
fn what_a_registry_would_refuse_is_refused_here() {
    for [flag, text] in [
        ["--weight", "10001"],
        ["--weight", "-1"],
        ["--weight", "many"],
        ["--zone", " "],
        ["--meta", "version"],
        ["--meta", "=v2"],
        ["--root", "services"],
        ["--session-timeout", "10"],
    ] {
        let problems = parse(&[flag, text]).unwrap().checked().unwrap_err();
        assert!(problems.to_string().starts_with(flag), "{problems}");
    }
    for address in ["10.0.0.7", "224.0.0.1:80"] {
        let problems = with("--address", address).checked().unwrap_err();
        assert!(
            problems.to_string().starts_with("--address: "),
            "{problems}"
        );
    }
    for text in ["", ".", "..", "a/b", "a\n", "a b", "orders|v2", "-"] {
        assert!(service(text).is_err(), "{text}");
    }
}

#[test]
fn all_problems_are_told_at_once() {
    let more = [
        "--weight", "x", "--meta", "a=1", "--meta", "a=2", "--root", "x",
    ];
    let problems = parse(&more).unwrap().checked().unwrap_err().to_string();
    let flags: Vec<_> = problems
        .lines()
        .filter_map(|line| line.split(':').next())
        .collect();
    assert_eq!(flags, ["--root", "--weight", "--meta"]);
}

#[test]
fn everything_behind_the_dashes_is_the_command() {
    let args = parse(&["--", "./orders", "--port", "8080"]).unwrap();
    assert_eq!(args.command, ["./orders", "--port", "8080"]);
}

#[tokio::test]
async fn the_exit_status_of_the_command_is_passed_on() {
    let (_sender, signals) = mpsc::channel(1);
    let code = supervise(held, Some(sh("exit 7")), signals).await.unwrap();
    is(code, 7);
}

#[tokio::test]
async fn a_signal_deregisters_before_the_command_is_stopped() {
    let (sender, signals) = mpsc::channel(1);
    let child = sh("exec sleep 600");
    let pid = child.pid();
    let hold = |stop: CancellationToken| async move {
        sender.send("SIGTERM").await?;
        stop.cancelled().await;
        kill(pid, None).context("the command was stopped first")
    };
    let code = supervise(hold, Some(child), signals).await.unwrap();
    is(code, 128 + 15);
    assert!(kill(pid, None).is_err());
}

#[tokio::test]
async fn without_a_command_a_signal_ends_it_well() {
    let (sender, signals) = mpsc::channel(1);
    sender.send("SIGINT").await.unwrap();
    is(supervise(held, None, signals).await.unwrap(), 0);
}

#[tokio::test]
async fn a_registration_that_fails_stops_the_command() {
    let (_sender, signals) = mpsc::channel(1);
    let child = sh("exec sleep 600");
    let pid = child.pid();
    let hold = |_| async { Err(anyhow!("not authorized")) };
    let error = supervise(hold, Some(child), signals).await.unwrap_err();
    assert_eq!(error.to_string(), "not authorized");
    assert!(kill(pid, None).is_err());
}

#[tokio::test]
async fn a_command_that_ignores_sigterm_is_killed_by_a_second_signal() {
    let folder = tempfile::tempdir().unwrap();
    let ready = folder.path().join("ready");
    let child = sh(&format!(
        "trap '' TERM; touch {}; sleep 600",
        ready.display()
    ));
    while !ready.exists() {
        sleep(Duration::from_millis(5)).await;
    }
    let (sender, signals) = mpsc::channel(2);
    sender.send("SIGTERM").await.unwrap();
    let hold = |stop: CancellationToken| async move {
        stop.cancelled().await;
        sender.send("SIGTERM").await?;
        std::future::pending().await
    };
    is(
        supervise(hold, Some(child), signals).await.unwrap(),
        128 + 9,
    );
}

#[test]
fn a_command_that_does_not_exist_is_named() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let _guard = runtime.enter();
    let error = Child::start(&"no-such-program".into(), &[]).unwrap_err();
    assert!(format!("{error:#}").starts_with("cannot start `no-such-program`: "));
}

#[tokio::test]
async fn what_a_server_could_not_read_is_refused_with_its_reason() {
    let refused = async |args: Args| {
        let resolved = args.checked().unwrap().resolved().await;
        format!("{:#}", resolved.unwrap_err())
    };
    let long = format!("key={}", "x".repeat(64 * 1024));
    let error = refused(parse(&["--meta", &long]).unwrap()).await;
    assert!(error.contains("at most 65536 are read"), "{error}");
}
