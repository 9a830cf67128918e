//! Connect strings and roots: what is wrong with one, said before anything is tried.
//!
//! Pure; knows no client. The rules are ZooKeeper's own (`PathUtils`, `ConnectStringParser`): blanks
//! around servers and empty entries do not count. Stricter than those only where a typing error would
//! pass for a server: one without a port, an IPv6 address without brackets.

use std::net::IpAddr;

use rustls::pki_types::ServerName;

/// A connect string taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Address {
    /// `(host, port)`, in the order given.
    pub servers: Vec<(String, u16)>,
    /// Without a trailing slash; empty for none.
    pub chroot: String,
}

impl Address {
    /// The connect string with other `servers`.
    pub fn connect(&self, servers: &[(String, u16)]) -> String {
        let text = |(host, port): &(String, u16)| {
            if host.contains(':') {
                format!("[{host}]:{port}")
            } else {
                format!("{host}:{port}")
            }
        };
        let servers: Vec<_> = servers.iter().map(text).collect();
        format!("{}{}", servers.join(","), self.chroot)
    }

    /// `Err` where a server's certificate could not be checked against its host.
    pub fn check_names(&self) -> Result<(), String> {
        let odd = |(host, _): &&(String, u16)| ServerName::try_from(host.as_str()).is_err();
        match self.servers.iter().find(odd) {
            None => Ok(()),
            Some((host, _)) => Err(format!(
                "the server {host:?} has no name that a certificate could be checked against; write a DNS name or an IP"
            )),
        }
    }
}

/// `Err` names what is wrong in `connect` and how it should read.
pub fn check_connect(connect: &str) -> Result<(), String> {
    parse(connect).map(|_| ())
}

/// As [`check_connect`], for servers that are spoken to in TLS.
pub fn check_secure_connect(connect: &str) -> Result<(), String> {
    parse(connect)?.check_names()
}

/// Whether every server of a connect string is on this machine's loopback interface.
pub fn is_loopback(connect: &str) -> bool {
    let is_loopback = |(host, _): &(String, u16)| {
        let ip = host.parse::<IpAddr>().map(|ip| ip.to_canonical());
        host.eq_ignore_ascii_case("localhost") || ip.is_ok_and(|ip| ip.is_loopback())
    };
    parse(connect).is_ok_and(|address| address.servers.iter().all(is_loopback))
}

/// `Err` names what is wrong in `root` and how it should read.
pub fn check_root(root: &str) -> Result<(), String> {
    if root == "/" {
        return Ok(());
    }
    check_path(root).map_err(|why| format!("{root:?} {why}; write it like /services"))
}

pub(super) fn parse(connect: &str) -> Result<Address, String> {
    let connect = connect.trim();
    if connect.contains("://") {
        return Err(format!(
            "{connect:?} has a scheme, and a connect string has none; write it like zk1:2181,zk2:2181/chroot"
        ));
    }
    let (servers, chroot) = match connect.find('/') {
        Some(at) => connect.split_at(at),
        None => (connect, ""),
    };
    if let Some(separator) = servers.chars().find(|c| matches!(c, ';' | '|')) {
        return Err(format!(
            "{connect:?} has a `{separator}`; separate servers by commas, as in zk1:2181,zk2:2181"
        ));
    }
    let named = servers.split(',').map(str::trim).filter(|s| !s.is_empty());
    let servers: Vec<_> = named.map(server).collect::<Result<_, _>>()?;
    if servers.is_empty() {
        return Err(format!(
            "{connect:?} names no server; write it like zk1:2181,zk2:2181/chroot"
        ));
    }
    let chroot = if chroot == "/" { "" } else { chroot };
    if !chroot.is_empty() {
        check_path(chroot)
            .and_then(|()| no_comma(chroot))
            .map_err(|why| format!("the chroot {chroot:?} of {connect:?} {why}"))?;
    }
    Ok(Address {
        servers,
        chroot: chroot.to_owned(),
    })
}

fn no_comma(chroot: &str) -> Result<(), &'static str> {
    if chroot.contains(',') {
        return Err("has a comma; a chroot stands once, behind the last server");
    }
    Ok(())
}

fn server(text: &str) -> Result<(String, u16), String> {
    let bad = |why: &str| format!("the server {text:?} {why}; write host:port, as in zk-1:2181");
    if text.contains(|c: char| c.is_whitespace() || c.is_control()) {
        return Err(bad(
            "has a blank in it, and servers are separated by commas",
        ));
    }
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => match rest.split_once(']') {
            Some((host, "")) => (host, None),
            Some((host, port)) => (
                host,
                Some(
                    port.strip_prefix(':')
                        .ok_or_else(|| bad("has unexpected characters after `]`"))?,
                ),
            ),
            None => return Err(bad("has no closing bracket")),
        },
        None if text.matches(':').count() > 1 => {
            return Err(bad("is an IPv6 address without brackets"));
        }
        None => match text.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        },
    };
    if host.is_empty() {
        return Err(bad("has no host"));
    }
    let Some(port) = port else {
        return Err(match host.parse::<u16>() {
            Ok(port) => format!("the server {text:?} has no host; write zk-1:{port}"),
            Err(_) => format!("the server {text:?} has no port; write {text}:2181"),
        });
    };
    // The parser of numbers would take a sign, which the client does not.
    let digits = port.bytes().all(|b| b.is_ascii_digit());
    match port.parse() {
        Ok(port) if port > 0 && digits => Ok((host.to_owned(), port)),
        _ => Err(bad("has a port that is not 1 to 65535")),
    }
}

