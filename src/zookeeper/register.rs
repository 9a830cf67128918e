//! The registering side: holds one ephemeral znode, as any service may that wants to be found.
//!
//! It refuses to know what the data means. Invariant: while [`hold`] runs and the ensemble is
//! reachable, the znode exists, or another session's of the same name does. It is watched: where it
//! was deleted or its session expired it is created again, with the data that was last read from it: data that
//! somebody else wrote into it, such as a weight of 0, outlive the session. (Data written while there is no
//! connection are lost if the session expires before it is back.) A new call of `hold` starts with the data
//! given. Where another session took the name over, that one has it until it goes. After `hold`
//! returned, the session is closed and the znode gone with it (or expires, where the ensemble could
//! not be told). Where credentials are renewed, a session with the new ones takes the znode over in one
//! transaction before the old session is closed. Who logs in owns what it writes, and all may read it.

use std::{sync::Arc, time::Duration};

use futures_util::{FutureExt, future::BoxFuture};
use prometheus::IntGauge;
use tokio::{
    sync::watch,
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};
use zookeeper_client::{
    Acl, Acls, Client, CreateMode, CreateOptions, Error as ClientError, OneshotWatcher, Permission,
    SessionState, Stat,
};

use super::{
    check_root, connect_string,
    security::{
        Security,
        access::{Access, Opened},
        material::Material,
    },
    session::{self, Backoff, Ensemble, Trouble, Unopened},
};

/// How long renewed credentials with which the znode cannot be taken over are left alone.
const REFUSED: Duration = Duration::from_secs(60);

/// What is written belongs to who logged in, and whoever mirrors it may read it.
static OWNED: [Acl; 2] = [
    Acl::new_const(Permission::ALL, "auth", ""),
    Acl::new_const(Permission::READ, "world", "anyone"),
];

/// What to register, and where.
#[derive(Clone, Debug)]
pub struct Registration {
    /// `host:port[,host:port…][/chroot]`
    pub connect: String,
    pub root: String,
    /// The service's name: one name of a path.
    pub service: String,
    /// The znode's name: one name of a path. It belongs to who registered it last.
    pub id: String,
    pub data: Vec<u8>,
    /// Whether data that somebody else wrote may be registered again, by the znode's name and its data.
    pub check: fn(&str, &[u8]) -> Result<(), String>,
    pub session_timeout: Duration,
    pub security: Security,
}

/// What no waiting heals.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("connect: {0}")]
    Connect(String),
    #[error("root: {0}")]
    Root(String),
    #[error("the {what} {name:?} {reason}")]
    Name {
        what: &'static str,
        name: String,
        reason: &'static str,
    },
    #[error("{path} exists and is persistent, so it is nobody's registration; remove it first")]
    Occupied { path: String },
    #[error("{path}: {reason}{}", remedy(reason))]
    Refused { path: String, reason: ClientError },
    #[error("{0}")]
    Metric(prometheus::Error),
}

fn remedy(reason: &ClientError) -> &'static str {
    match reason {
        ClientError::NoAuth => {
            "; this login needs read, create and delete permission on the root and on what is below it"
        }
        ClientError::QuotaExceeded => {
            "; a quota of a znode above it is used up: raise it (setquota), or remove what is old"
        }
        ClientError::InvalidAcl => "; the server does not know the scheme of this login",
        _ => "",
    }
}

/// How one session ended.
enum End {
    Stopped,
    /// Or never any good.
    Over,
    Renewed(Opened),
}

