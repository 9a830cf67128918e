//! What an operator means by a text: instances by their address, a znode with what is below it, or a service.
//!
//! Clients, shells and logs spell one thing in many ways, and all of them are understood: `orders`, `ORDERS`,
//! `orders.mesh`, `orders:8080`, `com.foo.bar-1.0`, `vm:8099`, `10.0.0.7`, `/services/orders`. Invariant: an
//! exact service name always means that service; then come its hosts, then host names in registrations.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use crate::{
    model::Service,
    registry::{
        Mirrored, Picture, Place,
        journal::{Address, Subject, is_below},
        name,
        reason::quoted,
    },
};

/// A text, and what it means at this moment.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Asked<'a> {
    pub subject: Subject<'a>,
    /// The host name in registrations, if the text is one.
    pub host: Option<&'a str>,
}

impl<'a> Asked<'a> {
    /// `suffix` is the one of the mesh's host names.
    pub fn of(picture: &Picture, text: &'a str, suffix: &str) -> Self {
        let text = text.trim();
        if text.starts_with('/') {
            return Self::from(znode(picture, text));
        }
        if let Some((ip, port)) = literal(text) {
            let ips = [ip].into();
            return Self::from(Subject::Address(Address { ips, port }));
        }
        if let Some(service) = service(picture, text, suffix) {
            return Self::from(Subject::Services([service].into()));
        }
        let (host, port) = split_port(text);
        if let Some(ips) = registered(picture, host) {
            let subject = Subject::Address(Address { ips, port });
            let host = Some(host);
            return Self { subject, host };
        }
        Self::from(Subject::Services([text.into()].into()))
    }
}

impl<'a> From<Subject<'a>> for Asked<'a> {
    fn from(subject: Subject<'a>) -> Self {
        let host = None;
        Self { subject, host }
    }
}

/// An IP with or without a port, as it is written in any place.
fn literal(text: &str) -> Option<(IpAddr, Option<u16>)> {
    if let Ok(socket) = text.parse::<SocketAddr>() {
        return Some((socket.ip().to_canonical(), Some(socket.port())));
    }
    let bare = text
        .strip_prefix('[')
        .and_then(|text| text.strip_suffix(']'));
    let ip: IpAddr = bare.unwrap_or(text).parse().ok()?;
    Some((ip.to_canonical(), None))
}

fn split_port(text: &str) -> (&str, Option<u16>) {
    let split = text.rsplit_once(':');
    match split.map(|(host, port)| (host, port.parse())) {
        Some((host, Ok(port))) => (host, Some(port)),
        _ => (text, None),
    }
}

/// The service that is called so, or that answers to this host; also one that existed lately.
fn service(picture: &Picture, text: &str, suffix: &str) -> Option<Arc<str>> {
    let views = picture.registries.iter().map(|of| &of.view.services);
    let maps: Vec<_> = [&picture.services].into_iter().chain(views).collect();
    if maps.iter().any(|services| services.contains_key(text)) {
        return Some(text.into());
    }
    let all = || maps.iter().flat_map(|services| services.values());
    let entries = || picture.journal.entries().rev();
    spellings(text, suffix).iter().find_map(|spelling| {
        let is = |name: &str, host: &str| host == spelling || name.eq_ignore_ascii_case(spelling);
        let present = all().find(|service| is(&service.name, &service.host));
        let name = present.map(|service| &service.name);
        let lately = || {
            let mut names = entries().filter_map(|entry| entry.what.service());
            names.find(|name| name::host(name).is_ok_and(|host| is(name, &host)))
        };
        name.or_else(lately).map(Arc::clone)
    })
}

/// In lower case: the text itself, then without its port, each also without the mesh's suffix.
fn spellings(text: &str, suffix: &str) -> Vec<String> {
    let (host, _) = split_port(text);
    let suffix = suffix.trim_matches('.').to_lowercase();
    let mut all = Vec::new();
    for host in [text, host] {
        let host = host.trim_end_matches('.').to_lowercase();
        let short = host
            .strip_suffix(&suffix)
            .and_then(|host| host.strip_suffix('.'));
        let short = short.map(str::to_owned);
        all.extend([host].into_iter().chain(short));
    }
    all.retain(|spelling| !spelling.is_empty());
    all.dedup();
    all
}

/// The addresses of a host name in registrations; `None` if no registration has it.
fn registered(picture: &Picture, host: &str) -> Option<BTreeSet<IpAddr>> {
    let host = host.trim_end_matches('.').to_lowercase();
    let known = |of: &&Mirrored| of.addresses.contains_key(&*host) || is_unresolved(of, &host);
    let mut of = picture.registries.iter().filter(known).peekable();
    of.peek()?;
    let ips = of.filter_map(|of| of.addresses.get(&*host));
    Some(ips.flat_map(|ips| ips.iter().copied()).collect())
}

fn is_unresolved(of: &Mirrored, host: &str) -> bool {
    let quoted = format!("host name {}", quoted(host));
    of.view.waiting.values().any(|name| **name == *host)
        || (of.view.rejected.values()).any(|rejected| rejected.reason.contains(&quoted))
}

