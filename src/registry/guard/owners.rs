//! How many processes a loss is of, as far as registrations tell.
//!
//! A process may register many interfaces, and a registrar many processes, so neither registrations nor sessions
//! are processes. A session that ended is one loss for each host that it registered; what a session that lives on
//! deregistered, and every persistent znode, is a loss for each address and port. Invariant: registering the same
//! address and port for more services makes a loss no greater.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use super::{Services, moves::stands};
use crate::model::{Instance, Socket};

/// A loss that is large by the number of registrations.
#[derive(Clone, Copy, Debug)]
pub(super) struct Loss<'a> {
    pub instances: &'a [Arc<Instance>],
    /// What is registered now.
    pub mirrored: &'a Services,
    /// How many registrations are missing: not more than `instances`, as some may have been replaced.
    pub net: usize,
    /// How many are left.
    pub present: usize,
}

impl Loss<'_> {
    /// Whether it is of so many processes, and of more than a share of all addresses.
    pub fn is_mass(&self, minimum: usize, share: f64) -> bool {
        let addresses: BTreeSet<_> = self.instances.iter().map(|i| i.socket()).collect();
        if self.present == 0 && self.net >= minimum && addresses.len() > 1 {
            return true;
        }
        let owners = self.owners().min(self.net);
        owners >= minimum && self.exceeds(&addresses, share)
    }

    /// Counts processes.
    fn owners(&self) -> usize {
        let mut own = BTreeSet::new();
        let mut sessions: BTreeMap<i64, BTreeSet<Socket>> = BTreeMap::new();
        for instance in self.instances {
            match instance.origin.session {
                0 => drop(own.insert(instance.socket())),
                session => drop(
                    sessions
                        .entry(session)
                        .or_default()
                        .insert(instance.socket()),
                ),
            }
        }
        let several = |sockets: &BTreeSet<Socket>| sockets.len() > 1;
        let alive = if sessions.values().any(several) {
            self.alive(&sessions)
        } else {
            BTreeSet::new()
        };
        let of = |(session, sockets): (&i64, &BTreeSet<Socket>)| {
            if alive.contains(session) {
                return sockets.len();
            }
            let hosts: BTreeSet<IpAddr> = sockets.iter().map(|(address, _)| *address).collect();
            hosts.len()
        };
        own.len() + sessions.iter().map(of).sum::<usize>()
    }

    /// The sessions that still register something. It looks at everything that is registered, which is seldom
    /// more than a few times of what was lost.
    fn alive(&self, sessions: &BTreeMap<i64, BTreeSet<Socket>>) -> BTreeSet<i64> {
        let registered = self.registered().map(|i| i.origin.session);
        registered.filter(|id| sessions.contains_key(id)).collect()
    }

    /// Where registrations share addresses, counts these.
    #[allow(clippy::cast_precision_loss)]
    fn exceeds(&self, addresses: &BTreeSet<Socket>, share: f64) -> bool {
        if addresses.len() == self.instances.len() {
            return true;
        }
        let taking = self.registered().filter(|i| i.takes_requests());
        let left: BTreeSet<_> = taking.map(|i| i.socket()).collect();
        let gone = addresses.difference(&left).count().min(self.net);
        gone as f64 > share * (left.len() + gone) as f64
    }

    fn registered(&self) -> impl Iterator<Item = &Arc<Instance>> {
        let services = self.mirrored.values();
        services
            .flat_map(|service| service.instances.iter())
            .filter(|i| stands(i))
    }
}
