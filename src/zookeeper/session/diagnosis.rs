//! Why an ensemble opened no session: what each of its servers says, in words for its operator.
//!
//! A failed attempt says only that it failed, so each server is asked for its state with the
//! four-letter word `srvr`, which servers answer before there is a session. Bounded in time; opens no
//! session.

use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream},
    sync::Arc,
    time::Duration,
};

use rustls::{ClientConfig, ClientConnection, StreamOwned, pki_types::ServerName};
use tokio::{net::lookup_host, task::spawn_blocking, time::timeout};

use crate::zookeeper::connect_string::Address;

/// How long each step of the look at a server may take.
const STEP: Duration = Duration::from_secs(1);
/// A server that has reached a limit of connections closes a new one before it reads from it.
const AT_ONCE: Duration = Duration::from_millis(150);
/// A server knows the word by its four bytes alone.
const WORD: &[u8; 4] = b"srvr";
/// More than any server answers.
const ANSWER: usize = 4096;

/// What is known of one server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Finding {
    server: String,
    state: State,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    /// Nothing that answers as ZooKeeper does; the text says what there is instead.
    Away(String),
    /// It closes connections without reading from them.
    Full,
    /// It runs, and has no quorum yet or any more.
    NotServing,
    /// It lost its quorum, and answers reads.
    ReadOnly,
    /// It serves, and opened no session for us.
    Serving,
    /// A ZooKeeper server that may not say how it is.
    Reserved,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Findings(Vec<Finding>);

impl Findings {
    /// Whether a session that only reads could be had.
    pub fn any_read_only(&self) -> bool {
        self.any(&State::ReadOnly)
    }

    /// Whether a server serves by now, and may do so since a moment ago.
    pub fn any_serving(&self) -> bool {
        self.any(&State::Serving)
    }

    /// Whether a server turned us away to protect itself.
    pub fn any_limit(&self) -> bool {
        self.any(&State::Full) || self.any(&State::Serving)
    }

    fn any(&self, state: &State) -> bool {
        self.0.iter().any(|finding| finding.state == *state)
    }

    pub fn text(&self) -> String {
        let texts: Vec<_> = self.0.iter().map(Finding::text).collect();
        texts.join("; ")
    }
}

impl Finding {
    fn text(&self) -> String {
        let server = &self.server;
        let state = match &self.state {
            State::Away(text) => return text.clone(),
            State::Full => {
                "closes each connection at once: its limit of connections is reached \
                 (maxClientCnxns for one client address, maxCnxns for all), or a proxy before it finds no server"
            }
            State::NotServing => {
                "runs but does not serve: it is starting, or its ensemble has no quorum"
            }
            State::ReadOnly => {
                "is read-only: its ensemble has no quorum, so nothing can be registered"
            }
            State::Serving => {
                "serves but opened no session: it throttles new connections \
                 (zookeeper.connection_throttle_tokens), or it answers too slowly"
            }
            State::Reserved => {
                "accepts connections but opened no session: its ensemble has no quorum, or a limit of connections \
                 is reached (maxClientCnxns, maxCnxns); it says which once 4lw.commands.whitelist has `srvr`"
            }
        };
        format!("{server} {state}")
    }
}

pub(super) async fn of(address: &Address, tls: Option<Arc<ClientConfig>>) -> Findings {
    let findings = address.servers.iter().map(|(host, port)| {
        let tls = tls.clone();
        async move {
            let server = format!("{host}:{port}");
            let state = look_at(host, *port, tls).await;
            Finding { server, state }
        }
    });
    Findings(futures_util::future::join_all(findings).await)
}

async fn look_at(host: &str, port: u16, tls: Option<Arc<ClientConfig>>) -> State {
    let server = format!("{host}:{port}");
    let Ok(found) = timeout(STEP, lookup_host((host, port))).await else {
        return State::Away(format!("the host name {host} is not resolved in time"));
    };
    let Ok(mut found) = found else {
        return State::Away(format!("the host name {host} does not resolve"));
    };
    let Some(address) = found.next() else {
        return State::Away(format!("the host name {host} has no address"));
    };
    let name = host.to_owned();
    let asked = spawn_blocking(move || ask(&name, address, tls)).await;
    match asked {
        Ok(state) => state.unwrap_or_else(|why| State::Away(format!("{server}{why}"))),
        Err(error) => State::Away(format!("{server}: {error}")),
    }
}

/// Blocking, each step at most [`STEP`]. `Err` continues a sentence that begins with the server.
fn ask(host: &str, address: SocketAddr, tls: Option<Arc<ClientConfig>>) -> Result<State, String> {
    let mut stream = match TcpStream::connect_timeout(&address, STEP) {
        Ok(stream) => stream,
        Err(error) if is_closed(&error) => return Ok(State::Full),
        Err(error) if is_time_out(&error) => return Err(" does not answer".to_owned()),
        Err(error) => return Err(format!(": {error}")),
    };
    let _ = stream.set_write_timeout(Some(STEP));
    if hangs_up(&stream) {
        return Ok(State::Full);
    }
    let _ = stream.set_read_timeout(Some(STEP));
    match tls {
        None => {
            let answer = answer(&mut stream);
            understood(&answer.unwrap_or_default()).ok_or_else(|| {
                " accepts connections and does not answer as ZooKeeper does: it is another program, hangs, \
                 or is ZooKeeper's TLS port (then set tls.caFile)"
                    .to_owned()
            })
        }
        Some(tls) => {
            let answer = shake_hands(host, stream, tls);
            let answer = answer.map_err(|error| format!(": {}", explained(&error)))?;
            understood(&answer).ok_or_else(|| " speaks TLS but opens no session".to_owned())
        }
    }
}