/// Holds the registration until `stop`. `registered` follows whether the znode is known to stand.
pub async fn hold(
    registration: Registration,
    registered: watch::Sender<bool>,
    stop: CancellationToken,
) -> Result<(), Error> {
    let mut holder = Holder::new(registration, registered)?;
    let mut backoff = Backoff::default();
    let mut renewed = None;
    loop {
        let opened = if let Some(opened) = renewed.take() {
            Ok(opened)
        } else {
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                opened = async { sleep(backoff.next()).await; holder.access.open(false).await } => opened,
            }
        };
        let Opened { client, with } = match opened {
            Ok(opened) => opened,
            Err(Unopened { reason, limited }) => {
                backoff.limited(limited);
                holder.tell(&reason, "no connection to ZooKeeper; retrying");
                continue;
            }
        };
        let client = whole(client);
        let end = holder.keep(&client, &with, &mut backoff, &stop).await;
        if let Ok(End::Renewed(opened)) = end {
            renewed = Some(opened);
            session::close(client).await;
            continue;
        }
        holder.registered.send_replace(false);
        if end.is_err() || stop.is_cancelled() {
            // Closing the session removes the znode, and never a successor's of the same name.
            if client.state() == SessionState::Disconnected {
                info!(path = %holder.path, "no connection to ZooKeeper to deregister on; leaving in a moment");
            }
            if !session::close(client).await {
                warn!(path = %holder.path, "ZooKeeper did not confirm the end of the session; the znode goes when it expires");
            }
            return end.map(drop);
        }
    }
}

/// As one that sees the ensemble's own root, since a chroot may have to be created too.
fn whole(client: Client) -> Client {
    client.chroot("/").unwrap_or_else(|client| client)
}

struct Holder {
    registration: Registration,
    /// What the znode is created with: as given, or what was last read from it.
    data: Vec<u8>,
    /// The mzxid of what was last read.
    read: Option<i64>,
    access: Access,
    /// From the ensemble's own root on, through the chroot.
    parent: String,
    path: String,
    registered: watch::Sender<bool>,
    /// The session that the znode was created in last: ours, though it may be over.
    own: Option<i64>,
    /// The session that was told to have taken the name over.
    successor: Option<i64>,
    trouble: Trouble,
}

impl Holder {
    fn new(registration: Registration, registered: watch::Sender<bool>) -> Result<Self, Error> {
        let address = connect_string::parse(&registration.connect).map_err(Error::Connect)?;
        check_root(&registration.root).map_err(Error::Root)?;
        for (what, name) in [("service", &registration.service), ("id", &registration.id)] {
            connect_string::check_name(name).map_err(|reason| Error::Name {
                what,
                name: name.clone(),
                reason,
            })?;
        }
        if registration.security.tls.is_some() {
            address.check_names().map_err(Error::Connect)?;
        }
        let root = registration.root.trim_end_matches('/');
        let parent = format!("{}{root}/{}", address.chroot, registration.service);
        let path = format!("{parent}/{}", registration.id);
        Ok(Self {
            access: Access::new(
                path.clone(),
                Ensemble::new(address, registration.session_timeout),
                registration.security.clone(),
                // One process, one registration: the log says it all.
                IntGauge::new("credentials_outdated", "not exported").map_err(Error::Metric)?,
            ),
            path,
            parent,
            data: registration.data.clone(),
            read: None,
            registration,
            registered,
            own: None,
            successor: None,
            trouble: Trouble::default(),
        })
    }

    /// Keeps the znode on one session, until that ends or one with renewed credentials has it.
    async fn keep(
        &mut self,
        client: &Client,
        with: &Arc<Material>,
        backoff: &mut Backoff,
        stop: &CancellationToken,
    ) -> Result<End, Error> {
        let mut renewal = self.renewal(with);
        loop {
            let opened = tokio::select! {
                () = stop.cancelled() => return Ok(End::Stopped),
                held = self.hold(client, with, backoff) => return held.map(|()| End::Over),
                opened = &mut renewal => opened,
            };
            let next = whole(opened.client);
            let (settled, with_next) = (self.settle(&next).await, opened.with);
            match settled {
                Ok(_) => {
                    self.access.renewed(&with_next);
                    let opened = Opened {
                        client: next,
                        with: with_next,
                    };
                    return Ok(End::Renewed(opened));
                }
                Err(error) => {
                    self.tell(
                        &error.to_string(),
                        "renewed credentials do not serve to register",
                    );
                    let renewal_again = self.renewal(with);
                    renewal = async move {
                        sleep(REFUSED).await;
                        renewal_again.await
                    }
                    .boxed();
                }
            }
        }
    }

