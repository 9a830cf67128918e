//! The commands as processes: what they print where, and their exit statuses.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::{Value, json};

use crate::{
    admin::Admin,
    support::{wait::free_address, zookeeper::ZooKeeper},
};

/// For what takes milliseconds unless something is wrong.
const PATIENCE: Duration = Duration::from_secs(30);

fn meshkeeper(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_meshkeeper"));
    command.args(arguments).env_remove("RUST_LOG");
    command.stdin(Stdio::null());
    command
}

/// What a command that ends by itself did.
struct Done {
    status: i32,
    stdout: String,
    stderr: String,
}

fn run(arguments: &[&str]) -> Done {
    done(meshkeeper(arguments).output().unwrap())
}

/// As [`run`], from within a test that serves what the command reads.
async fn ask(admin: SocketAddr, arguments: &[&str]) -> Done {
    let address = admin.to_string();
    let mut command = meshkeeper(arguments);
    command.args(["--admin", &address]);
    let output = tokio::task::spawn_blocking(move || command.output().unwrap());
    done(output.await.unwrap())
}

fn done(output: Output) -> Done {
    Done {
        status: output.status.code().unwrap(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

impl Done {
    /// It failed with this status and one line or more, each part of which is there.
    fn says(&self, status: i32, parts: &[&str]) {
        assert_eq!(self.status, status, "{}", self.stderr);
        assert_eq!(self.stdout, "");
        for part in parts {
            assert!(self.stderr.contains(part), "{part}: {}", self.stderr);
        }
        assert!(!self.stderr.contains("panicked"), "{}", self.stderr);
    }

    fn prints(&self) -> &str {
        assert_eq!(self.status, 0, "{}", self.stderr);
        &self.stdout
    }

    fn json(&self) -> Value {
        serde_json::from_str(self.prints()).unwrap()
    }
}

/// A command that goes on running; it is killed when it is dropped.
struct Running(Child);

impl Running {
    fn start(mut command: Command) -> Self {
        Self(command.spawn().unwrap())
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.0.id().try_into().unwrap());
        kill(pid, signal).unwrap();
    }

    fn ended(&mut self) -> i32 {
        until("the end of the process", || self.0.try_wait().unwrap())
            .code()
            .expect("an exit status")
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn until<T>(what: &str, mut attempt: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = attempt() {
            return value;
        }
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn get(address: SocketAddr, path: &str) -> Option<String> {
    let mut stream = TcpStream::connect(address).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n");
    stream.write_all(request.as_bytes()).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    Some(answer)
}

fn file(folder: &Path, name: &str, text: &str) -> PathBuf {
    let path = folder.join(name);
    std::fs::write(&path, text).unwrap();
    path
}

#[test]
fn every_command_has_help_with_examples() {
    let help = run(&["--help"]);
    for command in [
        "serve",
        "bootstrap",
        "register",
        "services",
        "ready",
        "clients",
        "dump",
        "validate",
        "completions",
    ] {
        assert!(help.prints().contains(command), "{command}");
        let text = run(&[command, "--help"]);
        assert!(text.prints().contains("Examples:"), "{command}");
        assert!(text.prints().contains("Usage: "), "{command}");
    }
    assert!(run(&["--version"]).prints().starts_with("meshkeeper "));
}

#[test]
fn wrong_usage_exits_with_2_and_says_why() {
    for (arguments, parts) in [
        (&[][..], &["Usage"][..]),
        (&["serv"], &["serve"]),
        (&["serve", "--zookeper", "a:1"], &["--zookeeper"]),
        (&["serve", "--log-level", "loud"], &["loud"]),
        (&["bootstrap", "envoy"], &["--xds", "--node-id"]),
        (
            &["bootstrap", "envoy", "--xds", "nowhere", "--node-id", "a"],
            &["`nowhere` is no HOST:PORT"],
        ),
        (
            &[
                "bootstrap",
                "grpc",
                "--xds",
                "a:1",
                "--node-id",
                "a",
                "--admin-port",
                "1",
            ],
            &["--admin-port: only Envoy"],
        ),
        (
            &[
                "register",
                "--zookeeper",
                "a:0",
                "--service",
                "a/b",
                "--address",
                "localhost:0",
            ],
            &[
                "--zookeeper: the server \"a:0\"",
                "--service: ",
                "--address: ",
                "3 problems",
            ],
        ),
        (
            &["services", "--admin", "15014"],
            &["--admin", "127.0.0.1:15014"],
        ),
        (&["validate"], &["FILE"]),
        (&["completions", "tcsh"], &["bash"]),
    ] {
        run(arguments).says(2, parts);
    }
}

#[test]
fn serve_tells_all_problems_of_file_and_flags_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let text = "registries:\n  - conect: a:1\n    root: services\nxds: {listen: nowhere}\n";
    let path = file(folder.path(), "meshkeeper.yaml", text);
    let path = path.to_str().unwrap();
    run(&["serve", "--config", path, "--admin-listen", ":1"]).says(
        2,
        &[
            &format!("{path}:2:5: registries[0].conect: unknown key; did you mean `connect`?"),
            &format!("{path}:3:11: registries[0].root: "),
            &format!("{path}:4:15: xds.listen: "),
            "--admin-listen: `:1`",
            "4 problems",
        ],
    );
    run(&["serve", "--config", "/no/such.yaml"]).says(2, &["/no/such.yaml: cannot be read"]);
}

#[test]
fn a_wrong_filter_in_the_environment_is_told() {
    let mut command = meshkeeper(&["serve"]);
    command.env("RUST_LOG", "meshkeeper=loud");
    done(command.output().unwrap()).says(2, &["RUST_LOG is `meshkeeper=loud`"]);
}

#[test]
fn the_effective_configuration_is_printed_and_valid() {
    let printed = run(&["serve", "--print-config", "--zookeeper", "zk:2181/mesh"]);
    assert!(printed.prints().contains("connect: zk:2181/mesh"));
    let folder = tempfile::tempdir().unwrap();
    let path = file(folder.path(), "printed.yaml", printed.prints());
    let path = path.to_str().unwrap();
    assert_eq!(run(&["validate", path]).prints(), format!("{path}: ok\n"));
}

#[test]
fn validate_tells_the_problems_of_all_files() {
    let folder = tempfile::tempdir().unwrap();
    let good = file(
        folder.path(),
        "good.yaml",
        "mesh: {domainSuffix: svc.example}\n",
    );
    let bad = file(folder.path(), "bad.yaml", "mesh: {domainSufix: a}\n");
    let worse = file(folder.path(), "worse.yaml", "a: [\n");
    let paths = [&good, &bad, &worse].map(|path| path.to_str().unwrap());
    let done = run(&["validate", paths[0], paths[1], paths[2], "/no/such.yaml"]);
    assert_eq!(done.status, 2);
    assert_eq!(done.stdout, format!("{}: ok\n", paths[0]));
    for part in [
        &format!(
            "{}:1:8: mesh.domainSufix: unknown key; did you mean",
            paths[1]
        ),
        &format!("{}:", paths[2]),
        "is no valid YAML",
        "/no/such.yaml: cannot be read",
    ] {
        assert!(done.stderr.contains(part), "{part}: {}", done.stderr);
    }
}

#[test]
fn completions_are_there_for_every_shell() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = run(&["completions", shell]);
        assert!(script.prints().contains("bootstrap"), "{shell}");
    }
}

#[test]
fn bootstraps_are_printed_as_json_or_yaml() {
    let line = [
        "bootstrap",
        "envoy",
        "--xds",
        "[::1]:15010",
        "--node-id",
        "a",
        "--zone",
        "z",
    ];
    let envoy = run(&line).json();
    assert_eq!(
        envoy["node"],
        json!({"id": "a", "cluster": "mesh", "locality": {"zone": "z"}})
    );
    let yaml = run(&[&line[..], &["-o", "yaml"]].concat());
    let yaml: Value = serde_yaml::from_str(yaml.prints()).unwrap();
    assert_eq!(yaml, envoy);
    let grpc = run(&["bootstrap", "grpc", "--xds", "mesh:1", "--node-id", "a"]).json();
    assert_eq!(grpc["xds_servers"][0]["server_uri"], "mesh:1");
}

#[test]
fn a_reader_that_hangs_up_is_no_failure() {
    for arguments in [
        &["completions", "bash"][..],
        &["--help"],
        &["serve", "--print-config"],
    ] {
        let mut command = meshkeeper(arguments);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        drop(child.stdout.take());
        let done = done(child.wait_with_output().unwrap());
        assert_eq!(
            (done.status, done.stderr.as_str()),
            (0, ""),
            "{arguments:?}"
        );
    }
}

#[tokio::test]
async fn services_and_clients_of_a_server_are_listed() {
    let admin = Admin::start().await;
    let table = ask(admin.address, &["services"]).await;
    let lines: Vec<_> = table.prints().lines().collect();
    assert_eq!(lines.len(), 3, "{lines:?}");
    assert_eq!(
        lines[1],
        "orders    10.0.0.7:8080  30      a     healthy  registered  /services/orders/i-1"
    );
    let none = ask(admin.address, &["services", "nobody", "-o", "json"]).await;
    none.says(1, &["no such service: `nobody`", "`meshkeeper services`"]);
    let one = ask(admin.address, &["services", "payments", "-o", "json"]).await;
    assert_eq!(one.json()[0]["name"], "payments");
    assert_eq!(one.json().as_array().unwrap().len(), 1);

    let clients = ask(admin.address, &["clients"]).await;
    assert!(clients.prints().contains("SYNCED"), "{}", clients.stdout);
    assert!(
        clients
            .prints()
            .contains("sidecar-1 rejects endpoints (3 times since "),
        "{}",
        clients.stdout
    );
    let yaml = ask(admin.address, &["clients", "-o", "yaml"]).await;
    assert!(
        yaml.prints().contains("nodeId: sidecar-1"),
        "{}",
        yaml.stdout
    );
}

#[tokio::test]
async fn everything_is_dumped_as_one_document() {
    let admin = Admin::start().await;
    let dump = ask(admin.address, &["dump", "-o", "json"]).await.json();
    assert_eq!(dump["services"][0]["name"], "orders");
    assert_eq!(dump["rejected"][0]["path"], "/services/orders/bad");
    assert_eq!(dump["clients"][0]["nodeId"], "sidecar-1");
    assert_eq!(
        dump["config"]["envoy"]["clusters"][0]["resource"]["name"],
        "orders"
    );
    assert_eq!(dump["config"]["grpc"]["routes"], json!([]));
    let summary = ask(admin.address, &["dump"]).await;
    assert!(
        summary.prints().contains("envoy clusters"),
        "{}",
        summary.stdout
    );
}

#[test]
fn a_server_that_is_not_there_is_named_with_a_remedy() {
    let address = free_address().to_string();
    for command in ["services", "clients", "dump", "ready"] {
        run(&[command, "--admin", &address]).says(
            1,
            &[
                &format!("no MeshKeeper answers at {address}: "),
                "start `meshkeeper serve`",
                "--admin",
            ],
        );
    }
}

#[test]
fn a_server_that_is_something_else_is_told_apart() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let other = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut line = String::new();
        BufReader::new(stream.try_clone().unwrap())
            .read_line(&mut line)
            .unwrap();
        stream
            .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi")
            .unwrap();
    });
    run(&["services", "--admin", &address]).says(1, &["is no MeshKeeper admin server"]);
    other.join().unwrap();
}

