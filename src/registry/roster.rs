//! Who serves an address, of those that registered it for one service.
//!
//! It refuses to know znodes beyond the path and age in an instance's origin, and what is wrong with
//! others. Invariant: of the registrations of one `address:port` the newest (greatest `czxid`, then
//! path) serves. The others wait, each for the next newer one, so that a change touches two of them at
//! most.

use std::{
    cmp::Ordering,
    collections::BTreeSet,
    ops::Bound::{Excluded, Unbounded},
    sync::Arc,
};

use crate::model::{Instance, Instances};

/// The registrations for one service.
#[derive(Debug, Default)]
pub(super) struct Roster {
    /// By `address:port`, the oldest first.
    claims: BTreeSet<Claim>,
    /// Under which age the service asks for its host name, if it does.
    pub asks: Option<i64>,
    /// Whether the view has it.
    pub shown: bool,
}

/// An instance in the order of what it claims.
#[derive(Clone, Debug)]
struct Claim(Arc<Instance>);

impl Claim {
    fn znode(&self) -> &Arc<str> {
        &self.0.origin.znode
    }

    fn rivals(&self, other: &Self) -> bool {
        self.0.socket() == other.0.socket()
    }
}

impl Ord for Claim {
    fn cmp(&self, other: &Self) -> Ordering {
        let age = |claim: &Self| claim.0.origin.czxid;
        (self.0.socket(), age(self))
            .cmp(&(other.0.socket(), age(other)))
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
    pub fn is_empty(&self) -> bool {
        self.claims.is_empty()
    }

    /// Adds a registration and tells whom it supersedes directly.
    pub fn claim(&mut self, instance: &Arc<Instance>) -> Option<Arc<str>> {
        let claim = Claim(Arc::clone(instance));
        let older = self.older(&claim);
        self.claims.insert(claim);
        older
    }

    /// Drops a registration and tells whom it superseded directly.
    pub fn release(&mut self, instance: &Arc<Instance>) -> Option<Arc<str>> {
        let claim = Claim(Arc::clone(instance));
        self.claims.remove(&claim);
        self.older(&claim)
    }

    fn older(&self, claim: &Claim) -> Option<Arc<str>> {
        let older = self.claims.range(..claim).next_back()?;
        claim.rivals(older).then(|| Arc::clone(older.znode()))
    }

    /// Who supersedes it directly.
    pub fn newer(&self, instance: &Arc<Instance>) -> Option<&Arc<Instance>> {
        let claim = Claim(Arc::clone(instance));
        let after = (Excluded(&claim), Unbounded);
        let newer = self.claims.range(after).next()?;
        claim.rivals(newer).then_some(&newer.0)
    }

    /// What serves: one instance for each `address:port`.
    pub fn instances(&self) -> Instances {
        // The newest of each is the last, which counts.
        self.claims.iter().map(|Claim(i)| Arc::clone(i)).collect()
    }

    /// What serves the address and port of this one.
    pub fn serving(&self, instance: &Arc<Instance>) -> Option<&Arc<Instance>> {
        let claim = Claim(Arc::clone(instance));
        let mut newest = Instance::clone(instance);
        newest.origin.czxid = i64::MAX;
        let serving = self.claims.range(..=Claim(newest.into())).next_back()?;
        claim.rivals(serving).then_some(&serving.0)
    }

    /// The instances of a service differ little: zone and metadata are held once where the neighbour
    /// in the order of addresses has equal ones.
    pub fn shared(&self, new: Instance) -> Arc<Instance> {
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
