//! What is measured, as a process on a core of its own: MeshKeeper, a peer, or a floor.
//!
//! It refuses to know what for. Each is asked the same way: it has a port for clients, and is ready
//! when a client gets an answer. Invariant: the process is gone when its handle is.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use super::{
    experiment::Names,
    floor,
    journal::until,
    load::Wire,
    machine,
    zookeeper::{ZooKeeper, free_port},
};

const START: Duration = Duration::from_secs(60);

/// Who serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    MeshKeeper,
    /// Another build of it.
    Other,
    /// go-control-plane's `LinearCache`, fed by Go's ZooKeeper client.
    Linear,
    /// Istio's control plane, fed by Go's ZooKeeper client.
    Istiod,
    /// The same with so short a debounce as it allows.
    IstiodHasty,
    /// The same fed by MCP over xDS.
    IstiodMcp,
    /// Frames of so many bytes.
    Floor(usize),
}

impl Side {
    pub fn name(self) -> &'static str {
        match self {
            Self::MeshKeeper => "MeshKeeper",
            Self::Other => "MeshKeeper, other build",
            Self::Linear => "LinearCache",
            Self::Istiod => "istiod",
            Self::IstiodHasty => "istiod, debounce 1 ms",
            Self::IstiodMcp => "istiod, MCP",
            Self::Floor(_) => "floor",
        }
    }

    pub fn wire(self) -> Wire {
        match self {
            Self::Floor(_) => Wire::Raw,
            _ => Wire::Delta,
        }
    }

    /// With more, a run would take too long to be of use.
    pub fn most_clients(self) -> usize {
        match self {
            Self::Istiod | Self::IstiodHasty => 1_000,
            Self::IstiodMcp => 10,
            _ => usize::MAX,
        }
    }

    /// How its resources and clients are called.
    pub fn names(self) -> Names {
        match self {
            Self::Istiod | Self::IstiodHasty | Self::IstiodMcp => Names::Istio,
            _ => Names::Plain,
        }
    }
}

/// The peers whose programs `benches/peers/build.sh` could build.
pub fn linear() -> Option<Side> {
    peer("linear").map(|_| Side::Linear)
}

pub fn istiod() -> Option<Side> {
    peer("istiod").map(|_| Side::Istiod)
}

fn peer(name: &str) -> Option<PathBuf> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("target/peers");
    Some(path.join(name)).filter(|path| path.exists())
}

#[derive(Debug)]
pub struct Server {
    side: Side,
    connect: String,
    root: String,
    pub clients: SocketAddr,
    admin: SocketAddr,
    process: Option<Child>,
    config: Option<PathBuf>,
    /// From the first answer of its admin port, or from its start, to the first answer to a client.
    pub load: Duration,
}

impl Server {
    /// Starts it and waits until it has read the whole tree.
    pub async fn start(side: Side, zookeeper: &ZooKeeper, root: &str) -> Self {
        let mut server = Self::new(side, zookeeper, root);
        server.start_again().await;
        server
    }

    /// MeshKeeper with a configuration file.
    pub async fn configured(config: PathBuf, zookeeper: &ZooKeeper, root: &str) -> Self {
        let mut server = Self::new(Side::MeshKeeper, zookeeper, root);
        server.config = Some(config);
        server.start_again().await;
        server
    }

    fn new(side: Side, zookeeper: &ZooKeeper, root: &str) -> Self {
        let address = || SocketAddr::from(([127, 0, 0, 1], free_port()));
        Self {
            side,
            connect: zookeeper.connect(),
            root: root.into(),
            clients: address(),
            admin: address(),
            process: None,
            config: None,
            load: Duration::ZERO,
        }
    }

    /// On the ports it had.
    pub async fn start_again(&mut self) {
        self.process = Some(self.spawn());
        match self.side {
            Side::Floor(_) => {
                assert!(until(START, || TcpStream::connect(self.clients).is_ok()).await);
            }
            _ => self.wait_until_ready().await,
        }
    }