#[test]
fn serve_lives_without_an_ensemble_is_not_ready_and_ends_well_on_sigterm() {
    let admin = free_address();
    let nowhere = free_address().to_string();
    let mut serve = Running::start(meshkeeper(&[
        "serve",
        "--zookeeper",
        &nowhere,
        "--xds-listen",
        "127.0.0.1:0",
        "--admin-listen",
        &admin.to_string(),
        "--log-level",
        "error",
    ]));
    let alive = until("/livez", || get(admin, "/livez"));
    assert!(alive.starts_with("HTTP/1.1 200 "), "{alive}");
    let ready = get(admin, "/readyz").unwrap();
    assert!(ready.starts_with("HTTP/1.1 503 "), "{ready}");
    assert!(ready.contains("registry main"), "{ready}");
    let asked = run(&["ready", "--admin", &admin.to_string()]);
    assert_eq!(asked.status, 1, "{}", asked.stderr);
    assert!(asked.stdout.starts_with("not ready\n"), "{}", asked.stdout);
    assert!(asked.stdout.contains("registry main"), "{}", asked.stdout);
    let lives = run(&["ready", "--live", "--admin", &admin.to_string()]);
    assert_eq!(lives.prints(), "alive\n");
    // Signals that mean something to other programs.
    for signal in [
        Signal::SIGUSR1,
        Signal::SIGUSR2,
        Signal::SIGALRM,
        Signal::SIGPIPE,
    ] {
        serve.signal(signal);
    }
    let lives = run(&["ready", "--live", "--admin", &admin.to_string()]);
    assert_eq!(lives.prints(), "alive\n");
    serve.signal(Signal::SIGTERM);
    assert_eq!(serve.ended(), 0);
}

