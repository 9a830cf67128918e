//! `register`: holds an ephemeral znode for an instance, alone or beside the program that serves it.
//!
//! The program starts first and is registered then; at the end it is deregistered first and
//! stopped then, so that nothing is sent to a program that is gone. Its exit status becomes ours.

mod child;

use std::{
    collections::BTreeMap, ffi::OsString, net::SocketAddr, pin::pin, process::ExitCode,
    time::Duration,
};

use anyhow::anyhow;
use serde_json::{Map, Value, json};
use tokio::{
    sync::{mpsc, watch},
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use self::child::Child;
use super::{Logs, Usage};
use crate::{
    config::value,
    model::Weight,
    shutdown::Signals,
    zookeeper::register::{Registration, hold},
};

const EXAMPLES: &str = "\
The znode is ROOT/SERVICE/IP:PORT. It goes when this process ends; after a lost session it is written
again. With a COMMAND, the command is started, registered while it runs, deregistered before it is
stopped with SIGTERM (SIGKILL after 10 s), and its exit status is passed on.

Examples:
  meshkeeper register --zookeeper 127.0.0.1:2181 --service orders --address 10.0.0.7:8080
  meshkeeper register --zookeeper zk-1:2181,zk-2:2181 --service orders --address 10.0.0.7:8080 \\
      --weight 30 --zone a --meta version=v2 -- ./orders --port 8080";

/// How long the ensemble may take to remove the znode; the session expires anyway.
const DEREGISTER: Duration = Duration::from_secs(10);

/// Register an instance in ZooKeeper and hold it, while a command runs if one is given
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The ZooKeeper ensemble: HOST:PORT[,HOST:PORT…][/CHROOT]
    #[arg(long, value_name = "CONNECT", value_parser = value::connect)]
    zookeeper: String,

    /// The service's name
    #[arg(long, value_name = "NAME", value_parser = service)]
    service: String,

    /// The address that clients reach the instance at
    #[arg(long, value_name = "IP:PORT", value_parser = address)]
    address: SocketAddr,

    /// The share of requests, relative to other instances: 0 (drain) to 10000 [default: 100]
    #[arg(long, value_name = "N", value_parser = weight)]
    weight: Option<Weight>,

    /// The zone that the instance runs in
    #[arg(long, value_name = "ZONE", value_parser = zone)]
    zone: Option<String>,

    /// Metadata of the instance; may be given several times
    #[arg(long, value_name = "KEY=VALUE", value_parser = pair)]
    meta: Vec<(String, String)>,

    /// The znode that services register below
    #[arg(long, value_name = "PATH", value_parser = value::root, default_value = "/services")]
    root: String,

    /// How long the ensemble waits for a lost registration to return
    #[arg(long, value_name = "DURATION", value_parser = value::session_timeout, default_value = "10s")]
    session_timeout: Duration,

    #[command(flatten)]
    logs: Logs,

    /// The program that serves the instance, with its arguments
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

impl Args {
    pub fn run(self) -> anyhow::Result<ExitCode> {
        let registration = self.registration()?;
        self.logs.begin()?;
        super::block_on(async {
            let signals = signals()?;
            let child = match self.command.split_first() {
                Some((program, arguments)) => Some(Child::start(program, arguments)?),
                None => None,
            };
            supervise(|stop| announce(registration, stop), child, signals).await
        })
    }

    fn registration(&self) -> Result<Registration, Usage> {
        Ok(Registration {
            connect: self.zookeeper.clone(),
            root: self.root.clone(),
            service: self.service.clone(),
            id: self.address.to_string(),
            data: self.payload()?.to_string().into_bytes(),
            session_timeout: self.session_timeout,
        })
    }

    /// The simple JSON form; what was not given is left to its default.
    fn payload(&self) -> Result<Value, Usage> {
        let mut payload = Map::new();
        payload.insert("address".into(), json!(self.address.ip()));
        payload.insert("port".into(), json!(self.address.port()));
        if let Some(weight) = self.weight {
            payload.insert("weight".into(), json!(weight));
        }
        if let Some(zone) = &self.zone {
            payload.insert("zone".into(), json!(zone));
        }
        let mut metadata = BTreeMap::new();
        for (key, value) in &self.meta {
            if metadata.insert(key, value).is_some() {
                return Err(Usage(format!("--meta has `{key}` twice; give it once")));
            }
        }
        if !metadata.is_empty() {
            payload.insert("metadata".into(), json!(metadata));
        }
        Ok(Value::Object(payload))
    }
}

/// Holds the registration and says when it stands.
async fn announce(registration: Registration, stop: CancellationToken) -> anyhow::Result<()> {
    let Registration {
        root, service, id, ..
    } = &registration;
    let path = format!("{}/{service}/{id}", root.trim_end_matches('/'));
    let (registered, mut changes) = watch::channel(false);
    let mut held = pin!(hold(registration, registered, stop));
    loop {
        tokio::select! {
            result = &mut held => return result.map_err(Into::into),
            Ok(()) = changes.changed() => {
                if *changes.borrow_and_update() {
                    tracing::info!(%path, "registered");
                } else {
                    tracing::info!(%path, "not registered");
                }
            }
        }
    }
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

/// A znode's name.
fn service(text: &str) -> Result<String, String> {
    if text.is_empty() || text == "." || text == ".." {
        return Err("it is no znode's name; write one as in `orders`".to_owned());
    }
    if text.contains('/') || text.chars().any(char::is_control) {
        return Err(
            "it holds `/` or control characters, which no znode's name can have".to_owned(),
        );
    }
    Ok(text.to_owned())
}

fn address(text: &str) -> Result<SocketAddr, String> {
    let address: SocketAddr = text
        .parse()
        .map_err(|_| "instances register an IP and a port, as in `10.0.0.7:8080`".to_owned())?;
    if address.port() == 0 {
        return Err("port 0 is none that clients can reach; write the real one".to_owned());
    }
    if address.ip().is_unspecified() {
        return Err("clients cannot reach this address; write the machine's own IP".to_owned());
    }
    Ok(address)
}

fn weight(text: &str) -> Result<Weight, String> {
    let weight = text.parse().ok().and_then(Weight::new);
    weight.ok_or_else(|| "it must be a whole number from 0 to 10000".to_owned())
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
        _ => Err("write it as KEY=VALUE".to_owned()),
    }
}

#[cfg(test)]
mod tests;
