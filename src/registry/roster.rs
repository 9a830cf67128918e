//! The registrations below one service's znode.
//!
//! It refuses to know other services and the tree; znodes are named by their paths. Invariants:
//! - Of the znodes that register one `address:port` the newest (greatest `czxid`, then path) serves.
//!   The others wait, each for the next newer one, so that a change touches two of them at most.
//! - A znode's last good value serves until the znode is deleted, and while the process lives: it is
//!   nowhere but in memory, so a replica that starts later never had it. A `Put` with another `czxid`
//!   is another znode under the same name, which has no past.

use std::{
    cmp::Ordering,
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    ops::Bound::{Excluded, Unbounded},
    sync::Arc,
};

use super::{
    Rejected,
    reason::{Reason, quoted_path},
};
use crate::model::{Instance, Instances};

/// What a change may have touched.
#[derive(Debug, Default)]
pub(super) struct Marks {
    /// The paths of the znodes that now may stand otherwise.
    pub znodes: [Option<Arc<str>>; 3],
    /// Whose address and port may be served by another: the former and the present value.
    pub claims: [Option<Arc<Instance>>; 2],
}

#[derive(Debug, Default)]
pub(super) struct Roster {
    znodes: BTreeMap<Arc<str>, Registration>,
    /// The good values by `address:port`, the oldest first.
    claims: BTreeSet<Claim>,
}

#[derive(Debug)]
struct Registration {
    czxid: i64,
    good: Option<Arc<Instance>>,
    /// What is wrong with the present data.
    bad: Option<Box<Rejected>>,
}

/// A good value in the order of what it claims; it is the one of its znode.
#[derive(Clone, Debug)]
struct Claim(Arc<Instance>);

impl Claim {
    fn socket(&self) -> (IpAddr, u16) {
        (self.0.address, self.0.port)
    }

    fn znode(&self) -> &Arc<str> {
        &self.0.origin.znode
    }

    fn rivals(&self, other: &Self) -> bool {
        self.socket() == other.socket()
    }
}

impl Ord for Claim {
    fn cmp(&self, other: &Self) -> Ordering {
        let age = |claim: &Self| claim.0.origin.czxid;
        (self.socket(), age(self))
            .cmp(&(other.socket(), age(other)))
            .then_with(|| self.znode().cmp(other.znode()))
    }
}

impl PartialOrd for Claim {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Claim {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Claim {}

impl Roster {
    /// The znode, created by `czxid`, now holds `outcome`.
    pub(super) fn put(
        &mut self,
        znode: &Arc<str>,
        czxid: i64,
        outcome: Result<Instance, Rejected>,
    ) -> Marks {
        let past = self.znodes.remove(znode).map(|r| (r.czxid, r.good));
        let before = past
            .as_ref()
            .and_then(|(_, good)| self.release(good.as_ref()));
        let was = past.as_ref().and_then(|(_, good)| good.clone());
        let kept = past.and_then(|(created, good)| good.filter(|_| created == czxid));
        let (good, bad) = match outcome {
            Ok(new) => {
                let kept = kept.filter(|kept| **kept == new);
                (Some(kept.unwrap_or_else(|| self.shared(new))), None)
            }
            Err(rejected) => (kept, Some(Box::new(rejected))),
        };
        let after = good.as_ref().and_then(|good| self.claim(good));
        let claims = [was, good.clone()];
        let registration = Registration { czxid, good, bad };
        self.znodes.insert(Arc::clone(znode), registration);
        Marks {
            znodes: [Some(Arc::clone(znode)), before, after],
            claims,
        }
    }

    /// The znode is gone.
    pub(super) fn delete(&mut self, znode: &str) -> Marks {
        let Some((znode, past)) = self.znodes.remove_entry(znode) else {
            return Marks::default();
        };
        let before = self.release(past.good.as_ref());
        Marks {
            znodes: [Some(znode), before, None],
            claims: [past.good, None],
        }
    }

    pub(super) fn znodes(&self) -> impl Iterator<Item = &Arc<str>> {
        self.znodes.keys()
    }

