//! Probes: whether anything listens at the addresses of held instances.
//!
//! ```text
//! addresses wanted ──▶ Schedule (what is due, what is known) ──▶ connections, some at once ──▶ refused addresses
//! ```
//!
//! A probe is a plain TCP connection that is closed as soon as it stands; no byte is sent. An address refuses
//! if it answers with a TCP reset. Everything else says nothing about the program there: no answer, as in a cut
//! network or from a listener whose backlog is full; an ICMP error, which a firewall sends. Linux reports ICMP
//! "port unreachable" as `ECONNREFUSED` as well, so the socket's error queue is asked which of them it was.
//! Invariant: as many probes run at once as the caller allows, each with two file descriptors and for
//! [`PATIENCE`] at most.
//! Source: ip(7), `IP_RECVERR`.

mod metrics;
mod schedule;

use std::{
    convert::Infallible,
    io,
    net::SocketAddr,
    os::fd::{AsFd, AsRawFd},
    time::{Duration, Instant},
};

use futures_util::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesUnordered};
use imbl::OrdSet;
use nix::sys::socket::{MsgFlags, recv, setsockopt, sockopt::Ipv6RecvErr};
use tokio::{
    net::TcpSocket,
    sync::{mpsc, watch},
    time::{sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::info;

pub use self::{
    metrics::Metrics,
    schedule::{Answer, Schedule},
};

/// Time for two SYN packets: the second one leaves after a second.
const PATIENCE: Duration = Duration::from_secs(2);
/// Refusals within this time are reported together: each report renders the services anew.
const GATHER: Duration = Duration::from_millis(200);
/// Time between two log lines.
const HINT: Duration = Duration::from_secs(10);

/// Probes the wanted addresses, `at_once` of them, until `stop`, and reports those that refuse.
pub async fn run(
    at_once: usize,
    metrics: Metrics,
    wanted: watch::Receiver<OrdSet<SocketAddr>>,
    refused: mpsc::Sender<Vec<SocketAddr>>,
    stop: CancellationToken,
) -> Result<(), Infallible> {
    let prober = Prober {
        schedule: Schedule::new(at_once),
        probe: |address| probe(address).boxed(),
        metrics,
        refused: Vec::new(),
        report_at: None,
        unlogged: 0,
        log_at: None,
    };
    prober.run(wanted, refused, stop).await;
    Ok(())
}

struct Prober<P> {
    schedule: Schedule,
    probe: P,
    metrics: Metrics,
    /// Not reported yet.
    refused: Vec<SocketAddr>,
    report_at: Option<Instant>,
    /// How many were reported since the last log line.
    unlogged: usize,
    log_at: Option<Instant>,
}

type Running = FuturesUnordered<BoxFuture<'static, (SocketAddr, Answer)>>;

impl<P: Fn(SocketAddr) -> BoxFuture<'static, Answer>> Prober<P> {
    async fn run(
        mut self,
        mut wanted: watch::Receiver<OrdSet<SocketAddr>>,
        reports: mpsc::Sender<Vec<SocketAddr>>,
        stop: CancellationToken,
    ) {
        let mut running = Running::new();
        let mut open = true;
        self.schedule
            .want(&wanted.borrow_and_update(), Instant::now());
        loop {
            self.start(&mut running);
            let now = Instant::now();
            tokio::select! {
                () = stop.cancelled() => return,
                more = wanted.changed(), if open => {
                    open = more.is_ok();
                    self.schedule.want(&wanted.borrow_and_update(), Instant::now());
                }
                Some((address, answer)) = running.next(), if !running.is_empty() => {
                    self.answered(address, answer, Instant::now());
                }
                () = at(self.schedule.next(now)) => {}
                () = at(self.report_at) => {
                    if !self.report(&reports).await {
                        return;
                    }
                }
                () = at(self.log_at.filter(|_| self.unlogged > 0)) => self.log(),
            }
        }
    }

    fn start(&mut self, running: &mut Running) {
        while let Some(address) = self.schedule.due(Instant::now()) {
            let answer = (self.probe)(address);
            running.push(answer.map(move |answer| (address, answer)).boxed());
        }
    }

    fn answered(&mut self, address: SocketAddr, answer: Answer, now: Instant) {
        self.metrics.count(answer);
        if self.schedule.answered(address, answer, now) {
            self.refused.push(address);
            self.report_at.get_or_insert(now + GATHER);
        }
    }

    /// Whether there is still a receiver.
    async fn report(&mut self, reports: &mpsc::Sender<Vec<SocketAddr>>) -> bool {
        let refused = std::mem::take(&mut self.refused);
        self.report_at = None;
        self.unlogged += refused.len();
        if self.log_at.is_none_or(|at| at <= Instant::now()) {
            self.log();
        }
        reports.send(refused).await.is_ok()
    }

    fn log(&mut self) {
        let addresses = std::mem::take(&mut self.unlogged);
        self.log_at = Some(Instant::now() + HINT);
        info!(
            addresses,
            "nothing listens at addresses of held instances: they refuse connections; the instances are removed"
        );
    }
}

async fn at(due: Option<Instant>) {
    match due {
        Some(due) => sleep_until(due.into()).await,
        None => std::future::pending().await,
    }
}

async fn probe(address: SocketAddr) -> Answer {
    timeout(PATIENCE, connect(address))
        .await
        .unwrap_or(Ok(Answer::None))
        .unwrap_or(Answer::None)
}

/// An error means that this machine could not probe.
async fn connect(address: SocketAddr) -> io::Result<Answer> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    if address.is_ipv6() {
        // IPv4 sockets queue ICMP errors of a connection attempt unasked.
        setsockopt(&socket, Ipv6RecvErr, &true)?;
    }
    // `connect` takes the socket; its error queue is read afterwards.
    let errors = socket.as_fd().try_clone_to_owned()?;
    match socket.connect(address).await {
        Ok(_) => Ok(Answer::Accepted),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            let is_icmp = recv(errors.as_raw_fd(), &mut [0; 64], MsgFlags::MSG_ERRQUEUE).is_ok();
            Ok(if is_icmp {
                Answer::None
            } else {
                Answer::Refused
            })
        }
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests;
