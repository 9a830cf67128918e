//! A real ZooKeeper ensemble on loopback, each part of which can be broken by itself.
//!
//! Clients reach a server through its *door*, and each server reaches the others through links of its
//! own; both are fault proxies. Elections go past them, so that a server can lag and still vote. One
//! server alone is a standalone one.

use std::{fmt::Write as _, fs};

use tokio::task::block_in_place;

use super::{
    disk::Disk,
    proxy::Proxy,
    wait::until,
    zookeeper::{Setup, ZooKeeper, free_port},
};

/// How many ticks a follower and its leader may not hear of each other: 4 s.
const SYNC_LIMIT: usize = 20;

/// Servers that keep sessions to themselves until these hold znodes: each opens them alone, so one that
/// lags can be talked to and answers with what it had long ago.
pub const LOCAL_SESSIONS: &str = "localSessionsEnabled=true\nlocalSessionsUpgradingEnabled=true\n";

pub struct Ensemble {
    nodes: Vec<Node>,
}

struct Node {
    server: ZooKeeper,
    door: Proxy,
    /// To the others; bytes of the log of transactions go there while another leads.
    links: Vec<Proxy>,
    disk: Option<Disk>,
}

impl Ensemble {
    pub async fn start(size: usize) -> Self {
        Self::start_with(size, "", false).await
    }

    /// With further lines of configuration, and with disks that can be filled.
    pub async fn start_with(size: usize, lines: &str, small_disks: bool) -> Self {
        let setup = Setup {
            config: lines.to_owned(),
            ..Setup::default()
        };
        Self::start_as(size, &setup, small_disks).await
    }

    /// Servers that answer reads without a quorum.
    pub async fn start_read_only(size: usize, lines: &str) -> Self {
        let setup = Setup {
            config: lines.to_owned(),
            java: vec!["-Dreadonlymode.enabled=true".to_owned()],
            ..Setup::default()
        };
        Self::start_as(size, &setup, false).await
    }

    async fn start_as(size: usize, setup: &Setup, small_disks: bool) -> Self {
        let ports: Vec<_> = (0..size).map(|_| (free_port(), free_port())).collect();
        let mut nodes = Vec::new();
        for own in 0..size {
            nodes.push(Node::new(own, &ports, setup, small_disks).await);
        }
        let mut ensemble = Self { nodes };
        for node in 0..size {
            ensemble.nodes[node].server.spawn();
        }
        ensemble.until_serving().await;
        ensemble
    }

    /// For those whose way to the ensemble is to be broken.
    pub fn connect(&self) -> String {
        let doors = self.nodes.iter().map(|node| node.door.connect());
        doors.collect::<Vec<_>>().join(",")
    }

    /// For those who go past the doors.
    pub fn direct(&self) -> String {
        let servers = self.nodes.iter().map(|node| node.server.connect());
        servers.collect::<Vec<_>>().join(",")
    }

    pub fn size(&self) -> usize {
        self.nodes.len()
    }

    pub fn doors(&self) -> impl Iterator<Item = &Proxy> {
        self.nodes.iter().map(|node| &node.door)
    }

    pub fn door(&self, node: usize) -> &Proxy {
        &self.nodes[node].door
    }

    /// Who serves as leader, or alone.
    pub fn leader(&self) -> Option<usize> {
        let leads = |node: &Node| node.mode().is_some_and(|mode| mode != "follower");
        self.nodes.iter().position(leads)
    }

    /// How a server describes itself, while it answers.
    pub fn mode(&self, node: usize) -> Option<String> {
        block_in_place(|| self.nodes[node].server.mode())
    }

    /// Somebody who serves and does not lead.
    pub fn follower(&self) -> Option<usize> {
        let follows = |node: &Node| node.mode().is_some_and(|mode| mode == "follower");
        self.nodes.iter().position(follows)
    }

    /// `kill -9`.
    pub fn kill(&mut self, node: usize) {
        self.nodes[node].server.kill();
    }

    /// Starts those that do not run.
    pub fn start_all(&mut self) {
        for node in &mut self.nodes {
            if node.server.pid().is_none() {
                node.server.kill();
                node.server.spawn();
            }
        }
    }

    /// There is a leader, and whoever runs serves.
    pub async fn until_serving(&mut self) {
        let nodes = &mut self.nodes;
        until("the ensemble serves", async || {
            let mut modes = Vec::new();
            for node in nodes.iter_mut() {
                if node.server.pid().is_some() {
                    modes.push(node.mode()?);
                }
            }
            modes.iter().any(|mode| mode != "follower").then_some(())
        })
        .await;
    }

    /// What the others write does not reach `node` any more, for as long as they bear with it.
    pub fn detach(&self, node: usize) {
        for link in &self.nodes[node].links {
            link.pause();
        }
    }

    pub fn attach(&self, node: usize) {
        for link in &self.nodes[node].links {
            link.resume();
        }
    }

    /// Only for one with small disks.
    pub fn fill_disks(&mut self) {
        for node in &mut self.nodes {
            if let (Some(disk), Some(pid)) = (&node.disk, node.server.pid()) {
                disk.fill(pid);
            }
        }
    }

    /// Makes room, and starts anew what stopped or stands still for want of it.
    pub fn free_disks(&mut self) {
        for node in &mut self.nodes {
            node.server.kill();
            if let Some(disk) = &node.disk {
                disk.free();
            }
        }
        self.start_all();
    }
}

impl Node {
    /// `ports`: where each server takes followers, and votes.
    async fn new(own: usize, ports: &[(u16, u16)], setup: &Setup, small_disk: bool) -> Self {
        let mut links = Vec::new();
        let mut config = setup.config.clone();
        if ports.len() > 1 {
            let _ = writeln!(config, "initLimit=50\nsyncLimit={SYNC_LIMIT}");
            for (at, &(follow, vote)) in ports.iter().enumerate() {
                let mut follow = follow;
                if at != own {
                    links.push(Proxy::start_patient(follow).await);
                    follow = links[links.len() - 1].port();
                }
                let _ = writeln!(config, "server.{}=127.0.0.1:{follow}:{vote}", at + 1);
            }
        }
        let mut server = ZooKeeper::absent_as(Setup {
            config,
            java: setup.java.clone(),
            ..Setup::default()
        });
        let data = server.directory().join("data");
        fs::create_dir(&data).unwrap();
        let disk = small_disk.then(|| Disk::mount(&data));
        let mut folder = data.clone();
        if let Some(disk) = &disk {
            server.start_through(disk.through());
            folder = disk.folder(&data);
        }
        fs::write(folder.join("myid"), (own + 1).to_string()).unwrap();
        Self {
            door: Proxy::start(server.port()).await,
            server,
            links,
            disk,
        }
    }

    /// While it has a quorum.
    fn mode(&self) -> Option<String> {
        let mode = block_in_place(|| self.server.mode());
        mode.filter(|mode| mode != "read-only")
    }
}
