//! The registering side: holds one ephemeral znode, as any service may that wants to be found.
//!
//! It refuses to know what the data means. Invariant: while [`hold`] runs and the ensemble is
//! reachable, the znode exists with the data given; after it returned, the session is closed and
//! the znode gone with it (or expires, where the ensemble could not be told).

use std::time::Duration;

use tokio::{sync::watch, time::sleep};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use zookeeper_client::{Acls, Client, CreateMode, Error as ClientError, SessionState};

use super::{
    check_root,
    connect_string::{self, Address},
    session::{self, Backoff},
};

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
    pub session_timeout: Duration,
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
    #[error("{path}: {reason}")]
    Refused { path: String, reason: ClientError },
}

/// Holds the registration until `stop`. `registered` follows whether the znode is known to stand.
pub async fn hold(
    registration: Registration,
    registered: watch::Sender<bool>,
    stop: CancellationToken,
) -> Result<(), Error> {
    let holder = Holder::new(registration)?;
    let mut backoff = Backoff::default();
    loop {
        let opened = tokio::select! {
            () = stop.cancelled() => return Ok(()),
            opened = async { sleep(backoff.next()).await; holder.open().await } => opened,
        };
        let client = match opened {
            Ok(client) => client,
            Err(reason) => {
                warn!(connect = %holder.registration.connect, %reason, "no connection to ZooKeeper; trying on");
                continue;
            }
        };
        let held = tokio::select! {
            () = stop.cancelled() => Ok(()),
            held = holder.hold(&client, &registered, &mut backoff) => held,
        };
        registered.send_replace(false);
        if held.is_err() || stop.is_cancelled() {
            // Closing the session removes the znode, and never a successor's of the same name.
            if !session::close(client).await {
                warn!(path = %holder.path, "ZooKeeper did not confirm the end of the session; the znode goes when it expires");
            }
            return held;
        }
    }
}

struct Holder {
    registration: Registration,
    address: Address,
    /// From the ensemble's own root on, through the chroot.
    parent: String,
    path: String,
}

impl Holder {
    fn new(registration: Registration) -> Result<Self, Error> {
        let address = connect_string::parse(&registration.connect).map_err(Error::Connect)?;
        check_root(&registration.root).map_err(Error::Root)?;
        for (what, name) in [("service", &registration.service), ("id", &registration.id)] {
            connect_string::check_name(name).map_err(|reason| Error::Name {
                what,
                name: name.clone(),
                reason,
            })?;
        }
        let root = registration.root.trim_end_matches('/');
        let parent = format!("{}{root}/{}", address.chroot, registration.service);
        Ok(Self {
            path: format!("{parent}/{}", registration.id),
            parent,
            address,
            registration,
        })
    }

    /// A client that sees the ensemble's own root, since a chroot may have to be created too.
    async fn open(&self) -> Result<Client, String> {
        let Registration {
            connect,
            session_timeout,
            ..
        } = &self.registration;
        let client = session::open(connect, &self.address, *session_timeout).await?;
        Ok(client.chroot("/").unwrap_or_else(|client| client))
    }

    /// Registers, and returns when the session is over.
    async fn hold(
        &self,
        client: &Client,
        registered: &watch::Sender<bool>,
        backoff: &mut Backoff,
    ) -> Result<(), Error> {
        let mut state = client.state_watcher();
        while !client.state().is_terminated() {
            match self.register(client).await {
                Ok(()) => {
                    backoff.reset();
                    registered.send_replace(true);
                    info!(path = %self.path, session = %client.session_id(), "registered");
                    break;
                }
                Err(error) if is_final(&error) => return Err(error),
                Err(error) => {
                    warn!(path = %self.path, %error, "not registered; trying on");
                    sleep(backoff.next()).await;
                }
            }
        }
        let mut now = state.state();
        while !now.is_terminated() {
            now = state.changed().await;
        }
        warn!(path = %self.path, state = %now, "the session is over; registering again");
        debug_assert_ne!(now, SessionState::SyncConnected);
        Ok(())
    }

    async fn register(&self, client: &Client) -> Result<(), Error> {
        let refused = |reason| Error::Refused {
            path: self.path.clone(),
            reason,
        };
        let ephemeral = CreateMode::Ephemeral.with_acls(Acls::anyone_all());
        let persistent = CreateMode::Persistent.with_acls(Acls::anyone_all());
        let data = &self.registration.data;
        match client.create(&self.path, data, &ephemeral).await {
            Ok(_) => Ok(()),
            Err(ClientError::NoNode) => {
                (client.mkdir(&self.parent, &persistent).await).map_err(refused)?;
                let created = client.create(&self.path, data, &ephemeral).await;
                created.map(|_| ()).map_err(refused)
            }
            Err(ClientError::NodeExists) => self.replace(client).await,
            Err(error) => Err(refused(error)),
        }
    }

    /// Takes the place of a predecessor whose session did not end yet, in one transaction.
    async fn replace(&self, client: &Client) -> Result<(), Error> {
        let refused = |reason| Error::Refused {
            path: self.path.clone(),
            reason,
        };
        let Some(stat) = client.check_stat(&self.path).await.map_err(refused)? else {
            return Err(refused(ClientError::NoNode));
        };
        if stat.ephemeral_owner == 0 {
            let path = self.path.clone();
            return Err(Error::Occupied { path });
        }
        let ephemeral = CreateMode::Ephemeral.with_acls(Acls::anyone_all());
        let mut writer = client.new_multi_writer();
        (writer.add_delete(&self.path, Some(stat.version)))
            .and_then(|()| writer.add_create(&self.path, &self.registration.data, &ephemeral))
            .map_err(refused)?;
        match writer.commit().await {
            Ok(_) => Ok(()),
            Err(error) => Err(refused(error.into())),
        }
    }
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