    fn renewal(&self, with: &Arc<Material>) -> BoxFuture<'static, Opened> {
        (self.access).renewal(Arc::clone(with), None, Duration::ZERO)
    }

    /// Keeps the znode, and returns when the session is over.
    async fn hold(
        &mut self,
        client: &Client,
        with: &Arc<Material>,
        backoff: &mut Backoff,
    ) -> Result<(), Error> {
        while !client.state().is_terminated() {
            match self.settle(client).await {
                Ok(watcher) => {
                    backoff.reset();
                    self.access.works(with);
                    // Any event is a reason to look again; the end of the session is one too.
                    watcher.changed().await;
                }
                Err(error) if self.is_too_new(&error) => return Ok(()),
                Err(error) if is_final(&error) => return Err(error),
                Err(_) if client.state().is_terminated() => break,
                Err(error) => {
                    self.tell(&error.to_string(), "not registered; trying on");
                    sleep(backoff.next()).await;
                }
            }
        }
        let state = client.state();
        warn!(path = %self.path, %state, "the session is over; registering again");
        Ok(())
    }

    /// Whether the server is older than what the client asked of it; the next session asks less.
    fn is_too_new(&mut self, error: &Error) -> bool {
        let Error::Refused { reason, .. } = error else {
            return false;
        };
        let too_new = *reason == ClientError::Unimplemented && !self.access.ensemble.old;
        self.access.ensemble.old |= too_new;
        too_new
    }

    /// Looks at the znode and brings it in order as far as that is ours to do. What it returns
    /// fires when there is reason to look again, at once where something was done.
    async fn settle(&mut self, client: &Client) -> Result<OneshotWatcher, Error> {
        let session = client.session_id().0;
        let looked = client.check_and_watch_stat(&self.path).await;
        let (stat, watcher) = looked.map_err(|reason| self.refused(reason))?;
        let owner = stat.map(|stat| stat.ephemeral_owner);
        if let Some(stat) = stat
            && (owner == Some(session) || owner == self.own)
        {
            self.read(client, &stat).await?;
        }
        match stat.map(|stat| (stat.ephemeral_owner, stat.version)) {
            None => {
                self.missing(session);
                self.create(client).await?;
            }
            // Also where a create succeeded and its answer was lost.
            Some((owner, _)) if owner == session => self.stands(session),
            Some((owner, version)) if self.may_replace(owner) => {
                self.replace(client, version).await?;
            }
            Some((0, _)) if self.own.is_none() => {
                let path = self.path.clone();
                return Err(Error::Occupied { path });
            }
            Some((owner, _)) => self.yields_to(owner),
        }
        Ok(watcher)
    }

    /// Reads what somebody else wrote into our own znode.
    async fn read(&mut self, client: &Client, stat: &Stat) -> Result<(), Error> {
        let owner = stat.ephemeral_owner;
        if stat.version == 0 || self.read == Some(stat.mzxid) {
            return Ok(());
        }
        let (data, stat) = match client.get_data(&self.path).await {
            Ok(read) => read,
            // The watch tells.
            Err(ClientError::NoNode) => return Ok(()),
            Err(ClientError::NoAuth) => {
                self.read = Some(stat.mzxid);
                warn!(path = %self.path, "the znode's data may not be read; what was read before is kept");
                return Ok(());
            }
            Err(error) => return Err(self.refused(error)),
        };
        if stat.ephemeral_owner != owner {
            return Ok(());
        }
        self.read = Some(stat.mzxid);
        let (path, mzxid) = (&self.path, stat.mzxid);
        if data == self.data {
            return Ok(());
        }
        match (self.registration.check)(&self.registration.id, &data) {
            Ok(()) => {
                info!(%path, mzxid, "somebody else wrote the znode's data; it is kept if the znode has to be created again");
                self.data = data;
            }
            Err(reason) => {
                warn!(%path, mzxid, %reason, "somebody else wrote data that cannot be served; the data before it is kept if the znode has to be created again");
            }
        }
        Ok(())
    }

    /// The first registration takes the place of a predecessor whose session did not end yet; later
    /// ones only that of our own former session, so that two that hold one name do not fight.
    fn may_replace(&self, owner: i64) -> bool {
        owner != 0 && self.own.is_none_or(|own| own == owner)
    }

    fn stands(&mut self, session: i64) {
        self.own = Some(session);
        self.successor = None;
        self.trouble.over(Instant::now());
        if !self.registered.send_replace(true) {
            info!(path = %self.path, session = %hex(session), "registered");
        }
    }

    fn missing(&mut self, session: i64) {
        if self.registered.send_replace(false) && self.own == Some(session) {
            warn!(path = %self.path, "the znode was deleted by somebody else; registering again");
        }
        if self.successor.take().is_some() {
            info!(path = %self.path, "the znode that took over is gone; registering again");
        }
    }

    fn yields_to(&mut self, owner: i64) {
        self.registered.send_replace(false);
        if self.successor.replace(owner) == Some(owner) {
            return;
        }
        let path = &self.path;
        if owner == 0 {
            warn!(%path, "taken over by a persistent znode; waiting until it is removed");
        } else {
            warn!(%path, "taken over by session {}; waiting until it goes", hex(owner));
        }
    }

    fn options(&self, mode: CreateMode) -> CreateOptions<'static> {
        if self.registration.security.auth.is_none() {
            mode.with_acls(Acls::anyone_all())
        } else {
            mode.with_acls(Acls::new(&OWNED))
        }
    }

    async fn create(&self, client: &Client) -> Result<(), Error> {
        let ephemeral = self.options(CreateMode::Ephemeral);
        let data = &self.data;
        let mut created = client.create(&self.path, data, &ephemeral).await;
        if let Err(ClientError::NoNode) = created {
            self.create_parent(client).await?;
            created = client.create(&self.path, data, &ephemeral).await;
        }
        match created {
            // Whose it is shows at the next look.
            Ok(_) | Err(ClientError::NodeExists) => Ok(()),
            Err(error) => Err(self.refused(error)),
        }
    }

    async fn create_parent(&self, client: &Client) -> Result<(), Error> {
        let chroot = &self.access.ensemble.address.chroot;
        if !chroot.is_empty() {
            let there = client.check_stat(chroot).await;
            if there.map_err(|error| self.refused(error))?.is_none() {
                warn!(
                    %chroot, connect = %self.registration.connect,
                    "the chroot does not exist and is created; if it is misspelled, nobody will find this instance"
                );
            }
        }
        let persistent = self.options(CreateMode::Persistent);
        let made = client.mkdir(&self.parent, &persistent).await;
        made.map_err(|error| self.refused(error))
    }

    /// In one transaction, so that nobody sees the name without a znode; 3.4 has none that would do.
    async fn replace(&self, client: &Client, version: i32) -> Result<(), Error> {
        let ephemeral = self.options(CreateMode::Ephemeral);
        // A server before 3.5 says so to this, and drops the connection at a transaction that it does
        // not know. From any other it comes back as it went out.
        match client.create(&self.path, &self.data, &ephemeral).await {
            Err(ClientError::NodeExists) => {}
            created => return created.map(drop).map_err(|error| self.refused(error)),
        }
        if self.access.ensemble.old {
            let deleted = client.delete(&self.path, Some(version)).await;
            deleted.map_err(|error| self.refused(error))?;
            return self.create(client).await;
        }
        let mut writer = client.new_multi_writer();
        (writer.add_delete(&self.path, Some(version)))
            .and_then(|()| writer.add_create(&self.path, &self.data, &ephemeral))
            .map_err(|error| self.refused(error))?;
        let replaced = writer.commit().await;
        replaced
            .map(|_| ())
            .map_err(|error| self.refused(error.into()))
    }

    fn refused(&self, reason: ClientError) -> Error {
        Error::Refused {
            path: self.path.clone(),
            reason,
        }
    }

    /// Aloud where it is news.
    fn tell(&mut self, reason: &str, what: &'static str) {
        let (path, connect) = (&self.path, &self.registration.connect);
        if self.trouble.is_news(reason, Instant::now()) {
            warn!(%path, %connect, %reason, "{what}");
        } else {
            debug!(%path, %connect, %reason, "{what}");
        }
    }
}

/// As ZooKeeper's own tools write a session.
fn hex(session: i64) -> String {
    format!("0x{session:x}")
}

/// Whether trying the same again is of no use.
fn is_final(error: &Error) -> bool {
    match error {
        Error::Refused { reason, .. } => matches!(
            reason,
            ClientError::NoAuth
                | ClientError::InvalidAcl
                | ClientError::NoChildrenForEphemerals
                | ClientError::QuotaExceeded
                | ClientError::BadArguments(_)
        ),
        _ => true,
    }
}
