//! A real ZooKeeper server on loopback, from the jars of Debian's `zookeeper` package.
//!
//! Each server has a directory and a port of its own, ticks fast so that sessions expire soon, and
//! goes when its handle is dropped.

use std::{
    collections::BTreeSet,
    fs,
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use tempfile::TempDir;
use zookeeper_client::Client;

const JARS: &str = "/usr/share/java";
const TICK: Duration = Duration::from_millis(200);
const START: Duration = Duration::from_secs(60);

/// What the tests ask for: as long as a busy machine needs, or short enough to wait for its end.
pub const SESSION: Duration = Duration::from_secs(10);
pub const SHORT_SESSION: Duration = Duration::from_secs(3);

/// In MiB: enough for what a test registers.
const HEAP: usize = 128;

pub struct ZooKeeper {
    directory: TempDir,
    port: u16,
    heap: usize,
    setup: Setup,
    /// What the server is started through: another view of the file systems.
    through: Vec<String>,
    process: Option<Child>,
}

/// What makes a server another one than usual.
#[derive(Default)]
pub struct Setup {
    /// Further lines of its configuration.
    pub config: String,
    /// Arguments of its Java.
    pub java: Vec<String>,
    /// Other jars than Debian's.
    pub class_path: Option<String>,
    /// It knows only the requests of 3.4.
    pub old: bool,
}

impl Setup {
    /// A server from Maven Central; `e2e/components/install.sh zookeeper-old` has its jars.
    pub fn of_version(version: &str) -> Self {
        let components = Path::new(env!("CARGO_MANIFEST_DIR")).join(".components");
        let jars = components.join("zookeeper-old").join(version);
        assert!(jars.is_dir(), "e2e/components/install.sh zookeeper-old");
        Self {
            java: vec!["-Dzookeeper.jmx.log4j.disable=true".to_owned()],
            class_path: Some(jars.join("*").display().to_string()),
            old: true,
            ..Self::default()
        }
    }
}

impl ZooKeeper {
    /// Starts a server on a free port and waits until it serves.
    pub fn start() -> Self {
        let mut server = Self::absent();
        server.restart();
        server
    }

    /// Set up in a way of its own.
    pub fn start_as(setup: Setup) -> Self {
        let mut server = Self::absent_as(setup);
        server.restart();
        server
    }

    /// For more znodes than a test has.
    #[allow(dead_code)]
    pub fn start_with_heap(mebibytes: usize) -> Self {
        let mut server = Self::absent();
        server.heap = mebibytes;
        server.restart();
        server
    }

    /// A server that does not run yet: its port is known, and refuses.
    pub fn absent() -> Self {
        Self::absent_as(Setup::default())
    }

    pub fn absent_as(setup: Setup) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let port = free_port();
        let config = format!(
            "tickTime={}\ndataDir={}\nclientPort={port}\nclientPortAddress=127.0.0.1\n\
             maxClientCnxns=0\nadmin.enableServer=false\n4lw.commands.whitelist=*\n\
             forceSync=no\nmaxSessionTimeout=60000\n{}\n",
            TICK.as_millis(),
            directory.path().join("data").display(),
            setup.config,
        );
        fs::write(directory.path().join("zoo.cfg"), config).expect("a configuration file");
        Self {
            directory,
            port,
            heap: HEAP,
            setup,
            through: Vec::new(),
            process: None,
        }
    }

    /// Starts the server on the port and data that it had.
    pub fn restart(&mut self) {
        self.spawn();
        let deadline = Instant::now() + START;
        while !is_ok(self.port) {
            let ended = self.process.as_mut().and_then(|p| p.try_wait().ok()?);
            assert!(ended.is_none(), "ZooKeeper ended: {}", self.log());
            assert!(Instant::now() < deadline, "ZooKeeper hangs: {}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Starts the process and does not wait for it.
    pub fn spawn(&mut self) {
        assert!(self.process.is_none(), "it runs already");
        let log = fs::File::create(self.directory().join("log")).expect("a log file");
        let mut words = self.through.iter().map(String::as_str).chain(["java"]);
        let process = Command::new(words.next().expect("a program"))
            .args(words)
            .arg(format!("-Xmx{}m", self.heap))
            .args(["-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"])
            .args([
                "-Dzookeeper.log.threshold=WARN",
                "-Dzookeeper.preAllocSize=64",
            ])
            .arg("-Dzookeeper.fastleader.maxNotificationInterval=500")
            .args(&self.setup.java)
            .arg("-cp")
            .arg(self.setup.class_path.clone().unwrap_or_else(class_path))
            .arg("org.apache.zookeeper.server.quorum.QuorumPeerMain")
            .arg(self.directory().join("zoo.cfg"))
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a second handle"))
            .stderr(log)
            .spawn()
            .expect("java, from Debian's zookeeper package");
        self.process = Some(process);
    }

    /// `kill -9`, and waits until it is gone.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().expect("a running process");
            process.wait().expect("a child process");
        }
    }

    /// Loses all that a server that is down had stored.
    pub fn wipe(&self) {
        assert!(self.process.is_none(), "it still runs");
        fs::remove_dir_all(self.directory.path().join("data")).expect("its data");
    }

    /// Has the process started through another one, as in `nsenter … java …`.
    #[allow(dead_code)]
    pub fn start_through(&mut self, words: Vec<String>) {
        self.through = words;
    }

    /// While the process runs.
    #[allow(dead_code)]
    pub fn pid(&mut self) -> Option<u32> {
        let process = self.process.as_mut()?;
        let ended = process.try_wait().expect("a child process");
        ended.is_none().then(|| process.id())
    }

    /// `standalone`, `leader` or `follower`; nothing while it serves nobody.
    #[allow(dead_code)]
    pub fn mode(&self) -> Option<String> {
        let answer = ask(self.port, "srvr").ok()?;
        let mode = answer.lines().find_map(|line| line.strip_prefix("Mode: "));
        mode.map(str::to_owned)
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn connect(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// A plain client, to write with.
    pub async fn client(&self) -> Client {
        let mut connector = Client::connector().with_session_timeout(Duration::from_secs(30));
        if self.setup.old {
            connector = connector.with_server_version(3, 4, 0);
        }
        connector.connect(&self.connect()).await.expect("a session")
    }

    /// How many sessions are open.
    pub fn sessions(&self) -> usize {
        let answer = ask(self.port, "mntr").expect("a running server");
        let line = answer.lines().find(|l| l.starts_with("zk_global_sessions"));
        let count = line.and_then(|line| line.split_whitespace().last());
        count.and_then(|count| count.parse().ok()).expect("a count")
    }

    /// How many clients are connected that have a session.
    pub fn connections(&self) -> usize {
        let answer = ask(self.port, "cons").expect("a running server");
        let with_session = |line: &&str| line.contains("sid=0x");
        answer.lines().filter(with_session).count()
    }

    /// What it wrote to its log since it was started.
    pub fn log(&self) -> String {
        fs::read_to_string(self.directory().join("log")).unwrap_or_default()
    }

    /// Its own folder, with `data` in it once it has run.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }
}

impl Drop for ZooKeeper {
    fn drop(&mut self) {
        self.kill();
    }
}

fn class_path() -> String {
    let jars = ["zookeeper.jar", "slf4j-log4j12.jar", "log4j-1.2.jar"].map(String::from);
    let netty = fs::read_dir(JARS).expect("the folder of Debian's jars");
    let netty = netty
        .map(|entry| entry.expect("a jar").file_name())
        .filter_map(|name| name.into_string().ok())
        .filter(|name| name.starts_with("netty-"));
    let full = |jar: String| Path::new(JARS).join(jar).display().to_string();
    let all: Vec<String> = jars.into_iter().chain(netty).map(full).collect();
    all.join(":")
}

pub fn free_port() -> u16 {
    loop {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = listener.local_addr().expect("an address").port();
        let mut given = GIVEN.lock().unwrap_or_else(PoisonError::into_inner);
        if given.insert(port) {
            return port;
        }
    }
}

/// Ports that were given out before, to whoever may not listen there yet.
static GIVEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());

fn is_ok(port: u16) -> bool {
    ask(port, "ruok").is_ok_and(|answer| answer == "imok")
}

/// One of ZooKeeper's four-letter words.
fn ask(port: u16, word: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(Duration::from_secs(1)))?;
    stream.write_all(word.as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}
