//! Sessions with the secrets as they are now, and a new session when files were renewed.
//!
//! Files are read again for every session, and every few seconds while one is held. Where they changed,
//! a second session is opened with what they hold and tried out; only one that works is handed over,
//! so what is held is given up for something better or not at all. What cannot be read, or is refused,
//! leaves the last that worked in use: one goes back to it in turns when the connection is lost.
//! It refuses to know what sessions are for. Invariant: no state of the files ends a session.

use std::{sync::Arc, time::Duration};

use futures_util::{FutureExt, future::BoxFuture};
use prometheus::IntGauge;
use tokio::{
    task::spawn_blocking,
    time::{Instant, sleep},
};
use tracing::{info, warn};
use zookeeper_client::{Client, Error};

use super::{Security, material::Material};
use crate::zookeeper::session::{Ensemble, Trouble, Unopened, any_time_up_to};

/// How often files are looked at; each time a little later or sooner, so that replicas do not do it
/// in step.
const LOOK: Duration = Duration::from_secs(3);
/// How long at most until something that was refused is tried again.
const REFUSED: Duration = Duration::from_secs(60);

/// A session, and what it was opened with.
#[derive(Debug)]
pub struct Opened {
    pub client: Client,
    pub with: Arc<Material>,
}

#[derive(Debug)]
pub struct Access {
    /// In the log: a registry, or a znode.
    who: String,
    pub ensemble: Ensemble,
    security: Arc<Security>,
    /// What was read last without a problem.
    usable: Option<Arc<Material>>,
    /// What served last for what is to be done.
    proven: Option<Arc<Material>>,
    /// Since then.
    attempts: usize,
    trouble: Trouble,
    /// 1 while something older than the files is in use.
    outdated: IntGauge,
}

impl Access {
    pub fn new(who: String, ensemble: Ensemble, security: Security, outdated: IntGauge) -> Self {
        Self {
            who,
            ensemble,
            security: Arc::new(security),
            usable: None,
            proven: None,
            attempts: 0,
            trouble: Trouble::default(),
            outdated,
        }
    }

    /// One attempt, with what the files hold, or in turns with what worked before they changed.
    pub async fn open(&mut self, read_only: bool) -> Result<Opened, Unopened> {
        let with = self.choose(read(&self.security).await)?;
        let client = self.ensemble.open(&with, read_only).await?;
        Ok(Opened { client, with })
    }

    /// What was wanted of the session worked.
    pub fn works(&mut self, with: &Arc<Material>) {
        self.attempts = 0;
        self.trouble.over(Instant::now());
        self.proven = Some(Arc::clone(with));
        let current = self.usable.as_ref().is_none_or(|usable| usable == with);
        self.outdated.set(i64::from(!current));
    }

    /// A renewal handed over a session with these.
    pub fn renewed(&mut self, with: &Arc<Material>) {
        self.usable = Some(Arc::clone(with));
    }

    fn choose(&mut self, read: Result<Material, String>) -> Result<Arc<Material>, String> {
        match read {
            Ok(read) => {
                if self.usable.as_deref() != Some(&read) {
                    self.usable = Some(Arc::new(read));
                }
            }
            Err(problem) => {
                self.outdated.set(1);
                if self.usable.is_some() && self.trouble.is_news(&problem, Instant::now()) {
                    warn!(who = %self.who, %problem, "credentials cannot be used; those before them stay in use");
                }
                if self.usable.is_none() {
                    return Err(problem);
                }
            }
        }
        let turn = self.attempts;
        self.attempts += 1;
        let before = self.proven.as_ref().filter(|_| turn % 2 == 1);
        let chosen = before.or(self.usable.as_ref()).cloned();
        chosen.ok_or_else(|| "there are no credentials".to_owned())
    }

    /// Ready once the ensemble has a quorum again, with a session that is not read-only.
    pub fn writable(&self, with: Arc<Material>) -> BoxFuture<'static, Opened> {
        let ensemble = self.ensemble.clone();
        async move {
            loop {
                sleep(LOOK / 2 + any_time_up_to(LOOK)).await;
                if let Ok(client) = ensemble.open(&with, false).await {
                    return Opened { client, with };
                }
            }
        }
        .boxed()
    }

    /// Ready once the files hold something else than `with` does and a session with that works: it may
    /// list `root`, if one is given. The change is put off by any time up to `spread`.
    pub fn renewal(
        &self,
        with: Arc<Material>,
        root: Option<String>,
        spread: Duration,
    ) -> BoxFuture<'static, Opened> {
        if !self.security.has_files() {
            return std::future::pending().boxed();
        }
        let lookout = Lookout {
            who: self.who.clone(),
            ensemble: self.ensemble.clone(),
            security: Arc::clone(&self.security),
            with,
            root,
            spread,
            refused: None,
            failures: 0,
            trouble: Trouble::default(),
            outdated: self.outdated.clone(),
        };
        lookout.run().boxed()
    }
}

/// What was tried and refused, and when to try again.
struct Refused {
    what: Material,
    reason: String,
    wait: Duration,
    again: Instant,
}

struct Lookout {
    who: String,
    ensemble: Ensemble,
    security: Arc<Security>,
    with: Arc<Material>,
    root: Option<String>,
    spread: Duration,
    refused: Option<Refused>,
    failures: u32,
    trouble: Trouble,
    outdated: IntGauge,
}