#[test]
fn a_port_that_is_taken_is_named() {
    let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let nowhere = free_address().to_string();
    let line = [
        "serve",
        "--zookeeper",
        &nowhere,
        "--xds-listen",
        "127.0.0.1:0",
    ];
    let done = run(&[&line[..], &["--admin-listen", &address]].concat());
    done.says(1, &[&address, "`admin.listen` or `--admin-listen`"]);
    assert_eq!(done.stderr.matches(" in use").count(), 1, "{}", done.stderr);
}

#[test]
fn a_registered_command_that_cannot_start_is_named() {
    let nowhere = free_address().to_string();
    let line = ["register", "--zookeeper", &nowhere, "--service", "orders"];
    let more = ["--address", "127.0.0.1:1", "--", "no-such-program"];
    run(&[&line[..], &more].concat()).says(1, &["cannot start `no-such-program`"]);
}

#[test]
fn a_host_that_cannot_be_looked_up_is_a_failure() {
    let nowhere = free_address().to_string();
    let line = ["register", "--zookeeper", &nowhere, "--service", "orders"];
    // An empty label, so that no name server is asked.
    let more = ["--address", "no..host:1"];
    run(&[&line[..], &more].concat()).says(1, &["--address: cannot look up `no..host`"]);
}

/// The data of a znode, once it is there.
async fn data(client: &zookeeper_client::Client, path: &str) -> Value {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Ok((data, stat)) = client.get_data(path).await {
            assert_ne!(stat.ephemeral_owner, 0, "{path} is persistent");
            return serde_json::from_slice(&data).unwrap();
        }
        assert!(Instant::now() < deadline, "waited in vain for {path}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn a_znode_is_held_while_its_command_runs() {
    let zookeeper = ZooKeeper::start();
    let connect = zookeeper.connect();
    let client = zookeeper.client().await;
    let path = "/apps/orders/10.0.0.7:8080";
    let line = [
        "register",
        "--zookeeper",
        &connect,
        "--root",
        "/apps",
        "--service",
        "orders",
    ];
    let more = [
        "--address",
        "10.0.0.7:8080",
        "--weight",
        "30",
        "--meta",
        "version=v2",
    ];
    let register = |command: &[&str]| {
        let mut register =
            meshkeeper(&[&line[..], &more, &["--log-level", "error"], command].concat());
        register.stdin(Stdio::piped());
        Running::start(register)
    };

    let mut alone = register(&[]);
    assert_eq!(
        data(&client, path).await,
        json!({"address": "10.0.0.7", "port": 8080, "weight": 30, "metadata": {"version": "v2"}})
    );
    alone.signal(Signal::SIGINT);
    assert_eq!(alone.ended(), 0);
    assert!(client.check_stat(path).await.unwrap().is_none());

    let mut beside = register(&["--", "sleep", "600"]);
    data(&client, path).await;
    beside.signal(Signal::SIGTERM);
    assert_eq!(beside.ended(), 128 + 15);
    assert!(client.check_stat(path).await.unwrap().is_none());

    // `cat` ends when its standard input does.
    let mut until_the_end = register(&["--", "sh", "-c", "cat; exit 3"]);
    data(&client, path).await;
    drop(until_the_end.0.stdin.take());
    assert_eq!(until_the_end.ended(), 3);
    assert!(client.check_stat(path).await.unwrap().is_none());
}
