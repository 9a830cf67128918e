//! Where an instance is reached: typed as an IP or as a host's name, registered as an IP.
//!
//! A name is looked up once, when the command starts, as the machine itself looks it up: what a
//! name means later, or on another machine, is not ours to know. Invariant: what comes out passes
//! the check that the control plane makes when it reads the znode.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, anyhow};
use tokio::net::lookup_host;

use crate::{
    config::value,
    registry::{format::connectable, reason::Reason},
};

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    Known(SocketAddr),
    Name { host: String, port: u16 },
}

impl Address {
    pub fn parse(text: &str) -> Result<Self, String> {
        let Ok(address) = text.parse::<SocketAddr>() else {
            let (host, port) = value::host_port(text, 8080)?;
            return named(host, port);
        };
        if address.port() == 0 {
            return Err(format!(
                "`{text}` has port 0, which nobody can reach; write the real one"
            ));
        }
        reachable(address).map(Self::Known)
    }

    /// The IP that a name has now. Problems are told by flag, as those of the check are.
    pub async fn resolve(self) -> anyhow::Result<SocketAddr> {
        let (host, port) = match self {
            Self::Known(address) => return Ok(address),
            Self::Name { host, port } => (host, port),
        };
        let remedy = format!("correct the name, or write an IP, as in `10.0.0.7:{port}`");
        let found = lookup_host((host.as_str(), port))
            .await
            .with_context(|| format!("--address: cannot look up `{host}`; {remedy}"))?;
        let address = preferred(found)
            .ok_or_else(|| anyhow!("--address: the host `{host}` has no IP; {remedy}"))?;
        let address =
            reachable(address).map_err(|why| anyhow!("--address: the host `{host}`: {why}"))?;
        if address.ip().is_loopback() {
            tracing::warn!(
                %host, %address,
                "the name leads to this machine alone; write its IP if clients run elsewhere"
            );
        } else {
            tracing::info!(%host, %address, "looked up");
        }
        Ok(address)
    }
}

/// A resolver would take numbers for an IP in one of its older notations.
fn named(host: String, port: u16) -> Result<Address, String> {
    let last = host.rsplit('.').next().unwrap_or_default();
    if !last.is_empty() && last.chars().all(|c| c.is_ascii_digit()) {
        return Err(format!(
            "`{host}` is no IP; write four numbers from 0 to 255, as in `10.0.0.7:{port}`"
        ));
    }
    Ok(Address::Name { host, port })
}

/// IPv4 first: it is what a fleet of both can reach in any case.
fn preferred(found: impl Iterator<Item = SocketAddr>) -> Option<SocketAddr> {
    let found: Vec<_> = found.collect();
    let ipv4 = found.iter().find(|address| address.ip().is_ipv4());
    ipv4.or_else(|| found.first()).copied()
}

fn reachable(address: SocketAddr) -> Result<SocketAddr, String> {
    let ip: IpAddr = address.ip().to_canonical();
    let ip = connectable(ip, &ip.to_string()).map_err(Reason::into_string)?;
    Ok(SocketAddr::new(ip, address.port()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn an_ip_is_known_at_once() {
        for (text, expected) in [
            ("10.0.0.7:8080", "10.0.0.7:8080"),
            ("[fd00::7]:80", "[fd00::7]:80"),
            ("[::ffff:10.0.0.7]:80", "10.0.0.7:80"),
        ] {
            assert_eq!(Address::parse(text), Ok(Address::Known(known(expected))));
        }
    }

    #[test]
    fn an_address_that_nobody_reaches_is_refused() {
        for text in [
            "10.0.0.7",
            "10.0.0.7:0",
            "orders-7:0",
            "0.0.0.0:80",
            "[::]:80",
            "224.0.0.1:80",
            "[ff02::1]:80",
            "255.255.255.255:80",
            "10.0.0:80",
            "10.0.0.256:80",
            "a b:80",
            "",
        ] {
            assert!(Address::parse(text).is_err(), "{text}");
        }
    }

    #[tokio::test]
    async fn a_name_is_looked_up() {
        let address = Address::parse("localhost:80").unwrap();
        assert!(matches!(address, Address::Name { .. }));
        assert!(address.resolve().await.unwrap().ip().is_loopback());
    }

    #[tokio::test]
    async fn a_name_without_an_ip_is_told_with_the_remedy() {
        // An empty label, so that no name server is asked.
        let address = Address::parse("no..host:80").unwrap();
        let error = format!("{:#}", address.resolve().await.unwrap_err());
        assert!(
            error.starts_with("--address: cannot look up `no..host`; correct the name"),
            "{error}"
        );
        assert!(error.contains("`10.0.0.7:80`"), "{error}");
    }

    #[test]
    fn ipv4_is_preferred() {
        let both = [known("[fd00::7]:80"), known("10.0.0.7:80")];
        assert_eq!(preferred(both.into_iter()), Some(both[1]));
        assert_eq!(preferred(both.into_iter().take(1)), Some(both[0]));
        assert_eq!(preferred(std::iter::empty()), None);
    }
}
