//! `register`: holds an ephemeral znode for an instance, alone or beside the program that serves it.
//!
//! The program starts first and is registered then; at the end it is deregistered first and
//! stopped then, so that nothing is sent to a program that is gone. Its exit status becomes ours.

mod address;
mod child;
mod security;

use std::{ffi::OsString, net::SocketAddr, pin::pin, process::ExitCode, time::Duration};

use anyhow::anyhow;
use serde_json::{Map, Value, json};
use tokio::{
    sync::{mpsc, watch},
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use self::{address::Address, child::Child, security::SecurityArgs};
use super::{Logs, flags::Flags};
use crate::{
    app,
    config::{self, Problems, value},
    model::Weight,
    registry::{Batch, Event, FormatChoice, Index, Stat, format::Znode, name, reason::Reason},
    shutdown::Signals,
    zookeeper::{
        Security,
        register::{Registration, hold},
    },
};

const EXAMPLES: &str = "\
The znode is ROOT/SERVICE/IP:PORT. It goes when this process ends. After a lost session it is created
again with the data that it had last: a weight that somebody else wrote into it stays. With a COMMAND,
the command is started, registered while it runs, deregistered before it is stopped with SIGTERM
(SIGKILL after 10 s), and its exit status is passed on. SIGKILL (kill -9) of this process itself leaves
COMMAND running; its znode goes when the session expires.

Examples:
  meshkeeper register --zookeeper 127.0.0.1:2181 --service orders --address 10.0.0.7:8080
  meshkeeper register --zookeeper zk-1:2281 --service orders --address 10.0.0.7:8080 \\
      --tls-ca ca.pem --digest-user orders --digest-password-file secret
  meshkeeper register --zookeeper zk-1:2181,zk-2:2181 --service orders --address 10.0.0.7:8080 \\
      --weight 30 --zone a --meta version=v2 -- ./orders --port 8080";

/// How long the ensemble may take to remove the znode; the session expires anyway.
const DEREGISTER: Duration = Duration::from_secs(10);

/// Register an instance in ZooKeeper and hold it, while a command runs if one is given
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The ZooKeeper ensemble: HOST:PORT[,HOST:PORT…][/CHROOT]
    #[arg(long, value_name = "CONNECT")]
    zookeeper: String,

    /// The service's name
    #[arg(long, value_name = "NAME")]
    service: String,

    /// Where clients reach the instance: an IP, or a name that is looked up once, at the start
    #[arg(long, value_name = "HOST:PORT")]
    address: String,

    /// The share of requests, relative to other instances: 0 (drain) to 10000 [default: 100]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    weight: Option<String>,

    /// The zone that the instance runs in
    #[arg(long, value_name = "ZONE")]
    zone: Option<String>,

    /// Metadata of the instance; may be given several times
    #[arg(long, value_name = "KEY=VALUE")]
    meta: Vec<String>,

    /// The znode that services register below
    #[arg(long, value_name = "PATH", default_value = "/services")]
    root: String,

    #[command(flatten)]
    security: SecurityArgs,

    /// How long the ensemble waits for a lost registration to return
    #[arg(long, value_name = "DURATION", default_value = "10s")]
    session_timeout: String,

    #[command(flatten)]
    logs: Logs,

    /// The program that serves the instance, with its arguments
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

impl Args {
    pub fn run(self) -> anyhow::Result<ExitCode> {
        let checked = self.checked()?;
        self.logs.begin()?;
        super::block_on(async {
            let registration = checked.resolved().await?;
            let signals = signals()?;
            let child = match self.command.split_first() {
                Some((program, arguments)) => Some(Child::start(program, arguments)?),
                None => None,
            };
            supervise(|stop| announce(registration, stop), child, signals).await
        })
    }

    /// Every flag is checked before any problem is told.
    fn checked(&self) -> Result<Checked, Problems> {
        let mut flags = Flags::default();
        let connect = flags.check("--zookeeper", &self.zookeeper, value::connect);
        let service = flags.check("--service", &self.service, service);
        let address = flags.check("--address", &self.address, Address::parse);
        let root = flags.check("--root", &self.root, value::root);
        let session_timeout = flags.check(
            "--session-timeout",
            &self.session_timeout,
            value::session_timeout,
        );
        let data = self.optional(&mut flags);
        let security = self.security.checked(&self.zookeeper, &mut flags);
        let made = || {
            Some(Checked {
                connect: connect?,
                root: root?,
                service: service?,
                address: address?,
                data,
                session_timeout: session_timeout?,
                security: security?,
            })
        };
        let made = made();
        flags.finish(made)
    }

    /// The part of the payload that may be left out; what was not given has a default elsewhere.
    fn optional(&self, flags: &mut Flags) -> Map<String, Value> {
        let mut data = Map::new();
        if let Some(weight) = flags.check_given("--weight", self.weight.as_ref(), weight) {
            data.insert("weight".into(), json!(weight));
        }
        if let Some(zone) = flags.check_given("--zone", self.zone.as_ref(), zone) {
            data.insert("zone".into(), json!(zone));
        }
        let mut metadata = Map::new();
        for text in &self.meta {
            let Some((key, value)) = flags.check("--meta", text, pair) else {
                continue;
            };
            if metadata.contains_key(&key) {
                flags.refuse("--meta", format!("`{key}` stands twice; give it once"));
            }
            metadata.insert(key, json!(value));
        }
        if !metadata.is_empty() {
            data.insert("metadata".into(), Value::Object(metadata));
        }
        data
    }
}

/// What the flags say.
#[derive(Debug)]
struct Checked {
    connect: String,
    root: String,
    service: String,
    address: Address,
    data: Map<String, Value>,
    session_timeout: Duration,
    security: Security,
}

impl Checked {
    async fn resolved(self) -> anyhow::Result<Registration> {
        let address = self.address.resolve().await?;
        let registration = Registration {
            connect: self.connect,
            root: self.root,
            service: self.service,
            id: address.to_string(),
            data: payload(address, self.data).into_bytes(),
            check,
            session_timeout: self.session_timeout,
            security: self.security,
        };
        let mut flags = Flags::default();
        let read = readable(&registration);
        let read = read.map_err(|why| {
            flags.refuse("register", format!("every server would reject this: {why}"));
        });
        Ok(flags.finish(read.ok().map(|()| registration))?)
    }
}

/// Whether a server reads the registration as an instance, by the server's own rules.
fn readable(registration: &Registration) -> Result<(), String> {
    let service = &registration.service;
    let of = config::Registry {
        root: registration.root.clone(),
        ..config::Registry::default()
    };
    let mut index = Index::new(app::registry_config(&of));
    let put = |path: String, data: &[u8]| Event::Put {
        path: path.into(),
        data: data.to_vec().into(),
        stat: Stat::default(),
    };
    let events = vec![
        put(service.clone(), b""),
        put(format!("{service}/{}", registration.id), &registration.data),
    ];
    index.apply(
        Batch {
            events,
            complete: true,
            ..Batch::default()
        },
        0,
    );
    let view = index.view();
    match view.rejected.values().next() {
        Some(rejected) => Err(rejected.reason.clone()),
        None if view.services.is_empty() => Err("it is no instance of a service".to_owned()),
        None => Ok(()),
    }
}

/// Whether a server would take the data.
fn check(name: &str, data: &[u8]) -> Result<(), String> {
    let znode = Znode::new(name, data, Stat::default());
    let decoded = FormatChoice::Auto.decode(&znode);
    decoded.map(drop).map_err(|rejected| rejected.reason)
}

/// The simple JSON form.
fn payload(address: SocketAddr, mut data: Map<String, Value>) -> String {
    data.insert("address".into(), json!(address.ip()));
    data.insert("port".into(), json!(address.port()));
    Value::Object(data).to_string()
}

/// Holds the registration, which logs by itself when it stands.
async fn announce(registration: Registration, stop: CancellationToken) -> anyhow::Result<()> {
    let (registered, _) = watch::channel(false);
    Ok(hold(registration, registered, stop).await?)
}

/// Holds until a signal comes or the child ends, then takes both down in order.
async fn supervise<H>(
    hold: impl FnOnce(CancellationToken) -> H,
    mut child: Option<Child>,
    mut signals: mpsc::Receiver<&'static str>,
) -> anyhow::Result<ExitCode>
where
    H: Future<Output = anyhow::Result<()>>,
{
    let stop = CancellationToken::new();
    let mut registration = pin!(hold(stop.clone()));
    let mut failed = None;
    tokio::select! {
        Some(signal) = signals.recv() => tracing::info!(signal, "stopping"),
        () = ended(&mut child) => {}
        result = &mut registration => {
            failed = Some(result.err().unwrap_or_else(|| anyhow!("the registration ended")));
        }
    }
    stop.cancel();
    let hurry = failed.is_none() && !deregistered(registration, &mut signals).await;
    let status = match child {
        Some(child) => child.terminate(hurry, &mut signals).await?,
        None => ExitCode::SUCCESS,
    };
    failed.map_or(Ok(status), Err)
}

/// Whether nobody grew impatient meanwhile.
async fn deregistered(
    registration: impl Future<Output = anyhow::Result<()>>,
    signals: &mut mpsc::Receiver<&'static str>,
) -> bool {
    let (result, patient) = tokio::select! {
        result = timeout(DEREGISTER, registration) => {
            (result.unwrap_or_else(|_| Err(anyhow!("no answer within {DEREGISTER:?}"))), true)
        }
        Some(signal) = signals.recv() => (Err(anyhow!("interrupted by a second {signal}")), false),
    };
    if let Err(error) = result {
        tracing::warn!(%error, "not deregistered; the znode goes when its session expires");
    }
    patient
}

async fn ended(child: &mut Option<Child>) {
    match child {
        Some(child) => child.ended().await,
        None => std::future::pending().await,
    }
}

/// Signals from here on, as they come.
fn signals() -> anyhow::Result<mpsc::Receiver<&'static str>> {
    let mut signals = Signals::catch()?;
    let (sender, receiver) = mpsc::channel(2);
    tokio::spawn(async move { while sender.send(signals.next().await).await.is_ok() {} });
    Ok(receiver)
}

/// A name that the control plane takes, and thereby one that a znode can have.
fn service(text: &str) -> Result<String, String> {
    if text.contains('/') {
        return Err(format!(
            "`{}` holds `/`; write the name of one znode",
            text.escape_debug()
        ));
    }
    name::host(text).map_err(Reason::into_string)?;
    Ok(text.to_owned())
}

fn weight(text: &str) -> Result<Weight, String> {
    let weight = text.parse().ok().and_then(Weight::new);
    weight.ok_or_else(|| {
        let shown = text.escape_debug();
        format!("`{shown}` is no weight; write a whole number from 0 to 10000")
    })
}

fn zone(text: &str) -> Result<String, String> {
    if text.trim().is_empty() {
        return Err("it is empty; write the zone's name, or leave it out".to_owned());
    }
    Ok(text.to_owned())
}

fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err(format!(
            "`{}` is no pair; write it as KEY=VALUE",
            text.escape_debug()
        )),
    }
}

#[cfg(test)]
mod tests;
