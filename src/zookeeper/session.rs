//! Opening a session and closing it for good.
//!
//! It refuses to know where secrets come from and what a session is for. Names are looked up anew for
//! each session. One that has several addresses stands for all of them, so that a dead one among them
//! costs an attempt and not the name; beside them it stands itself, so that the client, which looks
//! names up whenever it connects, also finds within a session what moved. Under TLS names go to the
//! client as they are: they are what certificates are checked against.
//! The client library says no more than "no hosts" when it cannot connect, so a failed attempt is
//! followed by a look at each server ([`diagnosis`]). Where that finds a server that is read-only,
//! whoever can use its session gets one.

mod diagnosis;

use std::{
    collections::hash_map::RandomState,
    hash::{BuildHasher, Hasher},
    time::Duration,
};

use tokio::{
    net::lookup_host,
    time::{Instant, timeout},
};
use zookeeper_client::{Client, Error, SessionState};

use super::{connect_string::Address, security::material::Material};

/// How long names may take to be looked up before those that were not are left to the client.
const LOOK_UP: Duration = Duration::from_secs(1);
/// How long the ensemble gets to confirm that a session is closed.
const CLOSE: Duration = Duration::from_secs(3);
/// The same where there is no connection: it may return, but nobody should have to wait for it.
const CLOSE_BLINDLY: Duration = Duration::from_secs(1);
/// What lets a read-only server open sessions; without it a server needs its leader for that.
const LOCAL_SESSIONS: &str = "; a read-only server opens new sessions only with localSessionsEnabled=true \
     and localSessionsUpgradingEnabled=true in its configuration";
/// How often the same trouble is said again in the log.
const HINT: Duration = Duration::from_secs(30);

/// Where an ensemble is, and what is asked of it.
#[derive(Clone, Debug)]
pub(super) struct Ensemble {
    pub address: Address,
    pub session_timeout: Duration,
    /// Servers that do not know the newer requests: the client then writes as to 3.4.
    pub old: bool,
}

impl Ensemble {
    pub fn new(address: Address, session_timeout: Duration) -> Self {
        Self {
            address,
            session_timeout,
            old: false,
        }
    }

    /// One attempt at each server. Where none of them has a quorum, a read-only session does if
    /// `read_only` is set.
    pub async fn open(&self, material: &Material, read_only: bool) -> Result<Client, Unopened> {
        match self.attempt(material, false).await {
            Ok(client) => return Ok(client),
            Err(Error::AuthFailed) => return Err(denied(material).into()),
            Err(Error::NoHosts | Error::Timeout | Error::SessionExpired) => {}
            Err(error) => return Err(error.to_string().into()),
        }
        let findings = diagnosis::of(&self.address, material.tls()).await;
        // A server that serves now may have begun to a moment ago.
        if findings.any_serving()
            && let Ok(client) = self.attempt(material, false).await
        {
            return Ok(client);
        }
        let mut reason = findings.text();
        if read_only && findings.any_read_only() {
            if let Ok(client) = self.attempt(material, true).await {
                return Ok(client);
            }
            reason += LOCAL_SESSIONS;
        }
        let limited = findings.any_limit();
        Err(Unopened { reason, limited })
    }

    async fn attempt(&self, material: &Material, read_only: bool) -> Result<Client, Error> {
        let secure = material.tls().is_some();
        let servers = if secure {
            self.address.servers.clone()
        } else {
            self.look_up().await
        };
        let patience = self.patience(servers.len());
        let connect = self.address.connect(&servers);
        let mut connector = (material.connector()?)
            .with_session_timeout(self.session_timeout)
            .with_readonly(read_only)
            .with_fail_eagerly();
        if self.old {
            connector = connector.with_server_version(3, 4, 0);
        }
        let attempt = async {
            if secure {
                connector.secure_connect(&connect).await
            } else {
                connector.connect(&connect).await
            }
        };
        (timeout(patience, attempt).await).unwrap_or(Err(Error::Timeout))
    }

    fn patience(&self, servers: usize) -> Duration {
        let servers = u32::try_from(servers).unwrap_or(u32::MAX);
        self.session_timeout.saturating_mul(servers) + Duration::from_secs(1)
    }

    /// The servers by address as far as names have several.
    async fn look_up(&self) -> Vec<(String, u16)> {
        let found = self.address.servers.iter().map(|(host, port)| async move {
            let found = timeout(LOOK_UP, lookup_host((host.as_str(), *port))).await;
            let found = found.ok().and_then(Result::ok).into_iter().flatten();
            let addresses: Vec<_> = found.map(|address| address.ip().to_string()).collect();
            spelled_out(host, *port, addresses)
        });
        let found = futures_util::future::join_all(found).await;
        found.into_iter().flatten().collect()
    }
}

/// Why there is no session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Unopened {
    pub reason: String,
    /// A server turned us away to protect itself, so attempts should become rare.
    pub limited: bool,
}

impl From<String> for Unopened {
    fn from(reason: String) -> Self {
        let limited = false;
        Self { reason, limited }
    }
}

fn spelled_out(host: &str, port: u16, mut addresses: Vec<String>) -> Vec<(String, u16)> {
    addresses.sort_unstable();
    addresses.dedup();
    if addresses.len() < 2 {
        addresses.clear();
    }
    addresses.push(host.to_owned());
    addresses.into_iter().map(|host| (host, port)).collect()
}

fn denied(material: &Material) -> String {
    match material.sasl_user() {
        Some(user) => format!(
            "ZooKeeper refuses the login of {user:?} (SASL): check auth.sasl, and that the server knows this user"
        ),
        None => {
            "ZooKeeper takes no session without a login: set auth.sasl or auth.digest".to_owned()
        }
    }
}

