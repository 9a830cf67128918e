//! The built binary as a process, so that it can be killed like one.

use std::{net::SocketAddr, path::Path, process::Stdio};

use serde_json::Value;
use tempfile::TempDir;
use tokio::process::{Child, Command};

use super::{
    clock,
    http::Http,
    wait::{free_address, until},
};

/// `meshkeeper serve` on ports of its own; it ends with the test.
pub struct MeshKeeper {
    child: Child,
    folder: TempDir,
    http: Http,
    pub xds: SocketAddr,
    pub admin: SocketAddr,
    /// Where the sidecars of this server listen.
    pub outbound: SocketAddr,
}

impl MeshKeeper {
    /// Started and not waited for.
    pub fn spawn(zookeeper: &str) -> Self {
        Self::spawn_with(zookeeper, "", "", "")
    }

    /// Ready, with further sections; `$FOLDER` in them is [`MeshKeeper::folder`].
    pub async fn start_configured(zookeeper: &str, sections: &str) -> Self {
        let server = Self::spawn_with(zookeeper, "", "", sections);
        server.ready().await;
        server
    }

    /// Ready, with a session that ends soon.
    pub async fn start_with_session(zookeeper: &str, timeout: &str) -> Self {
        let registry =
            format!("{{name: main, connect: \"{zookeeper}\", sessionTimeout: {timeout}}}");
        let server = Self::spawn_of(&registry);
        server.ready().await;
        server
    }

    /// Ready, with further keys of the registry (`format: dubbo, root: /dubbo`).
    pub async fn start_registry(zookeeper: &str, keys: &str) -> Self {
        let server = Self::spawn_all(&registry(zookeeper, keys), "", "", "");
        server.ready().await;
        server
    }

    /// Ready, with further keys of `xds` (`maxStreams: 5`).
    pub async fn start_with(zookeeper: &str, xds: &str) -> Self {
        let server = Self::spawn_with(zookeeper, xds, "", "");
        server.ready().await;
        server
    }

    /// Ready, with further keys of `mesh`; without the guard, as many instances go at once in such tests.
    pub async fn start_mesh_with(zookeeper: &str, mesh: &str) -> Self {
        let server = Self::spawn_with(zookeeper, "", mesh, "guard: {enabled: false}");
        server.ready().await;
        server
    }

    /// Started and not waited for, with these registries: `{name: a, connect: …}, {…}`.
    pub fn spawn_of(registries: &str) -> Self {
        Self::spawn_all(registries, "", "", "")
    }

    fn spawn_with(zookeeper: &str, xds_keys: &str, mesh_keys: &str, sections: &str) -> Self {
        Self::spawn_all(&registry(zookeeper, ""), xds_keys, mesh_keys, sections)
    }

    /// Started and not waited for, on a machine whose hosts file is [`MeshKeeper::set_hosts`]'s.
    pub fn spawn_with_hosts(zookeeper: &str, hosts: &str, sections: &str) -> Self {
        let folder = TempDir::new().unwrap();
        std::fs::write(folder.path().join("hosts"), hosts).unwrap();
        let registry = format!("{{name: main, connect: \"{zookeeper}\", sessionTimeout: 4s}}");
        Self::spawn_in(folder, &registry, "", "", sections)
    }

    /// Ready, with a wall clock that [`MeshKeeper::set_clock`] sets.
    pub async fn start_with_clock(zookeeper: &str, sections: &str) -> Self {
        let folder = TempDir::new().unwrap();
        clock::build(folder.path());
        let server = Self::spawn_in(folder, &registry(zookeeper, ""), "", "", sections);
        server.ready().await;
        server
    }

    /// Sets its wall clock: so many seconds beyond the machine's.
    pub fn set_clock(&self, seconds: i64) {
        clock::set(self.folder.path(), seconds);
    }

    pub fn set_hosts(&self, hosts: &str) {
        std::fs::write(self.folder.path().join("hosts"), hosts).unwrap();
    }

    fn spawn_all(registries: &str, xds_keys: &str, mesh_keys: &str, sections: &str) -> Self {
        let folder = TempDir::new().unwrap();
        Self::spawn_in(folder, registries, xds_keys, mesh_keys, sections)
    }

    fn spawn_in(
        folder: TempDir,
        registries: &str,
        xds_keys: &str,
        mesh_keys: &str,
        sections: &str,
    ) -> Self {
        let sections = sections.replace("$FOLDER", folder.path().to_str().unwrap());
        let (xds, admin, outbound) = (free_address(), free_address(), free_address());
        let config = format!(
            "registries: [{registries}]\n\
             xds: {{listen: \"{xds}\", {xds_keys}}}\n\
             admin: {{listen: \"{admin}\"}}\n\
             mesh: {{outboundListen: \"{outbound}\", {mesh_keys}}}\n\
             {sections}\n"
        );
        std::fs::write(folder.path().join("meshkeeper.yaml"), config).unwrap();
        let child = serve(&folder);
        Self {
            child,
            folder,
            http: Http::new(),
            xds,
            admin,
            outbound,
        }
    }

