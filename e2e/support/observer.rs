//! A client of the discovery service that looks at every assignment it is ever sent, at once.
//!
//! Each is compared with the one before and with the fleet's [`Ledger`]: an endpoint that never
//! deregistered must not go, one that went must not come back, and no weight may become an older one.
//! It comes back whenever its stream ends, and what it saw before still counts.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use envoy_types::pb::envoy::{
    config::{
        core::v3::{address::Address, socket_address::PortSpecifier},
        endpoint::v3::{ClusterLoadAssignment, LbEndpoint, lb_endpoint::HostIdentifier},
    },
    service::discovery::v3::DeltaDiscoveryResponse,
};
use meshkeeper::resource::ResourceType;
use prost::Message;
use tokio::task::JoinHandle;
use tonic::{Status, transport::Channel};

use super::{
    discovery::Delta,
    registrar::{Ledger, Served},
    timeline::Timeline,
};

/// What a client says when it comes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Memory {
    /// The versions that it holds.
    Resumes,
    /// Nothing, like a new one.
    Forgets,
}

pub struct Observer {
    seen: Arc<Mutex<Seen>>,
    task: JoinHandle<()>,
}

struct Seen {
    ledger: Ledger,
    log: Timeline,
    held: Served,
    versions: HashMap<String, String>,
    gone: BTreeSet<String>,
    wrong: Vec<String>,
    updates: usize,
    streams: usize,
}

impl Observer {
    pub fn start(
        server: SocketAddr,
        services: &[&str],
        memory: Memory,
        ledger: Ledger,
        log: Timeline,
    ) -> Self {
        let seen = Arc::new(Mutex::new(Seen::new(ledger, log)));
        let services: Vec<_> = services.iter().map(ToString::to_string).collect();
        let shared = Arc::clone(&seen);
        let task = tokio::spawn(async move {
            loop {
                drop(follow(server, &services, memory, &shared).await);
                tokio::time::sleep(Duration::from_millis(30)).await;
            }
        });
        Self { seen, task }
    }

    pub fn held(&self) -> Served {
        self.seen.lock().unwrap().held.clone()
    }

    /// Every breach of the promises so far.
    pub fn wrong(&self) -> Vec<String> {
        self.seen.lock().unwrap().wrong.clone()
    }

    /// How many assignments it was sent, over how many streams.
    pub fn counts(&self) -> (usize, usize) {
        let seen = self.seen.lock().unwrap();
        (seen.updates, seen.streams)
    }
}

impl Drop for Observer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn follow(
    server: SocketAddr,
    services: &[String],
    memory: Memory,
    seen: &Mutex<Seen>,
) -> Result<(), Status> {
    let endpoint = Channel::from_shared(format!("http://{server}")).unwrap();
    let channel = endpoint.connect().await;
    let channel = channel.map_err(|error| Status::unavailable(error.to_string()))?;
    let mut stream = Delta::open(channel).await?;
    let names: Vec<_> = services.iter().map(String::as_str).collect();
    let versions = match memory {
        Memory::Resumes => seen.lock().unwrap().versions.clone(),
        Memory::Forgets => HashMap::new(),
    };
    (stream.resume(ResourceType::Endpoint, &names, versions)).await;
    seen.lock().unwrap().streams += 1;
    loop {
        let response = stream.message().await?;
        seen.lock().unwrap().take(&response);
        stream.ack(&response).await;
    }
}

impl Seen {
    fn new(ledger: Ledger, log: Timeline) -> Self {
        Self {
            ledger,
            log,
            held: Served::new(),
            versions: HashMap::new(),
            gone: BTreeSet::new(),
            wrong: Vec::new(),
            updates: 0,
            streams: 0,
        }
    }

    fn take(&mut self, response: &DeltaDiscoveryResponse) {
        for resource in &response.resources {
            let body = resource.resource.as_ref().expect("an assignment");
            let assignment = ClusterLoadAssignment::decode(&*body.value).expect("an assignment");
            let (name, version) = (resource.name.clone(), resource.version.clone());
            self.look(&name, endpoints(&assignment));
            self.versions.insert(name, version);
        }
        for name in &response.removed_resources {
            self.look(name, BTreeMap::new());
            self.versions.remove(name);
        }
    }

    fn look(&mut self, service: &str, now: BTreeMap<String, u32>) {
        self.updates += 1;
        let before = self.held.remove(service).unwrap_or_default();
        for address in before.keys().filter(|address| !now.contains_key(*address)) {
            if self.ledger.may_go(address) {
                self.gone.insert(address.clone());
            } else {
                let breach = format!("{service}: {address} went and never deregistered");
                self.breach(breach);
            }
        }
        for (address, weight) in &now {
            if self.gone.contains(address) {
                self.breach(format!("{service}: {address} came back after it had gone"));
            }
            if let Some(newer) = before.get(address).filter(|before| *before > weight) {
                let breach = format!("{service}: {address} went back from {newer} to {weight}");
                self.breach(breach);
            }
        }
        self.held.insert(service.to_owned(), now);
    }

    fn breach(&mut self, breach: String) {
        self.log.note(&format!("BREACH {breach}"));
        self.wrong.push(breach);
    }
}

fn endpoints(assignment: &ClusterLoadAssignment) -> BTreeMap<String, u32> {
    let endpoints = assignment.endpoints.iter().flat_map(|l| &l.lb_endpoints);
    endpoints
        .map(|endpoint| (address(endpoint), weight(endpoint)))
        .collect()
}

fn weight(endpoint: &LbEndpoint) -> u32 {
    endpoint
        .load_balancing_weight
        .as_ref()
        .map_or(1, |w| w.value)
}

fn address(endpoint: &LbEndpoint) -> String {
    let Some(HostIdentifier::Endpoint(endpoint)) = &endpoint.host_identifier else {
        panic!("no address: {endpoint:?}");
    };
    let address = endpoint.address.as_ref().and_then(|a| a.address.as_ref());
    let Some(Address::SocketAddress(socket)) = address else {
        panic!("no address: {endpoint:?}");
    };
    let Some(PortSpecifier::PortValue(port)) = &socket.port_specifier else {
        panic!("no port: {endpoint:?}");
    };
    format!("{}:{port}", socket.address)
}

#[test]
fn an_observer_sees_every_breach_and_allows_the_rest() {
    let ledger = Ledger::default();
    let mut seen = Seen::new(ledger.clone(), Timeline::start());
    let mut look = |endpoints: &[(&str, u32)]| {
        let now = endpoints.iter().map(|(a, w)| ((*a).to_owned(), *w));
        seen.look("orders", now.collect());
        std::mem::take(&mut seen.wrong).len()
    };
    assert_eq!(look(&[("a", 1), ("b", 1)]), 0);
    assert_eq!(look(&[("a", 2), ("b", 1), ("c", 1)]), 0);
    assert_eq!(look(&[("a", 1), ("b", 1), ("c", 1)]), 1, "an older weight");
    assert_eq!(look(&[("a", 1), ("b", 1)]), 1, "one went");
    ledger.goes("b");
    assert_eq!(look(&[("a", 1)]), 0, "it had deregistered");
    assert_eq!(look(&[("a", 1), ("b", 1)]), 1, "it came back");
    assert_eq!(look(&[]), 1, "one of the two went that may not");
}