fn hangs_up(stream: &TcpStream) -> bool {
    let _ = stream.set_read_timeout(Some(AT_ONCE));
    match stream.peek(&mut [0]) {
        Ok(read) => read == 0,
        Err(error) => !is_time_out(&error),
    }
}

/// The connection was there, and closed before it could be used.
fn is_closed(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::BrokenPipe
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionAborted
    )
}

fn is_time_out(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
    )
}

/// What the server says of itself, up to the end of its answer or of our patience.
fn answer(stream: &mut (impl Read + Write)) -> io::Result<Vec<u8>> {
    stream.write_all(WORD)?;
    stream.flush()?;
    let mut answer = vec![0; ANSWER];
    let mut length = 0;
    loop {
        match stream.read(&mut answer[length..]) {
            Ok(0) => break,
            Ok(read) => length += read,
            Err(_) if length > 0 => break,
            Err(error) => return Err(error),
        }
    }
    answer.truncate(length);
    Ok(answer)
}

fn understood(answer: &[u8]) -> Option<State> {
    let answer = String::from_utf8_lossy(answer);
    [
        ("not currently serving", State::NotServing),
        ("not in the whitelist", State::Reserved),
        ("Mode: read-only", State::ReadOnly),
        ("Mode: ", State::Serving),
    ]
    .into_iter()
    .find_map(|(part, state)| answer.contains(part).then_some(state))
}

fn shake_hands(host: &str, stream: TcpStream, tls: Arc<ClientConfig>) -> io::Result<Vec<u8>> {
    let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
    let connection = ClientConnection::new(tls, name).map_err(io::Error::other)?;
    // Whether our certificate is accepted is known only after the first read in TLS 1.3.
    answer(&mut StreamOwned::new(connection, stream)).and_then(|answer| match answer.len() {
        0 => Err(io::ErrorKind::UnexpectedEof.into()),
        _ => Ok(answer),
    })
}
fn explained(error: &io::Error) -> String {
    let told = error.to_string();
    let remedies = [
        (
            "UnknownIssuer",
            "its certificate is not signed by what tls.caFile holds",
        ),
        (
            "NotValidForName",
            "its certificate does not name the host as the connect string does",
        ),
        ("Expired", "a certificate is past its end"),
        (
            "NotValidYet",
            "a certificate is not valid yet; compare the clocks",
        ),
        (
            "Certificate",
            "it asks for a certificate of ours, or refuses it: check tls.certFile and tls.keyFile",
        ),
        (
            "InvalidMessage",
            "it speaks no TLS: use its TLS port (secureClientPort), or leave tls out",
        ),
    ];
    let remedy = remedies.iter().find(|(part, _)| told.contains(part));
    match (remedy, error.kind()) {
        (Some((_, remedy)), _) => format!("{remedy} ({told})"),
        (None, _) if is_time_out(error) => {
            "it does not answer a TLS handshake: use its TLS port (secureClientPort), or leave tls out".to_owned()
        }
        (
            None,
            io::ErrorKind::UnexpectedEof
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::BrokenPipe,
        ) => format!(
            "it closes the connection during the TLS handshake ({told}): use its TLS port (secureClientPort), or check tls.certFile if this is the one"
        ),
        (None, _) => format!("TLS: {told}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_server_says_of_itself_is_understood() {
        for (answer, state) in [
            (
                "This ZooKeeper instance is not currently serving requests\n",
                Some(State::NotServing),
            ),
            (
                "srvr is not executed because it is not in the whitelist.\n",
                Some(State::Reserved),
            ),
            (
                "Zookeeper version: 3.8.0\nMode: read-only\nNode count: 5\n",
                Some(State::ReadOnly),
            ),
            (
                "Zookeeper version: 3.4.14\nMode: standalone\nNode count: 5\n",
                Some(State::Serving),
            ),
            ("HTTP/1.1 400 Bad Request\r\n", None),
            ("\u{15}\u{3}\u{3}", None),
            ("", None),
        ] {
            assert_eq!(understood(answer.as_bytes()), state, "{answer}");
        }
    }

    #[test]
    fn a_limit_is_named_and_tls_is_not() {
        let text = |state| {
            let server = "zk-1:2181".to_owned();
            Findings(vec![Finding { server, state }]).text()
        };
        for (state, part) in [
            (State::Full, "maxClientCnxns"),
            (State::NotServing, "no quorum"),
            (State::ReadOnly, "no quorum"),
            (State::Serving, "throttles"),
            (State::Reserved, "no quorum"),
        ] {
            let text = text(state);
            assert!(
                text.starts_with("zk-1:2181 ") && text.contains(part),
                "{text}"
            );
            assert!(!text.contains("TLS"), "{text}");
        }
    }
}