/// A znode, with the services whose znode it is or that have instances below it.
fn znode<'a>(picture: &Picture, path: &'a str) -> Subject<'a> {
    let path = match path.trim_end_matches('/') {
        "" => "/",
        path => path,
    };
    let mut services = BTreeSet::new();
    for of in picture.registries.iter() {
        let Some(below) = of.config.below(path) else {
            continue;
        };
        if let Place::Service(_) | Place::Between(_) | Place::Above = of.config.layout.place(below)
        {
            services.extend(of.config.service_at(below).map(Arc::from));
            let there = of.view.services.values();
            let there = there.filter(|service| has_below(service, of, below));
            services.extend(there.map(|service| Arc::clone(&service.name)));
        }
    }
    Subject::Znode { path, services }
}

fn has_below(service: &Service, of: &Mirrored, below: &str) -> bool {
    service.instances.iter().any(|instance| {
        let origin = &instance.origin;
        *origin.source.registry == *of.config.name && is_below(&origin.znode, below)
    })
}

#[cfg(test)]
mod tests {
    use super::{
        super::tests::{catalog, tell},
        *,
    };

    /// The services that a text means.
    fn meant(picture: &Picture, text: &str) -> Vec<String> {
        match Asked::of(picture, text, "mesh").subject {
            Subject::Services(services) | Subject::Znode { services, .. } => {
                services.iter().map(ToString::to_string).collect()
            }
            Subject::Address(address) => vec![format!("{:?} {:?}", address.ips, address.port)],
        }
    }

    #[test]
    fn a_service_is_meant_by_its_name_and_by_every_host_that_clients_use() {
        let mut catalog = catalog();
        let provider =
            "com.foo.Bar/providers/dubbo%3A%2F%2F10.0.0.2%3A20880%2Fcom.foo.Bar%3Fversion%3D1.0";
        tell(
            &mut catalog,
            0,
            &[
                ("orders/i", "10.0.0.1:80"),
                ("User_API", " "),
                (provider, " "),
            ],
        );
        let picture = catalog.picture();
        for text in [
            "orders",
            "ORDERS",
            "orders.mesh",
            "orders.",
            "orders:8080",
            "Orders.Mesh:8080",
            " orders ",
            "/services/orders",
            "/services/orders/",
        ] {
            assert_eq!(meant(&picture, text), ["orders"], "{text}");
        }
        for text in [
            "User_API",
            "user_api",
            "user-api",
            "user-api.mesh:80",
            "/services/User_API",
        ] {
            assert_eq!(meant(&picture, text), ["User_API"], "{text}");
        }
        for text in ["com.foo.Bar:1.0", "com.foo.bar-1.0", "COM.FOO.BAR-1.0:80"] {
            assert_eq!(meant(&picture, text), ["com.foo.Bar:1.0"], "{text}");
        }
        for text in ["/services/com.foo.Bar/providers", "/services/com.foo.Bar"] {
            assert!(
                meant(&picture, text).contains(&"com.foo.Bar:1.0".to_owned()),
                "{text}"
            );
        }
    }

    #[test]
    fn a_service_that_went_is_meant_by_its_hosts_too() {
        let mut catalog = catalog();
        tell(&mut catalog, 0, &[]);
        tell(&mut catalog, 0, &[("Orders/i", "10.0.0.1:80")]);
        tell(&mut catalog, 0, &[("Orders", "")]);
        let picture = catalog.picture();
        for text in ["Orders", "orders.mesh", "orders:80"] {
            assert_eq!(meant(&picture, text), ["Orders"], "{text}");
        }
        assert_eq!(
            meant(&picture, "none.mesh"),
            ["none.mesh"],
            "as it was asked"
        );
    }

    #[test]
    fn an_address_may_lack_its_port_and_have_any_form() {
        let picture = catalog().picture();
        for (text, expected) in [
            ("10.0.0.1:80", "{10.0.0.1} Some(80)"),
            ("10.0.0.1", "{10.0.0.1} None"),
            ("[::ffff:10.0.0.1]:80", "{10.0.0.1} Some(80)"),
            ("2001:db8::7", "{2001:db8::7} None"),
            ("[2001:DB8::7]", "{2001:db8::7} None"),
            ("[2001:db8::7]:80", "{2001:db8::7} Some(80)"),
        ] {
            assert_eq!(meant(&picture, text), [expected], "{text}");
        }
    }

    #[test]
    fn a_host_name_of_registrations_means_its_addresses_once_they_are_known() {
        let mut catalog = catalog();
        let data = r#"{"host":"VM","port":8099}"#;
        tell(&mut catalog, 0, &[("orders/i", data)]);
        let meaning = |picture: &Picture, text| meant(picture, text).concat();
        assert_eq!(meaning(&catalog.picture(), "vm:8099"), "{} Some(8099)");
        catalog.resolved("vm", &Ok(vec![[10, 0, 0, 9].into()]), 0);
        let picture = catalog.picture();
        assert_eq!(meaning(&picture, "vm:8099"), "{10.0.0.9} Some(8099)");
        assert_eq!(meaning(&picture, "Vm"), "{10.0.0.9} None");
        assert_eq!(Asked::of(&picture, "vm:1", "mesh").host, Some("vm"));
        assert_eq!(meaning(&picture, "vn:8099"), "vn:8099");
    }
}
