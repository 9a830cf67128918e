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

use super::{envoy::components, meshkeeper::MeshKeeper, wait::PATIENCE};

#[derive(Clone, Copy, Debug)]
pub enum Library {
    /// gRPC C-core, through grpcio.
    Core,
    /// grpc-js with its xDS plug-in.
    Js,
}

/// A client of one target; it ends with the test.
pub struct Client {
    _child: Child,
    _folder: TempDir,
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
}

impl Client {
    pub fn start(library: Library, server: &MeshKeeper, service: &str) -> Self {
        let folder = TempDir::new().unwrap();
        let bootstrap = std::process::Command::new(env!("CARGO_BIN_EXE_meshkeeper"))
            .args(["bootstrap", "grpc", "--node-id", "grpc-test", "--xds"])
            .arg(server.xds.to_string())
            .output()
            .unwrap();
        assert!(bootstrap.status.success(), "{bootstrap:?}");
        let file = folder.path().join("bootstrap.json");
        std::fs::write(&file, bootstrap.stdout).unwrap();
        let mut child = library
            .command()
            .arg(format!("xds:///{service}"))
            .env("GRPC_XDS_BOOTSTRAP", &file)
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

    /// Gives a command and returns its one line of answer.
    pub async fn tell(&mut self, command: &str) -> Value {
        self.input
            .write_all(format!("{command}\n").as_bytes())
            .await
            .unwrap();
        let line = timeout(3 * PATIENCE, self.output.next_line()).await;
        let line = line
            .expect("an answer in time")
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
}

impl Library {
    pub const ALL: [Self; 2] = [Self::Core, Self::Js];

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
        }
    }
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