/// ZooKeeper's rules for a path that is not `/`.
pub(super) fn check_path(path: &str) -> Result<(), &'static str> {
    let Some(names) = path.strip_prefix('/') else {
        return Err("does not begin with /");
    };
    if path.ends_with('/') {
        return Err("ends with /");
    }
    names.split('/').try_for_each(check_name)
}

/// ZooKeeper's rules for one name of a path.
pub(super) fn check_name(name: &str) -> Result<(), &'static str> {
    match name {
        "" => Err("has an empty name"),
        "." | ".." => Err("is relative"),
        _ if name.contains('/') => Err("has a / in a name"),
        _ if name.chars().any(is_forbidden) => Err("has a character that ZooKeeper does not allow"),
        _ => Ok(()),
    }
}

fn is_forbidden(c: char) -> bool {
    matches!(c, '\0'..='\u{1f}' | '\u{7f}'..='\u{9f}' | '\u{e000}'..='\u{f8ff}' | '\u{fff0}'..)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_and_chroot_are_taken_apart() {
        let address = parse("zk1:2181,zk2:2181,[::1]:2182/mesh/a").unwrap();
        let servers = [("zk1", 2181), ("zk2", 2181), ("::1", 2182)];
        assert_eq!(
            address.servers,
            servers.map(|(host, port)| (host.to_owned(), port))
        );
        assert_eq!(address.chroot, "/mesh/a");
        assert_eq!(parse("zk1:2181/").unwrap().chroot, "");
    }

    #[test]
    fn what_zookeepers_own_clients_accept_is_accepted() {
        let both = "zk1:2181,zk2:2181/mesh";
        for connect in [
            "zk1:2181, zk2:2181/mesh",
            " zk1:2181 ,\tzk2:2181/mesh \n",
            "zk1:2181,,zk2:2181,/mesh",
        ] {
            assert_eq!(parse(connect), parse(both), "{connect:?}");
        }
        assert_eq!(parse("zk1:2181, "), parse("zk1:2181"));
    }

    #[test]
    fn every_wrong_connect_string_is_told_with_a_remedy() {
        for (connect, says) in [
            ("", "names no server"),
            ("/chroot", "names no server"),
            (",", "names no server"),
            ("tcp://zk1:2181", "scheme"),
            ("http://zk1:2181", "scheme"),
            ("zk1:2181,https://zk2:2181/mesh", "scheme"),
            ("zk1:2181;zk2:2181", "separate servers by commas"),
            ("zk1:2181;zk2:2181/mesh", "separate servers by commas"),
            ("zk1;zk2", "separate servers by commas"),
            ("zk1:2181 zk2:2181", "separated by commas"),
            ("zk1:0", "1 to 65535"),
            ("zk1:70000", "1 to 65535"),
            (":2181", "has no host"),
            ("zk 1:2181", "blank"),
            ("::1:2181", "without brackets"),
            ("[::1", "closing bracket"),
            ("[::1]2181", "after `]`"),
            ("zk1:+2181", "1 to 65535"),
            ("zk1:", "1 to 65535"),
            ("zk-1", "write zk-1:2181"),
            ("zk1:2181,zk-2/mesh", "write zk-2:2181"),
            ("[::1]", "write [::1]:2181"),
            ("zk1:-1", "1 to 65535"),
            ("2182", "write zk-1:2182"),
            ("zk1:1/a,zk2:1/a", "comma"),
            ("zk1:1/a/", "ends with /"),
            ("zk1:1//a", "empty name"),
            ("zk1:1/../a", "relative"),
        ] {
            let message = check_connect(connect).unwrap_err();
            assert!(message.contains(says), "{connect:?}: {message}");
        }
    }

    #[test]
    fn what_passes_here_passes_the_client_library() {
        for root in ["/", "/services", "/a/b.c", "/päth", "/..a/.b."] {
            check_root(root).unwrap();
        }
        for root in [
            "",
            "services",
            "/services/",
            "//",
            "/a/./b",
            "/a\u{1f}",
            "/\u{e000}",
        ] {
            let message = check_root(root).unwrap_err();
            assert!(message.contains("/services"), "{root:?}: {message}");
        }
    }
}
