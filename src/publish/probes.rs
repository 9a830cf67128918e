//! The addresses of held instances on their way to the prober, and which instances each stands for.
//!
//! An address that several services or registries hold is probed once. Loopback addresses are probed only where
//! the registry's ensemble is on loopback too: elsewhere they belong to another machine. Following the holds
//! costs what changed of them.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use imbl::OrdSet;
use tokio::sync::watch;

use crate::registry::guard::{Held, Holds, Refused};

/// Whose instances are probed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// Those of this machine, too.
    Local,
    /// Those of other machines only.
    Remote,
}

#[derive(Debug)]
pub(super) struct Probes {
    /// By the place of the registry. The others are not probed.
    registries: BTreeMap<usize, (Reach, Holds)>,
    /// The place of the registry and the service, by address.
    instances: BTreeMap<SocketAddr, BTreeSet<(usize, Arc<str>)>>,
    addresses: OrdSet<SocketAddr>,
    sender: watch::Sender<OrdSet<SocketAddr>>,
}

impl Probes {
    pub fn new() -> (Self, watch::Receiver<OrdSet<SocketAddr>>) {
        let (sender, receiver) = watch::channel(OrdSet::new());
        let probes = Self {
            registries: BTreeMap::new(),
            instances: BTreeMap::new(),
            addresses: OrdSet::new(),
            sender,
        };
        (probes, receiver)
    }

    pub fn add(&mut self, registry: usize, reach: Reach) {
        self.registries.insert(registry, (reach, Holds::default()));
    }

    /// Takes what a registry holds now.
    pub fn follow(&mut self, registry: usize, holds: &Holds) {
        let Some((reach, before)) = self.registries.get_mut(&registry) else {
            return;
        };
        if holds.is_same(before) {
            return;
        }
        let (reach, before) = (*reach, std::mem::replace(before, holds.clone()));
        for (service, held) in before.since(holds) {
            self.remove(address(held), registry, service);
        }
        for (service, held) in holds.since(&before) {
            if is_probed(held, reach) {
                self.insert(address(held), registry, service);
            }
        }
    }

    /// Tells the prober, if anything changed.
    pub fn send(&self) {
        self.sender.send_if_modified(|sent| {
            let news = !sent.ptr_eq(&self.addresses);
            if news {
                *sent = self.addresses.clone();
            }
            news
        });
    }

    /// The held instances at these addresses, by the place of their registry.
    pub fn of(&self, addresses: &[SocketAddr]) -> BTreeMap<usize, Refused> {
        let mut all = BTreeMap::<usize, Refused>::new();
        for address in addresses {
            let socket = (address.ip(), address.port());
            for (registry, service) in self.instances.get(address).into_iter().flatten() {
                let refused = all.entry(*registry).or_default();
                let sockets = refused.entry(Arc::clone(service)).or_default();
                sockets.insert(socket);
            }
        }
        all
    }

    fn insert(&mut self, address: SocketAddr, registry: usize, service: Arc<str>) {
        let instances = self.instances.entry(address).or_default();
        instances.insert((registry, service));
        self.addresses.insert(address);
    }

    fn remove(&mut self, address: SocketAddr, registry: usize, service: Arc<str>) {
        let Some(instances) = self.instances.get_mut(&address) else {
            return;
        };
        instances.remove(&(registry, service));
        if instances.is_empty() {
            self.instances.remove(&address);
            self.addresses.remove(&address);
        }
    }
}

fn address(held: &Held) -> SocketAddr {
    held.instance.socket().into()
}

fn is_probed(held: &Held, reach: Reach) -> bool {
    let ip = held.instance.address.to_canonical();
    let is_broadcast = matches!(ip, IpAddr::V4(ip) if ip.is_broadcast());
    let is_local = ip.is_loopback() || ip.is_unspecified();
    !ip.is_multicast() && !is_broadcast && (reach == Reach::Local || !is_local)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::registry::{
        Batch, Catalog, Config, Event, FormatChoice, Layout, Shape, Stat, guard,
    };

    fn catalog() -> Catalog {
        let config = |name: &str| Config {
            name: name.to_owned(),
            root: "/services".to_owned(),
            layout: Layout::flat(),
            format: FormatChoice::Auto,
            priority: 0,
            required: true,
            ttl: None,
            shape: Shape::default(),
        };
        Catalog::new(vec![config("a"), config("b")], &guard::Config::default())
    }

    fn tell(catalog: &mut Catalog, registry: usize, events: Vec<Event>) {
        let batch = Batch {
            events,
            complete: true,
            ..Batch::default()
        };
        catalog.apply(registry, batch, 1_000);
    }

    /// `10.0.0.1:80` to `10.0.0.9:80`, and one of loopback.
    fn register(catalog: &mut Catalog, registry: usize, service: &str) {
        let hosts = (1..=9).map(|n| format!("10.0.0.{n}"));
        let hosts = hosts.chain(["127.0.0.1".to_owned()]);
        let put = |host| Event::Put {
            path: format!("{service}/{host}").into(),
            data: Bytes::from(format!("{host}:80")),
            stat: Stat::default(),
        };
        tell(catalog, registry, hosts.map(put).collect());
    }

    fn delete(catalog: &mut Catalog, registry: usize, path: &str) {
        let path = path.into();
        tell(catalog, registry, vec![Event::Delete { path }]);
    }

    fn follow(probes: &mut Probes, catalog: &Catalog) {
        for (at, registry) in catalog.registries().iter().enumerate() {
            probes.follow(at, registry.holds());
        }
        probes.send();
    }

    #[test]
    fn each_address_is_probed_once_for_all_who_hold_it_and_as_long_as_anybody_does() {
        let mut catalog = catalog();
        let (mut probes, wanted) = Probes::new();
        probes.add(0, Reach::Remote);
        probes.add(1, Reach::Local);
        for (registry, service) in [(0, "orders"), (0, "users"), (1, "orders")] {
            register(&mut catalog, registry, service);
        }
        follow(&mut probes, &catalog);
        assert!(wanted.borrow().is_empty(), "nothing is held");
        for (registry, service) in [(0, "orders"), (0, "users"), (1, "orders")] {
            delete(&mut catalog, registry, service);
        }
        follow(&mut probes, &catalog);
        assert_eq!(wanted.borrow().len(), 10);

        let address = |ip: [u8; 4]| SocketAddr::from((ip, 80));
        let (first, here) = (address([10, 0, 0, 1]), address([127, 0, 0, 1]));
        let refused = probes.of(&[first, here, address([10, 0, 0, 77])]);
        let services = |at| refused[&at].keys().map(|name| &**name).collect::<Vec<_>>();
        assert_eq!(
            (services(0), services(1)),
            (vec!["orders", "users"], vec!["orders"])
        );
        assert_eq!(
            refused[&0]["orders"].len(),
            1,
            "loopback is another machine"
        );
        assert_eq!(refused[&1]["orders"].len(), 2);

        for (at, refused) in &refused {
            catalog.refused(*at, refused, 2_000);
        }
        follow(&mut probes, &catalog);
        assert_eq!(wanted.borrow().len(), 8);
        assert!(probes.of(&[first]).is_empty());
        // Those of one registry are back; the other one still holds them.
        register(&mut catalog, 0, "orders");
        register(&mut catalog, 0, "users");
        follow(&mut probes, &catalog);
        assert_eq!(wanted.borrow().len(), 8);
        register(&mut catalog, 1, "orders");
        follow(&mut probes, &catalog);
        assert!(wanted.borrow().is_empty() && probes.instances.is_empty());
    }
}
