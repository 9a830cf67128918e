//! Proxyless gRPC clients and their backends as processes, steered over their standard input
//! (`e2e/grpc/README.md` has the commands).

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Stdio,
};

use serde_json::Value;
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines},
    process::{Child, ChildStdin, ChildStdout, Command},
    time::timeout,
};

use super::{
    envoy::components,
    wait::{PATIENCE, until},
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Library {
    /// gRPC C-core, through grpcio.
    Core,
    /// grpc-js with its xDS plug-in.
    Js,
    /// grpc-go.
    Go,
    /// grpc-java.
    Java,
}

/// A client of one target; it ends with the test.
pub struct Client {
    _child: Child,
    _folder: TempDir,
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
}

impl Client {
    pub fn start(library: Library, xds: SocketAddr, service: &str) -> Self {
        let mut command = library.command();
        command.arg(format!("xds:///{service}"));
        let folder = bootstrapped(&mut command, &format!("grpc-{library:?}"), &[xds]);
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("the gRPC clients are installed: e2e/components/install.sh all");
        let input = child.stdin.take().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap()).lines();
        Self {
            _child: child,
            _folder: folder,
            input,
            output,
        }
    }

    /// One of each library, started at once.
    pub fn start_all(xds: SocketAddr, service: &str) -> [(Library, Self); Library::ALL.len()] {
        Library::ALL.map(|library| (library, Self::start(library, xds, service)))
    }

    /// Gives a command and returns its one line of answer.
    pub async fn tell(&mut self, command: &str) -> Value {
        self.input
            .write_all(format!("{command}\n").as_bytes())
            .await
            .unwrap();
        let line = timeout(3 * PATIENCE, self.output.next_line()).await;
        let line = line
            .unwrap_or_else(|_| panic!("no answer to `{command}` in time"))
            .unwrap()
            .expect("an answer");
        serde_json::from_str(&line).unwrap()
    }

    /// Makes calls; how many each backend answered. A failed call fails the test.
    pub async fn call(&mut self, calls: usize) -> BTreeMap<String, u64> {
        let report = self.tell(&format!("call {calls}")).await;
        assert_eq!(report["failures"], serde_json::json!({}), "{report}");
        serde_json::from_value(report["counts"].clone()).unwrap()
    }

    /// Makes one call: why it failed, if it did.
    pub async fn fails(&mut self) -> Option<String> {
        let report = self.tell("call 1").await;
        report["failures"]
            .as_object()
            .unwrap()
            .keys()
            .next()
            .cloned()
    }

    /// Calls until one is answered.
    pub async fn answered(&mut self) {
        until("an answer", async || {
            self.fails().await.is_none().then_some(())
        })
        .await;
    }

    /// Calls until all calls are refused with a message that has both in it; the message.
    pub async fn refused(&mut self, name: &str, why: &str) -> String {
        until("calls that fail", async || {
            let report = self.tell("call 5").await;
            let failures = report["failures"].as_object()?.keys();
            let mut named = failures.filter(|failure| {
                failure.starts_with("UNAVAILABLE")
                    && failure.contains(name)
                    && failure.contains(why)
            });
            let failure = named.next()?.clone();
            (report["counts"] == serde_json::json!({})).then_some(failure)
        })
        .await
    }
}

/// Writes a bootstrap and has the program read it; the folder has to outlive the program.
fn bootstrapped(command: &mut Command, node: &str, xds: &[SocketAddr]) -> TempDir {
    let folder = TempDir::new().unwrap();
    let mut bootstrap = std::process::Command::new(env!("CARGO_BIN_EXE_meshkeeper"));
    bootstrap.args(["bootstrap", "grpc", "--node-id", node]);
    for address in xds {
        bootstrap.args(["--xds", &address.to_string()]);
    }
    let bootstrap = bootstrap.output().unwrap();
    assert!(bootstrap.status.success(), "{bootstrap:?}");
    let file = folder.path().join("bootstrap.json");
    std::fs::write(&file, bootstrap.stdout).unwrap();
    command.env("GRPC_XDS_BOOTSTRAP", &file);
    folder
}

