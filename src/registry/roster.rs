//! The registrations below one service's znode.
//!
//! It refuses to know other services, names and the tree. Invariants:
//! - Of the znodes that register one `address:port` the newest (greatest `czxid`, then name) serves.
//!   The others wait, each for the next newer one, so that a change touches two of them at most.
//! - A znode's last good value serves until the znode is deleted, and while the process lives: it is
//!   nowhere but in memory, so a replica that starts later never had it. A `Put` with another `czxid`
//!   is another znode under the same name, which has no past.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    ops::Bound::{Excluded, Unbounded},
    sync::Arc,
};

use super::{
    Rejected,
    reason::{Reason, quoted_path},
};
use crate::model::Instance;

/// The names of the znodes whose standing a change may have touched.
pub(super) type Touched = [Option<Arc<str>>; 3];

#[derive(Debug, Default)]
pub(super) struct Roster {
    znodes: BTreeMap<Arc<str>, Registration>,
    /// The good values by `address:port`, the oldest first.
    claims: BTreeMap<Claim, Arc<Instance>>,
}

#[derive(Debug)]
struct Registration {
    czxid: i64,
    good: Option<Arc<Instance>>,
    /// What is wrong with the present data.
    bad: Option<Box<Rejected>>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Claim {
    address: IpAddr,
    port: u16,
    czxid: i64,
    name: Arc<str>,
}

impl Claim {
    fn of(name: &Arc<str>, instance: &Instance) -> Self {
        Self {
            address: instance.address,
            port: instance.port,
            czxid: instance.origin.czxid,
            name: Arc::clone(name),
        }
    }

    fn rivals(&self, other: &Self) -> bool {
        (self.address, self.port) == (other.address, other.port)
    }
}

impl Roster {
    /// The znode `name`, created by `czxid`, now holds `outcome`.
    pub(super) fn put(
        &mut self,
        name: &str,
        czxid: i64,
        outcome: Result<Instance, Rejected>,
    ) -> Touched {
        let (name, past) = match self.znodes.remove_entry(name) {
            Some((name, past)) => (name, Some(past)),
            None => (Arc::from(name), None),
        };
        let past = past.map(|r| (r.czxid, r.good));
        let before = past
            .as_ref()
            .and_then(|(_, good)| self.release(&name, good.as_deref()));
        let kept = past.and_then(|(created, good)| good.filter(|_| created == czxid));
        let (good, bad) = match outcome {
            Ok(new) => (
                Some(kept.filter(|k| **k == new).unwrap_or_else(|| new.into())),
                None,
            ),
            Err(rejected) => (kept, Some(Box::new(rejected))),
        };
        let after = good.as_ref().and_then(|good| self.claim(&name, good));
        let registration = Registration { czxid, good, bad };
        self.znodes.insert(Arc::clone(&name), registration);
        [Some(name), before, after]
    }

    /// The znode `name` is gone.
    pub(super) fn delete(&mut self, name: &str) -> Touched {
        let Some((name, past)) = self.znodes.remove_entry(name) else {
            return [None, None, None];
        };
        let before = self.release(&name, past.good.as_deref());
        [Some(name), before, None]
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &Arc<str>> {
        self.znodes.keys()
    }

    /// What serves: one instance for each `address:port`, in that order.
    pub(super) fn instances(&self) -> Vec<Arc<Instance>> {
        let mut serving: Vec<Arc<Instance>> = Vec::with_capacity(self.claims.len());
        for instance in self.claims.values() {
            match serving.last_mut() {
                Some(last) if (last.address, last.port) == (instance.address, instance.port) => {
                    *last = Arc::clone(instance);
                }
                _ => serving.push(Arc::clone(instance)),
            }
        }
        serving
    }

    /// Why the znode `name` is left out, or what of it is.
    pub(super) fn rejection(&self, name: &Arc<str>) -> Option<Rejected> {
        let registration = self.znodes.get(name)?;
        let newer = |good: &Instance| self.newer(&Claim::of(name, good));
        match (&registration.bad, &registration.good) {
            (None, None) => None,
            (Some(bad), None) => Some(Rejected::clone(bad)),
            (None, Some(good)) => newer(good).map(|newer| superseded(good, newer)),
            (Some(bad), Some(good)) => Some(stale(bad, good, newer(good))),
        }
    }

    /// Adds a claim and tells whom it supersedes directly.
    fn claim(&mut self, name: &Arc<str>, good: &Arc<Instance>) -> Option<Arc<str>> {
        let claim = Claim::of(name, good);
        let older = self.older(&claim);
        self.claims.insert(claim, Arc::clone(good));
        older
    }

    /// Drops the claim of a value and tells whom it superseded directly.
    fn release(&mut self, name: &Arc<str>, good: Option<&Instance>) -> Option<Arc<str>> {
        let claim = Claim::of(name, good?);
        self.claims.remove(&claim);
        self.older(&claim)
    }

    fn older(&self, claim: &Claim) -> Option<Arc<str>> {
        let (older, _) = self.claims.range(..claim).next_back()?;
        claim.rivals(older).then(|| Arc::clone(&older.name))
    }

    fn newer(&self, claim: &Claim) -> Option<&Instance> {
        let after = (Excluded(claim), Unbounded);
        let (newer, instance) = self.claims.range(after).next()?;
        claim.rivals(newer).then_some(instance)
    }
}

fn superseded(older: &Instance, newer: &Instance) -> Rejected {
    let path = quoted_path(&newer.origin.path);
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
            let path = quoted_path(&newer.origin.path);
            format!("the last good one (mzxid {mzxid}) gave way to {path}")
        }
    };
    Rejected {
        format: bad.format,
        reason: Reason::new(&bad.reason).and(&standing).into_string(),
    }
}