    /// Started and ready: the registry is loaded.
    pub async fn start(zookeeper: &str) -> Self {
        let server = Self::spawn(zookeeper);
        server.ready().await;
        server
    }

    /// Why it is not ready; nothing if it does not answer, or is.
    pub async fn not_ready(&self) -> Option<String> {
        let answer = self.http.get(self.admin, "localhost", "/readyz").await;
        let (status, reason) = answer.ok()?;
        (status == http::StatusCode::SERVICE_UNAVAILABLE).then_some(reason)
    }

    pub async fn ready(&self) {
        until("meshkeeper is ready", async || {
            self.http.text(self.admin, "/readyz").await
        })
        .await;
    }

    /// As `kill -9` does it.
    pub async fn kill(&mut self) {
        self.child.kill().await.unwrap();
    }

    /// On the same ports, with the same configuration.
    pub async fn restart(&mut self) {
        self.spawn_again();
        self.ready().await;
    }

    /// The same, not waited for.
    pub fn spawn_again(&mut self) {
        self.child = serve(&self.folder);
    }

    /// Sends SIGTERM and waits for the end of the process; its exit status.
    pub async fn terminate(&mut self) -> Option<i32> {
        self.signal("-TERM").await;
        self.ended().await
    }

    /// The process stands still, as on a machine that is suspended, until [`MeshKeeper::wake`].
    pub async fn freeze(&self) {
        self.signal("-STOP").await;
    }

    pub async fn wake(&self) {
        self.signal("-CONT").await;
    }

    async fn signal(&self, signal: &str) {
        let pid = self.child.id().unwrap().to_string();
        let sent = Command::new("kill").args([signal, &pid]).status().await;
        assert!(sent.unwrap().success());
    }

    /// What it wrote to its log, through all restarts.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    async fn ended(&mut self) -> Option<i32> {
        self.child.wait().await.unwrap().code()
    }

    /// Where its configuration and its log are.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// A page of the admin port, once it is 200.
    pub async fn page(&self, path: &str) -> String {
        until(path, async || self.http.text(self.admin, path).await).await
    }

    /// What a command says of this server: exit status and standard output.
    pub async fn command(&self, arguments: &[&str]) -> (Option<i32>, String) {
        let output = Command::new(env!("CARGO_BIN_EXE_meshkeeper"))
            .args(arguments)
            .args(["--admin", &self.admin.to_string()])
            .output();
        let output = output.await.unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        (output.status.code(), said)
    }

    pub async fn api(&self, path: &str) -> Value {
        let path = format!("/api/v1/{path}");
        until(&path, async || self.http.json(self.admin, &path).await).await
    }

    /// The value of a series, as the metrics page has it.
    pub async fn metric(&self, series: &str) -> Option<f64> {
        let page = self.http.text(self.admin, "/metrics").await?;
        let line = page
            .lines()
            .find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        line.and_then(|value| value.parse().ok())
    }

    /// The addresses of a service's instances, in order.
    pub async fn addresses(&self, service: &str) -> Vec<String> {
        let services = self.api(&format!("services?name={service}")).await;
        let instances = services[0]["instances"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        let address = |i: &Value| format!("{}:{}", i["address"].as_str().unwrap(), i["port"]);
        instances.iter().map(address).collect()
    }
}

/// The one registry, with further keys.
fn registry(zookeeper: &str, keys: &str) -> String {
    format!("{{name: main, connect: \"{zookeeper}\", sessionTimeout: 4s, {keys}}}")
}

fn serve(folder: &TempDir) -> Child {
    let log = std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(folder.path().join("log"));
    let binary = env!("CARGO_BIN_EXE_meshkeeper");
    let hosts = folder.path().join("hosts");
    let mut command = if hosts.exists() {
        // In a mount namespace of its own.
        let mut command = Command::new("unshare");
        command
            .args(["--map-root-user", "--mount", "--", "sh", "-c"])
            .arg("mount --bind \"$0\" /etc/hosts && exec \"$@\"")
            .arg(hosts)
            .arg(binary);
        command
    } else {
        Command::new(binary)
    };
    clock::through(folder.path(), &mut command);
    command
        .args(["serve", "--config"])
        .arg(folder.path().join("meshkeeper.yaml"))
        .stdout(Stdio::null())
        .stderr(log.unwrap())
        .kill_on_drop(true)
        .spawn()
        .unwrap()
}
