//! Which hosts a request may name.
//!
//! A web page can point a name of its own at this server's address (DNS rebinding); the reader's browser
//! then asks this server for the page's data and lets the page read the answer. Such a request still
//! carries the page's name in its `Host` header. So a request is answered only if every host that it names
//! is one of this server's: a loopback name, an address that this server listens at, or an entry of
//! `admin.hosts`. A request that names no host comes from no browser and is answered (HTTP/1.0 probes).
//! Ports are ignored: a forwarded port differs from the port that is served.

use std::{
    net::{IpAddr, SocketAddr},
    time::Instant,
};

use axum::http::{HeaderMap, StatusCode, Uri, header::HOST};

use super::{api::Refusal, holds::Ends};
use crate::{registry::shape::Glob, xds::lines::Lines};

/// The hosts that requests may name besides loopback names and the connection's own address.
#[derive(Clone, Debug, Default)]
pub struct Hosts {
    /// The address that the server was told to listen at.
    pub bound: Option<IpAddr>,
    /// `admin.hosts`, in lower case.
    pub named: Vec<Glob>,
}

impl Hosts {
    pub fn new(bound: SocketAddr, named: &[String]) -> Self {
        Self {
            bound: Some(bound.ip()),
            named: named.iter().map(Glob::new).collect(),
        }
    }

    /// The first host of a request that is not one of this server's.
    pub fn foreign(&self, ends: Ends, uri: &Uri, headers: &HeaderMap) -> Option<String> {
        let own = ends.own.map(|own| own.ip());
        let named = headers.get_all(HOST).iter();
        let named = named.map(|host| String::from_utf8_lossy(host.as_bytes()).into_owned());
        let mut hosts = named.chain(uri.authority().map(ToString::to_string));
        hosts.find(|host| !self.allows(host, own))
    }

    fn allows(&self, host: &str, own: Option<IpAddr>) -> bool {
        let host = bare(host);
        if is_loopback(&host) {
            return true;
        }
        let address = host.parse::<IpAddr>().ok().map(|ip| ip.to_canonical());
        let listens = |own: Option<IpAddr>| own.map(|own| own.to_canonical()) == address;
        if address.is_some() && (listens(own) || listens(self.bound)) {
            return true;
        }
        let host = address.map_or(host, |ip| ip.to_string());
        self.named.iter().any(|glob| glob.is_like(&host))
    }
}

/// Whether a host, perhaps with its port, can only be this machine.
pub(super) fn is_here(host: &str) -> bool {
    is_loopback(&bare(host))
}

fn is_loopback(bare: &str) -> bool {
    let ip = bare.parse::<IpAddr>();
    bare == "localhost" || ip.is_ok_and(|ip| ip.to_canonical().is_loopback())
}

/// In lower case, without the port, brackets and the trailing dot.
fn bare(host: &str) -> String {
    let host = host.trim();
    let bare = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => match host.rsplit_once(':') {
            Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
            _ => host,
        },
    };
    bare.strip_suffix('.').unwrap_or(bare).to_ascii_lowercase()
}

/// Refuses requests for foreign hosts, with one line a minute in the log.
#[derive(Debug)]
pub(super) struct Gate {
    hosts: Hosts,
    lines: Lines,
}

impl Gate {
    pub fn new(hosts: Hosts) -> Self {
        Self {
            hosts,
            lines: Lines::new(1),
        }
    }

    pub fn check(&self, ends: Ends, uri: &Uri, headers: &HeaderMap) -> Result<(), Refusal> {
        let Some(host) = self.hosts.foreign(ends, uri, headers) else {
            return Ok(());
        };
        if let Some(more) = self.lines.next(Instant::now()) {
            let host = host.escape_debug().to_string();
            tracing::warn!(
                %host, peer = ?ends.peer, more,
                "an admin request named a foreign host and was refused; add the host to `admin.hosts` if it is this server's"
            );
        }
        Err(Refusal::new(
            StatusCode::FORBIDDEN,
            format!("the request is for another host: `{}`", host.escape_debug()),
            "add the host to `admin.hosts`, or ask for this server's IP address or localhost",
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allowed(hosts: &Hosts, own: &str, host: &str) -> bool {
        let ends = Ends {
            own: own.parse().ok(),
            peer: None,
        };
        let headers = [(HOST, host.parse().unwrap())].into_iter().collect();
        hosts
            .foreign(ends, &Uri::from_static("/readyz"), &headers)
            .is_none()
    }

    #[test]
    fn loopback_names_and_the_connections_own_address_are_allowed() {
        let hosts = Hosts::default();
        for (own, host) in [
            ("127.0.0.1:15014", "localhost"),
            ("127.0.0.1:15014", "LOCALHOST.:15014"),
            ("10.0.0.7:15014", "127.0.0.1:9"),
            ("10.0.0.7:15014", "[::1]:9"),
            ("10.0.0.7:15014", "10.0.0.7:15014"),
            ("10.0.0.7:15014", "10.0.0.7"),
            ("[::ffff:10.0.0.7]:15014", "10.0.0.7"),
            ("[2001:db8::7]:15014", "[2001:db8::7]:15014"),
            ("[2001:db8::7]:15014", "[2001:DB8:0::7]"),
        ] {
            assert!(allowed(&hosts, own, host), "{host} at {own}");
        }
    }

    #[test]
    fn every_other_name_and_address_is_foreign() {
        let hosts = Hosts::new(([10, 0, 0, 7], 15014).into(), &[]);
        for host in [
            "evil.example",
            "evil.example:15014",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "10.0.0.7.evil.example",
            "10.0.0.8:15014",
            "[2001:db8::7]",
            "evil.example@localhost",
            "localhost@evil.example",
            "localhost,evil.example",
            "",
            ":15014",
            "[",
        ] {
            assert!(!allowed(&hosts, "127.0.0.1:15014", host), "{host}");
        }
        assert!(allowed(&hosts, "127.0.0.1:15014", "10.0.0.7"));
    }

    #[test]
    fn configured_hosts_are_allowed_in_any_case_and_with_stars() {
        let named = ["mesh.internal", "*.mesh.svc", "192.0.2.1"].map(str::to_owned);
        let hosts = Hosts::new(([0, 0, 0, 0], 15014).into(), &named);
        let own = "10.0.0.7:15014";
        for host in [
            "Mesh.Internal:80",
            "mesh.internal.",
            "a.mesh.svc",
            "192.0.2.1:15014",
            "0.0.0.0:15014",
        ] {
            assert!(allowed(&hosts, own, host), "{host}");
        }
        for host in [
            "mesh.svc",
            "mesh.internal.evil.example",
            "xmesh.internal",
            "192.0.2.10",
        ] {
            assert!(!allowed(&hosts, own, host), "{host}");
        }
    }

    #[test]
    fn all_hosts_of_a_request_count_and_none_is_fine() {
        let (hosts, ends) = (
            Hosts::default(),
            Ends {
                own: None,
                peer: None,
            },
        );
        let mut headers = HeaderMap::new();
        assert_eq!(
            hosts.foreign(ends, &Uri::from_static("/"), &headers),
            None,
            "HTTP/1.0"
        );
        headers.append(HOST, "localhost".parse().unwrap());
        let absolute = Uri::from_static("http://evil.example/livez");
        let foreign = hosts.foreign(ends, &absolute, &headers);
        assert_eq!(foreign.as_deref(), Some("evil.example"));
        headers.append(HOST, "evil.example".parse().unwrap());
        assert!(
            hosts
                .foreign(ends, &Uri::from_static("/"), &headers)
                .is_some()
        );
    }
}
