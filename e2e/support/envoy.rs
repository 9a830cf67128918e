//! A real Envoy with the bootstrap that `meshkeeper bootstrap envoy` prints.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Stdio,
    sync::atomic::{AtomicU32, Ordering},
};

use serde_json::Value;
use tempfile::TempDir;
use tokio::process::{Child, Command};

use super::{
    http::Http,
    meshkeeper::MeshKeeper,
    wait::{free_address, until},
};

/// The folder that `e2e/components` installs into.
pub fn components() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(".components")
}

/// By address: weight and health.
pub type Hosts = BTreeMap<String, (u64, String)>;

/// A sidecar; it ends with the test.
pub struct Envoy {
    _child: Child,
    folder: TempDir,
    http: Http,
    pub admin: SocketAddr,
    pub outbound: SocketAddr,
}

/// Envoys on one machine share memory by this number.
static BASE_ID: AtomicU32 = AtomicU32::new(0);

impl Envoy {
    /// A sidecar of a real server.
    pub async fn start(server: &MeshKeeper, node: &str) -> Self {
        Self::of(server.xds, server.outbound, node).await
    }

    /// A sidecar that reports its requests.
    pub async fn reporting(server: &MeshKeeper, node: &str) -> Self {
        Self::with(server.xds, server.outbound, node, &["--load-reports"]).await
    }

    /// A sidecar that loads services on demand.
    pub async fn on_demand(server: &MeshKeeper, node: &str) -> Self {
        Self::with(server.xds, server.outbound, node, &["--on-demand"]).await
    }

    /// Started and initialised: its listener is there.
    pub async fn of(xds: SocketAddr, outbound: SocketAddr, node: &str) -> Self {
        Self::with(xds, outbound, node, &[]).await
    }

    async fn with(xds: SocketAddr, outbound: SocketAddr, node: &str, flags: &[&str]) -> Self {
        let binary = components().join("envoy/bin/envoy");
        Self::of_binary(&binary, xds, outbound, node, flags).await
    }

    /// Of another version.
    pub async fn of_binary(
        binary: &Path,
        xds: SocketAddr,
        outbound: SocketAddr,
        node: &str,
        flags: &[&str],
    ) -> Self {
        let folder = TempDir::new().unwrap();
        let admin = free_address();
        let bootstrap = std::process::Command::new(env!("CARGO_BIN_EXE_meshkeeper"))
            .args(["bootstrap", "envoy", "--node-id", node, "--xds"])
            .arg(xds.to_string())
            .args(["--admin-port", &admin.port().to_string()])
            .args(flags)
            .output()
            .unwrap();
        assert!(bootstrap.status.success(), "{bootstrap:?}");
        let file = folder.path().join("bootstrap.yaml");
        std::fs::write(&file, bootstrap.stdout).unwrap();
        let id = std::process::id() * 8 + BASE_ID.fetch_add(1, Ordering::Relaxed);
        let child = Command::new(binary)
            .args([
                "--base-id",
                &id.to_string(),
                "--concurrency",
                "1",
                "-l",
                "warning",
                "-c",
            ])
            .arg(&file)
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(folder.path().join("log")).unwrap())
            .kill_on_drop(true)
            .spawn()
            .expect("Envoy is installed: e2e/components/install.sh envoy");
        let envoy = Self {
            _child: child,
            folder,
            http: Http::new(),
            admin,
            outbound,
        };
        until("Envoy is live", async || {
            envoy.http.text(envoy.admin, "/ready").await
        })
        .await;
        envoy
    }

    /// All counters and gauges.
    pub async fn stats(&self) -> BTreeMap<String, u64> {
        let page = until("Envoy's statistics", async || {
            self.http.text(self.admin, "/stats").await
        });
        let page = page.await;
        let pairs = page.lines().filter_map(|line| line.split_once(": "));
        pairs
            .filter_map(|(name, value)| Some((name.to_owned(), value.parse().ok()?)))
            .collect()
    }

    /// The counters that end in `update_rejected` and are not 0.
    pub async fn rejections(&self) -> BTreeMap<String, u64> {
        let rejected =
            |(name, count): &(String, u64)| name.ends_with("update_rejected") && *count > 0;
        self.stats().await.into_iter().filter(rejected).collect()
    }

    /// The hosts of a cluster with their weights and health, by address.
    pub async fn hosts(&self, cluster: &str) -> Hosts {
        let mut clusters = self.all_hosts().await;
        clusters.remove(cluster).unwrap_or_default()
    }

    /// The hosts of every cluster, by its name.
    pub async fn all_hosts(&self) -> BTreeMap<String, Hosts> {
        let page = until("Envoy's clusters", async || {
            self.http.json(self.admin, "/clusters?format=json").await
        });
        let page: Value = page.await;
        let clusters = page["cluster_statuses"].as_array();
        let hosts = |status: &Value| {
            let hosts = status["host_statuses"].as_array();
            let hosts = hosts.into_iter().flatten().map(host).collect();
            (status["name"].as_str().unwrap().to_owned(), hosts)
        };
        clusters.into_iter().flatten().map(hosts).collect()
    }

    /// What it wrote to its log: warnings and worse.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }
}

fn host(status: &Value) -> (String, (u64, String)) {
    let socket = &status["address"]["socket_address"];
    let address = format!(
        "{}:{}",
        socket["address"].as_str().unwrap(),
        socket["port_value"]
    );
    let health = status["health_status"]["eds_health_status"]
        .as_str()
        .unwrap_or("HEALTHY");
    (
        address,
        (status["weight"].as_u64().unwrap_or(1), health.to_owned()),
    )
}
