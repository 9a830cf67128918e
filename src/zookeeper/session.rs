//! Opening a session and closing it for good.
//!
//! The client library says no more than "no hosts" when it cannot connect, so a failed attempt is
//! followed by a look at each server that tells an operator which name or address is at fault.

use std::time::Duration;

use tokio::{
    net::{TcpStream, lookup_host},
    time::{Instant, timeout},
};
use zookeeper_client::{Client, Error, SessionState};

use super::connect_string::Address;

/// How long a failed attempt is looked into, for each server.
const DIAGNOSIS: Duration = Duration::from_secs(1);
/// How long the ensemble gets to confirm that a session is closed.
const CLOSE: Duration = Duration::from_secs(3);
/// The same where there is no connection: it may return, but nobody should have to wait for it.
const CLOSE_BLINDLY: Duration = Duration::from_secs(1);
/// How often the same trouble is said again in the log.
const HINT: Duration = Duration::from_secs(30);

/// One attempt at each server. `Err` says for each why it did not work.
pub(super) async fn open(
    connect: &str,
    address: &Address,
    session_timeout: Duration,
) -> Result<Client, String> {
    let servers = u32::try_from(address.servers.len()).unwrap_or(u32::MAX);
    let patience = session_timeout.saturating_mul(servers) + Duration::from_secs(1);
    let attempt = Client::connector()
        .with_session_timeout(session_timeout)
        .with_fail_eagerly()
        .connect(connect);
    match timeout(patience, attempt).await {
        Ok(Ok(client)) => Ok(client),
        Ok(Err(Error::NoHosts | Error::Timeout)) | Err(_) => Err(diagnose(address).await),
        Ok(Err(error)) => Err(error.to_string()),
    }
}

async fn diagnose(address: &Address) -> String {
    let findings = address.servers.iter().map(|(host, port)| async move {
        match timeout(DIAGNOSIS, look_at(host, *port)).await {
            Ok(finding) => finding,
            Err(_) => format!("{host}:{port} does not answer"),
        }
    });
    futures_util::future::join_all(findings).await.join("; ")
}

async fn look_at(host: &str, port: u16) -> String {
    let Ok(mut found) = lookup_host((host, port)).await else {
        return format!("the host name {host} does not resolve");
    };
    let Some(server) = found.next() else {
        return format!("the host name {host} has no address");
    };
    match TcpStream::connect(server).await {
        Ok(_) => format!("{host}:{port} accepts connections but opens no session"),
        Err(error) => format!("{host}:{port}: {error}"),
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

/// Waits that grow from attempt to attempt, up to two seconds.
#[derive(Debug, Default)]
pub(super) struct Backoff {
    failures: u32,
}

impl Backoff {
    pub fn reset(&mut self) {
        self.failures = 0;
    }

    /// None before the first attempt, then 100 ms, 200 ms and so on.
    pub fn next(&mut self) -> Duration {
        let wait = match self.failures {
            0 => Duration::ZERO,
            n => Duration::from_millis(100 << (n - 1).min(5)).min(Duration::from_secs(2)),
        };
        self.failures = self.failures.saturating_add(1);
        wait
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
}
