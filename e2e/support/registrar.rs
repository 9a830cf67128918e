//! A fleet that registers: many ephemeral instances, each held by one of several sessions, that come,
//! change and go all the time, or stay.
//!
//! Its sessions go past everything that is broken, so what is registered is known: it is read back
//! from the ensemble itself. No address is ever used twice and weights only grow, so each state that
//! somebody is shown can be told from every later one. Invariant: an address stands in the
//! [`Ledger`] before its deregistration is asked for.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::Duration,
};

use futures_util::future::{join_all, try_join_all};
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use zookeeper_client::{Acls, Client, CreateMode, Error};

use super::{dice::Dice, ensemble::Ensemble, timeline::Timeline};

const ROOT: &str = "/services";
const SESSIONS: usize = 4;
/// How many instances come and go beside those that stay, at most.
const GUESTS: usize = 12;

/// Services with their endpoints: weights by `address:port`.
pub type Served = BTreeMap<String, BTreeMap<String, u32>>;

/// The addresses whose deregistration has begun; nobody may lose sight of another one.
#[derive(Clone, Default)]
pub struct Ledger(Arc<Mutex<BTreeSet<String>>>);

impl Ledger {
    pub fn may_go(&self, address: &str) -> bool {
        self.0.lock().unwrap().contains(address)
    }

    pub fn goes(&self, address: &str) {
        self.0.lock().unwrap().insert(address.to_owned());
    }
}

pub struct Registrar {
    pub ledger: Ledger,
    /// Of the instances that stay.
    sessions: Vec<Client>,
    stays: Vec<Instance>,
    /// How many addresses were given out.
    given: usize,
    gate: Arc<Gate>,
    churning: Option<JoinHandle<()>>,
}

#[derive(Clone, Debug)]
struct Instance {
    service: String,
    address: String,
    weight: u32,
}

/// Between those who churn and those who want to look at what stands still.
#[derive(Default)]
struct Gate {
    closed: AtomicBool,
    busy: AtomicBool,
}

impl Registrar {
    pub async fn start(ensemble: &Ensemble) -> Self {
        let direct = ensemble.direct();
        let sessions = join_all((0..SESSIONS).map(|_| lasting_session(&direct))).await;
        ensure(&sessions[0], ROOT).await;
        Self {
            ledger: Ledger::default(),
            sessions,
            stays: Vec::new(),
            given: 0,
            gate: Arc::default(),
            churning: None,
        }
    }

    /// Instances that stay, with one of the sessions each.
    pub async fn register(&mut self, service: &str, addresses: impl IntoIterator<Item = String>) {
        ensure(&self.sessions[0], &format!("{ROOT}/{service}")).await;
        let first = self.stays.len();
        let new = |address| Instance {
            service: service.to_owned(),
            address,
            weight: 100,
        };
        self.stays.extend(addresses.into_iter().map(new));
        let sessions = self.sessions.iter().cycle();
        let create = |(instance, session)| create(session, instance);
        join_all(self.stays[first..].iter().zip(sessions).map(create)).await;
    }

    /// Addresses that nobody was given before; nothing listens there.
    pub fn addresses(&mut self, count: usize) -> Vec<String> {
        let first = self.given;
        self.given += count;
        let address = |at| format!("10.1.{}.{}:80", at / 250, at % 250 + 1);
        (first..first + count).map(address).collect()
    }

    /// From now on instances of `services` come, change and go, some dozens of times a second.
    pub async fn churn(
        &mut self,
        ensemble: &Ensemble,
        services: &[&str],
        dice: Dice,
        log: Timeline,
    ) {
        let direct = ensemble.direct();
        let mut guests = Guests {
            ledger: self.ledger.clone(),
            sessions: vec![
                lasting_session(&direct).await,
                lasting_session(&direct).await,
            ],
            connect: direct,
            services: services.iter().map(ToString::to_string).collect(),
            here: VecDeque::new(),
            stay: self.stays.clone(),
            count: 0,
            dice,
            log,
        };
        for service in services {
            ensure(&self.sessions[0], &format!("{ROOT}/{service}")).await;
        }
        guests
            .stay
            .retain(|stay| services.contains(&&*stay.service));
        let gate = Arc::clone(&self.gate);
        self.churning = Some(tokio::spawn(async move {
            loop {
                gate.busy.store(true, SeqCst);
                if !gate.closed.load(SeqCst) {
                    guests.step().await;
                }
                gate.busy.store(false, SeqCst);
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }));
    }

    /// Nothing new is begun until [`Registrar::go_on`].
    pub fn hold(&self) {
        self.gate.closed.store(true, SeqCst);
    }

    /// Nothing is on its way any more.
    pub fn is_quiet(&self) -> bool {
        !self.gate.busy.load(SeqCst)
    }

    pub fn go_on(&self) {
        self.gate.closed.store(false, SeqCst);
    }

    /// None of the sessions that stay has ended.
    pub fn is_whole(&self) -> bool {
        let churns = self
            .churning
            .as_ref()
            .is_none_or(|task| !task.is_finished());
        churns && self.sessions.iter().all(|s| !s.state().is_terminated())
    }
}

impl Drop for Registrar {
    fn drop(&mut self) {
        if let Some(task) = &self.churning {
            task.abort();
        }
    }
}

/// What the ensemble holds, as it is written there.
pub async fn registered(client: &Client) -> Result<Served, Error> {
    client.sync("/").await?;
    let mut served = Served::new();
    for service in client.list_children(ROOT).await? {
        let parent = format!("{ROOT}/{service}");
        let names = client.list_children(&parent).await?;
        let read = async |name: &String| match client.get_data(&format!("{parent}/{name}")).await {
            Ok((data, _)) => Ok(Some(endpoint(&data))),
            Err(Error::NoNode) => Ok(None),
            Err(error) => Err(error),
        };
        let endpoints = try_join_all(names.iter().map(read)).await?;
        served.insert(service, endpoints.into_iter().flatten().collect());
    }
    Ok(served)
}

fn endpoint(data: &[u8]) -> (String, u32) {
    let data: Value = serde_json::from_slice(data).expect("what was written");
    let address = format!("{}:{}", data["host"].as_str().unwrap(), data["port"]);
    (
        address,
        u32::try_from(data["weight"].as_u64().unwrap()).unwrap(),
    )
}

/// Those that come and go.
struct Guests {
    ledger: Ledger,
    sessions: Vec<Client>,
    connect: String,
    services: Vec<String>,
    /// With the session of each.
    here: VecDeque<(Instance, usize)>,
    /// Whose weights change and who never go.
    stay: Vec<Instance>,
    count: usize,
    dice: Dice,
    log: Timeline,
}

impl Guests {
    async fn step(&mut self) {
        match self.dice.below(100) {
            0 => self.lose_session().await,
            1..40 if self.here.len() < GUESTS => self.come().await,
            1..60 => self.go().await,
            _ => self.change().await,
        }
    }