/// Closes the session and waits until the ensemble has confirmed it, so that its ephemeral znodes
/// are gone. Needs the last handle on the client. `false` if there was no answer in time.
pub(super) async fn close(client: Client) -> bool {
    let mut state = client.state_watcher();
    let patience = match state.state() {
        SessionState::Disconnected => CLOSE_BLINDLY,
        _ => CLOSE,
    };
    drop(client);
    let closed = async {
        while !state.state().is_terminated() {
            state.changed().await;
        }
    };
    timeout(patience, closed).await.is_ok()
}

/// Any time up to `most`, all being equally likely: what many replicas do at once, each does at a
/// time of its own.
pub(super) fn any_time_up_to(most: Duration) -> Duration {
    let chance = RandomState::new().build_hasher().finish();
    most.mul_f64(f64::from(u32::try_from(chance >> 32).unwrap_or(0)) / f64::from(u32::MAX))
}

/// Waits that grow from attempt to attempt, up to two seconds, each less up to half of it. Where a server
/// is at a limit of its own, they grow to fifteen.
#[derive(Debug, Default)]
pub(super) struct Backoff {
    failures: u32,
    limited: bool,
}

impl Backoff {
    pub fn reset(&mut self) {
        *self = Self::default();
    }

    /// Whether the last attempt met a limit of a server.
    pub fn limited(&mut self, limited: bool) {
        self.limited = limited;
    }

    /// None before the first attempt, then at most 100 ms, 200 ms and so on.
    pub fn next(&mut self) -> Duration {
        let most = match self.failures {
            0 => Duration::ZERO,
            n => Duration::from_millis(100 << (n - 1).min(8)).min(self.longest()),
        };
        self.failures = self.failures.saturating_add(1);
        most.saturating_sub(any_time_up_to(most / 2))
    }

    fn longest(&self) -> Duration {
        Duration::from_secs(if self.limited { 15 } else { 2 })
    }
}

/// What is wrong at present, and when the log heard of it last.
#[derive(Debug, Default)]
pub(super) struct Trouble {
    began: Option<Instant>,
    told: Option<(String, Instant)>,
}

impl Trouble {
    /// Whether to say it aloud: at once where the reason is new, else now and then.
    pub fn is_news(&mut self, reason: &str, now: Instant) -> bool {
        self.began.get_or_insert(now);
        let due = (self.told.as_ref())
            .is_none_or(|(told, when)| told != reason || now.duration_since(*when) >= HINT);
        if due {
            self.told = Some((reason.to_owned(), now));
        }
        due
    }

    /// For how long something is wrong by now.
    pub fn lasted(&self, now: Instant) -> Option<Duration> {
        self.began.map(|began| now.duration_since(began))
    }

    /// All is well again; how long it was not.
    pub fn over(&mut self, now: Instant) -> Option<Duration> {
        self.told = None;
        self.began.take().map(|began| now.duration_since(began))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::zookeeper::connect_string;

    #[test]
    fn the_same_trouble_is_news_now_and_then_and_a_new_one_at_once() {
        let (mut trouble, start) = (Trouble::default(), Instant::now());
        let half = start + HINT / 2;
        assert!(trouble.is_news("refused", start));
        assert!(!trouble.is_news("refused", half));
        assert!(trouble.is_news("no answer", half));
        assert!(trouble.is_news("no answer", half + HINT));
        assert_eq!(trouble.lasted(half), Some(HINT / 2));
        assert_eq!(trouble.over(half + HINT), Some(HINT + HINT / 2));
        assert_eq!(trouble.over(half + HINT), None);
        assert!(trouble.is_news("no answer", half + HINT), "another outage");
    }

    #[test]
    fn waits_grow_and_no_two_replicas_wait_alike() {
        let waits = |_| {
            let mut backoff = Backoff::default();
            std::array::from_fn::<_, 9, _>(|_| backoff.next())
        };
        let all: Vec<_> = (0..50).map(waits).collect();
        for waits in &all {
            assert!(waits[0].is_zero());
            for (n, wait) in waits[1..].iter().enumerate() {
                let most = Duration::from_millis((100 << n).min(2_000));
                assert!((most / 2..=most).contains(wait), "{n}: {wait:?}");
            }
        }
        assert!(all[1..].iter().any(|other| other[5] != all[0][5]));
    }

    #[test]
    fn waits_grow_further_where_a_server_is_at_its_limit() {
        let mut backoff = Backoff::default();
        backoff.limited(true);
        let waits: Vec<_> = (0..12).map(|_| backoff.next()).collect();
        assert!(waits[7] >= Duration::from_millis(3_200), "{waits:?}");
        let longest = Duration::from_secs(15);
        assert!((longest / 2..=longest).contains(&waits[11]), "{waits:?}");
        backoff.limited(false);
        assert!(backoff.next() <= Duration::from_secs(2));
    }

    #[test]
    fn a_name_with_several_addresses_stands_for_all_of_them() {
        let several = ["10.0.0.2", "fd00::1", "10.0.0.1", "10.0.0.2"].map(str::to_owned);
        let mut servers = spelled_out("zk", 2181, several.to_vec());
        servers.extend(spelled_out("zk-3", 2182, vec!["10.0.0.3".to_owned()]));
        servers.extend(spelled_out("gone", 2183, vec![]));
        let address = connect_string::parse("zk:2181,zk-3:2182,gone:2183/mesh").unwrap();
        let connect = "10.0.0.1:2181,10.0.0.2:2181,[fd00::1]:2181,zk:2181,zk-3:2182,gone:2183/mesh";
        assert_eq!(address.connect(&servers), connect);
        assert!(connect_string::parse(connect).is_ok());
    }
}
