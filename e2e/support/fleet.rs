//! Programs that register with the real frameworks (`e2e/frameworks`, and kazoo), told line by line over
//! their standard input. They end with the test.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
};

use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines},
    process::{Child, ChildStdin, ChildStdout, Command},
    time::timeout,
};

use super::{envoy::components, wait::PATIENCE, zookeeper::ZooKeeper};

pub struct Program {
    child: Child,
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
    folder: TempDir,
}

impl Program {
    pub fn curator(zookeeper: &ZooKeeper) -> Self {
        Self::spawn(java("curator", "CuratorProvider").arg(zookeeper.connect()))
    }

    /// An application that serves HTTP and registers itself, with further settings of Spring's.
    pub fn spring(zookeeper: &ZooKeeper, name: &str, settings: &[&str]) -> Self {
        let connect = zookeeper.connect();
        let settings = settings.iter().map(|setting| format!("--{setting}"));
        Self::spawn(
            java("spring", "fleet.SpringProvider")
                .args([
                    "--spring.main.banner-mode=off",
                    "--logging.level.root=OFF",
                    "--server.port=0",
                ])
                .arg(format!("--spring.application.name={name}"))
                .arg(format!("--spring.cloud.zookeeper.connect-string={connect}"))
                .args(settings),
        )
    }

    /// A provider with a port for the protocol dubbo and one for tri. It listens on loopback, which Dubbo refuses to
    /// register, and registers another address.
    pub fn dubbo(zookeeper: &ZooKeeper, [dubbo, tri]: [u16; 2]) -> Self {
        Self::spawn(
            java("dubbo", "fleet.DubboProvider")
                .env("DUBBO_IP_TO_REGISTRY", "10.0.0.7")
                .args([&zookeeper.connect(), "127.0.0.1"])
                .args([dubbo.to_string(), tri.to_string()]),
        )
    }

    /// A provider of dubbo-go's at a level (`interface`, `application` or `all`) that listens on a port and registers
    /// it, with further parameters; at application level it registers `address` instead, if there is one.
    pub fn dubbo_go(
        connect: &str,
        level: &str,
        port: u16,
        address: Option<std::net::SocketAddr>,
        parameters: &[&str],
    ) -> Self {
        let mut command = Command::new(components().join("go-programs/dubbo-go"));
        if let Some(address) = address {
            command
                .env("DUBBO_IP_TO_REGISTRY", address.ip().to_string())
                .env("DUBBO_PORT_TO_REGISTRY", address.port().to_string());
        }
        Self::spawn(
            command
                .args([connect, level, &port.to_string()])
                .args(parameters),
        )
    }

    pub fn finagle(zookeeper: &ZooKeeper) -> Self {
        Self::spawn(java("serverset", "ServerSetMember").arg(zookeeper.connect()))
    }

    pub fn kazoo(zookeeper: &ZooKeeper) -> Self {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("e2e/frameworks/kazoo/members.py");
        let python = components().join("kazoo/bin/python");
        Self::spawn(Command::new(python).arg(script).arg(zookeeper.connect()))
    }

    fn spawn(command: &mut Command) -> Self {
        let folder = TempDir::new().unwrap();
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(std::fs::File::create(folder.path().join("log")).unwrap())
            .kill_on_drop(true)
            .spawn()
            .expect("the frameworks are installed: e2e/components/install.sh all");
        let input = child.stdin.take().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap()).lines();
        Self {
            child,
            input,
            output,
            folder,
        }
    }

    /// Waits until it runs; those that register by themselves then have.
    pub async fn ready(&mut self) {
        self.line("ready").await;
    }

    /// Waits until it has done so; what it answers beside that.
    pub async fn tell(&mut self, command: &str) -> String {
        let line = format!("{command}\n");
        self.input.write_all(line.as_bytes()).await.unwrap();
        self.line("done").await
    }

    /// The rest of the next line that begins so; libraries may write others.
    async fn line(&mut self, beginning: &str) -> String {
        let found = async {
            while let Some(line) = self.output.next_line().await.unwrap() {
                if let Some(rest) = line.strip_prefix(beginning) {
                    return rest.trim().to_owned();
                }
            }
            panic!("it ended: {}", self.log())
        };
        let found = timeout(3 * PATIENCE, found).await.ok();
        found.unwrap_or_else(|| panic!("no `{beginning}` in time: {}", self.log()))
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    /// In order, as it is meant to deregister.
    pub async fn leave(self) {
        let Self {
            mut child, input, ..
        } = self;
        drop(input);
        let ended = timeout(3 * PATIENCE, child.wait()).await;
        assert!(ended.expect("an end in time").unwrap().success());
    }

    /// As `kill -9` does it: its session lives on for a while.
    pub async fn kill(&mut self) {
        self.child.kill().await.unwrap();
    }
}

/// Started quickly rather than fast.
fn java(module: &str, main: &str) -> Command {
    let target = components().join("frameworks").join(module).join("target");
    let class_path = [target.join("classes"), target.join("lib/*")];
    let mut command = Command::new("java");
    command
        .args(["-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xmx192m"])
        .args(["-cp", &joined(&class_path), main]);
    command
}

fn joined(paths: &[PathBuf]) -> String {
    let paths = paths.iter().map(|path| path.display().to_string());
    paths.collect::<Vec<_>>().join(":")
}
