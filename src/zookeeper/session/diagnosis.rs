//! What is wrong with each server of an ensemble that gave no session, in words for its operator.
//!
//! It refuses to know what is done about it. The look is bounded in time and opens no session.

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

/// As an answer to "who are you": a server that speaks no TLS, or that refuses our certificate, says so.
const HELLO: &[u8] = b"ruok";

pub(super) async fn of(address: &Address, tls: Option<Arc<ClientConfig>>) -> String {
    let findings = address.servers.iter().map(|(host, port)| {
        let tls = tls.clone();
        async move { look_at(host, *port, tls).await }
    });
    futures_util::future::join_all(findings).await.join("; ")
}

async fn look_at(host: &str, port: u16, tls: Option<Arc<ClientConfig>>) -> String {
    let server = format!("{host}:{port}");
    let Ok(found) = timeout(STEP, lookup_host((host, port))).await else {
        return format!("the host name {host} is not resolved in time");
    };
    let Ok(mut found) = found else {
        return format!("the host name {host} does not resolve");
    };
    let Some(address) = found.next() else {
        return format!("the host name {host} has no address");
    };
    match timeout(STEP, tokio::net::TcpStream::connect(address)).await {
        Err(_) => return format!("{server} does not answer"),
        Ok(Err(error)) => return format!("{server}: {error}"),
        Ok(Ok(_)) => {}
    }
    let Some(tls) = tls else {
        return format!(
            "{server} accepts connections but opens no session; if it is its TLS port, set tls.caFile"
        );
    };
    let name = host.to_owned();
    let look = spawn_blocking(move || shake_hands(&name, address, tls)).await;
    match look {
        Ok(Ok(())) => format!("{server} speaks TLS but opens no session"),
        Ok(Err(error)) => format!("{server}: {}", explained(&error)),
        Err(error) => format!("{server}: {error}"),
    }
}

/// Blocking, each step at most [`STEP`].
fn shake_hands(host: &str, address: SocketAddr, tls: Arc<ClientConfig>) -> io::Result<()> {
    let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
    let connection = ClientConnection::new(tls, name).map_err(io::Error::other)?;
    let stream = TcpStream::connect_timeout(&address, STEP)?;
    stream.set_read_timeout(Some(STEP))?;
    stream.set_write_timeout(Some(STEP))?;
    let mut stream = StreamOwned::new(connection, stream);
    stream.write_all(HELLO)?;
    stream.flush()?;
    // Whether our certificate is taken shows only now in TLS 1.3.
    match stream.read(&mut [0; 64]) {
        Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
        Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(error),
        _ => Ok(()),
    }
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
        (None, io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
            "it does not answer a TLS handshake: use its TLS port (secureClientPort), or leave tls out".to_owned()
        }
        (
            None,
            io::ErrorKind::UnexpectedEof
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::BrokenPipe,
        ) => format!(
            "it hangs up on TLS ({told}): use its TLS port (secureClientPort), or check tls.certFile if this is the one"
        ),
        (None, _) => format!("TLS: {told}"),
    }
}