impl Library {
    pub const ALL: [Self; 4] = [Self::Core, Self::Js, Self::Go, Self::Java];
    /// Those whose servers get their listeners over xDS here.
    pub const SERVERS: [Self; 3] = [Self::Core, Self::Go, Self::Java];

    fn command(self) -> Command {
        match self {
            Self::Core => {
                let mut command = Command::new(components().join("grpc-python/bin/python"));
                command.arg(scripts().join("client.py"));
                command
            }
            Self::Js => {
                let mut command = Command::new("node");
                command.arg(scripts().join("client.mjs"));
                command
            }
            Self::Go => Command::new(components().join("go-programs/grpc-go")),
            Self::Java => java("Client"),
        }
    }

    /// A server that answers with that name.
    fn server(self, name: &str) -> Command {
        let mut command = match self {
            Self::Core => {
                let mut command = Command::new(components().join("grpc-python/bin/python"));
                command.arg(scripts().join("server.py"));
                command
            }
            Self::Go => {
                let mut command = Command::new(components().join("go-programs/grpc-go"));
                command.arg("serve");
                command
            }
            Self::Java => java("Server"),
            Self::Js => unimplemented!("no test has a grpc-js server"),
        };
        command.arg(name);
        command
    }
}

/// Starts quickly rather than running fast.
fn java(class: &str) -> Command {
    let built = components().join("grpc-java/target");
    let path = format!("{0}/classes:{0}/lib/*", built.display());
    let mut command = Command::new("java");
    command.args([
        "-XX:TieredStopAtLevel=1",
        "-XX:+UseSerialGC",
        "-cp",
        &path,
        class,
    ]);
    command
}

fn scripts() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("e2e/grpc")
}

/// gRPC servers that answer with their names; they end with the test.
pub struct Backends {
    _child: Child,
    /// By name.
    pub addresses: BTreeMap<String, SocketAddr>,
}

impl Backends {
    pub async fn start(names: &[&str]) -> Self {
        let mut child = Command::new(components().join("grpc-python/bin/python"))
            .arg(scripts().join("backend.py"))
            .args(names)
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("gRPC is installed: e2e/components/install.sh grpc-python");
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut addresses = BTreeMap::new();
        for _ in names {
            let line = timeout(PATIENCE, lines.next_line())
                .await
                .expect("a line in time");
            let line: Value = serde_json::from_str(&line.unwrap().unwrap()).unwrap();
            let port = u16::try_from(line["port"].as_u64().unwrap()).unwrap();
            let name = line["backend"].as_str().unwrap().to_owned();
            addresses.insert(name, SocketAddr::from(([127, 0, 0, 1], port)));
        }
        Self {
            _child: child,
            addresses,
        }
    }
}

/// A gRPC server that gets its listener over xDS; it ends with the test.
pub struct Server {
    _child: Child,
    _folder: TempDir,
    _lines: Lines<BufReader<ChildStdout>>,
    pub address: SocketAddr,
}

impl Server {
    /// Started; it serves once it has its listener.
    pub async fn start(library: Library, xds: SocketAddr, name: &str) -> Self {
        let mut command = library.server(name);
        let folder = bootstrapped(&mut command, name, &[xds]);
        let mut child = command
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("the gRPC servers are installed: e2e/components/install.sh all");
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let line = timeout(PATIENCE, lines.next_line())
            .await
            .expect("a line in time");
        let line: Value = serde_json::from_str(&line.unwrap().unwrap()).unwrap();
        let port = u16::try_from(line["port"].as_u64().unwrap()).unwrap();
        Self {
            _child: child,
            _folder: folder,
            _lines: lines,
            address: SocketAddr::from(([127, 0, 0, 1], port)),
        }
    }
}