    async fn come(&mut self) {
        let n = self.count;
        self.count += 1;
        let instance = Instance {
            service: self.services[self.dice.below(self.services.len())].clone(),
            address: format!("10.2.{}.{}:80", n / 250, n % 250 + 1),
            weight: 100,
        };
        let session = self.dice.below(self.sessions.len());
        create(&self.sessions[session], &instance).await;
        self.here.push_back((instance, session));
    }

    async fn go(&mut self) {
        if let Some((instance, session)) = self.here.pop_front() {
            self.ledger.goes(&instance.address);
            delete(&self.sessions[session], &instance).await;
        }
    }

    async fn change(&mut self) {
        let all = self.stay.len() + self.here.len();
        let instance = match self.dice.below(all) {
            n if n < self.stay.len() => &mut self.stay[n],
            n => &mut self.here[n - self.stay.len()].0,
        };
        instance.weight += 1;
        write(&self.sessions[0], instance).await;
    }

    /// All of a session's instances go at once, as when a machine dies.
    async fn lose_session(&mut self) {
        let lost = self.dice.below(self.sessions.len());
        for (instance, _) in self.here.iter().filter(|(_, session)| *session == lost) {
            self.ledger.goes(&instance.address);
        }
        let before = self.here.len();
        self.here.retain(|(_, session)| *session != lost);
        let gone = before - self.here.len();
        self.log
            .note(&format!("a session of {gone} instances ends"));
        self.sessions[lost] = lasting_session(&self.connect).await;
    }
}

async fn create(client: &Client, instance: &Instance) {
    let options = CreateMode::Ephemeral.with_acls(Acls::anyone_all());
    let (path, data) = (path(instance), data(instance));
    surely(|| client.create(&path, &data, &options), &Error::NodeExists).await;
}

async fn write(client: &Client, instance: &Instance) {
    let (path, data) = (path(instance), data(instance));
    surely(|| client.set_data(&path, &data, None), &Error::NoNode).await;
}

async fn delete(client: &Client, instance: &Instance) {
    let path = path(instance);
    surely(|| client.delete(&path, None), &Error::NoNode).await;
}

async fn ensure(client: &Client, path: &str) {
    let options = CreateMode::Persistent.with_acls(Acls::anyone_all());
    surely(|| client.create(path, b"", &options), &Error::NodeExists).await;
}

/// Again and again while the ensemble is away: what may be done twice, and is done too where the
/// ensemble says `already`.
async fn surely<T, F: Future<Output = Result<T, Error>>>(act: impl Fn() -> F, already: &Error) {
    loop {
        match act().await {
            Ok(_) => return,
            Err(error) if error == *already => return,
            Err(Error::SessionExpired | Error::ClientClosed) => panic!("the session ended"),
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
}

/// A session that outlives every fault. It holds a znode at once: where servers keep sessions to
/// themselves, the ensemble knows only those that do.
async fn lasting_session(connect: &str) -> Client {
    let options = CreateMode::EphemeralSequential.with_acls(Acls::anyone_all());
    let mut client = session(connect).await;
    loop {
        match client.create("/fleet-", b"", &options).await {
            Ok(_) => return client,
            // The server that kept it to itself has gone: nothing hung on it yet.
            Err(Error::SessionExpired | Error::ClientClosed) => client = session(connect).await,
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
}

/// A session past everything that is broken.
pub async fn session(connect: &str) -> Client {
    loop {
        let connector = Client::connector().with_session_timeout(Duration::from_secs(30));
        match connector.connect(connect).await {
            Ok(client) => return client,
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
}

fn path(instance: &Instance) -> String {
    format!("{ROOT}/{}/{}", instance.service, instance.address)
}

fn data(instance: &Instance) -> Vec<u8> {
    let (host, port) = instance.address.rsplit_once(':').expect("a port");
    let port: u16 = port.parse().expect("a port");
    let data = json!({"host": host, "port": port, "weight": instance.weight});
    data.to_string().into_bytes()
}