    /// What serves: one instance for each `address:port`.
    pub(super) fn instances(&self) -> Instances {
        // The newest of each is the last, which counts.
        self.claims.iter().map(|Claim(i)| Arc::clone(i)).collect()
    }

    /// What serves the address and port of this one.
    pub(super) fn serving(&self, instance: &Arc<Instance>) -> Option<&Arc<Instance>> {
        let claim = Claim(Arc::clone(instance));
        let mut newest = Instance::clone(instance);
        newest.origin.czxid = i64::MAX;
        let serving = self.claims.range(..=Claim(newest.into())).next_back()?;
        claim.rivals(serving).then_some(&serving.0)
    }

    /// Why the znode is left out, or what of it is.
    pub(super) fn rejection(&self, znode: &str) -> Option<Rejected> {
        let registration = self.znodes.get(znode)?;
        let newer = |good: &Arc<Instance>| self.newer(&Claim(Arc::clone(good)));
        match (&registration.bad, &registration.good) {
            (None, None) => None,
            (Some(bad), None) => Some(Rejected::clone(bad)),
            (None, Some(good)) => newer(good).map(|newer| superseded(good, newer)),
            (Some(bad), Some(good)) => Some(stale(bad, good, newer(good))),
        }
    }

    /// Adds a claim and tells whom it supersedes directly.
    fn claim(&mut self, good: &Arc<Instance>) -> Option<Arc<str>> {
        let claim = Claim(Arc::clone(good));
        let older = self.older(&claim);
        self.claims.insert(claim);
        older
    }

    /// Drops the claim of a value and tells whom it superseded directly.
    fn release(&mut self, good: Option<&Arc<Instance>>) -> Option<Arc<str>> {
        let claim = Claim(Arc::clone(good?));
        self.claims.remove(&claim);
        self.older(&claim)
    }

    fn older(&self, claim: &Claim) -> Option<Arc<str>> {
        let older = self.claims.range(..claim).next_back()?;
        claim.rivals(older).then(|| Arc::clone(older.znode()))
    }

    fn newer(&self, claim: &Claim) -> Option<&Instance> {
        let after = (Excluded(claim), Unbounded);
        let newer = self.claims.range(after).next()?;
        claim.rivals(newer).then_some(&newer.0)
    }

    /// The instances of a service differ little: zone and metadata are held once where the neighbour
    /// in the order of addresses has equal ones.
    fn shared(&self, new: Instance) -> Arc<Instance> {
        let claim = Claim(new.into());
        let below = self.claims.range(..&claim).next_back();
        let neighbour = below.or_else(|| self.claims.first());
        let Claim(mut new) = claim;
        if let (Some(Claim(neighbour)), Some(new)) = (neighbour, Arc::get_mut(&mut new)) {
            if new.zone == neighbour.zone {
                new.zone.clone_from(&neighbour.zone);
            }
            if new.metadata == neighbour.metadata {
                new.metadata.clone_from(&neighbour.metadata);
            }
        }
        new
    }
}

fn superseded(older: &Instance, newer: &Instance) -> Rejected {
    let path = quoted_path(&newer.origin.path());
    let socket = std::net::SocketAddr::new(older.address, older.port);
    let reason = Reason::new(format!(
        "`{socket}` is registered by {path} too, which is newer"
    ));
    Rejected {
        format: older.origin.format,
        reason: reason.into_string(),
    }
}

fn stale(bad: &Rejected, good: &Instance, newer: Option<&Instance>) -> Rejected {
    let mzxid = good.origin.mzxid;
    let standing = match newer {
        None => format!(
            "the last good registration (mzxid {mzxid}) is still served, and lost on a restart"
        ),
        Some(newer) => {
            let path = quoted_path(&newer.origin.path());
            format!("the last good one (mzxid {mzxid}) gave way to {path}")
        }
    };
    Rejected {
        format: bad.format,
        reason: Reason::new(&bad.reason).and(&standing).into_string(),
    }
}