    pub fn wire(&self) -> Wire {
        self.side.wire()
    }

    /// `kill -9`, and waits until it is gone.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            let _ = process.kill();
            let _ = process.wait();
        }
    }

    pub fn pid(&self) -> u32 {
        self.process.as_ref().expect("a running server").id()
    }

    pub fn cpu(&self) -> Duration {
        machine::cpu(self.pid())
    }

    pub fn memory(&self) -> u64 {
        machine::memory(self.pid())
    }

    /// The sum of the metric's samples; 0 for a side that has none.
    pub fn metric(&self, name: &str) -> f64 {
        let page = get(self.admin, "/metrics").unwrap_or_default();
        let lines = page.lines().filter_map(|line| line.strip_prefix(name));
        lines
            .filter_map(|rest| rest.split_whitespace().next_back()?.parse::<f64>().ok())
            .sum()
    }

    /// What the API says at this path.
    pub fn api(&self, path: &str) -> String {
        get(self.admin, path).unwrap_or_default()
    }

    fn spawn(&self) -> Child {
        let own = std::env::current_exe()
            .expect("a path")
            .display()
            .to_string();
        let clients = self.clients.to_string();
        let mut command = match self.side {
            Side::MeshKeeper => self.meshkeeper(env!("CARGO_BIN_EXE_meshkeeper")),
            Side::Other => {
                let program = std::env::var("AGAINST").expect("AGAINST names a program");
                self.meshkeeper(&program)
            }
            Side::Linear => self.peer("linear"),
            Side::Istiod => self.peer("istiod"),
            Side::IstiodHasty => {
                let mut command = self.peer("istiod");
                command.env("PILOT_DEBOUNCE_AFTER", "1ms");
                command
            }
            Side::IstiodMcp => {
                let mut command = self.peer("istiod");
                command.arg("mcp");
                command
            }
            Side::Floor(size) => {
                let mut command = machine::on_server_core(&own);
                let size = size.to_string();
                command.args([floor::RELAY, &self.connect, &self.root, &clients, &size]);
                command
            }
        };
        let command = command.stdin(Stdio::null()).stdout(Stdio::null());
        command.spawn().expect("a program that starts")
    }

    fn meshkeeper(&self, program: &str) -> Command {
        let mut command = machine::on_server_core(program);
        command.args(["serve", "--zookeeper", &self.connect, "--root", &self.root]);
        command.args(["--xds-listen", &self.clients.to_string()]);
        command.args(["--admin-listen", &self.admin.to_string()]);
        if let Some(config) = &self.config {
            command.arg("--config").arg(config);
        }
        command.env("RUST_LOG", "error");
        command
    }

    fn peer(&self, name: &str) -> Command {
        let program = peer(name).expect("it was built").display().to_string();
        let mut command = machine::on_server_core(&program);
        // istiod lets some 20 new streams in a second on one core, and turns the others away.
        command.env("PILOT_MAX_REQUESTS_PER_SECOND", "10000");
        command.args([&self.connect, &self.root]);
        command.args([self.clients, self.admin].map(|address| address.to_string()));
        command
    }

    async fn wait_until_ready(&mut self) {
        let admin = self.admin;
        assert!(
            until(START, || TcpStream::connect(admin).is_ok()).await,
            "it does not start"
        );
        let start = Instant::now();
        let ready = || get(admin, "/readyz").is_some_and(|answer| answer.contains(" 200 "));
        assert!(until(2 * START, ready).await, "it does not get ready");
        self.load = start.elapsed();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The whole answer, head and all.
pub fn get(address: SocketAddr, path: &str) -> Option<String> {
    request(address, "localhost", path)
}

pub fn request(address: SocketAddr, host: &str, path: &str) -> Option<String> {
    let mut stream = TcpStream::connect(address).ok()?;
    stream
        .set_read_timeout(Some(Duration::from_secs(30)))
        .ok()?;
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
    )
    .ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    Some(answer)
}