impl Lookout {
    async fn run(mut self) -> Opened {
        loop {
            sleep(LOOK / 2 + any_time_up_to(LOOK)).await;
            match self.look().await {
                Ok(Some(opened)) => {
                    info!(who = %self.who, "credentials were renewed; a session with the new ones is open");
                    self.outdated.set(0);
                    return opened;
                }
                Ok(None) => {
                    if self.trouble.over(Instant::now()).is_some() {
                        info!(who = %self.who, "the credentials are those in use again");
                    }
                    self.failures = 0;
                    self.outdated.set(0);
                }
                Err(problem) => self.tell(&problem),
            }
        }
    }

    /// What is looked at may be half written, so the first failure is not told.
    fn tell(&mut self, problem: &str) {
        self.failures += 1;
        if self.failures < 2 {
            return;
        }
        self.outdated.set(1);
        if self.trouble.is_news(problem, Instant::now()) {
            warn!(who = %self.who, %problem, "renewed credentials cannot be used; those before them stay in use");
        }
    }

    async fn look(&mut self) -> Result<Option<Opened>, String> {
        let found = read(&self.security).await?;
        if found == *self.with {
            self.refused = None;
            return Ok(None);
        }
        let now = Instant::now();
        let same = self.refused.take_if(|refused| refused.what != found);
        drop(same);
        if let Some(refused) = self.refused.as_ref().filter(|r| now < r.again) {
            return Err(refused.reason.clone());
        }
        if self.refused.is_none() {
            sleep(any_time_up_to(self.spread)).await;
        }
        match self.open(&found).await {
            Ok(client) => Ok(Some(Opened {
                client,
                with: Arc::new(found),
            })),
            Err(reason) => {
                self.refuse(found, reason.clone());
                Err(reason)
            }
        }
    }

    fn refuse(&mut self, what: Material, reason: String) {
        let before = self
            .refused
            .as_ref()
            .map_or(LOOK / 2, |refused| refused.wait);
        let wait = (before * 2).min(REFUSED);
        self.refused = Some(Refused {
            what,
            reason,
            wait,
            again: Instant::now() + wait,
        });
    }

    async fn open(&self, with: &Material) -> Result<Client, String> {
        let opened = self.ensemble.open(with, false).await;
        let client = opened.map_err(|unopened| unopened.reason)?;
        let Some(root) = &self.root else {
            return Ok(client);
        };
        let listed =
            tokio::time::timeout(self.ensemble.session_timeout, client.list_children(root));
        match listed.await {
            Ok(Ok(_) | Err(Error::NoNode)) => Ok(client),
            Ok(Err(Error::NoAuth)) => Err(format!("with them {root} may not be listed")),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err("a request timed out".to_owned()),
        }
    }
}

/// On a thread of its own: files may be on a network.
async fn read(security: &Arc<Security>) -> Result<Material, String> {
    let security = Arc::clone(security);
    let read = spawn_blocking(move || Material::read(&security)).await;
    let read = read.map_err(|error| error.to_string())?;
    read.map_err(|problems| {
        let told: Vec<_> = problems.iter().map(ToString::to_string).collect();
        told.join("; ")
    })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::zookeeper::{
        connect_string,
        security::{Auth, Login, Secret},
    };

    fn material(password: &str) -> Material {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("password");
        fs::write(&path, password).unwrap();
        let login = Login {
            user: "meshkeeper".to_owned(),
            password: Secret::File(path),
        };
        let auth = Auth {
            digest: Some(login),
            sasl: None,
        };
        Material::read(&Security { auth, tls: None }).unwrap()
    }

    fn access() -> Access {
        let address = connect_string::parse("zk-1:2181").unwrap();
        let ensemble = Ensemble::new(address, Duration::from_secs(1));
        let gauge = IntGauge::new("outdated", "…").unwrap();
        Access::new("main".to_owned(), ensemble, Security::default(), gauge)
    }

    #[test]
    fn what_worked_before_has_its_turns_until_the_new_one_works() {
        let mut access = access();
        let old = access.choose(Ok(material("old"))).unwrap();
        access.works(&old);
        let new = access.choose(Ok(material("new"))).unwrap();
        assert!(new != old);
        assert_eq!(access.choose(Ok(material("new"))), Ok(Arc::clone(&old)));
        assert_eq!(access.choose(Ok(material("new"))), Ok(Arc::clone(&new)));
        access.works(&old);
        assert_eq!(access.outdated.get(), 1);
        access.works(&new);
        assert_eq!(access.outdated.get(), 0);
        assert_eq!(access.choose(Ok(material("new"))), Ok(Arc::clone(&new)));
        access.choose(Ok(material("new"))).unwrap();
        assert_eq!(access.choose(Ok(material("new"))), Ok(new));
    }

    #[test]
    fn files_that_cannot_be_read_leave_what_was_read_before() {
        let mut access = access();
        assert_eq!(access.choose(Err("gone".into())), Err("gone".to_owned()));
        let first = access.choose(Ok(material("first"))).unwrap();
        assert_eq!(access.choose(Err("gone".into())), Ok(first));
        assert_eq!(access.outdated.get(), 1);
    }
}
