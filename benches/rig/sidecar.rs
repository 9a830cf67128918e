//! What a real Envoy costs that holds the whole mesh, beside one that loads services on demand.
//!
//! Both are asked for the same few services of all; the instances of those are a server of this rig,
//! so that the first request to each is answered. Bytes are those that Envoy received from the control
//! plane, memory is resident, and the time is that from Envoy's start until it says to be ready.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use tempfile::TempDir;

use super::{
    Rig,
    journal::until,
    machine,
    mesh::MANY,
    report::{Row, Target},
    server::{Server, get, request},
    statistics::{float, median},
    zookeeper::free_port,
};

/// Services that are asked for, of all there are.
const USED: usize = 5;
const READY: Duration = Duration::from_secs(60);
const REQUESTS: usize = 50;

/// What one Envoy took.
struct Cost {
    ready: Duration,
    /// After the services were used.
    received: u64,
    memory: u64,
    firsts: Vec<f64>,
    later: Vec<f64>,
}

pub async fn measure(rig: &mut Rig) {
    let Some(program) = envoy() else {
        rig.report
            .note("No Envoy is installed: sidecars were left out.".into());
        return;
    };
    let backend = backend();
    let names: Vec<String> = (0..USED).map(|at| format!("used{at}")).collect();
    rig.mesh.register(MANY, &names, backend).await;
    let folder = TempDir::new().expect("a folder");
    let outbound = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let config = folder.path().join("meshkeeper.yaml");
    let text = format!("mesh: {{outboundListen: \"{outbound}\"}}\n");
    std::fs::write(&config, text).expect("a file");
    let server = Server::configured(config, &rig.mesh.zookeeper, MANY).await;

    let mut costs = Vec::new();
    for flags in [&[][..], &["--on-demand"]] {
        let envoy = Envoy::start(&program, folder.path(), server.clients, outbound, flags).await;
        costs.push(envoy.cost(&names));
    }
    let [whole, on_demand] = &costs[..] else {
        unreachable!("two of them")
    };
    report(rig, whole, on_demand);
    drop(server);
    rig.mesh.deregister(MANY, &names).await;
}

fn report(rig: &mut Rig, whole: &Cost, on_demand: &Cost) {
    let services = rig.mesh.services();
    let of =
        |what: &str| format!("Envoy that uses {USED} of {services} services on demand: {what}");
    let mut row = |what: &str, unit, figure: fn(&Cost) -> f64| {
        let row = Row::new(7, of(what), unit, figure(on_demand));
        rig.report
            .add(row.floor(figure(whole)).target(Target::Ratio(1.0)));
    };
    row("bytes received", "KiB", |cost| kibibytes(cost.received));
    row("resident memory", "MiB", |cost| {
        kibibytes(cost.memory) / 1024.0
    });
    row("start until ready", "ms", |cost| millis(cost.ready));
    let firsts = |cost: &Cost| median(&cost.firsts);
    let row = Row::new(
        7,
        of("first request to a service, median"),
        "ms",
        firsts(on_demand),
    );
    rig.report.add(row.floor(median(&on_demand.later)));
    rig.report.note(format!(
        "For sidecars (7) the floor is the same Envoy with the whole mesh, for first requests a later one; \
         first requests took {:.1} to {:.1} ms on demand and {:.1} ms with the whole mesh.",
        least(&on_demand.firsts),
        greatest(&on_demand.firsts),
        firsts(whole),
    ));
}

struct Envoy {
    process: Child,
    admin: SocketAddr,
    outbound: SocketAddr,
    ready: Duration,
}

impl Envoy {
    async fn start(
        program: &Path,
        folder: &Path,
        xds: SocketAddr,
        outbound: SocketAddr,
        flags: &[&str],
    ) -> Self {
        let admin = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let bootstrap = Command::new(env!("CARGO_BIN_EXE_meshkeeper"))
            .args([
                "bootstrap",
                "envoy",
                "--node-id",
                "rig",
                "--xds",
                &xds.to_string(),
            ])
            .args(["--admin-port", &admin.port().to_string()])
            .args(flags)
            .output()
            .expect("a bootstrap");
        let file = folder.join("envoy.json");
        std::fs::write(&file, bootstrap.stdout).expect("a file");
        let start = Instant::now();
        let process = Command::new(program)
            .args([
                "--use-dynamic-base-id",
                "--concurrency",
                "1",
                "-l",
                "error",
                "-c",
            ])
            .arg(&file)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("Envoy starts");
        let ready = || get(admin, "/ready").is_some_and(|answer| answer.contains(" 200 "));
        assert!(until(READY, ready).await, "Envoy does not get ready");
        Self {
            process,
            admin,
            outbound,
            ready: start.elapsed(),
        }
    }

    /// Asks each service for the first time, then again.
    fn cost(self, services: &[String]) -> Cost {
        let ask = |service: &String| {
            let start = Instant::now();
            let answer = request(self.outbound, service, "/").unwrap_or_default();
            assert!(answer.contains(" 200 "), "{service}: {answer}");
            millis(start.elapsed())
        };
        let firsts = services.iter().map(ask).collect();
        let later = services.iter().cycle().take(REQUESTS).map(ask).collect();
        let stats = get(self.admin, "/stats?filter=upstream_cx_rx_bytes_total").unwrap_or_default();
        let control_plane = "cluster.meshkeeper-xds.upstream_cx_rx_bytes_total: ";
        let received = stats
            .lines()
            .find_map(|line| line.strip_prefix(control_plane));
        Cost {
            ready: self.ready,
            received: received
                .and_then(|n| n.trim().parse().ok())
                .expect("a count"),
            memory: machine::memory(self.process.id()),
            firsts,
            later,
        }
    }
}

impl Drop for Envoy {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Where `e2e/components/install.sh` leaves it.
fn envoy() -> Option<PathBuf> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(".components/envoy/bin/envoy");
    path.exists().then_some(path)
}

/// Answers every request; it goes with the process.
fn backend() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address");
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            thread::spawn(move || answer(stream));
        }
    });
    address
}

fn answer(mut stream: TcpStream) {
    let mut buffer = [0; 4096];
    while stream.read(&mut buffer).is_ok_and(|read| read > 0) {
        let written = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n");
        if written.is_err() {
            break;
        }
    }
}

fn kibibytes(bytes: u64) -> f64 {
    float(usize::try_from(bytes).unwrap_or(usize::MAX)) / 1024.0
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

fn least(values: &[f64]) -> f64 {
    values.iter().copied().fold(f64::INFINITY, f64::min)
}

fn greatest(values: &[f64]) -> f64 {
    values.iter().copied().fold(0.0, f64::max)
}
