//! Builds the parts, joins them and runs them until they are asked to stop.
//!
//! It refuses to know what any part does. The addresses that were bound are known before anything
//! runs, so that port 0 can be asked for. Invariant: every task is one of [`Tasks`], so none ends in
//! silence; and everything that can fail at the start fails before the first task runs.

mod health;
mod reporter;
mod states;

use std::{convert::Infallible, fmt, io, net::SocketAddr, sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
use nix::sys::resource::{Resource as Limit, getrlimit, setrlimit};
use tokio::{
    net::{TcpListener, TcpSocket},
    runtime::{self, Handle, Runtime},
    sync::{mpsc, oneshot, watch},
};
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tonic_health::{ServingStatus, server::HealthReporter};
use tracing::{info, warn};

use self::{
    reporter::{Reporter, Watched},
    states::States,
};
use crate::{
    admin::{self, Sources, host::Hosts},
    config::{self, Config},
    places::Places,
    probe,
    publish::{Inputs, Order, Publisher, Reach, Readers},
    readiness::Readiness,
    registry::{self, Catalog, Layout},
    resolve,
    resource::{Edition, Resource, ResourceType, json::DESCRIPTOR_SET},
    shutdown::{self, Tasks},
    snapshot::Snapshots,
    state, telemetry,
    translate::{self, GrpcNaming, Translation},
    xds::{
        self,
        admission::{Admission, Limits},
        clients::Clients,
        csds::Csds,
        fanout::Fanout,
        loads::Loads,
        lrs::{self, Lrs},
        session::Context,
    },
    zookeeper::{self, State, Watcher},
};

/// How long streams and sessions get to end in order.
pub const DRAIN: Duration = Duration::from_secs(10);

/// Batches that wait for the publisher; the watcher stops reading when it is full.
const BATCHES: usize = 64;

/// Addresses that are probed at once, at most.
const PROBES: usize = 128;

/// Rounds of answers of the resolver that wait for the publisher.
const RESOLUTIONS: usize = 4;

/// Reports of addresses that refuse connections that wait for the publisher.
const REFUSALS: usize = 4;

/// Connections that wait to be taken in; the kernel takes what it allows of it. The usual 128 is soon
/// full when a fleet comes back, and who finds it full tries again after a second, then two, then four.
const BACKLOG: u32 = 65_535;

/// Why the parts could not be joined.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot listen on {address}: {cause}; {} with {place}", remedy(cause.kind()))]
    Listen {
        place: Place,
        address: SocketAddr,
        /// Told in full by the message, and so no `source`.
        cause: io::Error,
    },
    #[error("cannot start the thread of the registry: {0}")]
    Thread(io::Error),
    #[error("metrics: {0}")]
    Metrics(#[from] prometheus::Error),
    #[error("server reflection: {0}")]
    Reflection(#[from] tonic_reflection::server::Error),
}

/// Where an address to listen at is set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    key: &'static str,
    flag: &'static str,
}

const XDS: Place = Place {
    key: "xds.listen",
    flag: "--xds-listen",
};
const ADMIN: Place = Place {
    key: "admin.listen",
    flag: "--admin-listen",
};

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` or `{}`", self.key, self.flag)
    }
}

fn remedy(kind: io::ErrorKind) -> &'static str {
    match kind {
        io::ErrorKind::AddrInUse => "stop what listens there, or set another port",
        io::ErrorKind::AddrNotAvailable => {
            "set an IP that this machine has, or 0.0.0.0 for all that it has,"
        }
        io::ErrorKind::PermissionDenied => "set a port from 1024 up, which needs no privileges,",
        _ => "set another address",
    }
}

/// A server whose ports are bound and whose tasks run.
#[derive(Debug)]
pub struct App {
    pub xds: SocketAddr,
    pub admin: SocketAddr,
    tasks: Tasks,
    stop: CancellationToken,
    _registry: OwnThread,
}

/// A runtime with one thread, for what turns znodes into snapshots and wakes the streams: a change
/// would otherwise queue behind the streams that are told of the one before, several times over.
#[derive(Debug)]
struct OwnThread(Option<Runtime>);

impl OwnThread {
    fn start() -> Result<(Self, Handle), Error> {
        let runtime = runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("registry")
            .enable_all()
            .build()
            .map_err(Error::Thread)?;
        let handle = runtime.handle().clone();
        Ok((Self(Some(runtime)), handle))
    }
}

impl Drop for OwnThread {
    fn drop(&mut self) {
        // Its tasks have ended, or took too long; a plain drop would wait for them.
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

/// Serves until SIGTERM or SIGINT, or until a task ends early.
pub async fn run(config: Config) -> anyhow::Result<()> {
    let stop = shutdown::on_signals()?;
    raise_open_files();
    start(&config, stop).await?.run().await?;
    info!("stopped");
    Ok(())
}

/// Binds the ports and starts every task; they end when `stop` is cancelled.
pub async fn start(config: &Config, stop: CancellationToken) -> Result<App, Error> {
    let metrics = telemetry::metrics()?;
    let xds_listener = listen(XDS, config.xds.listen)?;
    let admin_listener = listen(ADMIN, config.admin.listen)?;
    let (publisher, readers) = publisher(config, &metrics)?;
    let xds_metrics = xds::metrics::Metrics::register(&metrics)?;
    let clients = Clients::new(xds_metrics.clone());
    let admission = Admission::register(limits(&config.xds), &metrics)?;
    let loads = Loads::register(&metrics, readers.snapshots.clone())?;
    let (health, routes) = health_and_reflection().await?;
    let readiness = Readiness::new();
    let (xds, admin) = (
        local(&xds_listener, config.xds.listen),
        local(&admin_listener, config.admin.listen),
    );

    let (own_thread, registry_thread) = OwnThread::start()?;
    let mut tasks = Tasks::new();
    let watched = Mirroring {
        config,
        metrics: &metrics,
        readiness: &readiness,
        thread: &registry_thread,
        stop: &stop,
    }
    .start(publisher, &readers, &mut tasks)?;
    let context = Context {
        fanout: Fanout::new(readers.snapshots.clone()),
        clients: clients.clone(),
        metrics: xds_metrics,
        admission,
        on_demand: config.mesh.on_demand,
        waking: registry_thread,
        increments: config.mesh.endpoint_increments_above > 0,
        naming: Some(Arc::new(GrpcNaming::new(&config.mesh.domain_suffix))),
        stop: stop.clone(),
    };
    let routes = add_introspection(routes, &context, &readers, loads);
    // The admin port is there until the last stream has ended, so that probes see the end coming.
    let drained = CancellationToken::new();
    let admin_stop = drained.clone();
    let places = Places::new(open_files() - reserved_files());
    tasks.spawn("xds", async move {
        let _drained = drained.drop_guard();
        xds::server::serve(xds_listener, context, routes, places).await
    });
    let reporter = Reporter {
        watched,
        readiness: readiness.clone(),
        health,
        registry: readers.registry.clone(),
        snapshots: readers.snapshots.clone(),
        stop: stop.clone(),
    };
    tasks.spawn("readiness", reporter.run());
    let looked_at = xds::audit::run(clients.clone(), readers.snapshots.clone(), stop.clone());
    tasks.spawn("client audit", looked_at);
    let sources = sources(&readers, readiness, metrics, clients, config);
    tasks.spawn("admin", admin::serve(admin_listener, sources, admin_stop));

    for registry in &config.registries {
        info!(%xds, %admin, registry = registry.name, zookeeper = registry.connect, "serving");
    }
    Ok(App {
        xds,
        admin,
        tasks,
        stop,
        _registry: own_thread,
    })
}

/// The left half: from ZooKeeper to snapshots, on a thread of its own.
struct Mirroring<'a> {
    config: &'a Config,
    metrics: &'a prometheus::Registry,
    readiness: &'a Readiness,
    thread: &'a Handle,
    stop: &'a CancellationToken,
}

impl Mirroring<'_> {
    /// Watches every registry, looks host names up, probes held instances and publishes; returns the states of
    /// the registries.
    fn start(
        self,
        mut publisher: Publisher,
        readers: &Readers,
        tasks: &mut Tasks,
    ) -> Result<Vec<Watched>, Error> {
        let metrics = zookeeper::Metrics::register(self.metrics)?;
        let kept = states(self.config, self.metrics, self.stop)?;
        let mut batches = Vec::new();
        let mut watched = Vec::new();
        for (at, registry) in self.config.registries.iter().enumerate() {
            let (sender, receiver) = mpsc::channel(BATCHES);
            let (state, states) = watch::channel(State::new());
            batches.push(receiver);
            watched.push(Watched::new(registry, states, self.readiness));
            let known = kept.as_ref().and_then(|states| {
                let config = registry_config(registry);
                states.keep(at, &registry.connect, &config, &mut publisher, tasks)
            });
            let config = zookeeper_config(self.config, at);
            let (metrics, stop) = (metrics.clone(), self.stop.clone());
            tasks.spawn_on(self.thread, "zookeeper", async move {
                let mirror = Watcher::new(config, &metrics, sender, state)?;
                mirror.knowing(known).run(stop).await
            });
        }
        let (resolutions, resolved) = mpsc::channel(RESOLUTIONS);
        let look_ups = resolve::run(
            self.config.dns.refresh,
            resolve::Metrics::register(self.metrics)?,
            readers.hosts.clone(),
            resolutions,
            self.stop.clone(),
        );
        // Look-ups that hang end with this thread's runtime, which nobody waits for.
        tasks.spawn_on(self.thread, "resolver", look_ups);
        let refused = self.probe(&mut publisher, readers, tasks)?;
        let inputs = Inputs {
            batches,
            resolved,
            refused,
        };
        let wait = self.config.state.wait;
        tasks.spawn_on(self.thread, "publish", async move {
            publisher.run(inputs, wait).await;
            Ok::<_, Infallible>(())
        });
        Ok(watched)
    }

    /// Probes what is held, if that is configured.
    fn probe(
        &self,
        publisher: &mut Publisher,
        readers: &Readers,
        tasks: &mut Tasks,
    ) -> Result<mpsc::Receiver<Vec<SocketAddr>>, Error> {
        let (refusals, refused) = mpsc::channel(REFUSALS);
        let metrics = probe::Metrics::register(self.metrics)?;
        if self.config.guard.probe {
            for (at, registry) in self.config.registries.iter().enumerate() {
                let is_local = zookeeper::is_loopback(&registry.connect);
                publisher.probe(
                    at,
                    if is_local {
                        Reach::Local
                    } else {
                        Reach::Remote
                    },
                );
            }
        }
        // Each takes two file descriptors.
        let at_once = (reserved_files() / 8).clamp(1, PROBES);
        let (probed, stop) = (readers.probed.clone(), self.stop.clone());
        tasks.spawn(
            "probe",
            probe::run(at_once, metrics, probed, refusals, stop),
        );
        Ok(refused)
    }
}

impl App {
    /// Until `stop` is cancelled and everything has drained, or a task ends early.
    pub async fn run(self) -> Result<(), shutdown::Error> {
        self.tasks.run_until(self.stop, DRAIN).await
    }
}

/// Each client takes a file descriptor, and the usual soft limit is 1,024.
fn raise_open_files() {
    let raised = getrlimit(Limit::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Limit::RLIMIT_NOFILE, hard, hard));
    if let Err(error) = raised {
        warn!(%error, "cannot raise RLIMIT_NOFILE");
    }
}

fn open_files() -> usize {
    let soft = getrlimit(Limit::RLIMIT_NOFILE).map_or(1_024, |(soft, _)| soft);
    usize::try_from(soft).unwrap_or(usize::MAX)
}

/// File descriptors that no xDS client gets: for the admin port, ZooKeeper, probes, look-ups and files.
fn reserved_files() -> usize {
    (open_files() / 2).min(1_024)
}

fn listen(place: Place, address: SocketAddr) -> Result<TcpListener, Error> {
    bind(address).map_err(|cause| Error::Listen {
        place,
        address,
        cause,
    })
}

fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    // So that a restart finds its port though old connections linger.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// The port that was found where 0 was asked for.
fn local(listener: &TcpListener, asked: SocketAddr) -> SocketAddr {
    listener.local_addr().unwrap_or(asked)
}

/// Whether one registry is for failing over to from another.
fn is_ranked(registries: &[config::Registry]) -> bool {
    let mut priorities = registries.iter().map(|registry| registry.priority);
    let first = priorities.next();
    priorities.any(|priority| Some(priority) != first)
}

fn publisher(
    config: &Config,
    metrics: &prometheus::Registry,
) -> Result<(Publisher, Readers), Error> {
    let registries = config.registries.iter().map(registry_config);
    let translation = Translation::new(translate::Config {
        outbound_listen: config.mesh.outbound_listen,
        domain_suffix: config.mesh.domain_suffix.clone(),
        increments_above: config.mesh.endpoint_increments_above,
        ranked: is_ranked(&config.registries),
        http: Arc::new(config.mesh.http.translated()),
    });
    let (mut publisher, readers) = Publisher::new(
        Catalog::new(registries.collect(), &config.guard.config()),
        translation,
        registry::Metrics::register(metrics)?,
    );
    publisher.leave_out_empty_after(config.mesh.empty_services);
    Ok((publisher, readers))
}

/// Where the last good states are kept, if they are.
fn states<'c>(
    config: &'c Config,
    metrics: &prometheus::Registry,
    stop: &CancellationToken,
) -> Result<Option<States<'c>>, Error> {
    let Some(directory) = &config.state.directory else {
        return Ok(None);
    };
    Ok(Some(States {
        directory,
        metrics: state::Metrics::register(metrics)?,
        stop: stop.clone(),
    }))
}

fn layout(registry: &config::Registry) -> Layout {
    let usual = || registry.format.layout();
    registry.layout.clone().unwrap_or_else(usual)
}

/// What is made of a registry's znodes.
pub fn registry_config(registry: &config::Registry) -> registry::Config {
    registry::Config {
        name: registry.name.clone(),
        root: registry.root.clone(),
        layout: layout(registry),
        format: registry.format,
        priority: registry.priority,
        required: registry.required,
        ttl: registry.ttl,
        shape: registry.shape(),
    }
}

/// How the znodes of the registry at that place of the configuration are read.
pub fn zookeeper_config(config: &Config, at: usize) -> zookeeper::Config {
    let registry = &config.registries[at];
    let connect_key = match config.registries.len() {
        1 => "registries[0].connect or --zookeeper".to_owned(),
        _ => format!("registries[{at}].connect"),
    };
    zookeeper::Config {
        name: registry.name.clone(),
        connect: registry.connect.clone(),
        connect_key,
        root: registry.root.clone(),
        layout: layout(registry),
        session_timeout: registry.session_timeout,
        security: registry.security.clone(),
    }
}

fn limits(config: &config::Xds) -> Limits {
    Limits {
        max_streams: config.max_streams,
        max_names: config.max_names,
        max_request_bytes: config.max_request_bytes,
        new_streams_per_second: config.new_streams_per_second,
        max_stream_age: config.max_stream_age,
    }
}

/// What else is served on the xDS port.
async fn health_and_reflection() -> Result<(HealthReporter, Routes), Error> {
    let (health, service) = tonic_health::server::health_reporter();
    // Before the port is served: it says SERVING from the start.
    self::health::report(&health, ServingStatus::NotServing).await;
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1()?;
    Ok((health, Routes::new(service).add_service(reflection)))
}

/// What clients report, and how they stand.
fn add_introspection(routes: Routes, context: &Context, readers: &Readers, loads: Loads) -> Routes {
    let lrs = Lrs {
        snapshots: readers.snapshots.clone(),
        loads,
        admission: context.admission.another(),
        interval: lrs::INTERVAL,
        stop: context.stop.clone(),
    };
    let csds = Csds::new(
        context.clients.clone(),
        readers.snapshots.clone(),
        context.stop.clone(),
    );
    routes
        .add_service(lrs.into_service())
        .add_service(csds.into_service())
}

fn sources(
    readers: &Readers,
    readiness: Readiness,
    metrics: prometheus::Registry,
    clients: Clients,
    config: &Config,
) -> Sources {
    let (listed, asking) = (clients.clone(), clients.clone());
    let snapshots = readers.snapshots.clone();
    Sources {
        registry: readers.registry.clone(),
        readiness,
        metrics,
        followers: Arc::new(move |name| listed.followers(name, &translate::collections_of(name))),
        missing: Arc::new(move |name| asking.missing(name)),
        clients: Arc::new(move || clients.list()),
        resources: Arc::new(move |edition, kind| resources(&snapshots, edition, kind)),
        operator: Arc::new(Operator(readers.orders.clone())),
        hosts: Hosts::new(config.admin.listen, &config.admin.hosts),
        domain_suffix: config.mesh.domain_suffix.clone(),
    }
}

/// Hands what operators ask for to the publisher.
struct Operator(mpsc::Sender<Order>);

impl admin::Operator for Operator {
    fn release(
        &self,
        registry: Option<String>,
        service: Option<String>,
    ) -> BoxFuture<'static, Option<usize>> {
        let orders = self.0.clone();
        Box::pin(async move {
            let (done, released) = oneshot::channel();
            let order = Order {
                registry,
                service,
                done,
            };
            orders.send(order).await.ok()?;
            released.await.ok()
        })
    }
}

fn resources(
    snapshots: &watch::Receiver<Arc<Snapshots>>,
    edition: Edition,
    kind: ResourceType,
) -> Vec<Arc<Resource>> {
    let snapshots = snapshots.borrow().clone();
    let set = snapshots.of(edition).set(kind);
    set.matching(|_| true).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_configuration_the_limits_are_their_own_defaults() {
        assert_eq!(limits(&config::Xds::default()), Limits::default());
    }

    #[test]
    fn an_address_that_cannot_be_had_is_told_once_with_key_flag_and_remedy() {
        for (kind, place, parts) in [
            (
                io::ErrorKind::AddrInUse,
                XDS,
                ["in use", "another port with `xds.listen` or `--xds-listen`"],
            ),
            (
                io::ErrorKind::AddrNotAvailable,
                ADMIN,
                ["0.0.0.0 for all", "`admin.listen` or `--admin-listen`"],
            ),
            (
                io::ErrorKind::PermissionDenied,
                XDS,
                ["permission denied", "from 1024 up"],
            ),
            (
                io::ErrorKind::OutOfMemory,
                XDS,
                ["memory", "another address with"],
            ),
        ] {
            let address = SocketAddr::from(([127, 0, 0, 1], 80));
            let cause = io::Error::from(kind);
            let error = anyhow::Error::from(Error::Listen {
                place,
                address,
                cause,
            });
            let told = format!("{error:#}");
            for part in parts {
                assert_eq!(told.matches(part).count(), 1, "{part} in {told}");
            }
        }
    }
}
